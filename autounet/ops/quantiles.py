"""Quantiles of samples that count equally whatever their sizes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def quantiles_of_samples(values: Sequence[np.ndarray], quantiles: Sequence[float]) -> list[float]:
    """`weighted_quantiles` of samples (N) float32 that count equally, without joining them; they are sorted in place.

    Memory beside the samples would be ten times theirs, and grow with the number of cases.
    """
    for each in values:
        each.sort()
    top = max(float(each[-1]) for each in values)
    last = 1 - _last_weight(values, top)
    return [_quantile(values, quantile * last) for quantile in quantiles]


def _quantile(values: Sequence[np.ndarray], target: float) -> float:
    """Where the weight of all that is smaller reaches `target`, linear between neighbours; samples sorted."""
    low, high = (float(side(ends)) for side, ends in ((min, [v[0] for v in values]), (max, [v[-1] for v in values])))
    below, above = _ordered(low), _ordered(high) + 1
    while above - below > 1:  # the largest number with at most `target` below it, by bisection over all float32
        middle = (below + above) // 2
        below, above = (middle, above) if _weight_below(values, _number(middle)) <= target else (below, middle)
    bound = _number(below)
    value = max(float(each[each.searchsorted(bound, "right") - 1]) for each in values if each[0] <= bound)
    larger = [float(each[each.searchsorted(value, "right")]) for each in values if each[-1] > value]
    weight = _last_weight(values, value)
    start = _weight_below(values, np.nextafter(np.float32(value), np.float32(np.inf))) - weight
    if not larger or target <= start:
        return value
    return value + min(1.0, (target - start) / weight) * (min(larger) - value)


def _weight_below(values: Sequence[np.ndarray], bound: np.float32) -> float:
    return sum(int(each.searchsorted(bound)) / len(each) for each in values) / len(values)


def _last_weight(values: Sequence[np.ndarray], value: float) -> float:
    """Weight of the last sample's number that equals `value`: in a stable order it comes last among equals."""
    sizes = [len(each) for each in values if each.searchsorted(value, "right") > each.searchsorted(value)]
    return 1 / sizes[-1] / len(values)


def _ordered(value: float) -> int:
    """float32 as an integer that is larger for larger numbers."""
    bits = int(np.float32(value).view(np.int32))
    return bits if bits >= 0 else -(bits & 0x7FFFFFFF)


def _number(order: int) -> np.float32:
    """Inverse of `_ordered`."""
    return np.int32(order if order >= 0 else -order - 2**31).view(np.float32)


def weighted_quantiles(values: np.ndarray, weights: np.ndarray, quantiles: Sequence[float]) -> list[float]:
    """Quantiles of a weighted sample (weights sum to 1); with equal weights those of `np.quantile`."""
    order = np.argsort(values, kind="stable")
    values, weights = values[order], weights[order]
    position = np.cumsum(weights) - weights
    last = position[-1]
    return [float(np.interp(quantile * last, position, values)) for quantile in quantiles]

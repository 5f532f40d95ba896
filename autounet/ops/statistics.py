"""Confidence intervals of means over cases, by percentile bootstrap, and quantiles of several samples together.

Source: Efron, "Bootstrap methods: another look at the jackknife", Annals of Statistics 7:1, 1979; for segmentation
metrics as in Maier-Hein et al., "Why rankings of biomedical image analysis competitions should be interpreted with
care", Nature Communications 2018. Cases are drawn with replacement, because cases are what a study samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

LEVEL: Final = 0.95
"""share of the draws whose mean lies within the interval"""
DRAWS: Final = 2000
"""the ends of a 95 % interval then vary by about 2 % of its width from seed to seed"""
PICKS = 2**22
"""cases picked at a time: bounds the memory for data sets of many images"""
LEAST_VALUES: Final = 2
"""one case says nothing about how much cases differ"""


def resampled_means(table: np.ndarray, seed: int, draws: int = DRAWS) -> np.ndarray:
    """Means of each column of (cases, columns) over cases drawn with replacement: (draws, columns), float64.

    NaN: not defined in that case, and left out of the mean; a mean is NaN where a draw holds defined values of no
    case. All columns share the draws, so differences and sums of columns keep what they owe to the same cases.
    """
    table = np.asarray(table, dtype=np.float64)
    defined = ~np.isnan(table)
    filled = np.where(defined, table, 0.0)
    means = np.full((draws, table.shape[1]), np.nan)
    random, done = np.random.default_rng(seed), 0
    while done < draws:
        drawn = _times_drawn(random, len(table), min(draws - done, max(1, PICKS // len(table))))
        sums, counts = drawn @ filled, drawn @ defined
        np.divide(sums, counts, out=means[done : done + len(drawn)], where=counts > 0)
        done += len(drawn)
    return means


def _times_drawn(random: np.random.Generator, cases: int, draws: int) -> np.ndarray:
    """How often each draw of `cases` out of `cases` holds each case: (draws, cases), float64."""
    picks = random.integers(cases, size=(draws, cases)) + np.arange(draws)[:, None] * cases
    return np.bincount(picks.ravel(), minlength=draws * cases).reshape(draws, cases).astype(np.float64)


def interval(means: np.ndarray, level: float = LEVEL) -> tuple[float, float] | None:
    """The middle `level` of means (draws,), NaN left out; None without any."""
    known = means[~np.isnan(means)]
    if not len(known):
        return None
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def intervals(table: np.ndarray, seed: int = 0) -> list[tuple[float, float] | None]:
    """`bootstrap_interval` of each column of (cases, columns) for itself, from the same draws."""
    if not table.size:
        return [None] * table.shape[1]
    enough = (~np.isnan(table)).sum(axis=0) >= LEAST_VALUES
    means = resampled_means(table, seed)
    return [interval(means[:, column]) if enough[column] else None for column in range(table.shape[1])]


def bootstrap_interval(
    values: Sequence[float] | np.ndarray, seed: int = 0, level: float = LEVEL, draws: int = DRAWS
) -> tuple[float, float] | None:
    """Confidence interval (low, high) of the mean of `values`, one per case; the same for the same seed.

    NaN is an undefined value and is left out. `values` may also be (cases, classes): then of the mean over classes of
    the mean over the cases where it is defined, as `mean_dice` is. None with fewer than two cases that have a value.
    """
    table = np.asarray(values, dtype=np.float64)
    table = table[:, None] if table.ndim == 1 else table
    table = table[:, ~np.isnan(table).all(axis=0)]
    table = table[~np.isnan(table).all(axis=1)]
    if len(table) < LEAST_VALUES:
        return None
    means = resampled_means(table, seed, draws)
    defined = ~np.isnan(means)
    sums = np.where(defined, means, 0.0).sum(axis=1)
    counts = defined.sum(axis=1)
    return interval(np.divide(sums, counts, out=np.full(len(sums), np.nan), where=counts > 0), level)


def quantiles_of_samples(values: Sequence[np.ndarray], quantiles: Sequence[float]) -> list[float]:
    """Quantiles of the union of samples (N) float32 of which each weighs the same; they are sorted in place.

    The samples are not joined: that would take ten times their memory, which grows with the number of cases.
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

"""File values of labels <-> dense class indices."""

from __future__ import annotations

import numpy as np

from ..schema.labels import Labels

NO_LOSS = -1
"""dense index of voxels with the ignore value"""
_TABLE = 1 << 16
"""value range up to which a lookup table is used"""


def encode(values: np.ndarray, labels: Labels) -> np.ndarray:
    """(...) file values -> (...) int16 dense indices: 0 background, 1..K-1, -1 for the ignore value.

    Raises ValueError naming a value that no class has.
    """
    known = list(labels.values) + ([labels.ignore] if labels.ignore is not None else [])
    dense = np.array([*range(labels.count), *([NO_LOSS] if labels.ignore is not None else [])], np.int16)
    order = np.argsort(known)
    ordered, dense = np.asarray(known)[order], dense[order]
    low, high = int(ordered[0]), int(ordered[-1])
    if values.size and (values.min() < low or values.max() > high):
        raise ValueError(f"label value {_first_unknown(values, known)} is no class")
    if high - low < _TABLE:
        unknown = labels.count + 1
        table = np.full(high - low + 1, unknown, np.int16)
        table[ordered - low] = dense
        encoded = table[values - low]
        if values.size and encoded.max() == unknown:
            raise ValueError(f"label value {_first_unknown(values, known)} is no class")
        return encoded
    position = np.searchsorted(ordered, values)
    if not (ordered[position] == values).all():
        raise ValueError(f"label value {_first_unknown(values, known)} is no class")
    return dense[position]


def values_in(values: np.ndarray) -> set[int]:
    """The different values of an integer array of any shape; those at the starts of runs of equal voxels are all.

    Label images are made of runs: for 256^3 voxels this takes a tenth of the time of `np.unique`.
    """
    flat = np.ravel(values)
    starts = flat[1:][flat[1:] != flat[:-1]]
    return {int(value) for value in np.unique(np.concatenate([flat[:1], starts]))}


def _first_unknown(values: np.ndarray, known: list[int]) -> int:
    return int(np.setdiff1d(values, known)[0])


def decode(dense: np.ndarray, labels: Labels) -> np.ndarray:
    """(...) dense indices 0..K-1 -> (...) int32 file values; -1 becomes the ignore value (0 when there is none)."""
    table = np.array([*labels.values, labels.ignore if labels.ignore is not None else 0], np.int32)
    return table[dense]

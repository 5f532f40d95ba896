"""Mirroring along spatial axes: every combination, and the swap of left and right classes that belongs to one axis."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np


def mirror_combinations(axes: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """All subsets of the spatial axes, the empty one first: 2 to the power of their number."""
    ordered = sorted(set(axes))
    return tuple(subset for count in range(len(ordered) + 1) for subset in combinations(ordered, count))


def tensor_axes(axes: Sequence[int], dims: int) -> tuple[int, ...]:
    """Spatial axes 0..dims-1 as negative axes of an array whose last `dims` axes are spatial."""
    if any(not 0 <= axis < dims for axis in axes):
        raise ValueError(f"mirror axes {tuple(axes)} do not fit {dims} spatial axes")
    return tuple(axis - dims for axis in axes)


def mirror(array: np.ndarray, axes: Sequence[int], dims: int) -> np.ndarray:
    """View of (..., *S) mirrored along spatial axes. It is its own inverse."""
    return np.flip(array, tensor_axes(axes, dims))


def swapped_classes(count: int, pairs: Sequence[tuple[int, int]]) -> tuple[int, ...]:
    """Class order after mirroring left and right: dense index i takes the scores of the returned entry i."""
    order = list(range(count))
    for left, right in pairs:
        order[left], order[right] = right, left
    return tuple(order)

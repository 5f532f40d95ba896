"""Mirroring along spatial axes, in training and at test time."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations


def mirror_combinations(axes: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """All subsets of the spatial axes, the empty one first: 2 to the power of their number."""
    ordered = sorted(set(axes))
    return tuple(subset for count in range(len(ordered) + 1) for subset in combinations(ordered, count))


def tensor_axes(axes: Sequence[int], dims: int) -> tuple[int, ...]:
    """Spatial axes 0..dims-1 as negative axes of an array whose last `dims` axes are spatial."""
    if any(not 0 <= axis < dims for axis in axes):
        raise ValueError(f"mirror axes {tuple(axes)} do not fit {dims} spatial axes")
    return tuple(axis - dims for axis in axes)

"""Mirroring along spatial axes and at the borders of images, in training and at test time."""

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


def mirrored_indices(start: int, stop: int, length: int) -> np.ndarray:
    """Where the voxels `start`..`stop` - 1 of a line lie that goes on beyond its `length` voxels as in a mirror.

    Integers in 0..length - 1. The border voxel itself is not repeated (numpy's "reflect"), at any distance.
    """
    period = max(1, 2 * (length - 1))
    place = np.arange(start, stop) % period
    return np.minimum(place, period - place) if length > 1 else np.zeros_like(place)

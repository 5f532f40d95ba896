"""Tiles that cover an image, the weights that blend their predictions, and mirroring. Pure numbers, no torch."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from itertools import combinations

import numpy as np

GAUSSIAN_SIGMA = 1 / 8
"""standard deviation of the tile weights as a fraction of the patch (nnU-Net, Isensee et al. 2021)"""


def axis_starts(size: int, patch: int, overlap: float) -> tuple[int, ...]:
    """First voxel of each tile along one axis: as few tiles as `overlap` allows, spread evenly.

    `overlap` is the least fraction of the patch that neighbours share, in [0, 1). The first tile starts at 0, the
    last one ends at `size`. Raises ValueError when the patch is larger than the image (pad first) or the overlap
    is out of range.
    """
    if not 0 <= overlap < 1:
        raise ValueError(f"overlap {overlap} is not in [0, 1)")
    if not 0 < patch <= size:
        raise ValueError(f"a patch of {patch} does not fit into {size} voxels")
    span = size - patch
    step = max(1.0, patch * (1 - overlap))
    gaps = math.ceil(span / step)
    return tuple(round(index * (span / gaps)) for index in range(gaps + 1)) if gaps else (0,)


def tile_starts(image_size: Sequence[int], patch: Sequence[int], overlap: float) -> list[tuple[int, ...]]:
    """First corner of every tile, last axis fastest. See `axis_starts`."""
    axes = [axis_starts(size, length, overlap) for size, length in zip(image_size, patch, strict=True)]
    return list(itertools.product(*axes))


def tile_windows(starts: Sequence[int], patch: Sequence[int]) -> tuple[slice, ...]:
    """The slices of one tile."""
    return tuple(slice(start, start + length) for start, length in zip(starts, patch, strict=True))


def centred_padding(image_size: Sequence[int], patch: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """(below, above) per axis that makes an image at least as large as the patch, the odd voxel above."""
    missing = [max(0, length - size) for size, length in zip(image_size, patch, strict=True)]
    return tuple((count // 2, count - count // 2) for count in missing)


def gaussian_weights(patch: Sequence[int]) -> np.ndarray:
    """Weights of a tile's voxels, float32 of the patch's shape: 1 in the centre (voxel n // 2), positive everywhere."""
    weights = np.ones((), dtype=np.float64)
    for length in patch:
        distance = (np.arange(length) - length // 2) / (length * GAUSSIAN_SIGMA)
        weights = np.multiply.outer(weights, np.exp(-0.5 * distance**2))
    return weights.astype(np.float32)


def uniform_weights(patch: Sequence[int]) -> np.ndarray:
    """Every voxel of a tile counts the same."""
    return np.ones(tuple(patch), dtype=np.float32)


WEIGHTINGS = {"gaussian": gaussian_weights, "uniform": uniform_weights}
"""by the names of `InferenceSpec.weighting`"""


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

"""Spline interpolation along one axis as a linear map, for grids whose outer faces coincide.

New voxel i of n sits at (i + 0.5) * old / n - 0.5 in old voxels, and the image continues beyond its border as its
last voxel: the convention of skimage's `resize(mode="edge")`, which nnU-Net uses. Interpolation is separable, so
volumes are resampled axis by axis. Orders 0 and 1 need two neighbours a voxel (`taps`). Order 3 needs a recursive
filter over the whole line first, but its response falls by 0.27 a voxel, so filter and interpolation together are a
sparse matrix of about 30 entries a row. Applying that is faster than filtering and needs no padded float64 copy.
It is not BLAS work because OpenBLAS's threads wait for each other for seconds on a busy machine.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from scipy.ndimage import spline_filter1d
from scipy.sparse import coo_array, csr_array

BORDER = 12
"""voxels of edge padding before the filter, as in scipy's `zoom`"""
REACH = 16
"""voxels beyond a block that still matter: 0.268 ** 16 < 1e-9"""
BLOCK = 64
"""new voxels whose matrix rows are made at a time"""
NEGLIGIBLE = 1e-9
LINES = 256


class Taps(NamedTuple):
    """New voxel i is old[low[i]] * (1 - weight[i]) + old[high[i]] * weight[i]; low = high where the weight is 0."""

    low: np.ndarray
    high: np.ndarray
    weight: np.ndarray

    def flipped(self, size: int) -> Taps:
        """The same map for an axis that runs backwards on both grids; `size` is the old one."""
        weight = np.where(self.low == self.high, np.float32(0), 1 - self.weight)[::-1]
        return Taps(size - 1 - self.high[::-1], size - 1 - self.low[::-1], weight)


def positions(old: int, new: int) -> np.ndarray:
    """Where the new voxels' centres lie, in old voxels."""
    return (np.arange(new) + 0.5) * (old / new) - 0.5


@lru_cache(maxsize=64)
def taps(old: int, new: int, order: int) -> Taps:
    """Order 0 (nearest; halves go up) or 1 (linear). The arrays are shared: do not write to them."""
    where = positions(old, new)
    if order == 0 or old == new:
        nearest = np.clip(np.floor(where + 0.5).astype(np.int64), 0, old - 1)
        return Taps(nearest, nearest, np.zeros(new, np.float32))
    where = np.clip(where, 0, old - 1)
    low = np.floor(where).astype(np.int64)
    weight = (where - low).astype(np.float32)
    return Taps(low, low + (weight > 0), weight)


def apply_taps(array: np.ndarray, axis: int, along: Taps) -> np.ndarray:
    """float32 `array` interpolated along one axis."""
    below = array.take(along.low, axis)
    if not along.weight.any():
        return below
    shape = [1] * array.ndim
    shape[axis] = -1
    difference = array.take(along.high, axis)
    difference -= below
    difference *= along.weight.reshape(shape)
    below += difference
    return below


@lru_cache(maxsize=64)
def cubic_operator(old: int, new: int) -> csr_array:
    """The map of order 3 from `old` to `new` voxels, (new, old) float32. Shared: do not write to it."""
    where = positions(old, new)
    blocks = []
    for start in range(0, new, BLOCK):
        stop = min(start + BLOCK, new)
        first = max(0, int(np.floor(where[start])) - REACH)
        last = min(old, int(np.ceil(where[stop - 1])) + REACH + 1)
        dense = _cubic_matrix(last - first, where[start:stop] - first)
        dense[np.abs(dense) < NEGLIGIBLE] = 0
        block = coo_array(dense.astype(np.float32))
        blocks.append((block.data, block.row + start, block.col + first))
    values, rows, columns = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
    return csr_array((values, (rows.astype(np.int32), columns.astype(np.int32))), shape=(new, old))


def _cubic_matrix(size: int, where: np.ndarray) -> np.ndarray:
    """(positions, size) float64: the values at `where` of the cubic spline through `size` edge-padded voxels."""
    padded = np.pad(np.eye(size), ((BORDER, BORDER), (0, 0)), mode="edge")
    coefficients = spline_filter1d(padded, order=3, axis=0, mode="nearest")
    base = np.floor(where).astype(np.int64)
    t = (where - base)[:, None]
    weights = ((1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, 3 * (1 - t) ** 3 - 6 * (1 - t) ** 2 + 4, t**3)
    return sum(weight / 6 * coefficients[base + BORDER - 1 + index] for index, weight in enumerate(weights))


def apply_cubic(array: np.ndarray, axis: int, new: int) -> np.ndarray:
    """Contiguous float32 `array` interpolated to `new` voxels along one axis with order 3."""
    old = array.shape[axis]
    lead, trail = int(np.prod(array.shape[:axis])), int(np.prod(array.shape[axis + 1 :]))
    operator = cubic_operator(old, new)
    result = np.empty((*array.shape[:axis], new, *array.shape[axis + 1 :]), np.float32)
    if trail == 1:
        lines, out = array.reshape(lead, old), result.reshape(lead, new)
        for start in range(0, lead, LINES):  # few lines at a time, so that transposing them stays in the cache
            some = slice(start, start + LINES)
            out[some] = (operator @ np.ascontiguousarray(lines[some].T)).T
    else:
        for source, target in zip(array.reshape(lead, old, trail), result.reshape(lead, new, trail), strict=True):
            target[...] = operator @ source
    return result

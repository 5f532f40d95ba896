"""Arrays from one voxel grid to another by nnU-Net's rules (Isensee et al. 2021).

Images go by cubic splines; labels class by class, linearly, and the class with most weight wins. When voxels are much
longer along one axis than along the others, that axis is resampled on its own with order 0: interpolating between
distant slices blurs more than it helps. `axis` below is that axis, or None.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..schema.geometry import Shape3
from ..schema.plan import PreprocessSpec
from .orient import permute

if TYPE_CHECKING:
    from scipy.sparse import csr_array

# scipy is imported inside functions: bundles of MONAI (`interop.export_monai`) hold this file and have no scipy

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

    def rows(self, start: int, stop: int, first: int) -> Taps:
        """Of the new voxels `start` to `stop`, in an array that begins with the old voxel `first`."""
        return Taps(self.low[start:stop] - first, self.high[start:stop] - first, self.weight[start:stop])


class Rows(NamedTuple):
    """Some rows along one axis of a result, from an array of which only the rows are there that these need.

    Each voxel gets what it would get with the whole array, to the last bit.
    """

    axis: int
    """0 to 2"""
    size: int
    """of the whole old array along the axis"""
    first: int
    """old row with which the array begins"""
    start: int
    """wanted new rows"""
    stop: int


def rows_needed(old: int, new: int, order: int, start: int, stop: int) -> tuple[int, int]:
    """The old rows (start, stop) that new rows of an axis are interpolated from."""
    if old == new:
        return start, stop
    if order < 2:
        along = taps(old, new, order)
        return int(along.low[start:stop].min()), int(along.high[start:stop].max()) + 1
    used = cubic_operator(old, new)[start:stop].indices
    return int(used.min()), int(used.max()) + 1


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
    from scipy.sparse import coo_array, csr_array

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
    from scipy.ndimage import spline_filter1d

    padded = np.pad(np.eye(size), ((BORDER, BORDER), (0, 0)), mode="edge")
    coefficients = spline_filter1d(padded, order=3, axis=0, mode="nearest")
    base = np.floor(where).astype(np.int64)
    t = (where - base)[:, None]
    weights = ((1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, 3 * (1 - t) ** 3 - 6 * (1 - t) ** 2 + 4, t**3)
    return sum(weight / 6 * coefficients[base + BORDER - 1 + index] for index, weight in enumerate(weights))


def apply_cubic(array: np.ndarray, axis: int, new: int, rows: Rows | None = None) -> np.ndarray:
    """Contiguous float32 `array` interpolated to `new` voxels along one axis with order 3, or to `rows`."""
    old = array.shape[axis]
    lead, trail = int(np.prod(array.shape[:axis])), int(np.prod(array.shape[axis + 1 :]))
    operator = cubic_operator(old if rows is None else rows.size, new)
    if rows is not None:
        operator = operator[rows.start : rows.stop, rows.first : rows.first + old]
        new = rows.stop - rows.start
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


TIE = 1e-6
"""label shares closer than this are equal; exact halves are common, as when a size doubles"""


def resampled_shape(shape: Sequence[int], spacing: Sequence[float], target: Sequence[float]) -> Shape3:
    """Voxels needed at spacing `target` to cover what `shape` covers at `spacing`, at least 1 along each axis."""
    a, b, c = (
        max(1, round(old / new * size)) for size, old, new in zip(shape, spacing, target, strict=True)
    )  # the order of the operations decides ties as nnU-Net does
    return a, b, c


def coarser_spacing(spacing: Sequence[float] | np.ndarray, scale: float, dimension: int) -> np.ndarray:
    """(3,) mm: no axis finer than `scale` times the finest, so that slices that are thick already stay as they are.

    Images of `dimension` 2 have no spacing along the first axis.
    """
    target = np.array(spacing, dtype=np.float64)
    plane = target[3 - dimension :]
    target[3 - dimension :] = np.maximum(plane, scale * plane.min())
    return target


def prepared_shape(spec: PreprocessSpec, shape: Sequence[int], spacing: Sequence[float]) -> Shape3:
    """Size on the prepared grid, network axis order, of a cropped case of `shape` and `spacing` (mm) as stored."""
    own = permute(spacing, spec.transpose)
    target = [old if new is None else new for old, new in zip(own, spec.spacing, strict=True)]
    return resampled_shape(permute(shape, spec.transpose), own, target)


def separate_axis(current: Sequence[float], new: Sequence[float], ratio: float = 3.0) -> int | None:
    """The axis to be resampled on its own, or None.

    The grid one comes from decides, else the grid one goes to: its largest spacing must exceed its smallest more than
    `ratio` times. Two equally long axes are no axis of slices.
    """
    for spacing in (current, new):
        longest = max(spacing)
        if longest / min(spacing) > ratio:
            candidates = [axis for axis, value in enumerate(spacing) if value == longest]
            return candidates[0] if len(candidates) == 1 else None
    return None


def axis_orders(order: int, axis: int | None, z_order: int) -> tuple[int, int, int]:
    """Spline order per axis."""
    a, b, c = (z_order if index == axis else order for index in range(3))
    return a, b, c


def axis_taps(old: Sequence[int], new: Sequence[int], orders: Sequence[int]) -> tuple[Taps, Taps, Taps]:
    """Taps per axis for orders 0 and 1."""
    a, b, c = (taps(int(m), int(n), order) for m, n, order in zip(old, new, orders, strict=True))
    return a, b, c


def resample_image(
    image: np.ndarray,
    shape: Sequence[int],
    order: int = 3,
    axis: int | None = None,
    z_order: int = 0,
    rows: Rows | None = None,
    limits: np.ndarray | None = None,
) -> np.ndarray:
    """float32 (C, *S) on a grid of `shape`. Values never leave the range they had (per slice across `axis`).

    With `rows`, `image` is a part of a whole image, and so is the result; `limits` (2, C, 1, 1, 1) or with the length
    of `image` along `axis` are then the least and largest values of the whole image.
    """
    image = np.ascontiguousarray(image, dtype=np.float32)
    old, new = list(image.shape[1:]), list(shape)
    if rows is not None:
        old[rows.axis], new[rows.axis] = rows.size, rows.stop - rows.start
    if rows is None and old == new:
        return image
    result = np.empty((len(image), *new), np.float32)
    for index, (source, target) in enumerate(zip(image, result, strict=True)):
        own = None if limits is None else limits[:, index]
        target[...] = _resample_channel(source, old, shape, axis_orders(order, axis, z_order), axis, rows, own)
    return result


def _resample_channel(
    channel: np.ndarray,
    old: Sequence[int],
    shape: Sequence[int],
    orders: tuple[int, int, int],
    axis: int | None,
    rows: Rows | None,
    limits: np.ndarray | None,
) -> np.ndarray:
    """In-plane first and clipped there, then along `axis`; shrinking axes before growing ones."""
    plane = sorted((i for i in range(3) if i != axis), key=lambda i: shape[i] / old[i])
    across = None if axis is None else tuple(plane)
    if limits is None:
        lowest, highest = channel.min(axis=across, keepdims=True), channel.max(axis=across, keepdims=True)
    else:
        lowest, highest = limits
    for index in plane:
        channel = _resample_axis(channel, index, old[index], shape[index], orders[index], rows)
    if any(orders[index] > 1 for index in plane):
        channel = np.clip(channel, lowest, highest)
    return channel if axis is None else _resample_axis(channel, axis, old[axis], shape[axis], orders[axis], rows)


def _resample_axis(array: np.ndarray, axis: int, old: int, new: int, order: int, rows: Rows | None) -> np.ndarray:
    rows = rows if rows is not None and rows.axis == axis else None
    if old == new:
        return array if rows is None else array.take(range(rows.start - rows.first, rows.stop - rows.first), axis)
    if order < 2:
        along = taps(old, int(new), order)
        return apply_taps(array, axis, along if rows is None else along.rows(rows.start, rows.stop, rows.first))
    if order != 3:
        raise ValueError(f"spline order {order} is not supported: 0, 1 and 3 are")
    return apply_cubic(np.ascontiguousarray(array), axis, int(new), rows)


def resample_labels(
    labels: np.ndarray, shape: Sequence[int], order: int = 1, axis: int | None = None, z_order: int = 0
) -> np.ndarray:
    """Dense labels (*S), -1 included, on a grid of `shape`, in their own type.

    Each label's indicator is interpolated inside its bounding box only; the largest wins, equal ones go to the larger
    label as in nnU-Net. The most frequent label is what the others leave.
    """
    if labels.shape == tuple(shape):
        return labels
    from scipy.ndimage import find_objects

    along = axis_taps(labels.shape, shape, axis_orders(order, axis, z_order))
    if all(not each.weight.any() for each in along):
        return labels[np.ix_(*(each.low for each in along))]
    lowest = int(labels.min())
    counted = labels.astype(np.int32) - lowest  # a difference of two int8 may be none
    boxes = {index + lowest: box for index, box in enumerate(find_objects(counted + 1)) if box}
    counts = np.bincount(counted.ravel())
    common = int(counts.argmax()) + lowest
    result = np.full(shape, common, labels.dtype)
    best, total = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    for label, box in boxes.items():
        if label == common:
            continue
        target, share = _indicator_share(labels, label, box, along)
        total[target] += share
        wins = (share > best[target] - TIE) & (share > 0)
        result[target][wins] = label
        np.maximum(best[target], share, out=best[target])
    ahead = 1 - total - best
    result[(ahead > TIE) | ((ahead > -TIE) & (result < common))] = common
    return result


def _indicator_share(
    labels: np.ndarray, label: int, box: tuple[slice, ...], along: tuple[Taps, Taps, Taps]
) -> tuple[tuple[slice, ...], np.ndarray]:
    """Where on the new grid a label's box reaches, and its interpolated indicator (float32) there."""
    source, target, local = [], [], []
    for inside, each, size in zip(box, along, labels.shape, strict=True):
        touched = np.flatnonzero((each.high >= inside.start) & (each.low < inside.stop))
        if touched.size == 0:
            return (slice(0, 0),) * 3, np.zeros((0, 0, 0), np.float32)
        first, last = max(0, inside.start - 1), min(size, inside.stop + 1)
        rows = slice(int(touched[0]), int(touched[-1]) + 1)
        source.append(slice(first, last))
        target.append(rows)
        local.append(Taps(each.low[rows] - first, each.high[rows] - first, each.weight[rows]))
    share = (labels[tuple(source)] == label).astype(np.float32)
    for index, each in enumerate(local):
        share = apply_taps(share, index, each)
    return tuple(target), share

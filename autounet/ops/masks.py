"""Masks: what is not zero, the box around it, filled holes, connected components and which are kept; centre lines.

And intensities, normalised inside of them; and the values of label files as dense classes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np

from ..schema.geometry import Box3
from ..schema.labels import Labels
from ..schema.plan import ChannelNormalisation
from ..schema.selection import PostprocessStep


def nonzero_box(image: np.ndarray) -> Box3:
    """Half-open (start, stop) per axis of the smallest box that holds every voxel of (C, Z, Y, X) not 0 in any channel.

    An image that is zero everywhere gives its whole extent, so that a crop is never empty.
    """
    mask = nonzero_mask(image)
    box = []
    for axis in range(3):
        found = np.flatnonzero(mask.any(axis=tuple(other for other in range(3) if other != axis)))
        if found.size == 0:
            a, b, c = ((0, size) for size in mask.shape)
            return a, b, c
        box.append((int(found[0]), int(found[-1]) + 1))
    return box[0], box[1], box[2]


def nonzero_mask(image: np.ndarray) -> np.ndarray:
    """(Z, Y, X) bool: not 0 in any channel of (C, Z, Y, X)."""
    mask = image[0] != 0
    for channel in image[1:]:
        mask |= channel != 0
    return mask


def filled_mask(image: np.ndarray) -> np.ndarray:
    """`nonzero_mask` with its holes filled: zeros that no path over faces joins to the border belong to the object.

    Same voxels as scipy's `binary_fill_holes`, by components of the zeros, which is much faster on volumes.
    """
    import cc3d  # inside: bundles of MONAI hold this file and have no cc3d

    mask = nonzero_mask(image)
    if mask.all():
        return mask
    zeros = cc3d.connected_components(np.ascontiguousarray(~mask), connectivity=6)
    outside = {0}
    for axis in range(3):
        outside.update(np.unique(zeros.take((0, -1), axis=axis)).tolist())
    hole = np.ones(int(zeros.max()) + 1, dtype=bool)
    hole[list(outside)] = False
    return mask | hole[zeros]


def crop(array: np.ndarray, box: Box3) -> np.ndarray:
    """View of (..., Z, Y, X) inside the box."""
    z, y, x = (slice(start, stop) for start, stop in box)
    return array[..., z, y, x]


NEIGHBOURS = {2: 8, 3: 26}
"""voxels that touch at a corner belong together, as in nnU-Net"""


class Components(NamedTuple):
    """Of a boolean mask."""

    numbers: np.ndarray
    """the mask's shape, unsigned integers: 0 outside, 1..N inside"""
    voxels: np.ndarray
    """(N,) int64: size of each, in voxels"""


def components(mask: np.ndarray) -> Components:
    """Components of a mask (Z, Y, X), a slice where Z is 1; the mask alone decides on their order."""
    import cc3d

    flat = mask.shape[0] == 1
    # as numbers: for booleans cc3d 4.1 runs out of labels where two axes have a single voxel
    array = np.ascontiguousarray(mask[0] if flat else mask, dtype=bool).view(np.uint8)
    if not array.size:
        return Components(np.zeros(mask.shape, np.uint16), np.zeros(0, np.int64))
    found = cc3d.connected_components(array, connectivity=NEIGHBOURS[array.ndim])  # type: ignore[call-overload]
    numbers = np.asarray(found).reshape(mask.shape)
    return Components(numbers, np.bincount(numbers.ravel())[1:].astype(np.int64))


def largest(voxels: np.ndarray) -> np.ndarray:
    """(N,) bool: True for the largest component, the first of equals; all False without components."""
    kept = np.zeros(len(voxels), bool)
    if len(voxels):
        kept[int(np.argmax(voxels))] = True
    return kept


def kept_components(step: PostprocessStep, volumes: np.ndarray) -> np.ndarray:
    """(N,) bool: which components of these volumes (in the unit of `step.minimum`) the step keeps."""
    return largest(volumes) if step.minimum is None else volumes >= step.minimum


def apply_steps(segmentation: np.ndarray, spacing: Sequence[float], steps: Sequence[PostprocessStep]) -> np.ndarray:
    """A segmentation (Z, Y, X) of file values with components removed, in the order of the steps; spacing (z, y, x)."""
    for step in steps:
        found = components(np.isin(segmentation, step.values))
        removed = ~kept_components(step, found.voxels * float(np.prod(spacing)))
        if removed.any():
            segmentation = np.where(np.concatenate([[False], removed])[found.numbers], 0, segmentation)
    return segmentation


def skeleton(mask: np.ndarray) -> np.ndarray:
    """The centre line of a boolean mask of 1 to 3 axes: thin, inside the mask, with the mask's components and holes.

    Same shape; beyond the array is outside. Zhang and Suen 1984 in 2-D. In 3-D not scikit-image's: its form of Lee,
    Kashyap and Chu 1994 deletes whole components, such as tubes of even width (its issue 3757, in 0.26).
    """
    from skimage.morphology import skeletonize  # takes a while to load, and few runs need it

    if mask.ndim == 3:
        return _thinned(mask)
    return skeletonize(np.atleast_2d(mask)).astype(bool).reshape(mask.shape)


STEPS = np.array(list(itertools.product((-1, 0, 1), repeat=3)))
"""(27, 3) from a voxel to its neighbours along (z, y, x); a set of neighbours is an integer with bit j for the j-th"""
ITSELF = 13
FACES, EDGES = (sum(1 << j for j, step in enumerate(STEPS) if 0 < abs(step).sum() <= most) for most in (1, 2))
"""neighbours across a face; across a face or an edge"""


def _thinned(mask: np.ndarray) -> np.ndarray:
    """Layer by layer and from each side in turn, voxels go that are not needed (`_removable`), one after the other.

    Whole fields of voxels go at once, with the same result: two voxels of a field (`_fields`) are no neighbours, so
    neither changes whether the other is needed (Bertrand and Aktouf 1994).
    """
    numbers = np.pad(components(mask).numbers, 1)
    inside = numbers > 0
    flat, field = inside.ravel(), _fields(numbers).ravel()  # views
    strides = np.array(inside.strides)
    around = STEPS @ strides
    sides = [sign * stride for stride, size in zip(strides, mask.shape, strict=True) if size > 1 for sign in (-1, 1)]
    layer = np.flatnonzero(flat)
    while len(layer) and sides:
        layer = layer[~flat[np.add.outer(layer, sides)].all(1)]  # at the surface
        for side in sides:
            open_there = layer[flat[layer] & ~flat[layer + side]]
            open_there = open_there[_removable(flat, open_there, around)]
            for number in np.unique(field[open_there]):
                part = open_there[field[open_there] == number]
                flat[part[_removable(flat, part, around)]] = False
        gone = layer[~flat[layer]]
        if not len(gone):
            break
        layer = np.union1d(layer, np.add.outer(gone, sides).ravel())
        layer = layer[flat[layer]]
    return inside[1:-1, 1:-1, 1:-1]


def _fields(numbers: np.ndarray) -> np.ndarray:
    """(Z,Y,X) 0 to 7 by whether z, y and x are even: counted from each component's own corner."""
    places = np.nonzero(numbers)
    found = numbers[places]
    field = np.zeros(numbers.shape, np.uint8)
    for axis, place in enumerate(places):
        corner = np.full(int(numbers.max()) + 1, numbers.shape[axis])
        np.minimum.at(corner, found, place)
        field[places] = 2 * field[places] + (place - corner[found]) % 2
    return field


def _removable(flat: np.ndarray, places: np.ndarray, around: np.ndarray) -> np.ndarray:
    """(N,) bool: whether each voxel is no end of a line, and simple: without it there are the same parts and holes.

    Simple: its neighbours inside are one component, and those outside that share a face with it are joined by faces
    among the 18 nearest (Bertrand and Malandain 1994).
    """
    inside = np.zeros(len(places), np.int32)
    for bit, step in enumerate(around):
        if bit != ITSELF:
            inside |= flat[places + step].astype(np.int32) << bit
    outside = ~inside & EDGES
    ends = inside & (inside - 1) == 0  # one neighbour, or none
    joined = (_joined(inside, inside, 3) == inside) & (_joined(outside & FACES, outside, 1) & FACES == outside & FACES)
    return ~ends & joined & (outside & FACES != 0)


def _joined(seeds: np.ndarray, allowed: np.ndarray, most: int) -> np.ndarray:
    """(N,) sets: what of `allowed` the first of `seeds` reaches by steps along at most so many axes."""
    table = _reach(most)
    found = seeds & -seeds
    while True:
        more = (found | table[0][found & 511] | table[1][found >> 9 & 511] | table[2][found >> 18]) & allowed
        if np.array_equal(more, found):
            return found
        found = more


@cache
def _reach(most: int) -> np.ndarray:
    """(3, 512) sets: what is one step from a set of the first, second and last nine neighbours."""
    table = np.zeros((3, 512), np.int32)
    for bit, step in enumerate(STEPS):
        apart = abs(STEPS - step)
        near = (apart.max(1) == 1) & (apart.sum(1) <= most)
        near[ITSELF] = False
        table[bit // 9] |= np.where(np.arange(512) >> bit % 9 & 1, int((near * (1 << np.arange(27))).sum()), 0)
    return table


SMALLEST_STD = 1e-8
"""a constant channel becomes zero instead of a division by zero"""
LARGEST = 2.0**60
"""beyond it, squares and differences of float32 may overflow; half of the largest exponent, less what a sum adds"""


def normalise(image: np.ndarray, schemes: Sequence[ChannelNormalisation]) -> np.ndarray:
    """New contiguous float32 array of (C, Z, Y, X), each channel by its scheme, to the range that a network likes.

    The schemes are nnU-Net's (Isensee et al. 2021): CT by statistics of the data set's foreground, colour images to
    0..1, everything else by the case's own mean and standard deviation. The values are those that the plan holds.

    Raises ValueError when there are not as many schemes as channels.
    """
    if len(schemes) != len(image):
        raise ValueError(f"{len(image)} channels, but normalisation for {len(schemes)}")
    mask = filled_mask(image) if any(scheme.nonzero_only for scheme in schemes) else None
    result = np.array(image, dtype=np.float32, order="C")
    for channel, scheme in zip(result, schemes, strict=True):
        SCHEMES[scheme.scheme](channel, scheme, mask if scheme.nonzero_only else None)
    return result


def _ct(channel: np.ndarray, scheme: ChannelNormalisation, mask: np.ndarray | None) -> None:
    np.clip(channel, scheme.lower, scheme.upper, out=channel)
    channel -= scheme.mean
    channel /= max(scheme.std, SMALLEST_STD)


def _zscore(channel: np.ndarray, scheme: ChannelNormalisation, mask: np.ndarray | None) -> None:
    """With a mask, voxels outside it are neither counted nor changed: they stay 0."""
    inside = channel if mask is None else channel[mask]
    if inside.size == 0:
        return
    _scale_down(inside)
    inside -= np.float32(inside.mean(dtype=np.float64))
    spread = np.sqrt(np.square(inside).mean(dtype=np.float64))
    inside /= np.float32(max(spread, SMALLEST_STD))
    if mask is not None:
        channel[mask] = inside


def _unit(channel: np.ndarray, scheme: ChannelNormalisation, mask: np.ndarray | None) -> None:
    channel -= scheme.lower
    channel /= max(scheme.upper - scheme.lower, SMALLEST_STD)


def _range(channel: np.ndarray, scheme: ChannelNormalisation, mask: np.ndarray | None) -> None:
    _scale_down(channel)
    channel -= channel.min()
    channel /= max(channel.max(), SMALLEST_STD)


def _scale_down(values: np.ndarray) -> None:
    """In place by a power of two where values are beyond `LARGEST`, for schemes that give the same at every scale."""
    if max(-float(values.min()), float(values.max())) > LARGEST:
        values *= np.float32(LARGEST / np.finfo(np.float32).max)


def _none(channel: np.ndarray, scheme: ChannelNormalisation, mask: np.ndarray | None) -> None:
    return None


SCHEMES: dict[str, Callable[[np.ndarray, ChannelNormalisation, np.ndarray | None], None]] = {
    "ct": _ct,
    "zscore": _zscore,
    "unit": _unit,
    "range": _range,
    "none": _none,
}


# ---- file values of labels <-> dense class indices -------------------------------------------------------------------

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

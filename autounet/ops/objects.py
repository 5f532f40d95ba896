"""Objects that touch, such as nuclei: from numbered masks to what a network can learn, and back.

A network cannot learn numbers, so it learns where objects are and where their borders are: a rim inside each object
that is never missing between two that touch. What is left are cores, of which no two touch. Back, the cores are the
seeds of a watershed (Vincent and Soille, IEEE Transactions on Pattern Analysis and Machine Intelligence 1991) that
floods the foreground from the surest core voxels outwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import cc3d
import numpy as np
from scipy import ndimage

SHARE_OF_RIM: Final = 0.25
"""of the largest distance of an object's voxels to what is around it: how deep its rim is"""
MOST_STEPS: Final = 3.0
"""steps of the finest axis that a rim is deep at most; at least it is one"""
CERTAIN: Final = 255
"""uint8 of the probability 1"""
FACES: Final = 6
"""neighbours across which cores are one: diagonal ones leave a border intact"""


def object_borders(numbers: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    """Where numbered objects (Z, Y, X), 0 around them, have their borders: boolean (Z, Y, X).

    Border are the voxels of an object that lie within its rim of what is around it (a quarter of the depth of the
    object, between 1 and 3 steps of the finest axis, distances by `spacing`), and all that touch another object, also
    across a coarse axis and diagonally. The edge of the image is no border. Every object keeps a core: where all of it
    would be border, the deepest voxels that touch no other object, and where all do, the deepest.
    """
    found, compact = np.unique(numbers, return_inverse=True)
    compact = compact.reshape(numbers.shape).astype(np.int32)
    if found.size and found[0] != 0:
        compact += 1
    touching = _touching(compact)
    step = min((size for size, length in zip(spacing, numbers.shape, strict=True) if length > 1), default=1.0)
    border = np.zeros(numbers.shape, bool)
    for number, box in enumerate(ndimage.find_objects(compact), 1):
        wide = tuple(slice(max(0, side.start - 1), side.stop + 1) for side in box)
        own = compact[wide] == number
        if own.all():
            continue
        depth = ndimage.distance_transform_edt(own, sampling=spacing)
        deepest = float(depth.max())
        rim = min(max(SHARE_OF_RIM * deepest, step), MOST_STEPS * step) * (1 + 1e-6)
        edge = own & ((depth <= rim) | touching[wide])
        if not (own & ~edge).any():
            free = own & ~touching[wide]
            inner = np.where(free, depth, 0) if free.any() else depth
            edge &= inner < float(inner.max()) * (1 - 1e-6)
        border[wide] |= edge
    return border


def _touching(numbers: np.ndarray) -> np.ndarray:
    """Voxels of objects, numbered from 1, with a voxel of another among their 26 neighbours."""
    highest = ndimage.maximum_filter(numbers, size=3, mode="nearest")
    nothing = np.iinfo(np.int32).max
    lowest = ndimage.minimum_filter(np.where(numbers == 0, nothing, numbers), size=3, mode="nearest")
    return (numbers > 0) & ((highest != numbers) | (lowest != numbers))


def apart(numbers: np.ndarray, ignore: int | None = None) -> np.ndarray:
    """Objects (Z, Y, X) as a mask of 0 and 1, int32, in which those that touch at a face have a gap, for pictures."""
    shown = np.where(numbers == ignore, 0, numbers)
    result = (shown > 0).astype(np.int32)
    for axis in range(shown.ndim):
        first, second = (np.moveaxis(each, axis, 0) for each in (shown[...], result))
        meets = (first[1:] != first[:-1]) & (first[1:] > 0) & (first[:-1] > 0)
        second[1:][meets] = 0
    return result


def separate(core: np.ndarray, foreground: np.ndarray, threshold: float) -> np.ndarray:
    """Numbered objects (Z, Y, X) int32, from 1 on, from two maps of probabilities (Z, Y, X) uint8, 255 for certain.

    Each component of the core map from `threshold` (0..1) on, inside the foreground (from 1/2 on), is the seed of an
    object. Foreground that no seed reaches is an object for each of its components. Nothing of the foreground is left
    out, and nothing else is in an object.
    """
    from skimage.segmentation import watershed

    mask = foreground >= CERTAIN / 2
    seeds = cc3d.connected_components(mask & (core >= threshold * CERTAIN), connectivity=FACES).astype(np.int32)
    parts, count = cc3d.connected_components(mask, connectivity=FACES, return_N=True)
    seeded = np.zeros(count + 1, bool)
    seeded[parts[seeds > 0]] = True
    seeded[0] = True
    own = np.cumsum(~seeded).astype(np.int32)
    alone = ~seeded[parts]
    seeds[alone] = seeds.max(initial=0) + own[parts[alone]]
    flooded: np.ndarray = watershed(CERTAIN - core, seeds, mask=mask)
    return flooded.astype(np.int32, copy=False)


def without_small(numbers: np.ndarray, smallest: float, voxel: float) -> np.ndarray:
    """Without the objects whose volume, in voxels of the volume `voxel`, is below `smallest`; the others from 1 on."""
    sizes = np.bincount(numbers.ravel())
    kept = sizes * voxel >= smallest
    kept[0] = False
    kept &= sizes > 0
    return np.where(kept, np.cumsum(kept), 0).astype(np.int32)[numbers]


class MeasuredObject(NamedTuple):
    """One object of an image."""

    number: int
    voxels: int
    centroid: tuple[float, float, float]
    """(z, y, x), voxels, the first at 0"""
    intensities: tuple[float, ...]
    """mean of each channel"""


def measure_objects(numbers: np.ndarray, image: np.ndarray) -> list[MeasuredObject]:
    """Every object of a numbered mask (Z, Y, X) with its place and intensities in the image (C, Z, Y, X)."""
    inside = numbers > 0
    own = numbers[inside]
    count = int(numbers.max(initial=0)) + 1
    voxels = np.bincount(own, minlength=count)

    def means(values: np.ndarray) -> np.ndarray:
        return np.bincount(own, values, minlength=count) / np.maximum(voxels, 1)

    places = [means(each.astype(np.float64)) for each in np.nonzero(inside)]
    channels = [means(channel[inside].astype(np.float64)) for channel in image]
    return [
        MeasuredObject(
            number,
            int(voxels[number]),
            (float(places[0][number]), float(places[1][number]), float(places[2][number])),
            tuple(float(each[number]) for each in channels),
        )
        for number in np.flatnonzero(voxels).tolist()
    ]

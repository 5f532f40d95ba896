"""Objects that touch, such as nuclei: from numbered masks to what a network can learn, and back.

A network cannot learn numbers, so it learns how deep inside its object each voxel lies, in levels. Objects that touch
are hills with a valley between them. Back, the summits are the seeds of a watershed (Vincent and Soille, IEEE
Transactions on Pattern Analysis and Machine Intelligence 1991) that floods the foreground from the deepest voxels
outwards. Summits that a low saddle joins are one: those that rise above all ways to a higher one by a height are kept
(h-maxima, Soille, Morphological Image Analysis, 2003).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import cc3d
import numpy as np
from scipy import ndimage

CERTAIN: Final = 255
"""uint8 of the probability 1, and of the depth 1"""
FACES: Final = 6
"""neighbours across which voxels are one"""
SMOOTHING: Final = 1.0
"""standard deviation, in steps of the finest axis, by which depths are smoothed before summits are looked for"""


def object_depths(numbers: np.ndarray, spacing: Sequence[float], levels: int) -> np.ndarray:
    """How deep voxels lie in numbered objects (Z, Y, X), 0 around them: int8 (Z, Y, X), 1 outermost to `levels`.

    A voxel's depth is its distance, by `spacing`, to what is around its object, as a share of the largest of that
    object, cut into levels of equal width. The edge of the image is not around an object. What touches another object,
    also across a coarse axis and diagonally, has level 1, but in objects of which every voxel does. So each object has
    a voxel of the highest level.
    """
    found, compact = np.unique(numbers, return_inverse=True)
    compact = compact.reshape(numbers.shape).astype(np.int32)
    if found.size and found[0] != 0:
        compact += 1
    touching = _touching(compact)
    result = np.zeros(numbers.shape, np.int8)
    for number, box in enumerate(ndimage.find_objects(compact), 1):
        wide = tuple(slice(max(0, side.start - 1), side.stop + 1) for side in box)
        own = compact[wide] == number
        if own.all():
            result[wide] = levels
            continue
        depth = ndimage.distance_transform_edt(own, sampling=spacing)
        free = own & ~touching[wide]
        inner = np.where(free, depth, 0) if free.any() else depth
        level = 1 + np.minimum(levels * inner / inner.max() * (1 + 1e-6), levels - 1).astype(np.int8)
        result[wide] = np.where(own, level, result[wide])
    return result


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


def separate(depth: np.ndarray, foreground: np.ndarray, height: float, spacing: Sequence[float]) -> np.ndarray:
    """Numbered objects (Z, Y, X) int32, from 1 on, from two maps (Z, Y, X) uint8, 255 for 1.

    Each summit of the smoothed map of expected depths that rises by `height` (0..1) above every way to a higher one,
    inside the foreground (probability from 1/2 on), is the seed of an object. Foreground that no seed reaches is an
    object for each of its components. Nothing of the foreground is left out, and nothing else is in an object.
    """
    from skimage.morphology import local_maxima, reconstruction
    from skimage.segmentation import watershed

    mask = foreground >= CERTAIN / 2
    hills = np.where(mask, _smoothed(depth, spacing), 0).astype(np.int16)
    lowered = np.maximum(hills - max(1, round(height * CERTAIN)), 0)
    faces = ndimage.generate_binary_structure(3, 1)
    flat = reconstruction(lowered, hills, footprint=faces).astype(np.int16)  # each hill cut off by the height
    summits = local_maxima(flat, footprint=faces) & (flat > 0)
    seeds = cc3d.connected_components(summits, connectivity=FACES).astype(np.int32)
    parts, count = cc3d.connected_components(mask, connectivity=FACES, return_N=True)
    seeded = np.zeros(count + 1, bool)
    seeded[parts[seeds > 0]] = True
    seeded[0] = True
    own = np.cumsum(~seeded).astype(np.int32)
    alone = ~seeded[parts]
    seeds[alone] = seeds.max(initial=0) + own[parts[alone]]
    flooded: np.ndarray = watershed(-hills, seeds, mask=mask)
    return flooded.astype(np.int32, copy=False)


def _smoothed(depth: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    """uint8, by as much in mm along each axis; an axis of one voxel is none."""
    step = min((size for size, length in zip(spacing, depth.shape, strict=True) if length > 1), default=1.0)
    widths = [SMOOTHING * step / size if length > 1 else 0.0 for size, length in zip(spacing, depth.shape, strict=True)]
    return np.rint(ndimage.gaussian_filter(depth.astype(np.float32), widths)).astype(np.uint8)


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

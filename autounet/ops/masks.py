"""Masks: what is not zero, the box around it, holes filled, connected components and what is kept of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import cc3d
import numpy as np

from ..schema.geometry import Box3
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
    """The centre line of a boolean mask of 1 to 3 axes: one voxel thin, with the mask's connections; same shape.

    Thinning by Zhang and Suen 1984 in 2-D and by Lee, Kashyap and Chu 1994 in 3-D; beyond the array is outside.
    """
    from skimage.morphology import skeletonize  # takes a while to load, and few runs need it

    return skeletonize(np.atleast_2d(mask)).astype(bool).reshape(mask.shape)

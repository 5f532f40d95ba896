"""Connected components of masks, and postprocessing: removing them from a segmentation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..schema.selection import PostprocessStep

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

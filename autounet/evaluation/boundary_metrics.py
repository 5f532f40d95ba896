"""Metrics of boundaries: how far apart the outlines of two masks lie.

Distances are in mm, or in pixels for images without spacing. Surfaces include faces at the border of the image."""

from __future__ import annotations

from typing import Final

import numpy as np
from scipy.spatial import cKDTree

from ..ops.surfaces import distances_to_outside, surface_elements
from .overlap_metrics import MaskPair

SPACING_PRECISION: Final = 1e-6
"""relative; files hold spacings in float32, and one voxel of 1 mm must lie within a tolerance of 1 mm"""
BOUNDARY_SHARE: Final = 0.02
"""width of the boundary in boundary IoU as a share of the image's diagonal: that of its paper"""


def hd95(pair: MaskPair) -> float:
    """The larger of the two directed 95th percentiles of surface distances, in mm or pixels.

    Surfaces are voxel centres (see `ops.distances.surface`); percentiles per direction, then the maximum, as in
    "Metrics reloaded" and MONAI. Undefined when a mask is empty.
    """
    pair.require_both()
    return float(max(np.percentile(distances, 95) for distances in pair.distances))


def assd(pair: MaskPair) -> float:
    """Average symmetric surface distance: the mean of both directions' distances together, in mm or pixels.

    Heimann et al., IEEE Transactions on Medical Imaging 2009; "Metrics reloaded" and MONAI (symmetric). MedPy's is
    another, the mean of the two directions' means. Surfaces as for `hd95`. Undefined when a mask is empty.
    """
    pair.require_both()
    return float(np.concatenate(pair.distances).mean())


def nsd(pair: MaskPair) -> float:
    """Normalised surface Dice (Nikolov et al. 2018), voxel-edge form.

    The share of surface voxels, of both masks together, that lie within the tolerance of the other surface. 0 when
    one mask is empty, undefined when both are.
    """
    if pair.is_missed():
        return 0.0
    forth, back = (distances <= _limit(pair) for distances in pair.distances)
    return float((np.count_nonzero(forth) + np.count_nonzero(back)) / (len(forth) + len(back)))


def nsd_subvoxel(pair: MaskPair) -> float:
    """Normalised surface Dice (Nikolov et al. 2018), subvoxel form, as in DeepMind's surface-distance and MONAI.

    The surfaces run between voxels (see `ops.subvoxel`), and each piece counts by its area. 0 when one mask is empty,
    undefined when both are.
    """
    if pair.is_missed():
        return 0.0
    pieces = [surface_elements(mask, pair.steps) for mask in pair.flat]
    trees = [cKDTree(centres, balanced_tree=False, compact_nodes=False) for centres, _ in pieces]
    within = 0.0
    for (centres, sizes), tree in zip(pieces, reversed(trees), strict=True):
        within += sizes[tree.query(centres)[0] <= _limit(pair)].sum()
    return float(within / sum(sizes.sum() for _, sizes in pieces))


def _limit(pair: MaskPair) -> float:
    return pair.tolerance * (1 + SPACING_PRECISION)


def boundary_iou(pair: MaskPair) -> float:
    """IoU of the two masks' inner boundaries, Cheng et al., "Boundary IoU", CVPR 2021.

    A boundary is what of a mask lies within a distance of the outside: 2 % of the image's diagonal, at least one voxel.
    The paper erodes in steps of pixels; here the distance is Euclidean, between voxel centres, in units of the
    spacing. 0 when one mask is empty, undefined when both are.
    """
    if pair.is_missed():
        return 0.0
    diagonal = float(np.linalg.norm([pair.shape[axis] * pair.spacing[axis] for axis in pair.axes]))
    width = max(BOUNDARY_SHARE * diagonal, *pair.steps) * (1 + SPACING_PRECISION)
    first, second = (mask & (distances_to_outside(mask, pair.steps) <= width) for mask in pair.flat)
    return int(np.count_nonzero(first & second)) / int(np.count_nonzero(first | second))

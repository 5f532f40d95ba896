"""Metrics of surfaces and boundaries: how far apart two outlines lie.

Distances are in mm, or in pixels for images without spacing. Surfaces include faces at the border of the image.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
from scipy.spatial import cKDTree

from ..ops.surfaces import distances_to_outside, surface_distances, surface_elements

EMPTY_IN_BOTH = "empty in both"
EMPTY_IN_PREDICTION = "empty in the prediction"
EMPTY_IN_REFERENCE = "empty in the reference"


class Undefined(Exception):
    """A metric has no value here; the text says why."""


@dataclass(frozen=True)
class MaskPair:
    """One class in one case: two boolean masks (Z,Y,X) of equal shape, cropped to a box that holds both.

    `shape` is that of the whole image. `spacing` has one entry per axis; `axes` are those along which the image has
    more than one voxel (a crop may be one voxel thick where the image is not). `unit` is mm or pixels; `tolerance` is
    in that unit.
    """

    prediction: np.ndarray
    reference: np.ndarray
    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    axes: tuple[int, ...]
    tolerance: float
    unit: str

    @cached_property
    def predicted(self) -> int:
        """Voxels of the prediction."""
        return int(np.count_nonzero(self.prediction))

    @cached_property
    def true(self) -> int:
        """Voxels of the reference."""
        return int(np.count_nonzero(self.reference))

    @cached_property
    def common(self) -> int:
        """Voxels of both."""
        return int(np.count_nonzero(self.prediction & self.reference))

    @cached_property
    def distances(self) -> tuple[np.ndarray, np.ndarray]:
        """Of the prediction's surface voxels to the reference's, and back. Neither mask may be empty."""
        return surface_distances(self.prediction, self.reference, self.spacing, self.axes)

    @property
    def flat(self) -> tuple[np.ndarray, np.ndarray]:
        """Prediction and reference with `axes` alone: a single slice has two axes."""
        others = tuple(axis for axis in range(self.prediction.ndim) if axis not in self.axes)
        return self.prediction.squeeze(others), self.reference.squeeze(others)

    @property
    def steps(self) -> tuple[float, ...]:
        """The spacing along `axes`."""
        return tuple(self.spacing[axis] for axis in self.axes)

    def require_any(self) -> None:
        """Raises Undefined when both masks are empty."""
        if not self.predicted and not self.true:
            raise Undefined(EMPTY_IN_BOTH)

    def require_both(self) -> None:
        """Raises Undefined when one of the masks is empty."""
        self.require_any()
        if not self.predicted:
            raise Undefined(EMPTY_IN_PREDICTION)
        if not self.true:
            raise Undefined(EMPTY_IN_REFERENCE)

    def is_missed(self) -> bool:
        """Whether exactly one mask is empty: scores of agreement are then 0. Raises Undefined when both are."""
        self.require_any()
        return not self.predicted or not self.true


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

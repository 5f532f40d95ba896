"""The metrics: each a function of one pair of masks, in a dictionary by name.

Definitions follow Maier-Hein et al., "Metrics reloaded", Nature Methods 2024. An undefined value is raised as
`Undefined` with its reason, never returned as zero.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from autounet.ops.distances import surface_distances

EMPTY_IN_BOTH = "empty in both"
EMPTY_IN_PREDICTION = "empty in the prediction"
EMPTY_IN_REFERENCE = "empty in the reference"
MM3_PER_ML = 1000.0
SPACING_PRECISION = 1e-6
"""relative; files hold spacings in float32, and one voxel of 1 mm must lie within a tolerance of 1 mm"""


class Undefined(Exception):
    """A metric has no value here; the text says why."""


@dataclass(frozen=True)
class MaskPair:
    """One class in one case: two boolean masks of equal shape, cropped to a box that holds both.

    `spacing` has one entry per axis; `axes` are those along which the image has more than one voxel (a crop may be
    one voxel thick where the image is not). `unit` is mm or pixels; `tolerance` is in that unit.
    """

    prediction: np.ndarray
    reference: np.ndarray
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


def dice(pair: MaskPair) -> float:
    """2 |A and B| / (|A| + |B|), Dice 1945. Undefined when both are empty."""
    pair.require_any()
    return 2 * pair.common / (pair.predicted + pair.true)


def iou(pair: MaskPair) -> float:
    """|A and B| / |A or B|, Jaccard 1912. Undefined when both are empty."""
    pair.require_any()
    return pair.common / (pair.predicted + pair.true - pair.common)


def hd95(pair: MaskPair) -> float:
    """The larger of the two directed 95th percentiles of surface distances, in mm or pixels.

    Surfaces are voxel centres (see `ops.distances.surface`); percentiles per direction, then the maximum, as in
    "Metrics reloaded" and MONAI. Undefined when a mask is empty.
    """
    pair.require_both()
    return float(max(np.percentile(distances, 95) for distances in pair.distances))


def nsd(pair: MaskPair) -> float:
    """Normalised surface Dice (Nikolov et al. 2018), voxel-edge form.

    The share of surface voxels, of both masks together, that lie within the tolerance of the other surface. 0 when
    one mask is empty, undefined when both are.
    """
    pair.require_any()
    if not pair.predicted or not pair.true:
        return 0.0
    forth, back = pair.distances
    limit = pair.tolerance * (1 + SPACING_PRECISION)
    within = np.count_nonzero(forth <= limit) + np.count_nonzero(back <= limit)
    return within / (len(forth) + len(back))


def volume_difference(pair: MaskPair) -> float:
    """Predicted minus true volume: ml, or pixels for images without spacing. 0 when both are empty."""
    scale = float(np.prod(pair.spacing)) / MM3_PER_ML if pair.unit == "mm" else 1.0
    return (pair.predicted - pair.true) * scale


METRICS: dict[str, Callable[[MaskPair], float]] = {
    "dice": dice,
    "iou": iou,
    "hd95": hd95,
    "nsd": nsd,
    "volume_difference": volume_difference,
}
"""by the field of `ClassMetrics` that holds the value"""

"""What every metric compares: two masks of one class in one case."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from autounet.ops.distances import surface_distances

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

"""Metrics that count: voxels that two masks share, and objects (connected components) that match.

Definitions follow Maier-Hein et al., "Metrics reloaded", Nature Methods 2024. Each is a function of one `MaskPair`; an
undefined value is raised as `Undefined` with its reason, never returned as zero.

Objects are those that label files number, or connected components: these join at faces, edges and corners (26
neighbours, 8 in 2-D). Two match when their IoU reaches a threshold."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import maximum_bipartite_matching

from ..ops.masks import Components, components, skeleton
from ..ops.surfaces import surface_distances

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
    numbers: tuple[np.ndarray, np.ndarray] | None = None
    """of the objects of prediction and reference, 0 outside of the masks; None: their components"""

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

    @cached_property
    def objects(self) -> Objects:
        """Those of both masks, and how they overlap."""
        return objects(self.prediction, self.reference, self.numbers)

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


MM3_PER_ML: Final = 1000.0


def dice(pair: MaskPair) -> float:
    """2 |A and B| / (|A| + |B|), Dice 1945. Undefined when both are empty."""
    pair.require_any()
    return 2 * pair.common / (pair.predicted + pair.true)


def iou(pair: MaskPair) -> float:
    """|A and B| / |A or B|, Jaccard 1912. Undefined when both are empty."""
    pair.require_any()
    return pair.common / (pair.predicted + pair.true - pair.common)


def sensitivity(pair: MaskPair) -> float:
    """The share of the reference that was found: |A and B| / |B|, also recall. Undefined when the reference is empty.

    Yerushalmy 1947; "Metrics reloaded".
    """
    pair.require_any()
    if not pair.true:
        raise Undefined(EMPTY_IN_REFERENCE)
    return pair.common / pair.true


def precision(pair: MaskPair) -> float:
    """The share of the prediction that is right: |A and B| / |A|, also positive predictive value.

    "Metrics reloaded". Undefined when the prediction is empty.
    """
    pair.require_any()
    if not pair.predicted:
        raise Undefined(EMPTY_IN_PREDICTION)
    return pair.common / pair.predicted


def volume(pair: MaskPair) -> float:
    """Predicted volume: voxels times the volume of one, in ml; pixels for images without spacing. 0 when empty.

    "Metrics reloaded" takes the difference of two of them for the error of a volume.
    """
    return pair.predicted * _voxel_volume(pair)


def volume_difference(pair: MaskPair) -> float:
    """Predicted minus true volume: ml, or pixels for images without spacing. 0 when both are empty.

    The (signed) absolute volume difference of "Metrics reloaded".
    """
    return (pair.predicted - pair.true) * _voxel_volume(pair)


def _voxel_volume(pair: MaskPair) -> float:
    return float(np.prod(pair.spacing)) / MM3_PER_ML if pair.unit == "mm" else 1.0


FOUND_IOU: Final = 0.1
"""IoU from which a lesion counts as found: localised, not outlined (Baumgartner et al., nnDetection, MICCAI 2021)"""
PANOPTIC_IOU: Final = 0.5
"""above it no object can match two others (Kirillov et al. 2019)"""


@dataclass(frozen=True)
class Objects:
    """The objects of two masks, and the pairs of them that overlap: their places (from 0 on) and IoU."""

    predicted: int
    true: int
    first: np.ndarray
    second: np.ndarray
    iou: np.ndarray


def objects(
    prediction: np.ndarray, reference: np.ndarray, numbers: tuple[np.ndarray, np.ndarray] | None = None
) -> Objects:
    """Of two boolean masks (Z,Y,X): their components, or the objects that `numbers` name, 0 outside of the masks."""
    found = [_consecutive(own) for own in numbers] if numbers else [components(prediction), components(reference)]
    sizes = [each.voxels for each in found]
    common = prediction & reference
    first, second = (each.numbers[common].astype(np.int64) - 1 for each in found)
    pairs, counts = np.unique(first * max(len(sizes[1]), 1) + second, return_counts=True)
    first, second = np.divmod(pairs, max(len(sizes[1]), 1))
    iou = counts / (sizes[0][first] + sizes[1][second] - counts)
    return Objects(len(sizes[0]), len(sizes[1]), first, second, iou)


def _consecutive(numbers: np.ndarray) -> Components:
    """The objects of a numbered mask, which is 0 outside of them, numbered from 1 on."""
    names, compact, voxels = np.unique(numbers, return_inverse=True, return_counts=True)
    compact = compact.reshape(numbers.shape)
    return Components(compact, voxels[1:]) if names.size and names[0] == 0 else Components(compact + 1, voxels)


def lesion_f1(pair: MaskPair) -> float:
    """2 TP / (2 TP + FP + FN) over objects; TP: pairs matched one to one, as many as possible, with IoU >= 0.1.

    "Metrics reloaded" (F1 of detection); the threshold is nnDetection's. 0 when one mask is empty, undefined when both
    are.
    """
    pair.require_any()
    found = pair.objects
    near = found.iou >= FOUND_IOU
    if not near.any():
        return 0.0
    pairs = coo_array(
        (np.ones(np.count_nonzero(near), np.uint8), (found.first[near], found.second[near])),
        shape=(found.predicted, found.true),
    ).tocsr()
    matched = np.count_nonzero(maximum_bipartite_matching(pairs, perm_type="column") >= 0)
    return 2 * int(matched) / (found.predicted + found.true)


def panoptic_quality(pair: MaskPair) -> float:
    """Sum of the IoU of matched objects / (TP + FP / 2 + FN / 2); objects match when their IoU is above 0.5.

    Kirillov et al., "Panoptic segmentation", CVPR 2019, for one class. 0 when one mask is empty, undefined when both
    are.
    """
    pair.require_any()
    found = pair.objects
    return 2 * float(found.iou[found.iou > PANOPTIC_IOU].sum()) / (found.predicted + found.true)


def average_precision(pair: MaskPair, iou: float) -> float:
    """TP / (TP + FP + FN) over objects, which match when their IoU is above a threshold of 1/2 or more.

    The precision of one image in the Data Science Bowl 2018 (Caicedo et al., Nature Methods 2019), called average
    precision by StarDist and cellpose. 0 when one mask is empty, undefined when both are.
    """
    pair.require_any()
    found = pair.objects
    matched = int(np.count_nonzero(found.iou > iou))
    return matched / (found.predicted + found.true - matched)


def count_error(pair: MaskPair) -> float:
    """How many objects more or fewer the prediction has than the reference, without sign. 0 when both are empty."""
    return float(abs(pair.objects.predicted - pair.objects.true))


def cl_dice(pair: MaskPair) -> float:
    """Centre-line Dice: the harmonic mean of two shares, Shit et al., "clDice", CVPR 2021.

    Of the prediction's centre line the share inside the reference, and of the reference's the share inside the
    prediction; centre lines as in `ops.skeleton`, every voxel counting one, every object having at least one. 0 when
    one mask is empty, undefined when both are.
    """
    if pair.is_missed():
        return 0.0
    prediction, reference = pair.flat
    precision = _share(skeleton(prediction), reference)
    sensitivity = _share(skeleton(reference), prediction)
    return 2 * precision * sensitivity / (precision + sensitivity) if precision + sensitivity else 0.0


def _share(line: np.ndarray, mask: np.ndarray) -> float:
    """Of a centre line, inside a mask."""
    return int(np.count_nonzero(line & mask)) / int(np.count_nonzero(line))

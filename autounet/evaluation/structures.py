"""Metrics that count objects: the connected components of the two masks, matched one to one.

Objects join at faces, edges and corners (26 neighbours, 8 in 2-D). Two match when their IoU reaches a threshold.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import maximum_bipartite_matching

from ..ops.components import components, skeleton
from .surfaces import MaskPair, Undefined

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


def objects(prediction: np.ndarray, reference: np.ndarray) -> Objects:
    """Of two boolean masks (Z,Y,X)."""
    found = [components(mask) for mask in (prediction, reference)]
    sizes = [each.voxels for each in found]
    common = prediction & reference
    first, second = (each.numbers[common].astype(np.int64) - 1 for each in found)
    pairs, counts = np.unique(first * max(len(sizes[1]), 1) + second, return_counts=True)
    first, second = np.divmod(pairs, max(len(sizes[1]), 1))
    iou = counts / (sizes[0][first] + sizes[1][second] - counts)
    return Objects(len(sizes[0]), len(sizes[1]), first, second, iou)


def lesion_f1(pair: MaskPair) -> float:
    """2 TP / (2 TP + FP + FN) over objects; TP: pairs matched one to one, as many as possible, with IoU >= 0.1.

    "Metrics reloaded" (F1 of detection); the threshold is nnDetection's. 0 when one mask is empty, undefined when both
    are.
    """
    pair.require_any()
    found = objects(pair.prediction, pair.reference)
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

    Kirillov et al., "Panoptic segmentation", CVPR 2019, for one class, its connected components taken for objects.
    0 when one mask is empty, undefined when both are.
    """
    pair.require_any()
    found = objects(pair.prediction, pair.reference)
    return 2 * float(found.iou[found.iou > PANOPTIC_IOU].sum()) / (found.predicted + found.true)


NO_CENTRE_LINE = "thinning leaves no centre line"


def cl_dice(pair: MaskPair) -> float:
    """Centre-line Dice: the harmonic mean of two shares, Shit et al., "clDice", CVPR 2021.

    Of the prediction's centre line the share inside the reference, and of the reference's the share inside the
    prediction; centre lines as in `ops.skeleton`, every voxel counting one. 0 when one mask is empty, undefined when
    both are, or when thinning leaves nothing of one.
    """
    if pair.is_missed():
        return 0.0
    prediction, reference = pair.flat
    precision = _share(skeleton(prediction), reference)
    sensitivity = _share(skeleton(reference), prediction)
    return 2 * precision * sensitivity / (precision + sensitivity) if precision + sensitivity else 0.0


def _share(line: np.ndarray, mask: np.ndarray) -> float:
    """Of a centre line, inside a mask."""
    length = int(np.count_nonzero(line))
    if not length:
        raise Undefined(NO_CENTRE_LINE)
    return int(np.count_nonzero(line & mask)) / length

"""How well separated objects are: the measures of the ISBI 2012 challenge on the segmentation of membranes.

Source: Arganda-Carreras et al., "Crowdsourcing the creation of image segmentation algorithms for connectomics",
Frontiers in Neuroanatomy 9:142, 2015: the foreground-restricted Rand score V_Rand (equation 3) and the
foreground-restricted information theoretic score V_Info (equation 6), both after the predicted borders are thinned.
What the paper leaves open follows the organisers' library in Fiji (Trainable Segmentation): 4-connected objects, and
predicted border pixels that count one by one (RandError, VariationOfInformation), thinning by a watershed
(WatershedTransform2D).

All arrays are single slices (Y, X), boolean: True inside objects, False on the borders between them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import cc3d
import numpy as np

from ..schema.errors import DataError
from .overlap_metrics import EMPTY_IN_REFERENCE, Undefined

PIXEL_NEIGHBOURS: Final = 4
"""objects that touch at a corner only are two, as in the challenge"""
UNREACHED = -1


def segments(foreground: np.ndarray) -> np.ndarray:
    """The 4-connected components of a slice (Y, X), int32 from 1 on; 0 on the borders."""
    if foreground.ndim != 2:
        raise DataError(f"an array of shape {foreground.shape} is not a slice", "Give arrays of two axes")
    image = np.ascontiguousarray(foreground, dtype=bool)
    return cc3d.connected_components(image, connectivity=PIXEL_NEIGHBOURS).astype(np.int32)


def thin_borders(foreground: np.ndarray) -> np.ndarray:
    """Segments (Y, X), int32, grown until lines of one pixel separate them; 0 on these lines.

    The watershed of the binary border map by flooding (Vincent and Soille 1991): all segments grow at the same speed
    into the borders, and a pixel that two of them reach becomes a line. No two segments touch, none disappears, and
    borders that separate nothing vanish. A slice that is all border is one basin, so one segment.
    """
    labels = segments(foreground)
    if not labels.any():
        return np.ones_like(labels)
    flooded = np.pad(np.where(labels == 0, UNREACHED, labels), 1)  # the frame is 0: it belongs to no segment
    even = np.indices(flooded.shape).sum(axis=0) % 2 == 0
    while True:
        reached = (flooded == UNREACHED) & (_neighbours(flooded) > 0).any(axis=0)
        if not reached.any():
            break
        # neighbours have unlike parity: each half sees the other's new segments, and no two of them can touch
        for half in (reached & even, reached & ~even):
            around = _neighbours(flooded)[:, half]
            highest = around.max(axis=0)
            lowest = np.where(around > 0, around, highest).min(axis=0)
            flooded[half] = np.where(lowest == highest, highest, 0)
    return np.where(flooded == UNREACHED, 0, flooded)[1:-1, 1:-1]


def _neighbours(padded: np.ndarray) -> np.ndarray:
    """The values of the four neighbours of each pixel (4, Y, X); those beyond the frame are 0."""
    around = np.zeros((PIXEL_NEIGHBOURS, *padded.shape), padded.dtype)
    around[0, 1:], around[1, :-1] = padded[:-1], padded[1:]
    around[2, :, 1:], around[3, :, :-1] = padded[:, :-1], padded[:, 1:]
    return around


@dataclass(frozen=True)
class SegmentOverlap:
    """Pixel counts of two segmentations within the foreground of the reference, of one slice or of several.

    A pixel of the predicted border inside a reference object is a segment of its own.
    """

    common: np.ndarray
    """n_ij: pixels of each pair of predicted and reference segment that has any"""
    predicted: np.ndarray
    """n_i: pixels of each predicted segment"""
    reference: np.ndarray
    """n_j: pixels of each reference segment"""

    def rand_score(self, alpha: float = 0.5) -> float:
        """V_Rand = sum p_ij^2 / (alpha sum s_i^2 + (1 - alpha) sum t_j^2), in 0..1, 1 for equal segmentations.

        p_ij, s_i and t_j are `common`, `predicted` and `reference` as shares of all pixels. alpha 0.5 is the
        challenge's F-score; 0 the split score (lower where objects are split), 1 the merge score.
        """
        common, predicted, reference = (_square_sum(n) for n in (self.common, self.predicted, self.reference))
        return common / (alpha * predicted + (1 - alpha) * reference)

    def information_score(self, alpha: float = 0.5) -> float:
        """V_Info = I(S; T) / ((1 - alpha) H(S) + alpha H(T)), in 0..1, 1 for equal segmentations.

        H is the entropy of the predicted (S) and the reference (T) segments' shares, I their mutual information.
        alpha 0.5 is the challenge's F-score; 0 the split score, 1 the merge score. Where the weighted entropies are
        0, nothing was split or merged, and the score is 1 (the organisers' library gives 0).
        """
        joint, predicted, reference = (entropy(n) for n in (self.common, self.predicted, self.reference))
        weighted = (1 - alpha) * predicted + alpha * reference
        return (predicted + reference - joint) / weighted if weighted > 0 else 1.0


def overlap(prediction: np.ndarray, reference: np.ndarray) -> SegmentOverlap:
    """Counts of a slice: the prediction with its borders thinned, against the reference's objects as they are.

    Both (Y, X) boolean, True inside objects. Only pixels inside the reference's objects count: the foreground
    restriction. Raises DataError when the shapes differ, `Undefined` when the reference has no object.
    """
    if prediction.shape != reference.shape:
        raise DataError(
            f"the prediction has the shape {prediction.shape}, the reference {reference.shape}",
            "Compare segmentations of the same image",
        )
    true = segments(reference)
    if not true.any():
        raise Undefined(EMPTY_IN_REFERENCE)
    inside = true > 0
    return count(thin_borders(prediction)[inside], true[inside])


def count(predicted: np.ndarray, reference: np.ndarray) -> SegmentOverlap:
    """Counts of two segmentations of the same pixels (N,), integers; predicted 0: the pixel is a segment of its own."""
    alone = predicted == 0
    own = np.where(alone, predicted.max() + np.cumsum(alone), predicted)
    pairs = own.astype(np.int64) * (int(reference.max()) + 1) + reference
    return SegmentOverlap(*(np.unique(values, return_counts=True)[1] for values in (pairs, own, reference)))


def pooled(overlaps: Sequence[SegmentOverlap]) -> SegmentOverlap:
    """Several slices as one image, in which segments of different slices differ."""
    return SegmentOverlap(
        common=np.concatenate([each.common for each in overlaps]),
        predicted=np.concatenate([each.predicted for each in overlaps]),
        reference=np.concatenate([each.reference for each in overlaps]),
    )


def entropy(counts: np.ndarray) -> float:
    """Of the shares, in nats."""
    shares = counts / counts.sum()
    return abs(float(np.sum(shares * np.log(shares))))  # a sum of terms up to 0; abs turns -0.0 into 0.0


def _square_sum(counts: np.ndarray) -> float:
    return float(np.sum(counts.astype(np.float64) ** 2))

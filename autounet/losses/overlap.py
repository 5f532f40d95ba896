"""Sums over voxels per channel, and the mean of a score over channels: what Dice and Tversky share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from .voxels import Encoding, Voxels

SMOOTH = 1e-5
"""added to numerators and denominators (nnU-Net, MONAI): a class that is nowhere, and predicted nowhere, scores 1"""


class Overlap(NamedTuple):
    """All (B, F), or (1, F) over a whole batch; F channels without the background."""

    both: Tensor
    predicted: Tensor
    true: Tensor
    share: Tensor
    """of each score in the mean; the sum is 1, 0 where nothing was annotated"""

    def mean(self, scores: Tensor) -> Tensor:
        """Over the annotated channels, and samples."""
        return (scores * self.share).sum()


def overlap(voxels: Voxels, batch: bool) -> Overlap:
    """Sums of each sample, or with `batch` over the whole batch."""
    sums, annotated = voxels.sums(), voxels.annotated()
    if batch:
        sums, annotated = sums.sum(1, keepdim=True), annotated.sum(0, keepdim=True).clamp(max=1)
    both, predicted, true = sums
    return Overlap(both, predicted, true, annotated / annotated.sum().clamp(min=1))


@dataclass(frozen=True)
class Dice:
    """Minus the mean over channels of (2 I + s) / (P + Y + s): -1 for a perfect prediction, as nnU-Net counts.

    Milletari et al. 2016 (V-Net) with the sums in the denominator (Drozdzal et al. 2016). With `batch` the sums go over
    the whole batch, else each sample has its own.
    """

    batch: bool = False

    def __call__(self, voxels: Voxels) -> Tensor:
        sums = overlap(voxels, self.batch)
        return -sums.mean((2 * sums.both + SMOOTH) / (sums.predicted + sums.true + SMOOTH))


@dataclass(frozen=True)
class Tversky:
    """Mean over channels of 1 - (I + s) / (I + fp FP + fn FN + s); both weights 1/2 make it 1 - Dice.

    Salehi, Erdogmus, Gholipour 2017, Tversky loss function for image segmentation using 3D fully convolutional deep
    networks, MLMI: false positives 0.3, false negatives 0.7 gave their best result.
    """

    batch: bool = False
    false_positives: float = 0.3
    false_negatives: float = 0.7

    def __call__(self, voxels: Voxels) -> Tensor:
        sums = overlap(voxels, self.batch)
        return sums.mean(tversky_error(sums, self.false_positives, self.false_negatives))


def tversky_error(sums: Overlap, false_positives: float, false_negatives: float) -> Tensor:
    """1 - Tversky index of each channel, written so that small errors are not lost beside the 1."""
    errors = false_positives * (sums.predicted - sums.both) + false_negatives * (sums.true - sums.both)
    return errors / (sums.both + errors + SMOOTH)


LEAST_ERROR = 1e-7
"""the power's slope is infinite at 0; an error below counts as this and has no gradient"""


@dataclass(frozen=True)
class FocalTversky:
    """Mean over channels of (1 - Tversky index)^(1 / gamma).

    Abraham, Khan 2019, A novel focal Tversky loss function with improved attention U-Net for lesion segmentation, ISBI:
    gamma 4/3, false negatives 0.7, false positives 0.3.
    """

    batch: bool = False
    false_positives: float = 0.3
    false_negatives: float = 0.7
    gamma: float = 4 / 3

    def __call__(self, voxels: Voxels) -> Tensor:
        sums = overlap(voxels, self.batch)
        errors = tversky_error(sums, self.false_positives, self.false_negatives)
        return sums.mean(errors.clamp(min=LEAST_ERROR) ** (1 / self.gamma))


Term = Callable[[Voxels], Tensor]


class VoxelLoss:
    """`loss(logits, labels, weight, annotated) -> scalar`, the sum of `terms`, which share one softmax or sigmoid."""

    def __init__(self, encoding: Encoding, *terms: Term) -> None:
        self.encoding = encoding
        self.terms = terms

    def __call__(
        self, logits: Tensor, labels: Tensor, weight: Tensor | None = None, annotated: Tensor | None = None
    ) -> Tensor:
        voxels = self.encoding(logits, labels, weight, annotated)
        first, *others = (term(voxels) for term in self.terms)
        return sum(others, start=first)

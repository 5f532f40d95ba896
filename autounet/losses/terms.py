"""The terms that losses are made of: cross-entropy, Dice and their kin, over one network output."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .deep_supervision import Pixelwise
from .voxels import SMALLEST_TOTAL, Encoding, Voxels, shares


def cross_entropy(voxels: Voxels) -> Tensor:
    """Mean of -log p(what is true) over voxels, and channels where they overlap, by their weights."""
    return weighted_mean(-voxels.log_likelihood(), voxels.weight)


def weighted_mean(values: Tensor, weight: Tensor | None) -> Tensor:
    """Mean of `values` (B, C', N) by `weight`, which broadcasts to it; 0 where all weights are 0."""
    summed = shares().summed
    if weight is None:
        return summed(values.sum()) / sum(shares().all_of(values.numel()))
    return summed((values * weight).sum()) / summed(weight.expand_as(values).sum()).clamp(min=SMALLEST_TOTAL)


@dataclass(frozen=True)
class Focal:
    """Mean of -(1 - p)^gamma log p, p the probability of what is true; gamma 0 is cross-entropy.

    Lin et al. 2017, Focal loss for dense object detection, ICCV, whose gamma is 2. Their alpha of 0.25 weighs down the
    foreground of detectors with many anchors on each object; classes weigh the same here. `gamma` is 0 or at least 1.
    """

    gamma: float = 2.0

    def __call__(self, voxels: Voxels) -> Tensor:
        values = -(voxels.error() ** self.gamma) * voxels.log_likelihood()
        return weighted_mean(values, voxels.weight)


@dataclass(frozen=True)
class TopKCrossEntropy:
    """Mean cross-entropy of the `fraction` of a batch's known voxels (and channels) where it is highest.

    Wu, Shen, van den Hengel 2016, Bridging category-level and instance-level semantic image segmentation
    (arXiv 1605.06885), as nnU-Net has it: 10 % of the voxels of the whole batch. Cross-entropy is multiplied by the
    voxel's weight before, and the mean divided by the mean weight of the known voxels, chosen or not: by that of the
    chosen it would jump where voxels change places.
    """

    fraction: float = 0.1

    def __call__(self, voxels: Voxels) -> Tensor:
        values = -voxels.log_likelihood()
        most = math.ceil(self.fraction * sum(shares().all_of(values.numel())))
        if voxels.weight is None:
            return worst_of_all(values.flatten(), most).mean()
        weight = voxels.weight.expand_as(values).flatten()
        # the voxels that count are as many as are known: a number only the data tell, hence a mask, not a slice
        worst = worst_of_all(values.flatten() * weight, most)
        known, total = (shares().summed(each) for each in ((weight > 0).sum().to(weight.dtype), weight.sum()))
        counted = (torch.arange(most, device=worst.device) < (self.fraction * known).ceil()).to(worst.dtype)
        divisor = counted.sum() * total / known.clamp(min=1)
        return (worst * counted).sum() / divisor.clamp(min=SMALLEST_TOTAL)


def worst_of_all(values: Tensor, most: int) -> Tensor:
    """(most) the highest values (N) of all processes, descending."""
    lengths = [min(most, length) for length in shares().all_of(len(values))]
    own = values.topk(lengths[shares().rank]).values
    found = shares().gathered(own, 0, lengths)
    return own if found is own else found.topk(most).values


class WeightedCrossEntropy:
    """Cross-entropy by the weights of a batch, which must have them: `ops.surfaces.border_weight` of each sample.

    Ronneberger, Fischer, Brox 2015, U-Net: convolutional networks for biomedical image segmentation, MICCAI,
    equations 1 and 2; divided by the sum of the weights, so that the learning rate does not depend on their size.
    Raises ValueError for a batch without weights.
    """

    def __init__(self, cross_entropy: Pixelwise) -> None:
        self.cross_entropy = cross_entropy

    def __call__(
        self, logits: Tensor, labels: Tensor, weight: Tensor | None = None, annotated: Tensor | None = None
    ) -> Tensor:
        if weight is None:
            raise ValueError("weighted_ce needs a weight for each voxel of the batch, and the batch has none")
        return self.cross_entropy(logits, labels, weight, annotated)


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
    sums, annotated = shares().gathered(voxels.sums(), 1), shares().gathered(voxels.annotated(), 0)
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


LEAST_SCORE = 0.02
"""Dice below which its logarithm goes on as a straight line, so that what is hardly found does not drown the rest"""


def log_score(score: Tensor) -> Tensor:
    """Logarithm of Dice, continued below `LEAST_SCORE` by its tangent."""
    return score.clamp(min=LEAST_SCORE).log() + (score - LEAST_SCORE).clamp(max=0) / LEAST_SCORE


@dataclass(frozen=True)
class LogDice:
    """Minus the mean of log Dice over the channels that occur: the less of one is found, the more it counts.

    Wong, Moradi, Tang, Syeda-Mahmood 2018, 3D segmentation with exponential logarithmic loss for highly unbalanced
    object sizes, MICCAI, with an exponent of 1. What occurs nowhere in a sample, or with `batch` in all of it, is left
    out, so that many classes of which a patch shows few weigh as much as few.
    """

    batch: bool = False

    def __call__(self, voxels: Voxels) -> Tensor:
        sums = overlap(voxels, self.batch)
        share = sums.share * (sums.true > 0)
        scores = log_score((2 * sums.both + SMOOTH) / (sums.predicted + sums.true + SMOOTH))
        return -(scores * share).sum() / share.sum().clamp(min=SMALLEST_TOTAL)


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

"""Cross-entropy: categorical over exclusive classes, binary over overlapping channels."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .deep_supervision import Pixelwise
from .voxels import SMALLEST_TOTAL, Voxels


def cross_entropy(voxels: Voxels) -> Tensor:
    """Mean of -log p(what is true) over voxels, and channels where they overlap, by their weights."""
    return weighted_mean(-voxels.log_likelihood(), voxels.weight)


def weighted_mean(values: Tensor, weight: Tensor | None) -> Tensor:
    """Mean of `values` (B, C', N) by `weight`, which broadcasts to it; 0 where all weights are 0."""
    if weight is None:
        return values.mean()
    return (values * weight).sum() / weight.expand_as(values).sum().clamp(min=SMALLEST_TOTAL)


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
        most = math.ceil(self.fraction * values.numel())
        if voxels.weight is None:
            return values.flatten().topk(most, sorted=False).values.mean()
        weight = voxels.weight.expand_as(values).flatten()
        # the voxels that count are as many as are known: a number only the data tell, hence a mask, not a slice
        worst = (values.flatten() * weight).topk(most).values
        known = (weight > 0).sum().to(weight.dtype)
        counted = (torch.arange(most, device=worst.device) < (self.fraction * known).ceil()).to(worst.dtype)
        divisor = counted.sum() * weight.sum() / known.clamp(min=1)
        return (worst * counted).sum() / divisor.clamp(min=SMALLEST_TOTAL)


class WeightedCrossEntropy:
    """Cross-entropy by the weights of a batch, which must have them: `ops.weight_map.border_weight` of each sample.

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

"""Top-k cross-entropy: only the worst voxels count."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from autounet.losses.voxels import SMALLEST_TOTAL, Voxels


@dataclass(frozen=True)
class TopKCrossEntropy:
    """Mean cross-entropy of the `fraction` of a batch's known voxels (and channels) where it is highest.

    Wu, Shen, van den Hengel 2016, Bridging category-level and instance-level semantic image segmentation
    (arXiv 1605.06885), as nnU-Net has it: 10 % of the voxels of the whole batch. Cross-entropy is multiplied by the
    voxel's weight before, and the mean divided by the mean weight of the known voxels, chosen or not: by that of the
    chosen it would jump where voxels change places. Under distributed training each rank takes the worst of its own.
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

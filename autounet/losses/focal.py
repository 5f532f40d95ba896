"""Focal loss: cross-entropy in which what is already right counts little."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from autounet.losses.cross_entropy import weighted_mean
from autounet.losses.ranks import Ranks
from autounet.losses.voxels import Voxels


@dataclass(frozen=True)
class Focal:
    """Mean of -(1 - p)^gamma log p, p the probability of what is true; gamma 0 is cross-entropy.

    Lin et al. 2017, Focal loss for dense object detection, ICCV, whose gamma is 2. Their alpha of 0.25 weighs down the
    foreground of detectors with many anchors on each object; classes weigh the same here. `gamma` is 0 or at least 1.
    """

    gamma: float = 2.0
    ranks: Ranks | None = None

    def __call__(self, voxels: Voxels) -> Tensor:
        values = -(voxels.error() ** self.gamma) * voxels.log_likelihood()
        return weighted_mean(values, voxels.weight, self.ranks)

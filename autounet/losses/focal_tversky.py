"""Focal Tversky loss: classes that are segmented badly count more."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from autounet.losses.overlap import overlap
from autounet.losses.ranks import Ranks
from autounet.losses.tversky import tversky_error
from autounet.losses.voxels import Voxels

LEAST_ERROR = 1e-7
"""the power's slope is infinite at 0; an error below counts as this and has no gradient"""


@dataclass(frozen=True)
class FocalTversky:
    """Mean over channels of (1 - Tversky index)^(1 / gamma).

    Abraham, Khan 2019, A novel focal Tversky loss function with improved attention U-Net for lesion segmentation, ISBI:
    gamma 4/3, false negatives 0.7, false positives 0.3.
    """

    batch: bool = False
    ranks: Ranks | None = None
    false_positives: float = 0.3
    false_negatives: float = 0.7
    gamma: float = 4 / 3

    def __call__(self, voxels: Voxels) -> Tensor:
        found = overlap(voxels, self.batch, self.ranks)
        errors = tversky_error(found, self.false_positives, self.false_negatives)
        return found.mean(errors.clamp(min=LEAST_ERROR) ** (1 / self.gamma))

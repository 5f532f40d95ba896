"""Tversky loss: Dice with separate weights for false positives and false negatives."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from autounet.losses.overlap import SMOOTH, Overlap, overlap
from autounet.losses.ranks import Ranks
from autounet.losses.voxels import Voxels


@dataclass(frozen=True)
class Tversky:
    """Mean over channels of 1 - (I + s) / (I + fp FP + fn FN + s); both weights 1/2 make it 1 - Dice.

    Salehi, Erdogmus, Gholipour 2017, Tversky loss function for image segmentation using 3D fully convolutional deep
    networks, MLMI: false positives 0.3, false negatives 0.7 gave their best result.
    """

    batch: bool = False
    ranks: Ranks | None = None
    false_positives: float = 0.3
    false_negatives: float = 0.7

    def __call__(self, voxels: Voxels) -> Tensor:
        found = overlap(voxels, self.batch, self.ranks)
        return found.mean(tversky_error(found, self.false_positives, self.false_negatives))


def tversky_error(found: Overlap, false_positives: float, false_negatives: float) -> Tensor:
    """1 - Tversky index of each channel, written so that small errors are not lost beside the 1."""
    errors = false_positives * (found.predicted - found.both) + false_negatives * (found.true - found.both)
    return errors / (found.both + errors + SMOOTH)

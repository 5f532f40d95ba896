"""Soft Dice."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from autounet.losses.overlap import SMOOTH, overlap
from autounet.losses.ranks import Ranks
from autounet.losses.voxels import Voxels


@dataclass(frozen=True)
class Dice:
    """Minus the mean over channels of (2 I + s) / (P + Y + s): -1 for a perfect prediction, as nnU-Net counts.

    Milletari et al. 2016 (V-Net) with the sums in the denominator (Drozdzal et al. 2016). With `batch` the sums go over
    the whole batch and all ranks, else each sample has its own.
    """

    batch: bool = False
    ranks: Ranks | None = None

    def __call__(self, voxels: Voxels) -> Tensor:
        found = overlap(voxels, self.batch, self.ranks)
        return -found.mean((2 * found.both + SMOOTH) / (found.predicted + found.true + SMOOTH))

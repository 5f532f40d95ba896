"""Sums over voxels per channel, and the mean of a score over channels: what Dice and Tversky share."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from autounet.losses.ranks import Ranks, mean_total, total
from autounet.losses.voxels import Voxels

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


def overlap(voxels: Voxels, batch: bool, ranks: Ranks | None) -> Overlap:
    """Sums of each sample, or with `batch` over the whole batch on all `ranks`."""
    sums, annotated = voxels.sums(), voxels.annotated()
    if batch:
        sums = total(sums.sum(1, keepdim=True), ranks)
        annotated = total(annotated.sum(0, keepdim=True), ranks).clamp(max=1)
        share = annotated / annotated.sum().clamp(min=1)
    else:
        share = annotated / shared_count(annotated, ranks)
    both, predicted, true = sums
    return Overlap(both, predicted, true, share)


def shared_count(annotated: Tensor, ranks: Ranks | None) -> Tensor:
    """How many (sample, channel) pairs are annotated, as the mean over all ranks; at least the smallest that is > 0."""
    count = mean_total(annotated.sum(), ranks)
    return count.clamp(min=1 if ranks is None else 1 / ranks.size)

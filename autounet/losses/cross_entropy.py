"""Cross-entropy: categorical over exclusive classes, binary over overlapping channels."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from autounet.losses.ranks import Ranks, mean_total
from autounet.losses.voxels import SMALLEST_TOTAL, Voxels


@dataclass(frozen=True)
class CrossEntropy:
    """Mean of -log p(what is true) over voxels, and channels where they overlap, by their weights."""

    ranks: Ranks | None = None

    def __call__(self, voxels: Voxels) -> Tensor:
        return weighted_mean(-voxels.log_likelihood(), voxels.weight, self.ranks)


def weighted_mean(values: Tensor, weight: Tensor | None, ranks: Ranks | None) -> Tensor:
    """Of `values` (B, C', N) by `weight`, which broadcasts to it; 0 where all weights are 0.

    The divisor is shared by all ranks, so that their results average to the mean over the whole batch.
    """
    if weight is None:
        return values.mean()
    divisor = mean_total(weight.expand_as(values).sum(), ranks).clamp(min=SMALLEST_TOTAL)
    return (values * weight).sum() / divisor

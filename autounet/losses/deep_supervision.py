"""One wrapper for every loss: labels brought to each output's size, levels weighted."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from autounet.losses.batch import Batch

Pixelwise = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""(logits (B,K,*S), labels (B,*S), weight (B,*S) or None) -> scalar"""


def level_weights(levels: int) -> tuple[float, ...]:
    """1, 1/2, 1/4, ..., the lowest resolution 0 when there are several, normalised to sum 1 (nnU-Net)."""
    weights = [0.5**level for level in range(levels)]
    if levels > 1:
        weights[-1] = 0.0
    return tuple(weight / sum(weights) for weight in weights)


def nearest(array: Tensor, size: Sequence[int]) -> Tensor:
    """`array` (B, *P) sampled at the centres of a grid of `size`, as `nearest-exact` does."""
    for axis, (old, new) in enumerate(zip(array.shape[1:], size, strict=True), start=1):
        if old != new:
            centres = 2 * torch.arange(new, device=array.device) + 1  # in halves of a voxel
            array = array.index_select(axis, centres * old // (2 * new))
    return array


class DeepSupervision:
    """`loss(outputs, batch) -> scalar`: outputs highest resolution first; surplus weights are not read."""

    def __init__(self, pixelwise: Pixelwise, levels: int) -> None:
        self.pixelwise = pixelwise
        self.weights = level_weights(levels)

    def __call__(self, outputs: Sequence[Tensor], batch: Batch) -> Tensor:
        if batch.annotated is not None:
            raise ValueError("this loss cannot train on cases with classes that were not annotated")
        total = outputs[0].new_zeros((), dtype=torch.float32)
        for weight, logits in zip(self.weights, outputs, strict=True):
            if weight == 0:
                continue
            size = logits.shape[2:]
            voxel_weight = None if batch.weight is None else nearest(batch.weight, size)
            total = total + weight * self.pixelwise(logits, nearest(batch.labels, size), voxel_weight)
        return total

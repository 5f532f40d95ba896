"""What the loader hands to the training step and the losses."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Batch(NamedTuple):
    """One batch. B samples, C channels, K dense classes, P the patch (2 or 3 axes)."""

    image: Tensor
    """(B, C, *P) float32"""
    labels: Tensor
    """(B, *P) integers: dense indices, -1 where there is no loss"""
    annotated: Tensor | None = None
    """(B, K) bool: which classes were annotated in the sample's case; None: all"""
    weight: Tensor | None = None
    """(B, *P) float32 weight of each voxel in the loss; None: 1 everywhere"""
    cases: tuple[str, ...] = ()

    def to(self, device: torch.device, channels_last: bool = False) -> Batch:
        """The same batch on `device`, the image in channels-last order when asked."""

        def move(array: Tensor) -> Tensor:
            return array.to(device, non_blocking=device.type == "cuda")

        image = move(self.image)
        if channels_last:
            image = image.contiguous(memory_format=torch.channels_last_3d if image.ndim == 5 else torch.channels_last)
        return Batch(
            image,
            move(self.labels),
            None if self.annotated is None else move(self.annotated),
            None if self.weight is None else move(self.weight),
            self.cases,
        )

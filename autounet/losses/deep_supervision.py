"""One wrapper for every loss: labels cropped to the output's field, brought to each output's size, levels weighted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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


Pixelwise = Callable[[Tensor, Tensor, Tensor | None, Tensor | None], Tensor]
"""(logits (B,C,*S), labels (B,*S), weight (B,*S) or None, annotated (B,K) or None) -> scalar"""


def level_weights(levels: int) -> tuple[float, ...]:
    """1, 1/2, 1/4, ..., the lowest resolution 0 when there are several, normalised to sum 1 (nnU-Net)."""
    weights = [0.5**level for level in range(levels)]
    if levels > 1:
        weights[-1] = 0.0
    return tuple(weight / sum(weights) for weight in weights)


def output_weights(sizes: Sequence[Sequence[int]]) -> tuple[float, ...]:
    """`level_weights` of outputs with these sizes, highest resolution first: outputs of one size weigh the same.

    So a network whose outputs all have full resolution (U-Net++) learns from each of them alike (Zhou et al. 2018).
    """
    levels = list(dict.fromkeys(tuple(size) for size in sizes))
    by_level = dict(zip(levels, level_weights(len(levels)), strict=True))
    weights = [by_level[tuple(size)] for size in sizes]
    return tuple(weight / sum(weights) for weight in weights)


def centre_crop(array: Tensor, size: Sequence[int]) -> Tensor:
    """The middle (B, *size) of (B, *P): what a network without padding sees of its input. A view."""
    for axis, (old, new) in enumerate(zip(array.shape[1:], size, strict=True), start=1):
        array = array.narrow(axis, (old - new) // 2, new)
    return array


def nearest(array: Tensor, size: Sequence[int]) -> Tensor:
    """`array` (B, *P) sampled at the centres of a grid of `size`, as `nearest-exact` does."""
    for axis, (old, new) in enumerate(zip(array.shape[1:], size, strict=True), start=1):
        if old != new:
            centres = 2 * torch.arange(new, device=array.device) + 1  # in halves of a voxel
            array = array.index_select(axis, centres * old // (2 * new))
    return array


class DeepSupervision:
    """`loss(outputs, batch) -> scalar`: `levels` outputs, highest resolution first.

    The first shows the middle of the patch at the resolution of the labels, the others the same field more coarsely.
    """

    def __init__(self, pixelwise: Pixelwise, levels: int) -> None:
        self.pixelwise = pixelwise
        self.levels = levels
        self._emphasised: tuple[int, ...] = ()
        self._factor = 1.0

    def emphasise(self, classes: Sequence[int], factor: float) -> None:
        """From here on voxels of these dense classes weigh `factor` times as much; without classes, all weigh alike."""
        self._emphasised, self._factor = tuple(classes), factor

    def __call__(self, outputs: Sequence[Tensor], batch: Batch) -> Tensor:
        if len(outputs) != self.levels:
            raise ValueError(f"the network gave {len(outputs)} outputs, and the loss was made for {self.levels}")
        field = outputs[0].shape[2:]
        labels = centre_crop(batch.labels, field)
        voxel_weight = None if batch.weight is None else centre_crop(batch.weight, field)
        total = outputs[0].new_zeros((), dtype=torch.float32)
        for weight, logits in zip(output_weights([each.shape[2:] for each in outputs]), outputs, strict=True):
            if weight == 0:
                continue
            size = logits.shape[2:]
            voxels = None if voxel_weight is None else nearest(voxel_weight, size)
            shown = nearest(labels, size)
            total = total + weight * self.pixelwise(logits, shown, self._weight(shown, voxels), batch.annotated)
        return total

    def _weight(self, labels: Tensor, weight: Tensor | None) -> Tensor | None:
        """(B, *S) weight of each voxel, with that of emphasised classes."""
        if not self._emphasised:
            return weight
        classes = torch.tensor(self._emphasised, dtype=labels.dtype)
        emphasised = torch.isin(labels, classes.to(labels.device, non_blocking=True))
        factor = 1 + (self._factor - 1) * emphasised.to(torch.float32)
        return factor if weight is None else weight * factor

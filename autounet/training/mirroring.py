"""Mirroring a sample at random, with the left and right classes that change places in it."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from torch import Tensor


class ClassSwap(NamedTuple):
    """What changes places in a mirror along one of the spatial axes."""

    axis: int
    classes: tuple[int, ...]
    """(K) the dense class that each one becomes"""


class Mirror(MirrorTransform):
    """Mirrors image and labels at random; along the axis of `swap` left and right classes change places.

    Made anew for every sample: `swapped` tells afterwards what was drawn.
    """

    def __init__(self, axes: tuple[int, ...], swap: ClassSwap | None) -> None:
        super().__init__(axes)
        self.swap = swap
        self.swapped = False

    def _apply_to_segmentation(self, segmentation: Tensor, **params: Any) -> Tensor:
        mirrored = super()._apply_to_segmentation(segmentation, **params)
        if self.swap is None or self.swap.axis not in params["axes"]:
            return mirrored
        self.swapped = True
        table = torch.tensor((*self.swap.classes, -1), dtype=mirrored.dtype)  # label -1 reads the last
        return table[mirrored.long()]

"""Swin-Unet: a U-Net of transformer blocks with shifted windows (Cao et al., ECCV Workshops 2022, arXiv 2105.05537).

Patches are embedded, blocks of window and shifted-window attention (Liu et al., ICCV 2021, arXiv 2103.14030) with
patch merging between the stages lead down and with patch expanding up again, and skips are joined by a linear map
(Cao, Sec. 3). It works in 2-D and 3-D: windows, merging and expanding take as many axes as the network has.

Stage 0 of `NetworkSpec` is the full resolution, without attention. The stride of stage 1 is the patch embedding, 4 as
published; the last patch expanding undoes it. Merging and expanding follow the other strides, so along axes that are
not halved the tokens stay.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from ..schema.plan import NetworkSpec
from ..schema.record import Part
from .family import Family, Stages, Steps

if TYPE_CHECKING:
    from torch import nn

LEVELS = 4
"""stages of attention (Cao, Sec. 3.2 and 3.5)"""
BLOCKS = 2
"""per stage; every second block shifts its windows (Cao, Sec. 3.2)"""
FEATURES = {2: 3.0, 3: 1.5}
"""features of the first stage of attention by dimension, in multiples of `base_features`: with 32 these are the 96 of
Swin-T (Liu, Sec. 3.3) and the 48 of Swin UNETR, its 3-D relative (Hatamizadeh et al. 2022, arXiv 2201.01266)"""


class SwinOptions(Part):
    window: int = Field(default=7, ge=2)
    """most tokens along the edge of a window (Liu, Sec. 3.3)"""
    mlp_ratio: float = Field(default=4.0, gt=0)
    """hidden features of the MLP in multiples of its inputs (Liu, Sec. 3.3)"""
    drop_path: float = Field(default=0.0, ge=0, lt=1)
    """rate of stochastic depth in the last block; 0.2 where weights pretrained on ImageNet are refined (Cao's code)"""
    full_resolution: Literal["convolve", "expand"] = "convolve"
    """expand: as published, patches are expanded and classified. convolve: convolutions of the image are joined
    before the head, as in Swin UNETR (Sec. 3.2 there), for details that are finer than an embedded patch"""


def stages(dims: int, strides: Steps, kernel_sizes: Steps, base_features: int) -> Stages:
    """The published four stages of two blocks, features doubled at each; fewer where the topology has fewer.

    Where it has enough, its first two strides are one patch embedding of 4, as published; else the embedding is its
    first stride. What is deeper than four stages of attention is left away. `base_features` are those of the
    convolutions at full resolution.
    """
    steps, kernels = list(strides), list(kernel_sizes)
    if len(steps) > LEVELS + 1:
        embedding = tuple(a * b for a, b in zip(steps[1], steps[2], strict=True))
        steps, kernels = [steps[0], embedding, *steps[3:]], [kernels[0], *kernels[2:]]
    steps, kernels = steps[: LEVELS + 1], kernels[: LEVELS + 1]
    levels = len(steps) - 1
    blocks = (1, *(BLOCKS,) * levels)
    first = math.floor(FEATURES[dims] * base_features)
    features = (base_features, *(first * 2**level for level in range(levels)))
    return Stages(steps, kernels, features, blocks, blocks[:-1])


def swin_network(spec: NetworkSpec, options: SwinOptions) -> nn.Module:
    """Convolutions by He, linear maps as in the authors' code."""
    from .swin_modules import SwinUNet

    convolve = options.full_resolution == "convolve"
    return SwinUNet(spec, options.window, options.mlp_ratio, options.drop_path, convolve)


SWIN = Family("swin", swin_network, options=SwinOptions, stages=stages)

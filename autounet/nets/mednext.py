"""MedNeXt: a U-Net of ConvNeXt blocks (Roy et al., MICCAI 2023, arXiv 2303.09975).

A block is a depthwise convolution, a norm of each channel, a 1x1 expansion, GELU and a 1x1 compression beside a
residual connection (Sec. 2.1); the changes of resolution are such blocks too, with a strided 1x1 convolution on the
residual path (Sec. 2.2); skips are added; a 1x1 head stands at every decoder stage for deep supervision. The paper has
one head more, at the bottleneck; here, as in every family, each decoder stage has one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from ..schema.plan import NetworkSpec
from ..schema.record import Part
from .family import Family, Stages, Steps

if TYPE_CHECKING:
    from torch import nn

MedNeXtSize = Literal["S", "B", "M", "L"]

EXPANSIONS: dict[MedNeXtSize, tuple[int, ...]] = {"S": (2,), "B": (2, 3, 4), "M": (2, 3, 4), "L": (3, 4, 8)}
"""ratio of the 1x1 expansion per stage, the last for all later stages (Sec. 2.4 and Table 1)"""
BLOCKS: dict[MedNeXtSize, tuple[int, ...]] = {"S": (2,), "B": (2,), "M": (3, 4), "L": (3, 4, 8)}
"""blocks per stage, encoder and decoder alike, the last for all later stages (Sec. 2.4 and Table 1)"""
MOST_DOUBLINGS = 4
"""features are doubled at each of the four changes of resolution of the published network, and then no more"""


class MedNeXtOptions(Part):
    size: MedNeXtSize = "S"
    """whose expansion ratios are used; the number of blocks and the kernel sizes are fields of `NetworkSpec`"""


def stages(
    dims: int,
    strides: Steps,
    kernel_sizes: Steps,
    base_features: int,
    size: MedNeXtSize = "S",
    kernel: Literal[3, 5] = 3,
) -> Stages:
    """One of the four published sizes with kernel 3 or 5; `base_features` stands for its 32 of the first stage.

    Axes along which the topology does not convolve, for voxels are too long there, keep kernel size 1.
    """
    count = len(strides)
    blocks = by_stage(BLOCKS[size], count)
    return Stages(
        strides,
        tuple(tuple(kernel if length > 1 else 1 for length in entry) for entry in kernel_sizes),
        tuple(base_features * 2 ** min(stage, MOST_DOUBLINGS) for stage in range(count)),
        blocks,
        blocks[:-1],
        MedNeXtOptions(size=size),
    )


def by_stage(values: tuple[int, ...], count: int) -> tuple[int, ...]:
    """The values of `count` stages; stages beyond the last entry share it."""
    return tuple(values[min(stage, len(values) - 1)] for stage in range(count))


def mednext_network(spec: NetworkSpec, options: MedNeXtOptions) -> nn.Module:
    """torch's own initialisation (the authors' choice)."""
    from .mednext_modules import MedNeXt

    return MedNeXt(spec, by_stage(EXPANSIONS[options.size], len(spec.features)))


MEDNEXT = Family("mednext", mednext_network, options=MedNeXtOptions, stages=stages)

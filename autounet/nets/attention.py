"""Attention U-Net (Oktay et al., MIDL 2018): gates decide voxel by voxel how much of a skip passes.

A gate looks at the skip and at the coarser features of the decoder below it:
coefficient = sigmoid(psi(relu(theta(skip) + phi(coarse)))), computed on the coarse grid, interpolated to the skip's
and multiplied with it. The skip of full resolution has none, as published: it shows too little of the context. The
lowest stage passes a 1x1 unit before it gates.

Published are batch norm with ReLU and interpolation on the way up (`normalisation` batch, `upsampling` linear). The
default is instance norm with leaky ReLU and transposed convolutions, as in the plain family: so the two differ in the
gates and in how they go down.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from ..schema.plan import NetworkSpec
from ..schema.record import Part
from .family import Family, Steps, as_steps, checked_options, divisible_size, same_size, stage_features
from .unpadded import Normalisation

if TYPE_CHECKING:
    from torch import nn


class AttentionOptions(Part):
    normalisation: Normalisation = "instance"
    upsampling: Literal["transposed", "linear"] = "transposed"


def propose(
    dims: int,
    in_channels: int,
    out_channels: int,
    strides: Steps,
    kernel_sizes: Steps,
    base_features: int = 32,
    deep_supervision: bool = True,
) -> NetworkSpec:
    """Two convolutions per stage, features doubled at each stage up to the cap; published: `base_features` 16."""
    stages = len(strides)
    return NetworkSpec(
        family="attention",
        dims=dims,  # type: ignore[arg-type]
        in_channels=in_channels,
        out_channels=out_channels,
        features=stage_features(dims, stages, base_features),
        strides=as_steps(strides),
        kernel_sizes=as_steps(kernel_sizes),
        encoder_blocks=(2,) * stages,
        decoder_blocks=(2,) * (stages - 1),
        deep_supervision=deep_supervision,
    )


def gated_stages(spec: NetworkSpec) -> tuple[int, ...]:
    """Stages whose skip passes a gate: all but that of full resolution, unless it is the only one."""
    return tuple(range(1 if len(spec.features) > 2 else 0, len(spec.features) - 1))


def build(spec: NetworkSpec) -> nn.Module:
    """The network with He initialisation from torch's global generator. Raises ValueError for one stage only."""
    from .attention_modules import AttentionUNet

    return AttentionUNet(spec, checked_options(AttentionOptions, spec))


ATTENTION = Family(
    options=AttentionOptions, propose=propose, valid_size=divisible_size, output_size=same_size, build=build
)

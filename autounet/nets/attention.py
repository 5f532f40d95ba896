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
from .family import Family, Normalisation

if TYPE_CHECKING:
    from torch import nn


Upsampling = Literal["transposed", "linear"]


class AttentionOptions(Part):
    normalisation: Normalisation = "instance"
    upsampling: Upsampling = "transposed"


def gated_stages(spec: NetworkSpec) -> tuple[int, ...]:
    """Stages whose skip passes a gate: all but that of full resolution, unless it is the only one."""
    return tuple(range(1 if len(spec.features) > 2 else 0, len(spec.features) - 1))


def attention_network(spec: NetworkSpec, options: AttentionOptions) -> nn.Module:
    """He initialisation."""
    from .attention_modules import AttentionUNet

    return AttentionUNet(spec, gated_stages(spec), options.normalisation, options.upsampling)


ATTENTION = Family("attention", attention_network, options=AttentionOptions)
"""published: batch norm and linear interpolation, with `base_features` 16"""

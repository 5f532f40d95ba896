"""The U-Net with a residual encoder (Isensee et al., MICCAI 2024: "nnU-Net Revisited").

A stem, encoder stages of residual blocks with instance norm and leaky ReLU, and the decoder of the plain U-Net with
one convolution per stage and a 1x1 head at every stage for deep supervision.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..schema.plan import NetworkSpec
from .family import Family, NoOptions, Steps, as_steps, checked_options, divisible_size, same_size, stage_features
from .plain import nnunet_name as plain_name

if TYPE_CHECKING:
    from torch import nn

FIRST_BLOCKS, DEEP_BLOCKS = (1, 3, 4), 6
"""residual blocks of the first stages and of all later ones (nnU-Net 2.8.1, ResEncUNetPlanner)"""


def propose(
    dims: int,
    in_channels: int,
    out_channels: int,
    strides: Steps,
    kernel_sizes: Steps,
    base_features: int = 32,
    deep_supervision: bool = True,
) -> NetworkSpec:
    """1, 3, 4, 6, 6, ... residual blocks per encoder stage, one convolution per decoder stage."""
    stages = len(strides)
    return NetworkSpec(
        family="residual",
        dims=dims,  # type: ignore[arg-type]
        in_channels=in_channels,
        out_channels=out_channels,
        features=stage_features(dims, stages, base_features),
        strides=as_steps(strides),
        kernel_sizes=as_steps(kernel_sizes),
        encoder_blocks=(FIRST_BLOCKS + (DEEP_BLOCKS,) * stages)[:stages],
        decoder_blocks=(1,) * (stages - 1),
        deep_supervision=deep_supervision,
    )


def build(spec: NetworkSpec) -> nn.Module:
    """The network with He initialisation from torch's global generator; the last norm of every block scales by 0.

    Raises ValueError for one stage only.
    """
    from .residual_modules import ResidualUNet

    checked_options(NoOptions, spec)
    return ResidualUNet(spec)


def nnunet_name(name: str, spec: NetworkSpec) -> str:
    """The name that nnU-Net's ResidualEncoderUNet gives to our parameter `name` in the network of `spec`.

    stem.conv.weight                           encoder.stem.convs.0.conv.weight
    encoder.S.blocks.I.first.conv.weight       encoder.stages.S.blocks.I.conv1.conv.weight
    encoder.S.blocks.I.second.norm.bias        encoder.stages.S.blocks.I.conv2.norm.bias
    encoder.S.blocks.0.project.conv.weight     encoder.stages.S.blocks.0.skip.P.conv.weight
    decoder.S. ...                             as in the plain U-Net, see `plain.nnunet_name`

    S counts from the highest resolution. P is 1 where the stage has a stride, since pooling comes first, else 0.
    nnU-Net's state dict names some tensors twice more (`all_modules`, `decoder.encoder`); those are the same tensors.
    """
    part, *rest = name.split(".")
    if part == "decoder":
        return plain_name(name, len(spec.features))
    if part == "stem":
        return ".".join(["encoder.stem.convs.0", *rest])
    stage, _, block, module, *rest = rest
    strided = max(spec.strides[int(stage)]) > 1
    place = {"first": "conv1", "second": "conv2", "project": f"skip.{int(strided)}"}[module]
    return ".".join(["encoder.stages", stage, "blocks", block, place, *rest])


RESIDUAL = Family(options=NoOptions, propose=propose, valid_size=divisible_size, output_size=same_size, build=build)

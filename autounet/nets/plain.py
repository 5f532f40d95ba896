"""The plain convolutional U-Net that nnU-Net made the standard (Isensee et al., Nature Methods 2021).

Encoder stages of convolution, instance norm, leaky ReLU, the first convolution of a stage strided; transposed
convolutions up, skips concatenated, a 1x1 head at every decoder stage for deep supervision.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..schema.plan import NetworkSpec
from .family import Family, NoOptions, Steps, as_steps, checked_options, divisible_size, same_size, stage_features

if TYPE_CHECKING:
    from torch import nn


def propose(
    dims: int,
    in_channels: int,
    out_channels: int,
    strides: Steps,
    kernel_sizes: Steps,
    base_features: int = 32,
    deep_supervision: bool = True,
) -> NetworkSpec:
    """Two convolutions per stage, features doubled at each stage up to the cap."""
    stages = len(strides)
    return NetworkSpec(
        family="plain",
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


def build(spec: NetworkSpec) -> nn.Module:
    """The network with He initialisation from torch's global generator. Raises ValueError for one stage only."""
    from .plain_modules import PlainUNet

    checked_options(NoOptions, spec)
    return PlainUNet(spec)


def nnunet_name(name: str, stages: int) -> str:
    """The name that nnU-Net's PlainConvUNet gives to our parameter `name` in a network of `stages` encoder stages.

    encoder.S.blocks.I.conv.weight     encoder.stages.S.0.convs.I.conv.weight
    decoder.S.blocks.I.norm.bias       decoder.stages.D.convs.I.norm.bias
    decoder.S.up.weight                decoder.transpconvs.D.weight
    decoder.S.head.weight              decoder.seg_layers.D.weight

    S counts from the highest resolution. nnU-Net's decoder counts from the lowest: D = stages - 2 - S. Its state
    dict names some tensors twice more (`all_modules`, `decoder.encoder`); those are the same tensors.
    """
    part, stage, *rest = name.split(".")
    if part == "encoder":
        return ".".join(["encoder.stages", stage, "0.convs", *rest[1:]])
    place = str(stages - 2 - int(stage))
    if rest[0] == "blocks":
        return ".".join(["decoder.stages", place, "convs", *rest[1:]])
    group = {"up": "transpconvs", "head": "seg_layers"}[rest[0]]
    return ".".join(["decoder", group, place, *rest[1:]])


PLAIN = Family(options=NoOptions, propose=propose, valid_size=divisible_size, output_size=same_size, build=build)

"""The two families of nnU-Net: plain, and residual, whose encoder is made of residual blocks.

Plain (Isensee et al., Nature Methods 2021): encoder stages of convolution, instance norm, leaky ReLU, the first
convolution of a stage strided; transposed convolutions up, skips concatenated, a 1x1 head at every decoder stage for
deep supervision.

Residual (Isensee et al., MICCAI 2024: "nnU-Net Revisited"): a stem, encoder stages of residual blocks with instance
norm and leaky ReLU, and the decoder of the plain U-Net with one convolution per stage.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..schema.plan import NetworkSpec
from .family import Family, NoOptions, Stages, Steps, two_convolutions

if TYPE_CHECKING:
    from torch import nn

FIRST_BLOCKS, DEEP_BLOCKS = (1, 3, 4), 6
"""residual blocks of the first stages and of all later ones (nnU-Net 2.8.1, ResEncUNetPlanner)"""


def plain_network(spec: NetworkSpec, options: NoOptions) -> nn.Module:
    """He initialisation."""
    from .plain_modules import PlainUNet

    return PlainUNet(spec)


def residual_stages(dims: int, strides: Steps, kernel_sizes: Steps, base_features: int) -> Stages:
    """1, 3, 4, 6, 6, ... residual blocks per encoder stage, one convolution per decoder stage."""
    count = len(strides)
    return two_convolutions(dims, strides, kernel_sizes, base_features)._replace(
        encoder_blocks=(FIRST_BLOCKS + (DEEP_BLOCKS,) * count)[:count], decoder_blocks=(1,) * (count - 1)
    )


def residual_network(spec: NetworkSpec, options: NoOptions) -> nn.Module:
    """He initialisation; the last norm of every block scales by 0."""
    from .plain_modules import ResidualUNet

    return ResidualUNet(spec)


def nnunet_plain_name(name: str, spec: NetworkSpec) -> str:
    """The name that nnU-Net's PlainConvUNet gives to our parameter `name` in the network of `spec`.

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
    place = str(len(spec.features) - 2 - int(stage))
    if rest[0] == "blocks":
        return ".".join(["decoder.stages", place, "convs", *rest[1:]])
    group = {"up": "transpconvs", "head": "seg_layers"}[rest[0]]
    return ".".join(["decoder", group, place, *rest[1:]])


def nnunet_residual_name(name: str, spec: NetworkSpec) -> str:
    """The name that nnU-Net's ResidualEncoderUNet gives to our parameter `name` in the network of `spec`.

    stem.conv.weight                           encoder.stem.convs.0.conv.weight
    encoder.S.blocks.I.first.conv.weight       encoder.stages.S.blocks.I.conv1.conv.weight
    encoder.S.blocks.I.second.norm.bias        encoder.stages.S.blocks.I.conv2.norm.bias
    encoder.S.blocks.0.project.conv.weight     encoder.stages.S.blocks.0.skip.P.conv.weight
    decoder.S. ...                             as in the plain U-Net, see `nnunet_plain_name`

    S counts from the highest resolution. P is 1 where the stage has a stride, since pooling comes first, else 0.
    nnU-Net's state dict names some tensors twice more (`all_modules`, `decoder.encoder`); those are the same tensors.
    """
    part, *rest = name.split(".")
    if part == "decoder":
        return nnunet_plain_name(name, spec)
    if part == "stem":
        return ".".join(["encoder.stem.convs.0", *rest])
    stage, _, block, module, *rest = rest
    strided = max(spec.strides[int(stage)]) > 1
    place = {"first": "conv1", "second": "conv2", "project": f"skip.{int(strided)}"}[module]
    return ".".join(["encoder.stages", stage, "blocks", block, place, *rest])


PLAIN = Family("plain", plain_network)
RESIDUAL = Family("residual", residual_network, stages=residual_stages)

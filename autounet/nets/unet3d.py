"""The 3-D U-Net as it was published (Çiçek, Abdulkadir, Lienkamp, Brox, Ronneberger, MICCAI 2016).

Unpadded 3x3x3 convolutions, each with batch norm before its ReLU; the features are doubled by the last convolution
before each max-pooling, and up-convolutions keep them, so that no layer is a bottleneck: 132 x 132 x 116 voxels in,
44 x 44 x 28 out. Prediction normalises by the running statistics of the training, which the saved weights hold. The
authors, who trained on batches of one volume, found the statistics of the volume at hand to work best there; that is
instance norm.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..schema.plan import NetworkSpec
from .family import Family, Steps, as_steps, checked_options
from .unpadded import Normalisation, UnpaddedOptions, output_size, valid_size

if TYPE_CHECKING:
    from torch import nn

MOST_STAGES = 4
"""as published; with 4 stages 88 voxels of each axis are lost, with 5 it would be 184"""


class UNet3dOptions(UnpaddedOptions):
    """The defaults are the published network."""

    normalisation: Normalisation = "batch"


def propose(
    dims: int,
    in_channels: int,
    out_channels: int,
    strides: Steps,
    kernel_sizes: Steps,
    base_features: int = 32,
    deep_supervision: bool = True,
) -> NetworkSpec:
    """The first four stages of the topology, two convolutions each.

    The first convolution has `base_features` (published: 32), the end of each stage twice as many as the one before.
    There is one output whatever `deep_supervision` says.
    """
    strides, kernel_sizes = strides[:MOST_STAGES], kernel_sizes[:MOST_STAGES]
    stages = len(strides)
    return NetworkSpec(
        family="unet3d",
        dims=dims,  # type: ignore[arg-type]
        in_channels=in_channels,
        out_channels=out_channels,
        features=tuple(2 * base_features * 2**stage for stage in range(stages)),
        strides=as_steps(strides),
        kernel_sizes=as_steps(kernel_sizes),
        encoder_blocks=(2,) * stages,
        decoder_blocks=(2,) * (stages - 1),
        deep_supervision=False,
    )


def stage_widths(spec: NetworkSpec) -> list[tuple[int, ...]]:
    """Features of each convolution, per encoder stage: those of the stage before, and at last its own."""
    before = (max(1, spec.features[0] // 2), *spec.features)
    return [(before[stage],) * (count - 1) + (spec.features[stage],) for stage, count in enumerate(spec.encoder_blocks)]


def build(spec: NetworkSpec) -> nn.Module:
    """The network with He initialisation from torch's global generator.

    Raises ValueError for one stage only, for two dimensions and for deep supervision.
    """
    from .cropping_modules import CroppingUNet

    options = checked_options(UNet3dOptions, spec)
    if spec.dims not in UNET3D.dims:
        raise ValueError("the family unet3d is for three dimensions; in two there is the family original")
    return CroppingUNet(
        spec,
        widths=stage_widths(spec),
        up_widths=spec.features[1:],
        normalisation=options.normalisation,
        padded=options.padded,
        up_bias=False,
    )


UNET3D = Family(
    options=UNet3dOptions,
    propose=propose,
    valid_size=valid_size,
    output_size=output_size,
    build=build,
    dims=(3,),
    deep_supervision=False,
)

"""The U-Net as it was published (Ronneberger, Fischer, Brox, MICCAI 2015), in 2-D, and the same in 3-D.

Unpadded 3x3 convolutions with ReLU, max-pooling, 2x2 up-convolutions that halve the features, skips cropped and
concatenated, dropout at the end of the contracting path, no normalisation: 572 x 572 pixels in, 388 x 388 out. It is
trained on the middle of each patch and predicts by the overlap-tile strategy with mirrored borders.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from ..schema.plan import NetworkSpec
from .family import Family, Steps, as_steps, checked_options
from .unpadded import Normalisation, UnpaddedOptions, output_size, valid_size

if TYPE_CHECKING:
    from torch import nn

MOST_STAGES = 5
"""as published. A deeper network would lose so much of each axis (184 voxels with 5 stages, 376 with 6) that little of
a patch would be left"""
DROPOUT = 0.5
"""probability, behind each of the last two encoder stages. The paper says where alone; how much is usual (0.5)"""


class OriginalOptions(UnpaddedOptions):
    """The defaults are the published network."""

    normalisation: Normalisation = "none"
    dropout: float = Field(default=DROPOUT, ge=0, lt=1)


def propose(
    dims: int,
    in_channels: int,
    out_channels: int,
    strides: Steps,
    kernel_sizes: Steps,
    base_features: int = 32,
    deep_supervision: bool = True,
) -> NetworkSpec:
    """The first five stages of the topology, two convolutions each, features doubled at each stage.

    The published network has `base_features` 64. There is one output whatever `deep_supervision` says.
    """
    strides, kernel_sizes = strides[:MOST_STAGES], kernel_sizes[:MOST_STAGES]
    stages = len(strides)
    return NetworkSpec(
        family="original",
        dims=dims,  # type: ignore[arg-type]
        in_channels=in_channels,
        out_channels=out_channels,
        features=tuple(base_features * 2**stage for stage in range(stages)),
        strides=as_steps(strides),
        kernel_sizes=as_steps(kernel_sizes),
        encoder_blocks=(2,) * stages,
        decoder_blocks=(2,) * (stages - 1),
        deep_supervision=False,
    )


def build(spec: NetworkSpec) -> nn.Module:
    """The network with He initialisation from torch's global generator.

    Raises ValueError for one stage only, and for deep supervision.
    """
    from .cropping_modules import CroppingUNet

    options = checked_options(OriginalOptions, spec)
    return CroppingUNet(
        spec,
        widths=[(features,) * count for features, count in zip(spec.features, spec.encoder_blocks, strict=True)],
        up_widths=spec.features[:-1],
        normalisation=options.normalisation,
        padded=options.padded,
        dropout=options.dropout,
    )


ORIGINAL = Family(
    options=OriginalOptions,
    propose=propose,
    valid_size=valid_size,
    output_size=output_size,
    build=build,
    deep_supervision=False,
    weighs_borders=(2,),
)

"""The families whose convolutions are not padded, as the first U-Nets were published: original and unet3d.

Original (Ronneberger, Fischer, Brox, MICCAI 2015), in 2-D, and the same in 3-D: unpadded 3x3 convolutions with ReLU,
max-pooling, 2x2 up-convolutions that halve the features, skips cropped and concatenated, dropout at the end of the
contracting path, no normalisation: 572 x 572 pixels in, 388 x 388 out. It is trained on the middle of each patch and
predicts by the overlap-tile strategy with mirrored borders.

Unet3d (Çiçek, Abdulkadir, Lienkamp, Brox, Ronneberger, MICCAI 2016): unpadded 3x3x3 convolutions, each with batch norm
before its ReLU; the features are doubled by the last convolution before each max-pooling, and up-convolutions keep
them, so that no layer is a bottleneck: 132 x 132 x 116 voxels in, 44 x 44 x 28 out. Prediction normalises by the
running statistics of the training, which the saved weights hold. The authors, who trained on batches of one volume,
found the statistics of the volume at hand to work best there; that is instance norm.

An unpadded convolution takes (kernel - 1) voxels off an axis, so the output is smaller than the input, and only inputs
with a whole number of voxels after every pooling are possible. Along one axis, with b voxels after the lowest
stage's convolutions, input and output are both (product of strides) x b plus a constant.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from ..schema.plan import NetworkSpec
from ..schema.record import Part
from .family import Family, Normalisation, Stages, Steps, divisible_size, two_convolutions

if TYPE_CHECKING:
    from torch import nn


class UnpaddedOptions(Part):
    """Options of all families that come without padding."""

    padded: bool = False
    """pad every convolution, so that output and input have one size (not as published)"""


def valid_size(spec: NetworkSpec, size: Sequence[int]) -> tuple[int, ...]:
    """The smallest input, per axis at least `size`, that can be halved everywhere and leaves an output."""
    if _padded(spec):
        return divisible_size(spec, size)
    _check_axes(spec, size)
    found = []
    for axis, (length, step) in enumerate(zip(size, spec.divisor, strict=True)):
        missing = length - _input_length(spec, axis, 0)
        bottom = max(_least_bottom(spec, axis), -(-missing // step))
        found.append(_input_length(spec, axis, bottom))
    return tuple(found)


def output_size(spec: NetworkSpec, size: Sequence[int]) -> tuple[int, ...]:
    """Size of the logits for an input of `size`. Raises ValueError for an input that is not valid."""
    if _padded(spec):
        return tuple(size)
    if valid_size(spec, size) != tuple(size):
        raise ValueError(f"{tuple(size)} is no input of this network; the next that is: {valid_size(spec, size)}")
    bottoms = [(length - _input_length(spec, axis, 0)) // spec.divisor[axis] for axis, length in enumerate(size)]
    return tuple(_output_length(spec, axis, bottom) for axis, bottom in enumerate(bottoms))


def _padded(spec: NetworkSpec) -> bool:
    shared = {name: value for name, value in spec.options.items() if name in UnpaddedOptions.model_fields}
    return UnpaddedOptions.model_validate(shared).padded


def _check_axes(spec: NetworkSpec, size: Sequence[int]) -> None:
    if len(size) != spec.dims:
        raise ValueError(f"size {tuple(size)} has {len(size)} axes, the network {spec.dims}")


def _lost(spec: NetworkSpec, axis: int, stage: int, blocks: Sequence[int]) -> int:
    """Voxels that the convolutions of a stage take off an axis."""
    return blocks[stage] * (spec.kernel_sizes[stage][axis] - 1)


def _input_length(spec: NetworkSpec, axis: int, bottom: int) -> int:
    length = bottom
    for stage in range(len(spec.features) - 1, -1, -1):
        length = (length + _lost(spec, axis, stage, spec.encoder_blocks)) * spec.strides[stage][axis]
    return length


def _output_length(spec: NetworkSpec, axis: int, bottom: int) -> int:
    length = bottom
    for stage in range(len(spec.features) - 2, -1, -1):
        length = length * spec.strides[stage + 1][axis] - _lost(spec, axis, stage, spec.decoder_blocks)
    return length


def _least_bottom(spec: NetworkSpec, axis: int) -> int:
    """The fewest voxels at the bottom that leave one after every stage of the decoder."""
    needed = 1
    for stage in range(len(spec.features) - 1):
        needed = -(-(needed + _lost(spec, axis, stage, spec.decoder_blocks)) // spec.strides[stage + 1][axis])
    return needed


DROPOUT = 0.5
"""probability, behind each of the last two encoder stages. The paper says where alone; how much is usual (0.5)"""


class OriginalOptions(UnpaddedOptions):
    """The defaults are the published network."""

    normalisation: Normalisation = "none"
    dropout: float = Field(default=DROPOUT, ge=0, lt=1)


def original_stages(dims: int, strides: Steps, kernel_sizes: Steps, base_features: int) -> Stages:
    """Two convolutions per stage, features doubled at each; the published network has `base_features` 64."""
    features = tuple(base_features * 2**stage for stage in range(len(strides)))
    return two_convolutions(dims, strides, kernel_sizes, base_features)._replace(features=features)


def original_network(spec: NetworkSpec, options: OriginalOptions) -> nn.Module:
    """He initialisation. Raises ValueError for deep supervision."""
    from .unpadded_modules import CroppingUNet

    return CroppingUNet(
        spec,
        widths=[(features,) * count for features, count in zip(spec.features, spec.encoder_blocks, strict=True)],
        up_widths=spec.features[:-1],
        normalisation=options.normalisation,
        padded=options.padded,
        dropout=options.dropout,
    )


ORIGINAL = Family(
    "original",
    original_network,
    options=OriginalOptions,
    stages=original_stages,
    max_stages=5,  # as published; 5 stages take 184 voxels off each axis, 6 would take 376
    valid_size=valid_size,
    output_size=output_size,
    deep_supervision=False,
    weighs_borders=(2,),
)


class UNet3dOptions(UnpaddedOptions):
    """The defaults are the published network."""

    normalisation: Normalisation = "batch"


def unet3d_stages(dims: int, strides: Steps, kernel_sizes: Steps, base_features: int) -> Stages:
    """Two convolutions per stage; the first of all has `base_features` (published: 32), the end of a stage twice as
    many as the end of the one before."""
    return original_stages(dims, strides, kernel_sizes, 2 * base_features)


def stage_widths(spec: NetworkSpec) -> list[tuple[int, ...]]:
    """Features of each convolution, per encoder stage: those of the stage before, and at last its own."""
    before = (max(1, spec.features[0] // 2), *spec.features)
    return [(before[stage],) * (count - 1) + (spec.features[stage],) for stage, count in enumerate(spec.encoder_blocks)]


def unet3d_network(spec: NetworkSpec, options: UNet3dOptions) -> nn.Module:
    """He initialisation. Raises ValueError for two dimensions and for deep supervision."""
    from .unpadded_modules import CroppingUNet

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
    "unet3d",
    unet3d_network,
    options=UNet3dOptions,
    stages=unet3d_stages,
    max_stages=4,  # as published; 4 stages take 88 voxels off each axis, 5 would take 184
    valid_size=valid_size,
    output_size=output_size,
    dims=(3,),
    deep_supervision=False,
)

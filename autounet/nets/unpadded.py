"""Sizes and options of U-Nets whose convolutions are not padded (Ronneberger et al. 2015, Çiçek et al. 2016).

Every such convolution takes (kernel - 1) voxels off an axis, so the output is smaller than the input, and only inputs
with a whole number of voxels after every pooling are possible. Along one axis, with b voxels after the lowest
stage's convolutions, input and output are both (product of strides) x b plus a constant.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from ..schema.plan import NetworkSpec
from ..schema.record import Part
from .family import divisible_size

Normalisation = Literal["none", "batch", "instance"]


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

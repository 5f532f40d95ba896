"""What every network family must offer, so that the rest of the program can plan, tile and build without knowing it.

Torch is imported inside `build` only: planning, tiling and cropping ask a family for sizes without loading it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from ..schema.plan import NetworkSpec
from ..schema.record import Part

if TYPE_CHECKING:
    from torch import nn

Steps = Sequence[Sequence[int]]
"""one entry per stage, each with one number per spatial axis"""


class Propose(Protocol):
    """The family's spec for a topology: strides and kernel sizes per encoder stage, highest resolution first."""

    def __call__(
        self,
        dims: int,
        in_channels: int,
        out_channels: int,
        strides: Steps,
        kernel_sizes: Steps,
        base_features: int = 32,
        deep_supervision: bool = True,
    ) -> NetworkSpec: ...


@dataclass(frozen=True)
class Family:
    """One network family.

    `options` validates `NetworkSpec.options`. `valid_size(spec, size)` is the smallest input size, per axis at least
    `size`, that the network takes; `output_size(spec, size)` the size of its logits for such an input. `build(spec)`
    gives a module (float32, default memory format) whose forward takes (B, C, *P) and returns in train() mode a tuple
    of logits (B, K, *P / s), highest resolution first, and in eval() mode the full-resolution logits alone.

    With `NetworkSpec.deep_supervision` the tuple has one entry per decoder stage, else one. The loss weighs them by
    their size (`losses.deep_supervision`). An output smaller than the input shows its middle.
    """

    options: type[Part]
    propose: Propose
    valid_size: Callable[[NetworkSpec, Sequence[int]], tuple[int, ...]]
    output_size: Callable[[NetworkSpec, Sequence[int]], tuple[int, ...]]
    build: Callable[[NetworkSpec], nn.Module]
    dims: tuple[int, ...] = (2, 3)
    """numbers of dimensions that the network exists in"""
    deep_supervision: bool = True
    """whether it can have more outputs than one in training"""
    weighs_borders: tuple[int, ...] = ()
    """dimensions of images on which it is trained by the weight map of touching objects, from bent samples
    (`training.elastic`), unless a person gives a loss"""
    problems: Callable[[NetworkSpec], Sequence[str]] = lambda spec: ()
    """what is wrong in a spec whose options are valid one by one; for people"""


class NoOptions(Part):
    """For families that the common fields describe completely."""


def stage_features(dims: int, stages: int, base: int) -> tuple[int, ...]:
    """Feature maps per stage: doubled at each, at most 320 in 3-D and 512 in 2-D (nnU-Net's caps)."""
    cap = 512 if dims == 2 else 320
    return tuple(min(base * 2**stage, cap) for stage in range(stages))


def round_up(size: Sequence[int], divisor: Sequence[int]) -> tuple[int, ...]:
    """The smallest multiples of `divisor` that are at least `size`, per axis."""
    if len(size) != len(divisor):
        raise ValueError(f"size {tuple(size)} has {len(size)} axes, the network {len(divisor)}")
    return tuple(max(1, -(-length // step)) * step for length, step in zip(size, divisor, strict=True))


def same_size(spec: NetworkSpec, size: Sequence[int]) -> tuple[int, ...]:
    """Output size of a padded network: its input size."""
    return tuple(size)


def divisible_size(spec: NetworkSpec, size: Sequence[int]) -> tuple[int, ...]:
    """Valid size of a padded network: divisible by all strides."""
    return round_up(size, spec.divisor)


def covering_size(family: Family, spec: NetworkSpec, size: Sequence[int]) -> tuple[int, ...]:
    """The smallest valid input whose output is at least `size`, per axis."""
    smallest = family.valid_size(spec, size)
    margin = (a - b for a, b in zip(smallest, family.output_size(spec, smallest), strict=True))
    return family.valid_size(spec, [length + lost for length, lost in zip(size, margin, strict=True)])


def as_steps(values: Steps) -> tuple[tuple[int, ...], ...]:
    """Plain tuples of plain integers, as records hold them."""
    return tuple(tuple(int(value) for value in entry) for entry in values)


def checked_options(options: type[Part], spec: NetworkSpec) -> Any:
    """`spec.options` as the family's own model; raises pydantic's ValidationError for unknown keys."""
    return options.model_validate(spec.options)

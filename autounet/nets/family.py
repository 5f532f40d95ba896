"""What every network family must offer, so that the rest of the program can plan, tile and build without knowing it.

Torch is imported inside `build` only: planning, tiling and cropping ask a family for sizes without loading it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from ..schema.plan import NetworkSpec
from ..schema.record import Part

if TYPE_CHECKING:
    from torch import nn

Steps = Sequence[Sequence[int]]
"""one entry per stage, each with one number per spatial axis"""
Normalisation = Literal["none", "batch", "instance"]


class NoOptions(Part):
    """Options of families that the common fields of `NetworkSpec` describe completely."""


class Stages(NamedTuple):
    """Stages of a network, the highest resolution first, with the names that they have in `NetworkSpec`."""

    strides: Steps
    kernel_sizes: Steps
    features: tuple[int, ...]
    encoder_blocks: tuple[int, ...]
    decoder_blocks: tuple[int, ...]
    options: Part = NoOptions()


def stage_features(dims: int, stages: int, base: int) -> tuple[int, ...]:
    """Feature maps per stage: doubled at each, at most 320 in 3-D and 512 in 2-D (nnU-Net's caps)."""
    cap = 512 if dims == 2 else 320
    return tuple(min(base * 2**stage, cap) for stage in range(stages))


def two_convolutions(dims: int, strides: Steps, kernel_sizes: Steps, base_features: int) -> Stages:
    """nnU-Net's default: two convolutions per stage, features doubled at each stage up to the cap."""
    count = len(strides)
    features = stage_features(dims, count, base_features)
    return Stages(strides, kernel_sizes, features, (2,) * count, (2,) * (count - 1))


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


def as_steps(values: Steps) -> tuple[tuple[int, ...], ...]:
    """Plain tuples of plain integers, as records hold them."""
    return tuple(tuple(int(value) for value in entry) for entry in values)


@dataclass(frozen=True)
class Family:
    """One network family.

    `stages(dims, strides, kernel_sizes, base_features, **choices)` lays out the network for a topology, whose strides
    and kernel sizes are given per encoder stage; `propose` is the same as a `NetworkSpec`. `options` validates
    `NetworkSpec.options`. `valid_size(spec, size)` is the smallest input size, per axis at least `size`, that the
    network takes; `output_size(spec, size)` the size of its logits for such an input. `build(spec)`,
    made of `network(spec, options)`, gives a module (float32, default memory format), initialised from torch's global
    generator, whose forward takes (B, C, *P) and returns in train() mode a tuple
    of logits (B, K, *P / s), highest resolution first, and in eval() mode the full-resolution logits alone.

    With `NetworkSpec.deep_supervision` the tuple has one entry per decoder stage, else one. The loss weighs them by
    their size (`losses.deep_supervision`). An output smaller than the input shows its middle.
    """

    name: str
    network: Callable[[NetworkSpec, Any], nn.Module]
    options: type[Part] = NoOptions
    stages: Callable[..., Stages] = two_convolutions
    max_stages: int | None = None
    """what a topology has beyond is left away"""
    valid_size: Callable[[NetworkSpec, Sequence[int]], tuple[int, ...]] = divisible_size
    output_size: Callable[[NetworkSpec, Sequence[int]], tuple[int, ...]] = same_size
    dims: tuple[int, ...] = (2, 3)
    """numbers of dimensions that the network exists in"""
    deep_supervision: bool = True
    """whether it can have more outputs than one in training"""
    weighs_borders: tuple[int, ...] = ()
    """dimensions of images on which it is trained by the weight map of touching objects, from bent samples
    (`training.elastic`), unless a person gives a loss"""
    problems: Callable[[NetworkSpec], Sequence[str]] = lambda spec: ()
    """what is wrong in a spec whose options are valid one by one; for people"""

    def build(self, spec: NetworkSpec) -> nn.Module:
        """The network. Raises ValueError for a spec of one stage, or with options that the family does not have."""
        if len(spec.features) < 2:
            raise ValueError("a U-Net needs at least two stages")
        return self.network(spec, checked_options(self.options, spec))

    def propose(
        self,
        dims: int,
        in_channels: int,
        out_channels: int,
        strides: Steps,
        kernel_sizes: Steps,
        base_features: int = 32,
        deep_supervision: bool = True,
        **choices: Any,
    ) -> NetworkSpec:
        """The family's network for a topology: strides and kernel sizes per encoder stage, highest resolution first.

        `base_features` are those of the first stage, as the family counts them. `choices` are the family's own, see
        its `stages`. A family that has one output only gets no deep supervision.
        """
        kept = slice(self.max_stages)
        stages = self.stages(dims, as_steps(strides)[kept], as_steps(kernel_sizes)[kept], base_features, **choices)
        return NetworkSpec(
            family=self.name,
            dims=dims,  # type: ignore[arg-type]
            in_channels=in_channels,
            out_channels=out_channels,
            features=stages.features,
            strides=as_steps(stages.strides),
            kernel_sizes=as_steps(stages.kernel_sizes),
            encoder_blocks=stages.encoder_blocks,
            decoder_blocks=stages.decoder_blocks,
            deep_supervision=deep_supervision and self.deep_supervision,
            options=stages.options.model_dump(mode="json"),
        )


def covering_size(family: Family, spec: NetworkSpec, size: Sequence[int]) -> tuple[int, ...]:
    """The smallest valid input whose output is at least `size`, per axis."""
    smallest = family.valid_size(spec, size)
    margin = (a - b for a, b in zip(smallest, family.output_size(spec, smallest), strict=True))
    return family.valid_size(spec, [length + lost for length, lost in zip(size, margin, strict=True)])


def checked_options(options: type[Part], spec: NetworkSpec) -> Any:
    """`spec.options` as the family's own model; raises pydantic's ValidationError for unknown keys."""
    return options.model_validate(spec.options)

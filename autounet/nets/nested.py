"""U-Net++ (Zhou, Rahman Siddiquee, Tajbakhsh, Liang, DLMIA 2018): nested, dense skips.

Node (i, j) lies at encoder stage i and joins all nodes (i, 0..j-1) with node (i + 1, j - 1) brought up; the encoder is
column 0. Every node (0, j) is the end of a U-Net with j + 1 stages. With deep supervision each has a head, all at full
resolution and of equal weight in the loss, and prediction may use a shallower one (`prune`), which leaves out all
nodes it does not need.

The published blocks are convolutions with ReLU alone (`normalisation` none). The default is instance norm with leaky
ReLU, as in the plain family: so the two differ in their skips and in how they go down.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pydantic import Field

from ..schema.plan import NetworkSpec
from ..schema.record import Part
from .family import Family, Steps, as_steps, checked_options, divisible_size, same_size, stage_features
from .unpadded import Normalisation

if TYPE_CHECKING:
    from torch import nn

MOST_STAGES = 5
"""as published; the nodes grow with the square of the stages, most of their work is at full resolution"""


class NestedOptions(Part):
    normalisation: Normalisation = "instance"
    prune: int | None = Field(default=None, ge=1)
    """prediction uses the U-Net of this many poolings; None: the whole network. Needs deep supervision"""


def propose(
    dims: int,
    in_channels: int,
    out_channels: int,
    strides: Steps,
    kernel_sizes: Steps,
    base_features: int = 32,
    deep_supervision: bool = True,
) -> NetworkSpec:
    """The first five stages of the topology, two convolutions per node, features doubled at each stage up to the cap.

    The published network is the 2-D one with `base_features` 32.
    """
    strides, kernel_sizes = strides[:MOST_STAGES], kernel_sizes[:MOST_STAGES]
    stages = len(strides)
    return NetworkSpec(
        family="nested",
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


def problems(spec: NetworkSpec) -> tuple[str, ...]:
    """What is wrong with `prune`."""
    return tuple(_problems(spec))


def _problems(spec: NetworkSpec) -> Iterator[str]:
    depth, prune = len(spec.decoder_blocks), checked_options(NestedOptions, spec).prune
    if prune is None or prune == depth:
        return
    if prune > depth:
        yield f"network.options.prune is {prune}: the network has {depth} poolings, so give 1 to {depth}"
    elif not spec.deep_supervision:
        yield f"network.options.prune is {prune}: without deep supervision the network has only the head of {depth}"


def build(spec: NetworkSpec) -> nn.Module:
    """The network with He initialisation from torch's global generator.

    Raises ValueError for one stage only, and for a `prune` that the network cannot have.
    """
    from .nested_modules import NestedUNet

    options = checked_options(NestedOptions, spec)
    if found := problems(spec):
        raise ValueError("; ".join(found))
    return NestedUNet(spec, options)


NESTED = Family(
    options=NestedOptions,
    propose=propose,
    valid_size=divisible_size,
    output_size=same_size,
    build=build,
    problems=problems,
)

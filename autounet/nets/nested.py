"""U-Net++ (Zhou, Rahman Siddiquee, Tajbakhsh, Liang, DLMIA 2018): nested, dense skips.

Node (i, j) lies at encoder stage i and joins all nodes (i, 0..j-1) with node (i + 1, j - 1) brought up; the encoder is
column 0. Every node (0, j) is the end of a U-Net with j + 1 stages. With deep supervision each has a head, all at full
resolution and of equal weight in the loss, and prediction may use a shallower one (`prune`), which leaves out all
nodes it does not need.

The published blocks are convolutions with ReLU alone (`normalisation` none). The default is instance norm with leaky
ReLU, as in the plain family: so the two differ in their skips and in how they go down.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from ..schema.plan import NetworkSpec
from ..schema.record import Part
from .family import Family, Normalisation, checked_options

if TYPE_CHECKING:
    from torch import nn


class NestedOptions(Part):
    normalisation: Normalisation = "instance"
    prune: int | None = Field(default=None, ge=1)
    """prediction uses the U-Net of this many poolings; None: the whole network. Needs deep supervision"""


def problems(spec: NetworkSpec) -> tuple[str, ...]:
    """What is wrong with `prune`."""
    depth, prune = len(spec.decoder_blocks), checked_options(NestedOptions, spec).prune
    if prune is None or prune == depth:
        return ()
    if prune > depth:
        return (f"network.options.prune is {prune}: the network has {depth} poolings, so give 1 to {depth}",)
    if not spec.deep_supervision:
        return (
            f"network.options.prune is {prune}: without deep supervision the only head is that of {depth} poolings",
        )
    return ()


def nested_network(spec: NetworkSpec, options: NestedOptions) -> nn.Module:
    """He initialisation. Raises ValueError for a `prune` that the network cannot have."""
    from .nested_modules import NestedUNet

    if found := problems(spec):
        raise ValueError("; ".join(found))
    return NestedUNet(spec, options.normalisation, options.prune)


NESTED = Family(
    "nested",
    nested_network,
    options=NestedOptions,
    max_stages=5,  # as published; nodes grow with the square of the stages, most of their work is at full resolution
    problems=problems,
)
"""published: the 2-D one with `base_features` 32"""

"""What changes places in a mirror: the left and the right class of a pair, and the channels that stand for them."""

from __future__ import annotations

from typing import NamedTuple

from autounet.schema.errors import PlanError
from autounet.schema.labels import Labels
from autounet.schema.plan import Configuration
from autounet.schema.targets import TargetKind, targets_of

LEFT_RIGHT = 2
"""array axis (z, y, x) of the canonical orientation that runs from one side of the body to the other"""


class Swap(NamedTuple):
    """For each channel the one whose place it takes in a view mirrored along the spatial axis `axis` of a network."""

    axis: int
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


def swapped_classes(labels: Labels) -> tuple[int, ...]:
    """(K) the dense class that each one becomes when left and right are exchanged; without pairs itself."""
    places = {each.name: index for index, each in enumerate(labels.classes)}
    swapped = list(range(labels.count))
    for left, right in labels.pairs:
        swapped[places[left]], swapped[places[right]] = places[right], places[left]
    return tuple(swapped)


def swapped_outputs(labels: Labels, kind: TargetKind) -> tuple[int, ...] | None:
    """The output channel that each one becomes when left and right are exchanged.

    None where there is no such channel: a region of which the mirror image is no target.
    """
    classes = swapped_classes(labels)
    members = [frozenset(target.members) for target in targets_of(labels, kind)]
    mirrored = [frozenset(classes[member] for member in each) for each in members]
    if mirrored == members:
        return tuple(range(len(members)))
    if not set(mirrored) <= set(members) or len(set(members)) < len(members):
        return None
    return tuple(members.index(each) for each in mirrored)


def prediction_swap(configuration: Configuration, labels: Labels) -> Swap | None:
    """The channels that the mirrored views of a prediction exchange; None where no view does.

    Inputs are the image's channels and, in a cascade, the previous stage's classes without the background. Raises
    PlanError where a region has no mirror image among the outputs: such an axis must not be mirrored.
    """
    axis = configuration.swap_axis
    if axis is None or axis not in configuration.inference.mirror_axes:
        return None
    outputs = swapped_outputs(labels, configuration.targets)
    if outputs is None:
        raise PlanError(
            f"inference.mirror_axes holds the axis {axis} from left to right, and a region has no mirror image among "
            "the targets. Take the axis out"
        )
    handed = swapped_classes(labels)[1:] if configuration.previous_stage is not None else ()
    first = configuration.network.in_channels - len(handed)
    inputs = (*range(first), *(first + index - 1 for index in handed))
    return Swap(axis, inputs, outputs)

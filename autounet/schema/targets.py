"""What a network learns, one output channel each: the classes by a softmax, or regions, which may overlap, by sigmoids.

A plan says which (`Configuration.targets`). Everything that depends on the choice is asked here.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from autounet.schema.labels import Labels

TargetKind = Literal["classes", "regions"]
"""classes: one output for each class, background included, of which one is right; regions: one for each of
`overlapping_targets`, on or off by itself"""


class Target(NamedTuple):
    """One output channel."""

    name: str
    members: tuple[int, ...]
    """dense classes whose union it is"""
    paints: int
    """dense class that the channel writes where it is on, over what earlier channels wrote"""


def planned_targets(labels: Labels) -> TargetKind:
    """What the planner chooses: the regions, if there are any."""
    return "regions" if labels.regions else "classes"


def targets_of(labels: Labels, kind: TargetKind) -> tuple[Target, ...]:
    """One for each output of a network, in the order of its channels."""
    if kind == "regions":
        return overlapping_targets(labels)
    return tuple(Target(each.name, (index,), index) for index, each in enumerate(labels.classes))


def counted_targets(labels: Labels) -> tuple[Target, ...]:
    """Those that the mean Dice goes over: what the planner has learnt, but the background.

    The regions and the classes that they do not tell apart, or without regions the foreground classes.
    """
    found = targets_of(labels, planned_targets(labels))
    background = labels.classes[0].name
    return tuple(target for target in found if target.name != background)


def overlapping_targets(labels: Labels) -> tuple[Target, ...]:
    """The regions in their order, then the classes that painting the regions in order would not bring back.

    A later channel overwrites an earlier one, so each region can bring back one class: the first of those that no
    later region holds. Every other class besides the background gets a channel of its own. BraTS with whole = {1, 2, 3}
    and core = {2, 3} becomes whole, core, 3; without regions there is a channel for every foreground class. Painting
    the true channels of a label map gives the label map.
    """
    regions = [tuple(labels.values.index(value) for value in dict.fromkeys(region.values)) for region in labels.regions]
    last = {member: place for place, members in enumerate(regions) for member in members}
    painted: dict[int, int] = {}  # place of a region -> the class it brings back
    for member in sorted(last):
        painted.setdefault(last[member], member)
    targets = [
        Target(region.name, members, painted.get(place, members[0]))
        for place, (region, members) in enumerate(zip(labels.regions, regions, strict=True))
    ]
    own = [index for index in range(labels.count) if index not in painted.values() and (index or index in last)]
    return (*targets, *(Target(labels.classes[index].name, (index,), index) for index in own))

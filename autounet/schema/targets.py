"""What a network with one sigmoid channel per target learns: regions, which may overlap, as sets of dense classes."""

from __future__ import annotations

from typing import NamedTuple

from autounet.schema.labels import Labels


class Target(NamedTuple):
    """One output channel."""

    name: str
    members: tuple[int, ...]
    """dense classes whose union it is"""
    paints: int
    """dense class that the channel writes where it is on, over what earlier channels wrote"""


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

"""What is to be segmented: the classes with their values in the files, and regions made of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Final, Literal, NamedTuple

from pydantic import Field, model_validator

from .errors import OptionError
from .record import Part, Text

LabelValue = Annotated[int, Field(ge=-(2**31), le=2**31 - 1)]
"""as label files are read: whole numbers of 32 bits"""


class LabelClass(Part):
    name: Text
    value: LabelValue
    """value in the label files"""


class Region(Part):
    """A target that is the union of several classes, for example the whole tumour."""

    name: Text
    values: tuple[LabelValue, ...] = Field(min_length=1)


class LabelCode(Part):
    """The value that stands for a colour in a picture, for the segments of 3D Slicer that meet in a voxel, or for all
    values above one, up to that of another code, where every number is an object; or for a depth in objects."""

    value: LabelValue
    colour: tuple[int, int, int] | None = None
    """(red, green, blue), 0 to 255"""
    segments: tuple[str, ...] = ()
    """names, sorted"""
    above: int | None = None
    level: int = 0
    """in the objects that the values number (`ops.objects.object_depths`), which are then told apart; 0: none"""
    pieces: bool = False
    """whether the values number no objects, and each connected piece of them is one"""


def require_background_zero(values: Mapping[str, int | Sequence[int]], source: str = "--class") -> None:
    """Raises OptionError where a class or region that is called background has another value than 0, as nnU-Net does.

    Everything else takes 0 for the background: training, metrics, and what is written where nothing was found.
    """
    for name, value in values.items():
        if name.strip().casefold() == BACKGROUND and value not in (0, (0,), [0]):
            shown = value if isinstance(value, int) else ", ".join(map(str, value))
            raise OptionError(
                f"{source} gives {name} the value {shown}, and the background has to be 0",
                f"Store 0 where nothing is to be segmented; if {shown} is a structure, give it another name, and if "
                "nobody annotated these voxels, leave them out with --ignore",
            )


BACKGROUND = "background"


class Labels(Part):
    """Classes in dense order: `classes[i]` has dense index i, and index 0 is always the file value 0.

    Dense labels are 0 (background), 1..K-1, and -1 where there is no loss (the ignore value).
    Regions are ordered: later ones overwrite earlier ones on export. `pairs` names left/right classes.
    """

    classes: tuple[LabelClass, ...] = (LabelClass(name="background", value=0),)
    background_named: bool = False
    """True when the user named value 0 as a class: its metrics are reported, never counted in mean Dice"""
    regions: tuple[Region, ...] = ()
    ignore: LabelValue | None = None
    pairs: tuple[tuple[str, str], ...] = ()
    codes: tuple[LabelCode, ...] = ()
    """how label files that hold colours, named segments or objects are read as values; empty: they hold values"""
    entries: int | None = None
    """of `labels` in dataset.json, which nnU-Net counts; None where options or other files say what the classes are"""

    @model_validator(mode="after")
    def _check(self) -> Labels:
        values = [label.value for label in self.classes]
        names = [label.name for label in self.classes] + [region.name for region in self.regions]
        if not values or values[0] != 0:
            raise ValueError("the first class must have the value 0")
        if len(set(values)) != len(values):
            raise ValueError("two classes have the same value")
        if len(set(names)) != len(names):
            raise ValueError("two classes or regions have the same name")
        if self.ignore is not None and self.ignore in values:
            raise ValueError(f"value {self.ignore} is both a class and the ignore value")
        unknown = {value for region in self.regions for value in region.values} - set(values)
        if unknown:
            raise ValueError(f"regions use values that no class has: {sorted(unknown)}")
        paired = [name for pair in self.pairs for name in pair]
        if not set(paired) <= {label.name for label in self.classes} or len(set(paired)) < len(paired):
            raise ValueError(f"pairs name a class twice, or none: {self.pairs}")
        return self

    @property
    def count(self) -> int:
        """K, the number of dense classes including index 0."""
        return len(self.classes)

    @property
    def values(self) -> tuple[int, ...]:
        """File value of each dense index."""
        return tuple(label.value for label in self.classes)

    @property
    def objects(self) -> str | None:
        """Name of the class whose objects are told apart: the first region, of all levels; None where none are."""
        return self.regions[0].name if numbers_objects(self.codes) else None

    @property
    def nameless(self) -> Labels:
        """The same with file values in place of names, which change nothing that is prepared or trained."""
        names = {each.name: f"value {each.value}" for each in self.classes}
        regions = (Region(name=f"region {index}", values=each.values) for index, each in enumerate(self.regions))
        return Labels(
            classes=tuple(LabelClass(name=names[each.name], value=each.value) for each in self.classes),
            regions=tuple(regions),
            ignore=self.ignore,
            pairs=tuple((names[left], names[right]) for left, right in self.pairs),
        )

    @property
    def foreground(self) -> tuple[LabelClass, ...]:
        """The classes that count: all but index 0."""
        return self.classes[1:]

    @property
    def reported(self) -> tuple[LabelClass, ...]:
        """The classes with metrics: the foreground, and class 0 when the user named it; none where objects are told
        apart, whose region has them."""
        if self.objects is not None:
            return ()
        return self.classes if self.background_named else self.classes[1:]

    @property
    def reported_regions(self) -> tuple[Region, ...]:
        """The regions with metrics: all, but depths in objects."""
        return self.regions if self.objects is None else self.regions[:1]


OBJECT_LEVELS: Final = 4
"""of depth in an object (benchmarks/results/object_targets_2026-12-01.md)"""


def labels_of_objects(name: str, ignore: int | None = None) -> Labels:
    """Of label files that number the objects of one class: the region of all of an object, then of what is deeper."""
    values = [value for value in range(1, OBJECT_LEVELS + 2) if value != ignore][:OBJECT_LEVELS]
    codes = [LabelCode(value=value, level=level) for level, value in enumerate(values, 1)]
    codes[0] = codes[0].model_copy(update={"above": 1 if ignore == 1 else 0})
    if ignore is not None and ignore > 1:
        codes += [LabelCode(value=ignore, above=ignore - 1), LabelCode(value=values[0], above=ignore)]
    levels = [LabelClass(name=f"{name} level {level}", value=value) for level, value in enumerate(values, 1)]
    deeper = [
        Region(name=f"{name} from level {first} on", values=tuple(values[first - 1 :]))
        for first in range(2, OBJECT_LEVELS)
    ]
    return Labels(
        classes=(LabelClass(name=BACKGROUND, value=0), *levels),
        regions=(Region(name=name, values=tuple(values)), *deeper),
        ignore=ignore,
        codes=tuple(codes),
    )


def numbers_objects(codes: Sequence[LabelCode]) -> bool:
    """Whether values number objects that are told apart."""
    return any(code.level for code in codes)


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

    The regions and the classes that they do not tell apart, or without regions the foreground classes. Depths in
    objects are a means only.
    """
    found = targets_of(labels, planned_targets(labels))[: None if labels.objects is None else 1]
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

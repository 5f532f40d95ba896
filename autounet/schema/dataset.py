"""What the data set is: files, channels, labels, cases, and how the cases are split into folds."""

from __future__ import annotations

import sys
from array import array
from base64 import b64decode, b64encode
from collections.abc import Sequence
from enum import StrEnum
from typing import ClassVar

from pydantic import Field, model_validator

from .errors import DataError
from .geometry import Box3, Geometry, Shape3
from .labels import Labels
from .names import printable
from .record import CaseName, Part, Record, Text


class Severity(StrEnum):
    fatal = "fatal"
    warning = "warning"


class Finding(Part):
    """One defect: the case (None: the whole data set), what is wrong, and what to do.

    `message` and `remedy` have no full stop at their end.
    """

    case: str | None = None
    code: str
    """short stable name, for example nan-voxels"""
    severity: Severity = Severity.fatal
    message: str
    remedy: str

    def __str__(self) -> str:
        where = f"case {self.case}: " if self.case else ""
        return printable(f"{where}{self.message}. {self.remedy}")


class ChannelKind(StrEnum):
    ct = "ct"
    mri = "mri"
    photo = "photo"
    other = "other"


class Channel(Part):
    name: Text
    kind: ChannelKind = ChannelKind.other


class LabelPart(Part):
    """One of the files that a case's label consists of."""

    path: str
    """relative to the data folder"""
    name: str | None = None
    """of the structure whose mask the file is; None: the file names its structures itself (DICOM-SEG, RTSTRUCT,
    outlines)"""


class Case(Part):
    identifier: CaseName
    images: tuple[str, ...]
    """paths relative to the data folder, one per channel file (a colour image is one file with 3 channels); a folder is
    a DICOM series"""
    label: str | None = None
    """the label file; of a label in several files the folder that holds all of them, or the first"""
    label_parts: tuple[LabelPart, ...] = ()
    """the files of a label whose structures are named, by file names or inside; empty: one file, read by its values"""
    group: str | None = None
    """cases of one group are never split between folds"""
    present: tuple[int, ...] | None = None
    """indices of the channels whose files `images` are, where the case lacks some; None: all"""
    frame: int | None = None
    """the time point of 4-D files that this case is; None: the whole files"""
    fold: str | None = None
    """name of the fold that a table or a data list puts the case into"""
    annotated: tuple[int, ...] | None = None
    """values, as in the files, of the classes that were looked for in this case; where its label shows none of them,
    a class that is not listed may be present. None: every class was. The background need not be listed"""

    @property
    def label_files(self) -> tuple[str, ...]:
        """Of a case without a label none."""
        return tuple(part.path for part in self.label_parts) or ((self.label,) if self.label else ())


_named: tuple[tuple[Case, ...], dict[str, Case]] = ((), {})
"""the cases of the data set that was last asked for one, by their names: to look through all for each takes long"""


class Dataset(Record):
    """`dataset.json` in the output folder."""

    root: str
    """the data folder, absolute"""
    name: str
    layout: str
    """table, msd, nnunet, dicom, outlines, containers, bids, cases or pairs"""
    channels: tuple[Channel, ...] = Field(min_length=1)
    labels: Labels
    labels_declared: bool
    """True when the layout or the options list every value; then an undeclared value is an error"""
    cases: tuple[Case, ...]
    image_pattern: str
    """how predict finds images of this layout, for example imagesTr/*_0000.nii.gz"""
    file_kind: str
    """file kind of the images, as in Geometry.kind"""
    suffix: str
    """file name ending of the images, for example .nii.gz; "" for DICOM series"""
    channel_patterns: dict[str, str] = {}
    """channel name -> glob pattern of its files, where file names distinguish the channels; for `predict`"""
    fold_source: str | None = None
    """what gives the cases' folds: table, or the name of a data list"""
    time_points: bool = False
    """True when the fourth axis of the files is time and every time point is a case"""

    def case(self, identifier: str) -> Case:
        """Raises KeyError where there is none."""
        global _named
        known = _named  # another thread may exchange it
        if known[0] is not self.cases:
            known = _named = self.cases, {case.identifier: case for case in self.cases}
        return known[1][identifier]

    def only(self, identifier: str) -> Dataset:
        """The same with this case alone, which is cheap to send to another process."""
        return self.model_copy(update={"cases": (self.case(identifier),)})


class IntensitySample(Part):
    """Seeded sample of one channel's foreground intensities in one case, kept so that one changed case is cheap."""

    float32: str
    """the values, little-endian, in base64: a sixth of the memory of a list of numbers, and read many times faster"""
    minimum: float | None
    maximum: float | None

    @classmethod
    def of(cls, values: bytes, minimum: float | None, maximum: float | None) -> IntensitySample:
        """From the bytes of little-endian float32 numbers."""
        return cls(float32=b64encode(values).decode("ascii"), minimum=minimum, maximum=maximum)

    @property
    def values(self) -> array[float]:
        """As an array that numpy takes without copying."""
        found = array("f", b64decode(self.float32))
        if sys.byteorder == "big":
            found.byteswap()
        return found


class ChannelFacts(Part):
    """What one channel of one case holds. All null where some voxel is not finite."""

    minimum: float | None = None
    maximum: float | None = None
    low: float | None = None
    """1st percentile of a regular sample of the voxels that are not 0, like the next two; null where all are 0"""
    median: float | None = None
    high: float | None = None
    """99th percentile"""


class ComponentFacts(Part):
    """The connected components (26 neighbours) of one label value in one case."""

    count: int
    largest: int
    """voxels"""
    isolated: int
    """components of a few voxels, probably annotation errors: see `datasets.checks.case_checks.count_components`"""
    smallest: int | None = None
    """voxels of the smallest isolated component"""
    place: tuple[int, int, int] | None = None
    """a voxel (z, y, x) of it"""
    first: tuple[int, int, int]
    """the first voxel (z, y, x) of the largest component"""


class PairFacts(Part):
    """How the left and the right class of a pair lie in one case."""

    left: int
    """value as in the file, as is the next"""
    right: int
    apart: float | None = None
    """mm by which the left class lies further to the patient's left; below 0: on the wrong side. None, like the next,
    where one of the two is not there, or the file does not say where left is"""
    overlap: float | None = None
    """Dice of the right class and the mirror image of the left one, centre on centre"""


class SharedVoxels(Part):
    """Voxels in which structures of a label meet, and which went to one of them."""

    structures: tuple[str, ...]
    voxels: int


class CaseFacts(Record):
    """What a case's files hold, from reading them once."""

    FORMAT_VERSION: ClassVar[int] = 6
    SEALED: ClassVar[bool] = True

    identifier: CaseName
    content_hash: str
    """over the bytes of all its files"""
    image_hash: str | None = None
    """over shape and intensities as read: the same for an image that was only stored in another way"""
    geometry: Geometry
    nonzero_box: Box3
    """half-open (start, stop) per axis (z, y, x) of the box around voxels that are non-zero in any channel"""
    value_counts: dict[int, int]
    """voxels per label value as in the file"""
    label_colours: dict[int, tuple[int, int, int]] = {}
    """the colours in which viewers show them, where the label file has a palette that says so"""
    components: dict[int, ComponentFacts] = {}
    """per label value but 0 and the ignore value; empty for scribbles, and for depths in objects, whose
    components mean nothing"""
    shared: tuple[SharedVoxels, ...] = ()
    """where structures overlap that were not made regions"""
    pairs: tuple[PairFacts, ...] = ()
    """of each left/right pair of the data set, where the label could be read"""
    channels: tuple[ChannelFacts, ...] = ()
    samples: tuple[IntensitySample, ...]
    """one per channel"""
    findings: tuple[Finding, ...] = ()

    @property
    def cropped_shape(self) -> Shape3:
        z, y, x = (stop - start for start, stop in self.nonzero_box)
        return (z, y, x)


class Splits(Record):
    """The folds of the cross-validation."""

    source: str
    """automatic, nnunet, table, full, or the file it came from: of --splits, or a data list such as dataset.json"""
    folds: tuple[tuple[CaseName, ...], ...]
    """the validation cases of each fold"""

    @model_validator(mode="after")
    def _disjoint(self) -> Splits:
        flat = [case for fold in self.folds for case in fold]
        if len(set(flat)) != len(flat):
            raise ValueError("a case is in two folds")
        return self

    def validation(self, fold: int) -> tuple[str, ...]:
        return self.folds[fold]

    def training(self, fold: int) -> tuple[str, ...]:
        """All cases of the other folds, in fold order."""
        return tuple(case for index, cases in enumerate(self.folds) if index != fold for case in cases)


NOT_ANNOTATED = "not annotated in this case"


def annotated_classes(case: Case, labels: Labels) -> tuple[bool, ...] | None:
    """(K) whether each dense class was annotated in the case, the background always; None: all were.

    Raises DataError for a value that no class has.
    """
    if case.annotated is None:
        return None
    unknown = sorted(set(case.annotated) - {0, *labels.values})
    if unknown:
        known = ", ".join(f"{each.name}={each.value}" for each in labels.classes)
        raise DataError(
            f"its annotated classes contain the value {unknown[0]}, which no class has",
            f"The classes are {known}",
            case=case.identifier,
        )
    found = tuple(index == 0 or value in case.annotated for index, value in enumerate(labels.values))
    return None if all(found) else found


def partly_annotated(dataset: Dataset) -> dict[str, tuple[bool, ...]]:
    """`annotated_classes` of the cases where some class was not; empty in most data sets. Raises DataError."""
    found = {case.identifier: annotated_classes(case, dataset.labels) for case in dataset.cases}
    return {name: classes for name, classes in found.items() if classes is not None}


def is_certain(members: Sequence[int], annotated: Sequence[bool]) -> bool:
    """Whether a case's label shows where the union of `members` (dense classes) is.

    Voxels of the classes that were not annotated (`annotated` (K) is False) are labelled 0: the union is known where
    they lie on the same side of it as the background.
    """
    inside = 0 in members
    return all(known or (index in members) == inside for index, known in enumerate(annotated))


ChannelAvailability = tuple[bool, ...]
"""(C) whether a case has each channel"""


def channel_availability(case: Case, channels: int) -> ChannelAvailability | None:
    """None where the case has all of them."""
    if case.present is None or len(case.present) == channels:
        return None
    return tuple(index in case.present for index in range(channels))


def partial_availability(dataset: Dataset) -> dict[str, ChannelAvailability]:
    """`channel_availability` of the cases that lack a channel; empty in most data sets."""
    found = {case.identifier: channel_availability(case, len(dataset.channels)) for case in dataset.cases}
    return {name: present for name, present in found.items() if present is not None}


def channel_combinations(dataset: Dataset) -> tuple[ChannelAvailability, ...]:
    """The combinations of channels that occur, sorted; empty where every case has all channels."""
    lacking = partial_availability(dataset)
    whole = [(True,) * len(dataset.channels)] if len(lacking) < len(dataset.cases) else []
    return tuple(sorted({*lacking.values(), *whole})) if lacking else ()

"""What the data set is: files, channels, labels, cases, and how the cases are split into folds."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field, model_validator

from autounet.schema.geometry import Box3, Geometry, Shape3
from autounet.schema.labels import Labels
from autounet.schema.record import Part, Record


class Severity(StrEnum):
    fatal = "fatal"
    warning = "warning"


class Finding(Part):
    """One defect: which case, what was found, what to do. `case` is None for the whole data set."""

    case: str | None = None
    code: str
    """short stable name, for example nan-voxels"""
    severity: Severity = Severity.fatal
    message: str
    remedy: str

    def __str__(self) -> str:
        where = f"case {self.case}: " if self.case else ""
        return f"{where}{self.message}. {self.remedy}"


class ChannelKind(StrEnum):
    ct = "ct"
    mri = "mri"
    photo = "photo"
    other = "other"


class Channel(Part):
    name: str
    kind: ChannelKind = ChannelKind.other


class Case(Part):
    identifier: str
    images: tuple[str, ...]
    """paths relative to the data folder, one per channel file (a colour image is one file with 3 channels)"""
    label: str | None = None
    group: str | None = None
    """cases of one group are never split between folds"""


class Dataset(Record):
    """`dataset.json` in the output folder."""

    root: str
    """the data folder, absolute"""
    name: str
    layout: str
    """msd, nnunet, pairs, ..."""
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
    """file name ending of the images, for example .nii.gz"""

    def case(self, identifier: str) -> Case:
        return next(case for case in self.cases if case.identifier == identifier)


class IntensitySample(Part):
    """Seeded sample of one channel's foreground intensities in one case, kept so that one changed case is cheap."""

    values: tuple[float, ...]
    minimum: float | None
    maximum: float | None


class CaseFacts(Record):
    """Everything that one reading of a case's files tells."""

    identifier: str
    content_hash: str
    """over the bytes of all its files"""
    geometry: Geometry
    nonzero_box: Box3
    """half-open (start, stop) per axis (z, y, x) of the box around voxels that are non-zero in any channel"""
    value_counts: dict[int, int]
    """voxels per label value as in the file"""
    samples: tuple[IntensitySample, ...]
    """one per channel"""
    findings: tuple[Finding, ...] = ()

    @property
    def cropped_shape(self) -> Shape3:
        z, y, x = (stop - start for start, stop in self.nonzero_box)
        return (z, y, x)


class Splits(Record):
    """Which fold validates which case."""

    source: str
    """automatic, nnunet, or the file it came from"""
    folds: tuple[tuple[str, ...], ...]
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

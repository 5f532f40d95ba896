"""What the planner knows of a data set."""

from __future__ import annotations

from collections.abc import Collection

from pydantic import Field

from .dataset import Channel, ChannelKind, Finding, Severity
from .geometry import Shape3, Spacing3
from .labels import Labels
from .record import CaseName, Part, Record, digest


class CaseFingerprint(Part):
    """Shapes and spacing are (z, y, x) in the orientation the plan will use (the patient's or as stored)."""

    identifier: CaseName
    content_hash: str
    shape: Shape3
    cropped_shape: Shape3
    """after cropping to the non-zero box"""
    spacing: Spacing3
    voxels: tuple[int, ...]
    """voxel count per dense class, index 0 first; 0 for a class that was not annotated in the case"""


class ChannelFingerprint(Part):
    """Foreground intensity statistics over all cases; null when no case has foreground."""

    name: str
    kind: ChannelKind
    mean: float | None = None
    std: float | None = None
    median: float | None = None
    minimum: float | None = None
    maximum: float | None = None
    percentile_00_5: float | None = None
    percentile_99_5: float | None = None


class Fingerprint(Record):
    """`fingerprint.json`."""

    dimension: int = Field(ge=2, le=3)
    """2 when every image has a single slice"""
    orientation: str
    """ras or as_stored: the orientation of every shape and spacing here"""
    oriented: bool = True
    """whether every file says how its axes lie in the patient, as medical formats do and pictures do not"""
    unlike: tuple[tuple[str, str], ...] = ()
    """left and right classes that are no mirror images of each other"""
    channels: tuple[ChannelFingerprint, ...]
    cases: tuple[CaseFingerprint, ...] = Field(min_length=1)

    def digest(self) -> str:
        """Without `unlike` where it is empty, as in files written before it was there."""
        return digest(self.model_dump(mode="json", exclude=set() if self.unlike else {"unlike"}))

    @property
    def class_voxels(self) -> tuple[int, ...]:
        """Of all cases, per dense class."""
        return tuple(map(sum, zip(*(case.voxels for case in self.cases), strict=True)))

    def unseen(self, cases: Collection[str]) -> tuple[int, ...]:
        """Dense classes that occur in the data set, and in none of `cases`."""
        among = set(cases)
        shown = {index for case in self.cases if case.identifier in among for index, n in enumerate(case.voxels) if n}
        return tuple(index for index, count in enumerate(self.class_voxels) if count and index not in shown)


class CheckResult(Record):
    """`autounet check --json`."""

    layout: str
    channels: tuple[Channel, ...]
    labels: Labels
    cases: tuple[str, ...]
    example: str = ""
    """the first case with its files, as they were paired"""
    findings: tuple[Finding, ...]

    @property
    def is_fatal(self) -> bool:
        """Whether a finding makes training impossible."""
        return any(finding.severity is Severity.fatal for finding in self.findings)


class Repair(Part):
    """What `autounet check --fix` did with one case."""

    case: CaseName
    done: tuple[str, ...] = ()
    """a sentence each"""
    dropped: str | None = None
    """why the case is not in the new folder"""

    def __str__(self) -> str:
        return f"case {self.case}: " + (f"left out: {self.dropped}" if self.dropped else "; ".join(self.done))


class RepairResult(Record):
    """`autounet check --fix --json`: what was done, and what the check of the new folder found."""

    folder: str
    repairs: tuple[Repair, ...]
    """of the cases that were changed or left out"""
    result: CheckResult

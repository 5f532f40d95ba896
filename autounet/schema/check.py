"""What `autounet check` found and mended."""

from __future__ import annotations

from autounet.schema.dataset import Channel, Finding
from autounet.schema.labels import Labels
from autounet.schema.record import Part, Record


class CheckResult(Record):
    """`autounet check --json`."""

    layout: str
    channels: tuple[Channel, ...]
    labels: Labels
    cases: tuple[str, ...]
    findings: tuple[Finding, ...]


class Repair(Part):
    """What `autounet check --fix` did with one case."""

    case: str
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

"""What a tracker does, whichever service it writes to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pydantic import JsonValue


@dataclass(frozen=True)
class TrackedRun:
    """One line in the service's list: the training of one fold, or the results of an output folder."""

    name: str
    """for people: 3d_fullres fold_0"""
    identity: str
    """letters and digits; the same when the same training goes on, another one when it begins anew"""
    group: str
    """what the runs of one output folder share"""


class Tracker(Protocol):
    """Every call names its run, which is opened, or opened again, by the first. Any exception may be raised."""

    def describe(self, run: TrackedRun, content: Mapping[str, JsonValue]) -> None:
        """What the run was made with: its plan and options."""

    def scalars(self, run: TrackedRun, values: Mapping[str, float], step: int) -> None:
        """Numbers by name at a training step."""

    def file(self, run: TrackedRun, path: Path) -> None:
        """Keep a file, such as the report, with the run."""

    def close(self) -> None:
        """Everything has been said."""

"""What the files of one fold tell about it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from autounet.running.recipes import FULL_STEPS
from autounet.running.watching.time_left import FoldTime
from autounet.schema.log import read_log
from autounet.schema.metrics import Metrics
from autounet.schema.plan import Configuration
from autounet.schema.run import EpochLog, fold_name
from autounet.schema.status import FoldState, FoldStatus


@dataclass(frozen=True)
class FoldFiles:
    """One fold of one configuration, as its files tell."""

    out: Path
    name: str
    fold: int | None
    configuration: Configuration
    steps: int | None
    """that were asked for; None: by the time, or the full recipe"""
    run_goes_on: bool

    @property
    def folder(self) -> Path:
        return self.out / "models" / self.name / fold_name(self.fold)

    @property
    def log_file(self) -> Path:
        return self.folder / "log.jsonl"

    @cached_property
    def log(self) -> Sequence[EpochLog]:
        return read_log(self.log_file) if self._begun else ()

    @property
    def _begun(self) -> bool:
        return (self.folder / "started.json").exists()

    @cached_property
    def status(self) -> FoldStatus:
        metrics, last = self.out / "crossval" / self.name / f"fold_{self.fold}.json", self.log[-1] if self.log else None
        measured = [line.validation_dice for line in self.log if line.validation_dice]
        state = self._state()
        return FoldStatus(
            configuration=self.name,
            fold="all" if self.fold is None else self.fold,
            state=state,
            progress=1.0 if state == "done" else last.progress if last else 0.0,
            dice=Metrics.load(metrics).mean_dice if metrics.exists() else None,
            patch_dice=sum(measured[-1].values()) / len(measured[-1]) if measured else None,
            validated=state == "done" and (self.fold is None or self._validated.exists()),
            seconds=last.seconds if last else 0.0,
            peak_memory_bytes=last.peak_memory_bytes if last else None,
            predicted_memory_bytes=self.configuration.predicted_memory_bytes,
        )

    def _state(self) -> FoldState:
        if (self.folder / "done.json").exists():
            return "done"
        if not self._begun:
            return "waiting"
        return "running" if self.run_goes_on else "interrupted"

    @property
    def _validated(self) -> Path:
        return self.out / "crossval" / self.name / f"fold_{self.fold}.done.json"

    @property
    def time(self) -> FoldTime:
        planned, status = self.configuration.predicted_step_seconds, self.status
        steps = self.steps or self.configuration.predicted_steps or FULL_STEPS
        done = self.folder / "done.json"
        measured = self._validated.exists() and done.exists() and age(done) > age(self._validated)
        return FoldTime(
            configuration=self.name,
            trained=status.state == "done",
            validated=status.validated,
            progress=status.progress,
            spent=status.seconds,
            validation=age(done) - age(self._validated) if measured else None,
            planned_training=None if planned is None else planned * steps,
            planned_validation=self.configuration.predicted_validation_seconds,
        )


def age(file: Path) -> float:
    """Seconds since it was written; infinite where it is not there."""
    try:
        return max(0.0, time.time() - file.stat().st_mtime)
    except OSError:
        return float("inf")

"""What an output folder tells about a run, read from its files alone."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean

from ..schema.dataset import Splits
from ..schema.errors import OptionError, RecordError
from ..schema.fingerprint import CheckResult
from ..schema.metrics import Metrics
from ..schema.options import RunOptions
from ..schema.plan import Configuration, Plan
from ..schema.run import EpochLog, FoldState, FoldStatus, RunState, RunStatus, fold_name, read_log
from ..time_budget.deadline import Clock
from .defaults import FULL_STEPS, is_every_fold, parse_folds, step_limit, trained_folds, trained_names
from .output_folder import LOCK, Owner, owner
from .status_lines import status_lines

LEAST_PROGRESS = 0.01
"""of a training from which its own speed is believed"""


@dataclass(frozen=True)
class FoldTime:
    """One fold of one configuration, as its files tell. Seconds; None: not known."""

    configuration: str
    trained: bool
    validated: bool
    """also where nothing is to be validated"""
    progress: float = 0.0
    """of its training, 0..1"""
    spent: float = 0.0
    """on its training until now"""
    validation: float | None = None
    """that its validation took"""
    planned_training: float | None = None
    planned_validation: float | None = None


def seconds_left(folds: Sequence[FoldTime]) -> float | None:
    """Of training and validation together; None where the time of a fold is not known. Selection is not in it."""
    total = 0.0
    for fold in folds:
        alike = [each for each in folds if each.configuration == fold.configuration]
        for left in (_training_left(fold, alike), _validation_left(fold, alike)):
            if left is None:
                return None
            total += left
    return total


def _training_left(fold: FoldTime, alike: Sequence[FoldTime]) -> float | None:
    if fold.trained:
        return 0.0
    if fold.progress >= LEAST_PROGRESS:
        return fold.spent * (1 - fold.progress) / fold.progress
    known = [each.spent for each in alike if each.trained]
    known = known or [each.spent / each.progress for each in alike if each.progress >= LEAST_PROGRESS]
    whole = fmean(known) if known else fold.planned_training
    return None if whole is None else max(0.0, whole - fold.spent)


def _validation_left(fold: FoldTime, alike: Sequence[FoldTime]) -> float | None:
    """Planned, or nothing where no plan says: it is short beside a training."""
    if fold.validated:
        return 0.0
    known = [each.validation for each in alike if each.validation is not None]
    return fmean(known) if known else fold.planned_validation or 0.0


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


RUNNING_SECONDS = 120.0
"""a run on another machine counts as running while it has written something within this time"""
STAGE_FILES = {
    "fingerprint": "fingerprint.json",
    "plan": "plan.json",
    "preprocess": "prepared/*.done.json",
    "train": "",
    "select": "selection.json",
    "report": "report.html",
}
"""stage -> the file that says it is done; of `train` the folds do"""


def read_status(out: Path) -> RunStatus:
    """What is done, what runs, what it takes and the time left. Raises OptionError for what is no output folder."""
    out = Path(out)
    if not out.is_dir():
        raise OptionError(f"{out} is no folder. Give the --out of a run")
    if not any(out.iterdir()):
        nothing = dict.fromkeys(STAGE_FILES, False)
        return RunStatus(state="empty", now="fingerprint", stages=nothing, lines=("nothing was run here yet",))
    if not any((out / name).exists() for name in ("options.json", "findings.json", LOCK)):
        raise OptionError(f"{out} is not an output folder of autounet. Give the --out of a run")
    found = _Folder(out, owner(out)).status()
    return found.model_copy(update={"lines": tuple(status_lines(found))})


@dataclass(frozen=True)
class _Folder:
    """Everything that is read from one output folder at one time."""

    out: Path
    owner: Owner

    def status(self) -> RunStatus:
        state, stages = self._state(), self.stages
        metrics = self.out / "metrics.json"
        return RunStatus(
            state=state,
            now=self._now(state),
            stages=stages,
            folds=tuple(fold.status for fold in self.folds),
            mean_dice=Metrics.load(metrics).mean_dice if metrics.exists() else None,
            seconds_left=0.0 if state == "finished" else self._seconds_left(),
            memory_bytes=resident_bytes(self.owner.process),
            findings=self._findings(),
        )

    @cached_property
    def stages(self) -> dict[str, bool]:
        stages = {stage: bool(file) and any(self.out.glob(file)) for stage, file in STAGE_FILES.items()}
        trained = bool(self.folds) and all(fold.status.state == "done" for fold in self.folds)
        return stages | {"train": trained}

    @cached_property
    def running(self) -> bool:
        if self.owner.state != "elsewhere":
            return self.owner.state == "working"
        files = [self.out / "clock.json", *self.out.glob("models/*/fold_*/*"), *self.out.glob("crossval/*/*.json")]
        return any(age(file) < RUNNING_SECONDS for file in files)

    @cached_property
    def folds(self) -> tuple[FoldFiles, ...]:
        try:
            plan, splits, options = (
                Plan.load(self.out / "plan.json"),
                Splits.load(self.out / "splits.json"),
                RunOptions.load(self.out / "options.json"),
            )
        except RecordError:
            return ()
        limited = (self.out / "clock.json").exists() or options.seconds is not None
        count = len(splits.folds)
        folds = parse_folds(options.folds, count)
        trained = [name for name in plan.configurations if (self.out / "models" / name).exists()]
        trained = trained or list(trained_names(plan, options, limited, is_every_fold(folds, count)))
        configurations = {name: plan.configurations[name] for name in trained}
        return tuple(
            FoldFiles(self.out, name, fold, configurations[name], step_limit(options), self.running)
            for name in trained
            for fold in trained_folds(name, configurations, folds, count)
        )

    def _state(self) -> RunState:
        if self.running:
            return "running"
        if all(self.stages.values()):
            return "finished"
        begun = any(fold.status.state == "interrupted" for fold in self.folds)
        return "interrupted" if begun or (self.out / "clock.json").exists() else "stopped"

    def _now(self, state: RunState) -> str | None:
        stage = next((stage for stage, done in self.stages.items() if not done), None)
        if state != "running":
            return stage
        for fold in self.folds:
            name = f"{fold.name} {fold_name(fold.fold)}"
            if fold.status.state == "running":
                return f"train {name}"
            if fold.status.state == "done" and not fold.status.validated:
                return f"validate {name}"
        return stage or "report"

    def _findings(self) -> int | None:
        """Warnings of the check; None before it, and while there are fatal ones, with which nothing is written."""
        try:
            return len(CheckResult.load(self.out / "findings.json").findings)
        except RecordError:
            return None

    def _seconds_left(self) -> float | None:
        """Of the promise, or what the folds still take where that is less, or where nothing was promised."""
        known = [self._promised_left(), self._folds_left()]
        return min((seconds for seconds in known if seconds is not None), default=None)

    def _promised_left(self) -> float | None:
        file = self.out / "clock.json"
        try:
            clock = Clock.load(file)
        except RecordError:
            return None
        if clock.promised_seconds is None:
            return None
        spent = clock.spent_seconds + (age(file) if self.running else 0.0)
        return max(0.0, clock.promised_seconds - spent)

    def _folds_left(self) -> float | None:
        """None also where nothing but selection and report is left: nobody knows what they take."""
        times = [fold.time for fold in self.folds]
        if not times or all(each.trained and each.validated for each in times):
            return None
        left = seconds_left(times)
        since = min((age(fold.log_file) for fold in self.folds if fold.status.state == "running"), default=0.0)
        return None if left is None else max(0.0, left - since)


def resident_bytes(process: int | None) -> int | None:
    """Memory that a process holds now, as Linux tells; None elsewhere, and for a process that is gone."""
    try:
        lines = Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmRSS:")), None)

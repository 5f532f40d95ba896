"""Reads from the files of an output folder how far a run is and how long it still takes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import psutil

from ..schema.dataset import Splits
from ..schema.errors import OptionError, RecordError
from ..schema.fingerprint import CheckResult
from ..schema.metrics import Metrics
from ..schema.options import RunOptions
from ..schema.plan import Configuration, Plan
from ..schema.run import RECORDS, PredictedCase, read_log
from ..store.folder_lock import Owner, owner
from ..store.run_folder import RunFolder
from ..time_budget.deadline import Clock
from .defaults import FULL_STEPS, is_every_fold, parse_folds, step_limit, trained_folds, trained_names
from .job_state import JobStatus, prediction_jobs, read_jobs
from .status import FoldState, FoldStatus, RunState, RunStatus, status_lines

MIN_PROGRESS = 0.01
"""of a training before its own speed is used to estimate its end"""
RUNNING_SECONDS = 120.0
"""a run on another machine counts as running if it wrote something within this time"""
STAGES = ("fingerprint", "plan", "preprocess", "train", "select", "report")


def read_status(out: Path) -> RunStatus:
    """State, stages, folds and time left of a run. Raises OptionError if `out` is not an output folder."""
    out = Path(out)
    if not out.is_dir():
        raise OptionError(f"{out} is not a folder", "Give the folder of a run, as it was given with --out")
    if not any(out.iterdir()):
        none_done = dict.fromkeys(STAGES, False)
        return RunStatus(state="empty", now="fingerprint", stages=none_done, lines=("nothing has been run here yet",))
    if not RunFolder(out).is_of_a_run():
        if (jobs := read_jobs(prediction_jobs(out))) or (out / RECORDS).is_dir():
            return _prediction_status(out, jobs)
        raise OptionError(
            f"{out} is not an output folder of AutoUNet", "Give the folder of a run, as it was given with --out"
        )
    process = owner(out)
    running = _is_running(out, process)
    folds = _read_folds(out, running)
    trained = bool(folds) and all(fold.status.state == "done" for fold in folds)
    stages = {stage: trained if stage == "train" else RunFolder(out).stage_is_done(stage) for stage in STAGES}
    state, metrics = _run_state(out, running, stages, folds), _metrics(RunFolder(out).metrics)
    status = RunStatus(
        state=state,
        now=_current_work(running, stages, folds),
        stages=stages,
        folds=tuple(_with_time_left(fold, folds) for fold in folds),
        mean_dice=metrics.mean_dice if metrics else None,
        seconds_left=0.0 if state == "finished" else _seconds_left(out, running, folds),
        memory_bytes=resident_bytes(process.process),
        findings=_warnings(RunFolder(out).findings),
        jobs=read_jobs(out),
    )
    return status.model_copy(update={"lines": tuple(status_lines(status))})


def _prediction_status(out: Path, jobs: tuple[JobStatus, ...]) -> RunStatus:
    """Of a prediction, by a cluster or here, where a case that was begun and not finished has an empty key."""
    process, states = owner(out / RECORDS), {job.state for job in jobs}
    running = process.state == "working" or "running" in states
    begun = any(not case.key for case in _predicted(out / RECORDS))
    state: RunState = "running" if running else "interrupted" if begun or states - {"done"} else "finished"
    now, memory = None if state == "finished" else "prediction", resident_bytes(process.process)
    status = RunStatus(state=state, now=now, stages={}, memory_bytes=memory, jobs=jobs)
    return status.model_copy(update={"lines": tuple(status_lines(status))})


def _predicted(records: Path) -> Iterator[PredictedCase]:
    """What `predict` has recorded of cases, whose names may hold folders."""
    for file in records.rglob("*.json"):
        if not any(part.startswith(".") for part in file.relative_to(records).parts):
            with suppress(RecordError):
                yield PredictedCase.load(file)


def run_seconds_left(out: Path) -> float | None:
    """Of the run that works in the folder now; None: not known yet."""
    return _seconds_left(out, True, _read_folds(out, True))


def _seconds_left(out: Path, running: bool, folds: Sequence[FoldReading]) -> float | None:
    known = [_promised_seconds_left(out, running), _fold_seconds_left(folds)]
    return min((left for left in known if left is not None), default=None)


@dataclass(frozen=True)
class FoldTime:
    """Times of one fold of one configuration in seconds; None: not known."""

    configuration: str
    trained: bool
    validated: bool
    """also true where there is nothing to validate"""
    running: bool = False
    """it is being trained or validated"""
    progress: float = 0.0
    """of its training, 0..1"""
    spent: float = 0.0
    """on its training so far"""
    validation: float | None = None
    """that its validation took"""
    planned_training: float | None = None
    """like the next one, of the whole run: of those that go on side by side each takes as many times as long"""
    planned_validation: float | None = None


@dataclass(frozen=True)
class FoldReading:
    """What the files of one fold show."""

    status: FoldStatus
    time: FoldTime
    log_age: float
    """seconds since a line was added to its log; infinite without a log"""


def _read_folds(out: Path, running: bool) -> list[FoldReading]:
    """Every fold that the options ask for; none before there is a plan."""
    try:
        plan = Plan.load(RunFolder(out).plan)
        splits = Splits.load(RunFolder(out).splits)
        options = RunOptions.load(RunFolder(out).options)
    except RecordError:
        return []
    limited = (RunFolder(out).clock).exists() or options.seconds is not None
    count = len(splits.folds)
    folds = parse_folds(options.folds, count)
    names = [name for name in plan.configurations if RunFolder(out).models(name).exists()]
    names = names or list(trained_names(plan, options, limited, is_every_fold(folds, count)))
    configurations = {name: plan.configurations[name] for name in names}
    return [
        _read_fold(out, name, fold, configurations[name], step_limit(options), running)
        for name in names
        for fold in trained_folds(name, configurations, folds, count)
    ]


def _read_fold(
    out: Path, name: str, fold: int | None, configuration: Configuration, steps: int | None, running: bool
) -> FoldReading:
    """`steps` are those that the options limit a training to; None: the time limits it, or nothing does."""
    folder, crossval = RunFolder(out).fold(name, fold), RunFolder(out).crossval(name)
    done, validated = folder.done, crossval.done(fold or 0)
    started = folder.started.exists()
    state: FoldState = "waiting"
    if done.exists():
        state = "done"
    elif started:
        state = "running" if running else "interrupted"
    log = read_log(folder.log) if started else []
    last = log[-1] if log else None
    patch_dice = [line.validation_dice for line in log if line.validation_dice]
    evaluated = state == "done" and validated.exists()  # else it was a training before this one
    metrics = _metrics(crossval.metrics(fold)) if fold is not None and evaluated else None
    status = FoldStatus(
        configuration=name,
        fold="all" if fold is None else fold,
        state=state,
        progress=1.0 if state == "done" else last.progress if last else 0.0,
        dice=metrics.mean_dice if metrics else None,
        patch_dice=fmean(patch_dice[-1].values()) if patch_dice else None,
        converged=next((line.event for line in log if line.converged), None),
        left_behind=tuple(metrics.hardly_found) if metrics else last.left_behind if last else (),
        validated=state == "done" and (fold is None or evaluated),
        seconds=last.seconds if last else 0.0,
        peak_memory_bytes=last.peak_memory_bytes if last else None,
        predicted_memory_bytes=configuration.predicted_memory_bytes,
    )
    step_seconds = configuration.predicted_step_seconds
    times = FoldTime(
        configuration=name,
        trained=state == "done",
        validated=status.validated,
        running=running and started and not status.validated,
        progress=status.progress,
        spent=status.seconds,
        validation=age(done) - age(validated) if evaluated and age(done) > age(validated) else None,
        planned_training=step_seconds and step_seconds * (steps or configuration.predicted_steps or FULL_STEPS),
        planned_validation=configuration.predicted_validation_seconds,
    )
    return FoldReading(status, times, age(folder.log))


def _is_running(out: Path, process: Owner) -> bool:
    if process.state != "elsewhere":
        return process.state == "working"
    return any(age(file) < RUNNING_SECONDS for file in RunFolder(out).work_files())


def _run_state(out: Path, running: bool, stages: dict[str, bool], folds: Sequence[FoldReading]) -> RunState:
    if running:
        return "running"
    if all(stages.values()):
        return "finished"
    left = RunFolder(out).lock_holder.exists() or RunFolder(out).clock.exists()
    return "interrupted" if left or any(fold.status.state == "interrupted" for fold in folds) else "stopped"


def _current_work(running: bool, stages: dict[str, bool], folds: Sequence[FoldReading]) -> str | None:
    """What runs, or the next stage; None when all is done."""
    stage = next((stage for stage, done in stages.items() if not done), None)
    if not running:
        return stage
    work: dict[str, list[str]] = {}
    for status in (fold.status for fold in folds):
        if status.state == "running" or (status.state == "done" and not status.validated):
            doing = "train" if status.state == "running" else "validate"
            work.setdefault(f"{doing} {status.configuration}", []).append(f"fold_{status.fold}")
    return ", ".join(f"{doing} {', '.join(names)}" for doing, names in work.items()) or stage or "report"


def _warnings(file: Path) -> int | None:
    try:
        return len(CheckResult.load(file).findings)
    except RecordError:
        return None


def _metrics(file: Path) -> Metrics | None:
    """None where there are none, or damaged ones, which the next command makes again."""
    with suppress(RecordError):
        return Metrics.load(file)
    return None


def _promised_seconds_left(out: Path, running: bool) -> float | None:
    """Rest of the promised time; None without a promise."""
    file = RunFolder(out).clock
    try:
        clock = Clock.load(file)
    except RecordError:
        return None
    if clock.promised_seconds is None:
        return None
    spent = clock.spent_seconds + (age(file) if running else 0.0)
    return max(0.0, clock.promised_seconds - spent)


def _fold_seconds_left(folds: Sequence[FoldReading]) -> float | None:
    """None also where only selection and report are left, whose time is not known."""
    times = [fold.time for fold in folds]
    if not times or all(each.trained and each.validated for each in times):
        return None
    left = seconds_left(times)
    since = min((fold.log_age for fold in folds if fold.status.state == "running"), default=0.0)
    return None if left is None else max(0.0, left - since)


def _with_time_left(fold: FoldReading, folds: Sequence[FoldReading]) -> FoldStatus:
    """That of the fold's own training and validation, while it is trained."""
    left = None
    if fold.status.state == "running":
        same = [each.time for each in folds if each.time.configuration == fold.time.configuration]
        beside = sum(each.time.running for each in folds)
        left = _training_left(fold.time, same, beside)
    if left is None:
        return fold.status
    left = max(0.0, left - fold.log_age) + _validation_left(fold.time, same, beside)
    return fold.status.model_copy(update={"seconds_left": left})


def seconds_left(folds: Sequence[FoldTime]) -> float | None:
    """Of training and validation together, without selection; None where the time of a fold is not known.

    Those that run side by side now share what is left.
    """
    left, beside = [], max(1, sum(fold.running for fold in folds))
    for fold in folds:
        same = [each for each in folds if each.configuration == fold.configuration]
        training = _training_left(fold, same, beside)
        if training is None:
            return None
        left.append(training + _validation_left(fold, same, beside))
    return max(*left, sum(left) / beside) if left else 0.0


def _training_left(fold: FoldTime, same: Sequence[FoldTime], beside: int) -> float | None:
    """By its own speed, else by the mean of the other folds of its configuration (`same`), else as planned."""
    if fold.trained:
        return 0.0
    if fold.progress >= MIN_PROGRESS:
        return fold.spent * (1 - fold.progress) / fold.progress
    measured = [each.spent for each in same if each.trained]
    measured = measured or [each.spent / each.progress for each in same if each.progress >= MIN_PROGRESS]
    planned = fold.planned_training and beside * fold.planned_training
    whole = fmean(measured) if measured else planned
    return None if whole is None else max(0.0, whole - fold.spent)


def _validation_left(fold: FoldTime, same: Sequence[FoldTime], beside: int) -> float:
    """By the mean of the other folds, else as planned; 0 where nothing is known, since it is short."""
    if fold.validated:
        return 0.0
    measured = [each.validation for each in same if each.validation is not None]
    return fmean(measured) if measured else beside * (fold.planned_validation or 0.0)


def age(file: Path) -> float:
    """Seconds since a file was written; infinite where there is none."""
    try:
        return max(0.0, time.time() - file.stat().st_mtime)
    except OSError:
        return float("inf")


def resident_bytes(process: int | None) -> int | None:
    """Main memory that a process and those that it has started hold; None where it has ended or is somebody else's."""
    if not process:
        return None
    try:
        own = psutil.Process(process)
        total = own.memory_info().rss
        children = own.children(recursive=True)
    except psutil.Error:
        return None
    for child in children:
        with suppress(psutil.Error):  # it has just ended
            total += child.memory_info().rss
    return total

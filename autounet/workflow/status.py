"""The state of a run as `autounet status` shows it: the record behind `--json`, its lines, and `--watch`."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from ..schema.errors import AutoUNetError
from ..schema.metrics import NEAR_ZERO, WHAT_HELPS
from ..schema.quantities import format_size, format_time
from ..schema.record import ConfigurationName, Part
from .job_state import JobStatus

RunState = Literal["empty", "running", "interrupted", "stopped", "finished"]
"""interrupted: the last command was ended from outside, and the same command continues; stopped: it ended with an
error, or at an earlier stage as asked"""
FoldState = Literal["waiting", "running", "interrupted", "done"]

WATCH_SECONDS = 5.0
"""between two readings of the folder"""


class FoldStatus(Part):
    """Training of one configuration on one fold, and its validation."""

    configuration: ConfigurationName
    fold: int | Literal["all"]
    state: FoldState
    """of the training"""
    progress: float
    """of the training, 0..1"""
    dice: float | None
    """mean Dice of the validation cases; None before they are validated"""
    patch_dice: float | None = None
    """mean Dice on a few validation patches, as last measured during training"""
    converged: str | None = None
    """why the training ends before its steps, in words; None: it goes through all of them, or does not know yet"""
    left_behind: tuple[str, ...] = ()
    """classes, or regions, whose Dice is near zero: of the validation cases, or before that on patches of training
    cases, where it has stayed there"""
    validated: bool = False
    """also true where there is nothing to validate"""
    seconds: float = 0.0
    """of training so far"""
    seconds_left: float | None = None
    """of its training and validation, while it is trained; None: not known"""
    peak_memory_bytes: int | None = None
    """of the training so far: allocated on a GPU, resident on a CPU"""
    predicted_memory_bytes: int | None = None


class RunStatus(Part):
    """The keys of `autounet status --json`."""

    state: RunState
    now: str | None = None
    """what runs, or the stage that comes next; None: everything is done"""
    stages: dict[str, bool]
    """stage -> whether it is done"""
    folds: tuple[FoldStatus, ...] = ()
    mean_dice: float | None = None
    seconds_left: float | None = None
    """until the run ends: the rest of `--time`, or less where the folds finish sooner; None: not known. Of an
    interrupted run, counted from when it continues"""
    memory_bytes: int | None = None
    """main memory of the running process; None: it does not run on this machine"""
    findings: int | None = None
    """number of warnings about the data; None before the check, and while there are fatal findings"""
    jobs: tuple[JobStatus, ...] = ()
    """each that the last command gave to a cluster"""
    lines: tuple[str, ...] = ()
    """the same for people"""


def status_lines(status: RunStatus) -> Iterator[str]:
    """Text of `autounet status`."""
    if status.state == "running":
        yield f"running: {status.now}"
    elif status.state == "interrupted":
        yield f"interrupted before {status.now} was done: give the same command again to continue"
    else:
        yield "finished" if status.state == "finished" else f"nothing is running; next stage: {status.now or 'report'}"
    for stage, done in status.stages.items():
        yield f"{stage}: {'done' if done else 'not done'}"
    if status.findings:
        yield f"warnings about the data: {status.findings} (listed in findings.json and in the report)"
    for fold in status.folds:
        yield _fold_line(fold)
        if fold.left_behind:
            names = ", ".join(fold.left_behind)
            yield f"{_name(fold)}: left behind, with a Dice below {NEAR_ZERO:g}: {names}"
    yield from (job_line(job) for job in status.jobs)
    if any(fold.left_behind for fold in status.folds):
        yield f"what helps: {WHAT_HELPS}"
    if status.mean_dice is not None:
        yield f"mean Dice: {status.mean_dice:.4f}"
    if status.memory_bytes is not None:
        yield f"memory of the process: {format_size(status.memory_bytes)}"
    if status.seconds_left:
        yield f"time left for the whole run: about {format_time(status.seconds_left)}"


def _name(fold: FoldStatus) -> str:
    return f"{fold.configuration} fold {fold.fold}"


def _fold_line(fold: FoldStatus) -> str:
    state = "trained, not yet validated" if fold.state == "done" and not fold.validated else fold.state
    parts = [f"{_name(fold)}: {state}", f"{fold.progress:.0%}"]
    if fold.dice is not None:
        parts.append(f"mean Dice {fold.dice:.4f}")
    elif fold.patch_dice is not None:
        parts.append(f"Dice on patches {fold.patch_dice:.3f}")
    if fold.seconds:
        parts.append(format_time(fold.seconds))
    if fold.seconds_left is not None:
        parts.append(f"about {format_time(fold.seconds_left)} left")
    if fold.peak_memory_bytes is not None:
        planned = f" (planned: {format_size(fold.predicted_memory_bytes)})" if fold.predicted_memory_bytes else ""
        parts.append(f"{format_size(fold.peak_memory_bytes)}{planned}")
    return ", ".join(parts) + (f"; {fold.converged}" if fold.converged else "")


def job_line(job: JobStatus) -> str:
    """`train 2d fold_0: running on node7 since 14:05, 40 %`; of one that failed the last lines of its log, too."""
    parts: list[str] = [job.state]
    if job.state in ("running", "failed") and job.host:
        parts = [f"{job.state} on {job.host}"]
        if job.since is not None:
            parts[0] += f" since {time.strftime('%Y-%m-%d %H:%M', time.localtime(job.since))}"
    if job.progress is not None:
        parts.append(f"{job.progress:.0%}")
    if job.attempts and job.state != "done":
        parts.append(f"{job.attempts} earlier attempts, the last of which ended so: {job.reason}")
    return f"{job.name}: {', '.join(parts)}" + "".join(f"\n    {line}" for line in job.log)


Reading = RunStatus | AutoUNetError
"""of a folder; the error of one that is not an output folder"""


def short_line(out: Path, status: Reading) -> str:
    """A run among others in one line: what it does, folds that are done, Dice, time left."""
    if isinstance(status, AutoUNetError):
        return str(status)
    doing = {"running": f"running: {status.now}", "finished": "finished", "empty": "nothing has been run yet"}
    parts = [doing.get(status.state, f"{status.state}, next: {status.now or 'report'}")]
    if status.folds and status.state != "finished":
        done = sum(fold.validated for fold in status.folds)
        parts.append(f"{done} of {len(status.folds)} folds done")
        parts += [f"{fold.progress:.0%} of fold {fold.fold}" for fold in status.folds if fold.state == "running"]
    if status.mean_dice is not None:
        parts.append(f"mean Dice {status.mean_dice:.4f}")
    if status.seconds_left and status.state == "running":
        parts.append(f"about {format_time(status.seconds_left)} left")
    return f"{out}: " + ", ".join(parts)


def watch(
    read: Callable[[Path], Reading], outs: Sequence[Path], seconds: float = WATCH_SECONDS
) -> Iterator[list[Reading]]:
    """`read(out)` of every folder each few seconds, the last time when nothing runs any more."""
    while True:
        statuses = [read(out) for out in outs]
        yield statuses
        if not any(isinstance(status, RunStatus) and status.state == "running" for status in statuses):
            return
        time.sleep(seconds)


def shown_lines(outs: Sequence[Path], statuses: Sequence[Reading]) -> list[str]:
    """All there is to say of one run, one line each of several."""
    if len(outs) == 1 and isinstance(statuses[0], RunStatus):
        return list(statuses[0].lines)
    return [short_line(out, status) for out, status in zip(outs, statuses, strict=True)]


def show(texts: Iterator[Sequence[str]]) -> None:
    """Lines that replace those before on a terminal; elsewhere those that differ are printed one after another."""
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console, before = Console(), None
    if sys.stdout.isatty():
        with Live(console=console, auto_refresh=False) as live:
            for lines in texts:
                live.update(Text("\n".join(lines)), refresh=True)
        return
    for lines in texts:
        if (text := "\n".join(lines)) != before:
            console.file.write(f"{text}\n\n")
            console.file.flush()
            before = text

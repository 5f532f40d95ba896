"""What is known of each job while others do it: in `OUT/jobs/`, for the command that waits for it and for `status`."""

from __future__ import annotations

import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import psutil

from ..schema.disk import writing
from ..schema.errors import RecordError
from ..schema.record import Part, Record
from ..schema.run import RECORDS
from ..store.run_folder import JobFolder, RunFolder
from . import cache

if TYPE_CHECKING:
    from .jobs import Job

BEAT_SECONDS = 5.0
"""between two signs of life of a job"""
SILENT_SECONDS = 60.0
"""without one, as counted by who waits, after which a job on another machine has ended"""
SHOWN_LINES = 3
"""of the log of a job that failed"""


class JobRun(Record):
    """`OUT/jobs/<job>/run.json`: one attempt at a job, written by who does it."""

    key: str
    attempt: str
    state: Literal["running", "done", "failed", "ended"]
    """ended: asked to, or from outside; failed: by an error"""
    host: str
    processes: dict[int, float] = {}
    """number of each process at work -> when it began, by its system's clock: numbers are given again"""
    began: float
    """seconds since 1970"""
    beat: int = 0
    """grows with each sign of life"""
    first: float | None = None
    progress: float | None = None
    """0..1, as first and last told in this attempt"""
    reason: str | None = None

    @property
    def advanced(self) -> bool:
        """Whether this attempt has brought the job further, so that another one is no repetition."""
        return self.first is not None and self.progress is not None and self.progress > self.first


class Attempt(Part):
    """A line of `OUT/jobs/<job>/attempts.jsonl`: why a job did not come to its end."""

    at: float
    """seconds since 1970"""
    host: str | None
    """None: it had not begun"""
    reason: str
    counted: bool
    """whether it counts as a failure"""


class ListedJob(Part):
    """What `status` knows of a job that nobody has begun."""

    name: str
    key: str
    needs: tuple[str, ...]
    done: str
    """its done file, relative to OUT"""


class JobList(Record):
    """`OUT/jobs/jobs.json`: those of the last command."""

    jobs: tuple[ListedJob, ...]


JobState = Literal["waiting", "running", "done", "failed"]


class JobStatus(Part):
    """One job, as `autounet status` shows it."""

    name: str
    state: JobState
    host: str | None = None
    """where it runs or ran last"""
    since: float | None = None
    """when that began, in seconds since 1970"""
    progress: float | None = None
    """of one that runs, 0..1"""
    attempts: int = 0
    """that did not come to their end"""
    reason: str | None = None
    """of the last of these"""
    log: tuple[str, ...] = ()
    """last lines of the log of one that failed"""


def job_folder(out: Path, name: str) -> JobFolder:
    return RunFolder(out).job(name)


def prediction_jobs(out: Path) -> Path:
    """What stands for OUT where the jobs are those of a prediction into `out`."""
    return out / RECORDS / ".work"


def read_run(folder: JobFolder) -> JobRun | None:
    """None before the first attempt, and where the file is damaged."""
    try:
        return JobRun.load(folder.run)
    except RecordError:
        return None


def is_here(run: JobRun) -> bool:
    return run.host == socket.gethostname()


def lives_here(run: JobRun) -> bool:
    """Whether a process that did the job on this machine goes on."""
    return any(began_at(number) == began for number, began in run.processes.items())


def began_at(process: int) -> float | None:
    """None where there is none of this number, or it has ended and waits to be noticed."""
    try:
        found = psutil.Process(process)
        return None if found.status() == psutil.STATUS_ZOMBIE else found.create_time()
    except psutil.Error:
        return None


class Pulse:
    """Tells whether a job that is said to run does: by its processes on this machine, by signs of life elsewhere."""

    def __init__(self) -> None:
        self.heard: dict[str, tuple[int, float]] = {}
        """attempt -> its last sign of life, and when that was seen by the clock of this process"""

    def goes_on(self, run: JobRun | None) -> bool:
        if run is None or run.state != "running":
            return False
        if is_here(run):
            return lives_here(run)
        beat, seen = self.heard.get(run.attempt, (-1, 0.0))
        if run.beat != beat:
            self.heard[run.attempt] = (run.beat, time.monotonic())
            return True
        return time.monotonic() - seen < SILENT_SECONDS


def write_job_list(out: Path, jobs: Sequence[Job]) -> None:
    listed = [
        ListedJob(name=job.name, key=job.key, needs=job.needs, done=job.done.relative_to(out).as_posix())
        for job in jobs
    ]  # fmt: skip
    JobList(jobs=tuple(listed)).save(RunFolder(out).job_list)


def note_attempt(folder: JobFolder, attempt: Attempt) -> None:
    folder.path.mkdir(parents=True, exist_ok=True)
    with writing(folder.attempts), folder.attempts.open("a", encoding="utf-8") as file:
        file.write(attempt.model_dump_json() + "\n")


def read_attempts(folder: JobFolder) -> list[Attempt]:
    """None without a file; a last line that was cut off is left out."""
    found = []
    file = folder.attempts
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines() if file.exists() else ():
        try:
            found.append(Attempt.model_validate_json(line))
        except ValueError:
            break
    return found


def last_lines(file: Path, count: int = SHOWN_LINES) -> list[str]:
    """Of a log; none without one."""
    try:
        with file.open("rb") as opened:
            opened.seek(max(0, file.stat().st_size - 8192))
            return opened.read().decode(errors="replace").splitlines()[-count:]
    except OSError:
        return []


def read_jobs(out: Path) -> tuple[JobStatus, ...]:
    """Every job of the last command that gave its jobs to a cluster."""
    try:
        listed = JobList.load(RunFolder(out).job_list).jobs
    except RecordError:
        return ()
    return tuple(_read_job(out, job) for job in listed)


def _read_job(out: Path, job: ListedJob) -> JobStatus:
    folder = job_folder(out, job.name)
    run, attempts = read_run(folder), read_attempts(folder)
    state: JobState = "waiting"
    if cache.stored_key(out / job.done) == job.key:
        state = "done"
    elif run is not None and run.state == "running" and (lives_here(run) if is_here(run) else _is_recent(folder)):
        state = "running"
    elif run is not None and run.key == job.key and run.state == "failed":
        state = "failed"
    return JobStatus(
        name=job.name,
        state=state,
        host=run.host if run else None,
        since=run.began if run else None,
        progress=run.progress if run and state == "running" else None,
        attempts=len(attempts),
        reason=attempts[-1].reason if attempts else None,
        log=tuple(last_lines(folder.log)) if state == "failed" else (),
    )


def _is_recent(folder: JobFolder) -> bool:
    """By the clock of the file system, which may differ a little from ours."""
    try:
        return time.time() - folder.run.stat().st_mtime < 2 * SILENT_SECONDS
    except OSError:
        return False

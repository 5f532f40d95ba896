"""Who does the jobs of a run: this process, one after the other, or processes side by side on the machine's cores."""

from __future__ import annotations

import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from ..ops.device import devices_like
from ..processes import (
    Answer,
    Caller,
    Lost,
    Raised,
    Returned,
    Told,
    Wanted,
    WorkerProcess,
    heard,
    launched,
    processes_of_a_training,
)
from ..progress import ASKED_BY, Progress, SideBySide, Watcher, stop_if_cancelled, watched
from ..schema.cluster import cluster_options
from ..schema.errors import AutoUNetError, OptionError, WorkerLost
from ..schema.options import RunOptions
from ..schema.run import DeviceProfile, EpochLog
from ..schema.stage_inputs import TrainingPlace
from ..system_memory import memory_sentence
from ..time_budget.deadline import Lanes
from ..workers import available_cores, ended_by
from . import cache
from .defaults import step_limit
from .jobs import Job

log = logging.getLogger(__name__)

BESIDE = frozenset({"train", "validate", "take_part", "cascade_labels", "predict"})
"""functions of jobs that others may go on beside; the rest uses all cores by itself"""
WAIT_SECONDS = 0.5
"""after which somebody who waits for other processes looks whether the run is cancelled"""
TOLD_SECONDS = 1.0
"""between two reports of how far a job is"""
STOP_SECONDS = 30.0
"""that jobs have to save what they have done; a checkpoint takes a few of them"""
MOST_LOST = 3
"""processes that may be killed from outside before the run gives up"""


LEAST_SECONDS, LEAST_STEPS = 120.0, 250
"""of a run, or of a training where steps are given; below that starting processes takes more than it saves"""
MEMORY_SHARE = 0.75
"""of the free memory that jobs side by side may take together, where --memory says nothing"""


def lanes_of(
    options: RunOptions, profile: DeviceProfile, promised: float | None, trainings: int, bytes_each: int = 0
) -> Lanes:
    """How many of so many trainings go on side by side: on a CPU's cores, one on each GPU, or on a cluster.

    On a CPU `bytes_each` of memory together stay within --memory, or most of what is free. `promised` are seconds of
    the run. With --workers 0 or 1 all stays in one process. Raises OptionError for devices that do not go together.
    """
    if (cluster := cluster_options(options.executor)) is not None:
        return Lanes.elsewhere(trainings, cluster.workers, cluster.cores)
    steps = step_limit(options)
    short = promised < LEAST_SECONDS if promised else steps is not None and steps < LEAST_STEPS
    if short or options.workers in (0, 1) or trainings < 2 or processes_of_a_training(options.devices_per_training) > 1:
        return Lanes()
    if profile.device != "cpu":
        return Lanes.on(devices_like(profile.device, options.device or "auto"), trainings, available_cores())
    allowed = options.memory_bytes or MEMORY_SHARE * profile.memory_bytes
    return Lanes.of(trainings, available_cores(), max(1, int(allowed // bytes_each)) if bytes_each else None)


def training_devices(options: RunOptions, profile: DeviceProfile) -> tuple[str, ...]:
    """The devices that share each batch of a training; none where the device of the plan makes it alone.

    Raises OptionError where there are fewer of them than asked for.
    """
    count = processes_of_a_training(options.devices_per_training)
    if count < 2:
        return ()
    if launched() is not None:  # on machines that this process does not see
        return (profile.device,) * count
    on_cpu, cores = profile.device == "cpu", max(2, available_cores())
    found = ["cpu"] * cores if on_cpu else devices_like(profile.device, options.device or "auto")
    if len(found) < count:
        raise OptionError(
            f"--devices-per-training {count}: of devices like {profile.device} there are {len(found)}",
            f"Give at most {len(found)}, or name more of them with --device",
        )
    return tuple(found[:count])


class Runner(Protocol):
    """Does jobs here, and knows what they need and have cost: `stages.JobRunner`."""

    def __call__(self, job: Job) -> None: ...
    def begin(self, job: Job) -> dict[str, Any]: ...
    def said(self, job: Job, entry: EpochLog) -> None: ...
    def wanted(self, job: Job) -> object: ...
    def queued(self, seconds: float) -> None: ...
    def given_back(self, job: Job) -> None: ...
    def ended(self, job: Job, result: object, seconds: float) -> None: ...


def require_order(jobs: Sequence[Job]) -> None:
    """Raises ValueError where a job comes before one that it needs."""
    seen: set[str] = set()
    for job in jobs:
        if missing := set(job.needs) - seen:
            raise ValueError(f"job {job.name} comes before what it needs: {sorted(missing)}")
        seen.add(job.name)


class SequentialExecutor:
    """One job after the other in this process, in the order given, which must respect `needs`."""

    def __init__(self, work: Callable[[Job], None], on_finished: Callable[[], None]) -> None:
        self.work, self.on_finished = work, on_finished
        self.ran: set[str] = set()

    def run(self, jobs: Sequence[Job]) -> None:
        require_order(jobs)
        for job in jobs:
            if not self.is_done(job):
                self.here(job)

    def is_done(self, job: Job) -> bool:
        """Whether it need not run; that is logged."""
        if not job.is_done() or self.ran & set(job.follows):
            return False
        log.info("%s: already done", job.name)
        return True

    def here(self, job: Job) -> None:
        began = self.begins(job)
        self.work(job)
        self.finished(job, began)

    def begins(self, job: Job) -> float:
        stop_if_cancelled()
        log.debug("%s: begins, with the key %s", job.name, job.key)
        cache.forget(job.done)
        return time.monotonic()

    def finished(self, job: Job, began: float) -> None:
        job.mark_done()
        log.debug("%s: done in %.1f s", job.name, time.monotonic() - began)
        self.ran.add(job.name)
        self.on_finished()


@dataclass
class Running:
    """A job that another process does."""

    job: Job
    began: float
    device: str | None
    tasks: set[str] = field(default_factory=set)
    """under which it is shown"""


class SideBySideExecutor(SequentialExecutor):
    """Jobs that may go on beside others in processes of their own, as soon as what they need is done.

    What fails ends the others, which save what they have done. A job whose process was killed from outside, as where
    memory runs out, begins again where it was, with fewer beside it.
    """

    def __init__(
        self, runner: Runner, on_finished: Callable[[], None], lanes: Lanes, do: Callable[..., object] | None = None
    ) -> None:
        """`do` is called in the other processes, `do_job` unless given."""
        super().__init__(runner, on_finished)
        self.do = do or do_job
        self.runner, self.count, self.lanes = runner, lanes.count, lanes
        self.devices: list[str | None] = list(lanes.devices or [None] * lanes.count)
        """that no process has"""
        self.busy: dict[WorkerProcess, Running] = {}
        self.idle: list[tuple[WorkerProcess, str | None]] = []
        """with the device of each, which it keeps: a GPU's memory stays with the process that used it"""
        self.done: set[str] = set()
        self.to_do: set[str] = set()
        """that were looked at and are not done, of those that wait"""
        self.waiting: list[Job] = []
        self.lost = 0

    def run(self, jobs: Sequence[Job]) -> None:
        """Raises what a job raised, and WorkerLost where processes are killed again and again."""
        require_order(jobs)
        self.waiting, self.shown = list(jobs), SideBySide()
        try:
            while self.waiting or self.busy:
                stop_if_cancelled()
                self._begin()
                for worker in heard(list(self.busy), WAIT_SECONDS) if self.busy else []:
                    self._hear(worker, worker.answer())
        except BaseException:
            self._stop()
            raise
        finally:
            self.shown.close()
            self._dismiss()
            for worker in self.busy:
                worker.end(WAIT_SECONDS)

    def _begin(self) -> None:
        """Whatever can begin now. A job that all cores are for waits until nothing else runs."""
        for job in list(self.waiting):
            if set(job.needs) - self.done:
                continue
            beside = job.function in BESIDE
            if job.name not in self.to_do and self.is_done(job):
                self.done.add(job.name)
            elif beside and len(self.busy) < self.count:
                self._start(job)
            elif not beside and not self.busy:
                self._dismiss()
                self.here(job)
                self.done.add(job.name)
            else:
                self.to_do.add(job.name)
                continue
            self.waiting.remove(job)

    def _dismiss(self) -> None:
        """Processes without a job hold memory that others may need."""
        while self.idle:
            worker, device = self.idle.pop()
            worker.end(0)
            self.devices.append(device)

    def _start(self, job: Job) -> None:
        if self.idle:
            worker, device = self.idle.pop()
        else:
            worker, device = WorkerProcess("jobs", self.lanes.threads or 1), self.devices.pop(0)
        self.busy[worker] = Running(job, self.begins(job), device)
        values = on_device(self.runner.begin(job), device, self.lanes.count)
        worker.call(self.do, name=job.function, values=values, called=time.monotonic())

    def _hear(self, worker: WorkerProcess, answer: Answer) -> None:
        running = self.busy[worker]
        if isinstance(answer, Told):
            self._told(worker, running, answer.content)
            return
        del self.busy[worker]
        for task in running.tasks:
            self.shown.ended(task)
        if isinstance(answer, Returned):
            self.idle.append((worker, running.device))
            self.runner.ended(running.job, answer.value, time.monotonic() - running.began)
            self.finished(running.job, running.began)
            self.done.add(running.job.name)
            return
        worker.end(0)
        self.devices.append(running.device)
        if isinstance(answer, Lost):
            self._lose(running.job, answer.status)
        else:
            raise _named(answer, running.job)

    def _told(self, worker: WorkerProcess, running: Running, content: object) -> None:
        if isinstance(content, Progress):
            running.tasks.add(content.task)
            self.shown.update(content)
        elif isinstance(content, EpochLog):
            self.runner.said(running.job, content)
        elif isinstance(content, Wanted):
            worker.reply(self.runner.wanted(running.job))

    def _lose(self, job: Job, status: int | None) -> None:
        """Raises WorkerLost after `MOST_LOST`."""
        self.lost += 1
        what = f"{job.name}: its process {ended_by(status)}; {memory_sentence()}"
        if self.lost > MOST_LOST:
            less = "Give --workers 1, in a prediction one --device, so that less goes on at the same time"
            raise WorkerLost(what, f"{less}; the same command continues where it was")
        self.count = max(1, min(self.count, len(self.busy)))
        log.warning("%s. It begins again where it was, with at most %d jobs side by side", what, self.count)
        self.runner.given_back(job)
        self.waiting.insert(0, job)

    def _stop(self) -> None:
        """Ask all to save what they have done, and wait for that; what is finished by then counts."""
        for worker in self.busy:
            worker.ask_to_end()
        until = time.monotonic() + STOP_SECONDS
        while self.busy and time.monotonic() < until:
            for worker in heard(list(self.busy), WAIT_SECONDS):
                answer = worker.answer()
                if isinstance(answer, Told):
                    continue
                running = self.busy.pop(worker)
                self.idle.append((worker, running.device))
                if isinstance(answer, Returned):
                    self.finished(running.job, running.began)


def on_device(values: dict[str, Any], device: str | None, count: int) -> dict[str, Any]:
    """The values of a job for one of `count` jobs side by side: its device, and its part of the worker processes."""
    place = values.get("place")
    if isinstance(place, TrainingPlace):
        place = place.model_copy(update={"device": device or place.device, "workers": math.ceil(place.workers / count)})
        return {**values, "place": place}
    changes: dict[str, Any] = {"workers": 1} if "workers" in values else {}
    if device and "device" in values:
        changes["device"] = device
    return {**values, **changes}


def _named(raised: Raised, job: Job) -> Exception:
    """The error of another process as one of this one; what is no mistake of a user's keeps where it came from."""
    if not isinstance(raised.error, (AutoUNetError, OSError)):
        raised.error.add_note(f"In the process of {job.name}:\n{raised.trace}")
    return raised.error


def do_job(tell: Caller, name: str, values: dict[str, Any], called: float) -> object:
    """A job in a process of its own, which tells how far it is and the lines of a training's log.

    `called` is when, by the clock of all processes of the machine: starting a process and loading what it needs takes
    from the time of a training. Asked to end, it raises Cancelled at the next step or case.
    """
    from .stages import FUNCTIONS

    asked = threading.Event()
    for number in ASKED_BY:
        signal.signal(number, lambda *_: asked.set())
    if name == "train":
        values = {**values, "on_log": tell}
        if values["seconds"] is not None:
            values["seconds"] = max(1.0, values["seconds"] - (time.monotonic() - called))
    elif name == "take_part":
        values = {**values, "cases": iter(partial(tell.ask, Wanted()), None)}
    try:
        with watched(Watcher(on_progress=tell, cancel=asked.is_set, lines=False, interval=TOLD_SECONDS)):
            return FUNCTIONS[name](**values)
    finally:
        for number in ASKED_BY:  # without a job there is nothing to save
            signal.signal(number, signal.SIG_DFL)

"""The third executor: jobs that a cluster does, each as soon as what it needs is done.

What has failed is tried again, and nothing else. A job that goes on from an earlier command, which was killed, is
waited for and not given a second time.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..progress import Progress, SideBySide, stop_if_cancelled
from ..schema.errors import AutoUNetError, RecordError, WorkerLost
from ..schema.metrics import Metrics
from ..schema.run import RunRecord, read_log
from ..schema.stage_inputs import TrainingPlace
from ..store.run_folder import FoldFolder, JobFolder
from ..workers import INHERITED
from .cluster import Cluster, engine_error
from .cluster_job import Outcome, run_job
from .executor import STOP_SECONDS, Runner, SequentialExecutor, do_job, require_order
from .job_state import Attempt, JobRun, Pulse, job_folder, last_lines, note_attempt, read_run, write_job_list
from .jobs import Job

log = logging.getLogger(__name__)

POLL_SECONDS = 0.5
"""between two looks at the files of running jobs"""


@dataclass
class Submitted:
    """A job that the cluster has, or that goes on from an earlier command."""

    job: Job
    folder: JobFolder
    began: float
    attempt: str
    future: Future[Outcome] | None
    """None: of an earlier command"""
    run: JobRun | None = None
    """as last read, of this attempt; None: it waits for a machine"""
    lines: int = 0
    """of the log of its training that have been told"""
    size: int = 0
    """bytes of that log then"""
    tasks: set[str] = field(default_factory=set)
    """under which it is shown"""


class ClusterExecutor(SequentialExecutor):
    """Jobs on a cluster. What fails for good ends the others, which save what they have done."""

    def __init__(
        self,
        runner: Runner,
        on_finished: Callable[[], None],
        cluster: Cluster,
        out: Path,
        do: Callable[..., object] = do_job,
    ) -> None:
        """`do` is called in the processes of jobs."""
        super().__init__(runner, on_finished)
        self.runner, self.cluster, self.out, self.do = runner, cluster, out, do
        self.done: set[str] = set()
        self.to_do: set[str] = set()
        """that were looked at and are not done, of those that wait"""
        self.waiting: list[Job] = []
        self.running: dict[str, Submitted] = {}
        self.failures: dict[str, int] = {}
        """job -> its attempts that count"""
        self.unbegun: set[str] = set()
        """jobs whose last attempt was lost"""
        self.pulse = Pulse()
        self.looked = 0.0

    def run(self, jobs: Sequence[Job]) -> None:
        """Raises what a job raised, and WorkerLost where attempts at one are lost again and again."""
        require_order(jobs)
        self.waiting, self.shown, self.looked = list(jobs), SideBySide(), time.monotonic()
        write_job_list(self.out, jobs)
        try:
            while self.waiting or self.running:
                stop_if_cancelled()
                self._begin()
                self._wait()
                for each in list(self.running.values()):
                    self._look(each)
        except BaseException:
            self._stop()
            raise
        finally:
            self.shown.close()

    def _begin(self) -> None:
        """Whatever can begin now, as long as there is room: what goes on from earlier has its room, too."""
        for job in list(self.waiting):
            if set(job.needs) - self.done:
                continue
            folder = job_folder(self.out, job.name)
            run = read_run(folder)
            if self.pulse.goes_on(run):
                assert run is not None
                self._take_up(job, folder, run)
                continue
            if job.name not in self.to_do and self.is_done(job):
                self.done.add(job.name)
            elif len(self.running) < self.cluster.options.workers:
                self._submit(job, folder)
            else:
                self.to_do.add(job.name)
                continue
            self.waiting.remove(job)

    def _submit(self, job: Job, folder: JobFolder) -> None:
        began, attempt = self.begins(job), secrets.token_hex(6)
        values = as_there(self.runner.begin(job), self.cluster.options.gpus, self.cluster.options.cores)
        folder.run.unlink(missing_ok=True)
        given = replace(job, args={})
        cores, inherited = self.cluster.options.cores, dict(INHERITED)
        future = self.cluster.submit(run_job, given, values, folder, attempt, cores, self.do, inherited)
        self.running[job.name] = Submitted(job, folder, began, attempt, future)

    def _take_up(self, job: Job, folder: JobFolder, run: JobRun) -> None:
        """A job that goes on from an earlier command, or an attempt that was given up too early."""
        self.to_do.add(job.name)
        if run.key != job.key:  # of other options or data: it only is in the way
            folder.stop(run.attempt).touch()
            return
        self.waiting.remove(job)
        self.runner.begin(job)
        log.info("%s: goes on, since before this command, on %s", job.name, run.host)
        self.running[job.name] = Submitted(job, folder, time.monotonic(), run.attempt, None, run)

    def _wait(self) -> None:
        """Until an attempt ends, or for a moment; what only queues costs no time of the promise."""
        futures = [each.future for each in self.running.values() if each.future is not None]
        if len(futures) == len(self.running) and futures:
            wait(futures, POLL_SECONDS, FIRST_COMPLETED)
        elif self.running or self.waiting:
            time.sleep(POLL_SECONDS)
        now = time.monotonic()
        if self.running and all(each.run is None for each in self.running.values()):
            self.runner.queued(now - self.looked)
        self.looked = now

    def _look(self, each: Submitted) -> None:
        run = read_run(each.folder)
        if run is not None and run.attempt == each.attempt:
            if each.run is None:
                log.info("%s: begins on %s", each.job.name, run.host)
            each.run = run
            self._tell(each, run)
        if each.future is None:
            self._look_at_other(each, run)
        elif each.future.done():
            self._ended(each, each.future)

    def _look_at_other(self, each: Submitted, run: JobRun | None) -> None:
        """A job of an earlier command: is it done, or has it ended without that?"""
        if each.job.is_done():
            self._finished(each, _result(each.job), time.monotonic() - each.began)
        elif run is None or run.attempt != each.attempt or not self.pulse.goes_on(run):
            reason = (run.reason if run is not None and run.attempt == each.attempt else None) or "its process ended"
            self._again(each, WorkerLost(f"{each.job.name}: {reason}"), counted=False)

    def _ended(self, each: Submitted, future: Future[Outcome]) -> None:
        error = future.exception()
        if error is not None:
            lost = type(error).__name__ in ("WorkerLost", "ManagerLost")
            if not lost:
                raise engine_error(error)
            # a block that goes before it began the job says nothing of the job, unless no block begins it
            counted = each.run is not None or each.job.name in self.unbegun
            self.unbegun.add(each.job.name)
            self._again(each, WorkerLost(f"{each.job.name}: {error}"), counted)
            return
        outcome = future.result()
        if outcome.leaving is not None:
            self.cluster.hold(outcome.leaving)
        if outcome.run is not None:
            each.run = outcome.run
            self.unbegun.discard(each.job.name)
        if outcome.state == "done":
            self._finished(each, outcome.value, outcome.seconds)
            return
        assert outcome.error is not None
        if isinstance(outcome.error, AutoUNetError) and outcome.state == "failed":
            raise outcome.error  # it would fail again
        advanced = outcome.run is not None and outcome.run.advanced and not isinstance(outcome.error, WorkerLost)
        unbegun = outcome.run is None and outcome.leaving is not None
        if advanced:  # failures count in a row
            self.failures[each.job.name] = 0
        self._again(each, outcome.error, counted=not (advanced or unbegun))

    def _finished(self, each: Submitted, result: object, seconds: float) -> None:
        """Its done file has been written where it ran."""
        self._forget(each)
        self.runner.ended(each.job, result, seconds)
        log.info("%s: done in %.0f s on %s", each.job.name, seconds, each.run.host if each.run else "the cluster")
        self.ran.add(each.job.name)
        self.done.add(each.job.name)
        self.on_finished()

    def _again(self, each: Submitted, error: Exception, counted: bool) -> None:
        """Let it begin again where it was. Raises the error where it has failed too often."""
        name, retries = each.job.name, self.cluster.options.retries
        self._forget(each)
        host = each.run.host if each.run else None
        note_attempt(each.folder, Attempt(at=time.time(), host=host, reason=str(error), counted=counted))
        self.failures[name] = self.failures.get(name, 0) + counted
        if self.failures[name] > retries:
            raise _failed(each, error, self.failures[name])
        where = f" on {host}" if host else ""
        count = f" (failure {self.failures[name]} of at most {retries})" if counted else ""
        log.warning("%s: did not come to its end%s: %s. It runs again, from where it was%s", name, where, error, count)
        self.runner.given_back(each.job)
        self.waiting.insert(0, each.job)

    def _forget(self, each: Submitted) -> None:
        del self.running[each.job.name]
        for task in each.tasks:
            self.shown.ended(task)

    def _tell(self, each: Submitted, run: JobRun) -> None:
        """How far it is, and what its training has logged."""
        if run.progress is not None and run.state == "running":
            each.tasks.add(each.job.name)
            self.shown.update(Progress(each.job.name, run.progress))
        place = each.job.args.get("place")
        if not isinstance(place, TrainingPlace):
            return
        file = FoldFolder(place.folder).log
        size = file.stat().st_size if file.exists() else 0
        if size > each.size:
            lines = read_log(file)
            for entry in lines[each.lines :] if each.size else lines[-1:]:
                self.runner.said(each.job, entry)
            each.lines, each.size = len(lines), size

    def _stop(self) -> None:
        """Ask all to save what they have done, and wait for that; what is finished by then counts."""
        for each in self.running.values():
            if each.future is not None:
                each.folder.path.mkdir(parents=True, exist_ok=True)
                each.folder.stop(each.attempt).touch()
        begun = {
            each.future: each for each in self.running.values() if each.future is not None and each.run is not None
        }
        done, _ = wait(begun, STOP_SECONDS)
        for future in done:
            if future.exception() is None and future.result().state == "done":
                self.ran.add(begun[future].job.name)
                self.on_finished()


def as_there(values: dict[str, Any], gpus: int, cores: int) -> dict[str, Any]:
    """The values of a job for a place with its own devices and cores: it sees no GPU but those that it may use."""
    place = values.get("place")
    if isinstance(place, TrainingPlace):
        loaders = min(place.workers, max(1, cores - 1)) if gpus else 0
        return {**values, "place": place.model_copy(update={"workers": loaders})}
    return {**values, "workers": cores} if "workers" in values else values


def _result(job: Job) -> RunRecord | Metrics | None:
    """What a job of an earlier command has left; None where that says nothing about its time or its Dice."""
    try:
        if job.function == "train":
            return RunRecord.load(FoldFolder(job.args["place"].folder).record)
        if job.function == "validate":
            return Metrics.load(job.args["folder"].metrics(job.args["fold"]))
    except RecordError:
        return None
    return None


def _failed(each: Submitted, error: Exception, times: int) -> Exception:
    lines = last_lines(each.folder.log)
    shown = "".join(f"\n    {line}" for line in lines)
    if isinstance(error, AutoUNetError):
        return WorkerLost(
            f"{each.job.name} failed {times} times: {error}{shown}",
            "Remove the cause, or give more retries; the same command continues where it was",
        )
    error.add_note(f"{each.job.name} failed {times} times; its log is {each.folder.log}")
    return error

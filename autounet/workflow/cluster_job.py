"""What goes on in a block of a cluster: jobs in processes of their own, and an orderly end when the block is to end.

    scheduler --> block (`python -m autounet.workflow.cluster_job block ...`)
                    `-- Parsl's manager, one worker for each job at a time
                          `-- run_job, which keeps run.json, log.txt and the done file
                                `-- the process of the job (`executor.do_job`)

Schedulers ask a block to end with SIGTERM or SIGUSR1 to all of its processes, and kill it about 30 seconds later. The
job's process saves its state; all that is above ignores the signal for so long.
"""

from __future__ import annotations

import logging
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import psutil

from ..processes import Lost, Raised, Returned, Tell, Told, WorkerProcess, heard
from ..progress import ASKED_BY, Progress
from ..schema.errors import AutoUNetError, Cancelled, WorkerLost
from ..schema.run import DeviceProfile
from ..store.run_folder import JobFolder
from ..workers import KILL, Inherited, end_with, take_over
from .executor import STOP_SECONDS, do_job
from .job_state import BEAT_SECONDS, JobRun, began_at
from .jobs import Job
from .trial_steps import calibrated, try_configurations

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.5
"""between two looks whether the job is to end"""
LEAVING_SECONDS = 27.0
"""that a block which is to end waits for its jobs; it is killed after about 30"""
GRACE_SECONDS = 1.0
"""for the last results to be sent"""


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended."""

    state: Literal["done", "failed", "ended"]
    """ended: asked to, or from outside"""
    value: Any = None
    """what the job's function returned"""
    error: Exception | None = None
    seconds: float = 0.0
    run: JobRun | None = None
    """as last written; None where it had not begun"""
    leaving: str | None = None
    """the block, where it was asked to end: it must get no other job"""


_process: list[WorkerProcess] = []
"""of this worker: it is kept from job to job, since starting one takes seconds"""


def run_job(
    job: Job,
    values: dict[str, Any],
    folder: JobFolder,
    attempt: str,
    threads: int,
    do: Callable[..., object] = do_job,
    inherited: Inherited | None = None,
) -> Outcome:
    """The job in a process of its own, with signs of life; its done file is written here, so that nobody else need be.

    `job.args` are not used but `values`. Nothing begins where another process still does it, or it is to stop.
    `inherited` is what spawned processes of the command call before they work.
    """
    from filelock import FileLock, Timeout

    take_over(inherited or {})
    folder.path.mkdir(parents=True, exist_ok=True)
    if (block := leaving()) is not None:
        return Outcome("ended", error=WorkerLost(f"{job.name} was not begun: its block is ending"), leaving=block)
    try:
        with FileLock(folder.lock, timeout=0, fallback_to_soft=False):
            return _Attempt(job, folder, attempt, threads).run(values, do)
    except Timeout:
        return Outcome("ended", error=WorkerLost(f"{job.name}: another process on this file system still does it"))


class _Attempt:
    """One run of one job, seen from the worker that has it."""

    def __init__(self, job: Job, folder: JobFolder, attempt: str, threads: int) -> None:
        self.job, self.folder, self.stop = job, folder, folder.stop(attempt)
        self.began = self.beaten = time.monotonic()
        self.threads = threads
        self.state = JobRun(
            key=job.key, attempt=attempt, state="running", host=socket.gethostname(), began=time.time(),
        )  # fmt: skip

    def run(self, values: dict[str, Any], do: Callable[..., object]) -> Outcome:
        if self.stop.exists():
            self.stop.unlink(missing_ok=True)
            return Outcome("ended", error=Cancelled(f"{self.job.name} was not begun"))
        with _logged(self.folder):
            worker = _worker(self.threads)
            numbers = (os.getpid(), worker.process.pid or 0)
            self._write(processes={number: began for number in numbers if (began := began_at(number)) is not None})
            worker.call(do, name=self.job.function, values=values, called=time.monotonic())
            answer = self._wait(worker)
            outcome = self._outcome(answer)
        self.stop.unlink(missing_ok=True)
        return outcome

    def _wait(self, worker: WorkerProcess) -> Returned | Raised | Lost:
        asked: float | None = None
        while True:
            for each in heard([worker], LOOK_SECONDS):
                answer = each.answer()
                if not isinstance(answer, Told):
                    if isinstance(answer, Raised | Lost):
                        _process.remove(worker)
                        worker.end(0)
                    return answer
                if isinstance(answer.content, Progress):
                    done = answer.content.done
                    first = done if self.state.first is None else self.state.first
                    self.state = self.state.model_copy(update={"progress": done, "first": first})
            if time.monotonic() - self.beaten >= BEAT_SECONDS:
                self._write(beat=self.state.beat + 1)
            if asked is None and self.stop.exists():
                asked = time.monotonic()
                worker.ask_to_end()
            elif asked is not None and time.monotonic() - asked > STOP_SECONDS:
                worker.process.kill()

    def _outcome(self, answer: Returned | Raised | Lost) -> Outcome:
        seconds = time.monotonic() - self.began
        if isinstance(answer, Lost):
            why = ", most likely because memory ran out" if answer.status == -signal.SIGKILL else ""
            what = f"its process was ended from outside (status {answer.status}){why}"
            error: Exception = WorkerLost(f"{self.job.name}: {what}")
        elif isinstance(answer, Raised):
            error = answer.error
        else:
            self.job.mark_done()
            self._write(state="done")
            return Outcome("done", answer.value, seconds=seconds, run=self.state)
        ended = isinstance(error, Cancelled | WorkerLost)
        log.error("%s", answer.trace.rstrip() if isinstance(answer, Raised) and not ended else error)
        if isinstance(answer, Raised) and not isinstance(error, AutoUNetError | OSError):
            error.add_note(f"In the process of {self.job.name} on {self.state.host}:\n{answer.trace}")
        self._write(state="ended" if ended else "failed", reason=f"{type(error).__name__}: {error}")
        block = leaving() if isinstance(error, Cancelled) else None
        return Outcome("ended" if ended else "failed", error=error, seconds=seconds, run=self.state, leaving=block)

    def _write(self, **changes: object) -> None:
        self.beaten = time.monotonic()
        self.state = self.state.model_copy(update=changes)
        self.state.save(self.folder.run)


def _worker(threads: int) -> WorkerProcess:
    """It gets SIGTERM when this process ends, and then saves what it has done."""
    for each in list(_process):
        if not each.process.is_alive():
            _process.remove(each)
            each.end(0)
    if not _process:
        _process.append(WorkerProcess("jobs", threads, asked=True))
    return _process[0]


def run_call(function: Callable[..., object], values: dict[str, Any], threads: int) -> Any:
    """`function(tell, **values)` in a process of its own, for what is no job: its result, or its error."""
    worker = _worker(threads)
    worker.call(function, **values)
    while isinstance(answer := worker.answer(), Told):
        pass
    _process.remove(worker)
    worker.end(0)
    if isinstance(answer, Lost):
        raise WorkerLost(f"a process of the cluster was ended from outside (status {answer.status})")
    if isinstance(answer, Raised):
        raise answer.error
    return answer.value


def probe(tell: Tell, device: str) -> DeviceProfile:
    """Of a device that a job sees."""
    from ..ops.device import choose_device
    from ..training.probe import probe_device

    return calibrated(probe_device(choose_device(device)))


def try_there(tell: Tell, **values: Any) -> None:
    try_configurations(**values)


@contextmanager
def _logged(folder: JobFolder) -> Iterator[None]:
    """Whatever is logged goes to the log of the job."""
    handler = logging.FileHandler(folder.log, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger = logging.getLogger("autounet")
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        handler.close()


def main(arguments: list[str]) -> int:
    """`interchange PARENT`: Parsl's hub beside the command, which ends with it. `block ...`: Parsl's manager."""
    role, *rest = arguments
    if role == "interchange":
        os.setsid()  # Ctrl-C, and what else asks all processes of the command to end, is for the command alone
        end_with(int(rest[0]), KILL)
        sys.argv = ["interchange"]
        runpy.run_module("parsl.executors.high_throughput.interchange", run_name="__main__", alter_sys=True)
        return 0
    return _block(rest)


LEAVING = "AUTOUNET_BLOCK_IS_LEAVING"
"""variable of the jobs' environment: the file that is there once their block was asked to end"""


def leaving() -> str | None:
    """The block of this worker, in Parsl's numbers, where it was asked to end."""
    sign = os.environ.get(LEAVING)
    return os.environ.get("PARSL_WORKER_BLOCK_ID") if sign and Path(sign).exists() else None


def _block(arguments: list[str]) -> int:
    """Returns the exit code of the manager, 0 where it was asked to end."""
    with tempfile.TemporaryDirectory(prefix="autounet_block_") as place:
        os.environ[LEAVING] = str(Path(place) / "leaving")
        return _managed(arguments, Path(os.environ[LEAVING]))


def _managed(arguments: list[str], sign: Path) -> int:
    for number in ASKED_BY:  # what is ignored stays so in all that is started, but for the processes of jobs
        signal.signal(number, signal.SIG_IGN)
    module = "parsl.executors.high_throughput.process_worker_pool"
    manager = subprocess.Popen([sys.executable, "-P", "-m", module, *arguments])
    for number in ASKED_BY:  # at once: the scheduler may have asked the jobs at the same time
        signal.signal(number, lambda *_: sign.touch())
    while not sign.exists():
        with suppress(subprocess.TimeoutExpired):
            return manager.wait(LOOK_SECONDS)
    until = time.monotonic() + LEAVING_SECONDS
    for process in _job_processes(manager.pid):  # where only this process was asked
        with suppress(psutil.Error):
            process.terminate()
    while time.monotonic() < until and _job_processes(manager.pid):
        time.sleep(0.1)
    time.sleep(GRACE_SECONDS)
    with suppress(psutil.Error):
        for process in (*psutil.Process(manager.pid).children(recursive=True), psutil.Process(manager.pid)):
            with suppress(psutil.Error):
                process.kill()
    manager.wait()
    return 0


def _job_processes(manager: int) -> list[psutil.Process]:
    """The children of Parsl's workers that Python has spawned to work."""
    found = []
    with suppress(psutil.Error):
        for worker in psutil.Process(manager).children():
            for each in worker.children():
                with suppress(psutil.Error):
                    if any("spawn_main" in part for part in each.cmdline()):
                        found.append(each)
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

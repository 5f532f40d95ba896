"""Work beside the main thread: a pool of processes for cases, a thread that reads ahead; how processes begin and end.

Spawned, because a fork after torch has used OpenMP hangs.
"""

from __future__ import annotations

import ctypes
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor, as_completed, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, nullcontext, suppress
from types import ModuleType
from typing import Any, TypeVar

from .system_memory import memory_sentence

log = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "BLOSC_NTHREADS")


SPIN_COUNT = "20000"
"""turns that libgomp's threads wait busily for the next loop. The default of 300,000 makes every training step ten
times slower while anything else runs on the cores; 20,000 costs nothing on a quiet machine (2 cores: 0.13 s a step
in both cases alone, 0.66 s against 3.8 s beside another process)"""


GRACE_SECONDS = 3.0
"""that other processes of a pool have to end their item after one has failed; then they are ended"""


def wait_politely() -> None:
    """Short busy waiting in numeric libraries that are loaded after this call; a user's own setting wins."""
    os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)


def available_cores() -> int:
    """Cores this process may use (affinity respected)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


KILL = int(getattr(signal, "SIGKILL", signal.SIGTERM))
"""what ends processes whose work is of no use any more"""
PROCESS_WIDE = threading.RLock()
"""held while something that the whole process has once is changed for a moment: threads may each have a run"""
_environments: list[dict[str, str | None]] = []
"""what the first of the blocks below found, once for each thread that is in one"""


@contextmanager
def children_with_threads(count: int = 1) -> Iterator[None]:
    """Processes spawned inside inherit so many threads per numeric library."""
    with PROCESS_WIDE:
        before = _environments[0] if _environments else {name: os.environ.get(name) for name in THREAD_VARIABLES}
        _environments.append(before)
        os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(count)))
    try:
        yield
    finally:
        with PROCESS_WIDE:
            before = _environments.pop()
            for name, value in () if _environments else before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value


@contextmanager
def without_main() -> Iterator[None]:
    """Processes spawned inside do not run the program's `__main__` again, which is a whole script without a guard."""
    with PROCESS_WIDE:
        main = sys.modules["__main__"]
        sys.modules["__main__"] = ModuleType("__main__")
        try:
            yield
        finally:
            sys.modules["__main__"] = main


Inherited = dict[Callable[[Any], None], Any]
INHERITED: Inherited = {}
"""functions that spawned processes call before they work, each with its value; both have to be picklable"""


def take_over(given: Inherited, worker: int = 0) -> None:
    """The `INHERITED` of the process that spawned this one; `worker` is the number that torch's DataLoader gives."""
    INHERITED.update(given)
    for function, value in given.items():
        function(value)


def map_parallel(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    workers: int,
    on_done: Callable[[Result], None] | None = None,
) -> list[Result]:
    """`[function(item) for item in items]` over spawned processes, results in the order of the items.

    `function` and the items must be picklable; only a function of a script itself needs its `__main__` guard.
    `on_done` is called in this process as results arrive.
    The first exception cancels what has not started and is raised here with its own type; what runs is ended after
    `GRACE_SECONDS`. When a process is killed from outside, the items that are not done are done by half as many; where
    the last one is killed, too, BrokenProcessPool names the item. With `workers` <= 1, or one item, everything runs in
    this process.
    """
    items = list(items)
    if workers <= 1 or len(items) <= 1:
        return [_told(function(item), on_done) for item in items]
    done: dict[int, Result] = {}
    workers = min(workers, len(items))
    while len(done) < len(items):
        left = {index: item for index, item in enumerate(items) if index not in done}
        try:
            _map_in_processes(function, left, workers, done, on_done)
        except BrokenProcessPool as error:
            if workers == 1:
                raise BrokenProcessPool(f"{error}, and no other process worked beside it") from None
            workers //= 2
            log.warning("%s. What is not done yet is done by %d instead", error, workers)
    return [done[index] for index in range(len(items))]


def _map_in_processes(
    function: Callable[[Item], Result],
    items: Mapping[int, Item],
    workers: int,
    done: dict[int, Result],
    on_done: Callable[[Result], None] | None,
) -> None:
    """Results go to `done` under the numbers of the items. Raises BrokenProcessPool saying how a process ended."""
    context = multiprocessing.get_context("spawn")
    with (
        children_with_threads(),
        ProcessPoolExecutor(
            min(workers, len(items)), mp_context=context, initializer=begin, initargs=(os.getpid(), KILL, INHERITED)
        ) as pool,
    ):
        # a process is started by each submission, and needs `__main__` for nothing but a function that is there
        with nullcontext() if function.__module__ == "__main__" else without_main():
            futures = {pool.submit(function, item): index for index, item in items.items()}
        processes = list((pool._processes or {}).values())  # public from Python 3.14 on: terminate_workers
        try:
            for future in as_completed(futures):
                done[futures[future]] = _told(future.result(), on_done)
        except BaseException as error:
            pool.shutdown(wait=False, cancel_futures=True)
            _end(processes, futures)
            if isinstance(error, BrokenProcessPool):
                left = [items[index] for future, index in futures.items() if not future.done() or future.exception()]
                raise BrokenProcessPool(
                    f"a process {ended_by(_first_status(processes))}{_at_cases(left[:workers])}; {memory_sentence()}"
                ) from None
            raise


def _at_cases(items: Sequence[object]) -> str:
    """Items are handed out in their order: so many are at work as there are processes."""
    named = [name for name in map(case_of, items) if name is not None]
    return "" if not named else f" at {'case' if len(named) == 1 else 'one of the cases'} {', '.join(named)}"


def _first_status(processes: Iterable[multiprocessing.process.BaseProcess]) -> int | None:
    """Exit code of the process that ended by itself; the pool ends the others by SIGTERM."""
    for process in processes:
        process.join(ENDING_SECONDS)  # its end is known a moment before its exit code
    found = [process.exitcode for process in processes if process.exitcode]
    return next((status for status in found if status != -signal.SIGTERM), found[0] if found else None)


def ended_by(status: int | None) -> str:
    """How a process ended, by its exit code: `was killed by SIGKILL, most likely because memory ran out`."""
    if status is None or status >= 0:
        return "ended by itself" if status is None else f"ended by itself (exit code {status})"
    with suppress(ValueError):
        name = signal.Signals(-status).name
        return f"was killed by {name}{CAUSES.get(name, '')} (status {status})"
    return f"was killed by signal {-status}"


CAUSES = {
    "SIGKILL": ", most likely because memory ran out",
    "SIGBUS": ", most likely because /dev/shm is full (docker run --shm-size=1g) or a file was cut short",
    "SIGXCPU": ", the limit of processor time (ulimit -t)",
}


def case_of(item: object) -> str | None:
    """Name of the case that an item of work is about, where it says so; else its first text."""
    parts = (item, *item) if isinstance(item, tuple) else (item,)
    for each in parts:
        for name in (getattr(each, "identifier", None), getattr(each, "case", None)):
            if isinstance(name, str):
                return name
        if cases := getattr(each, "cases", None):
            return case_of(cases[0])
    return next((each for each in parts if isinstance(each, str)), None)


def _told(result: Result, on_done: Callable[[Result], None] | None) -> Result:
    if on_done:
        on_done(result)
    return result


def _end(processes: Iterable[multiprocessing.process.BaseProcess], futures: Iterable[Future[Result]]) -> None:
    """Let the processes finish what they do, but not for long."""
    wait(futures, GRACE_SECONDS)
    for process in processes:
        process.terminate()


ENDING_SECONDS = 5.0
"""that a process which has closed its connection takes to end"""


PR_SET_PDEATHSIG = 1
"""of Linux' prctl (linux/prctl.h): the signal that the kernel sends as soon as the parent process is gone"""


def begin(parent: int, end: int, given: Inherited) -> None:
    end_with(parent, end)
    take_over(given)


def end_with(parent: int, number: int) -> None:
    """Get the signal `number` when the process `parent` ends, however it does."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)
        if os.getppid() != parent:  # it was quicker
            os.kill(os.getpid(), number)
        return

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os.kill(os.getpid(), number)

    threading.Thread(target=watch, daemon=True).start()


def one_ahead(items: Iterable[Item], function: Callable[[Item], Result]) -> Iterator[tuple[Item, Callable[[], Result]]]:
    """Each item with a call that gives `function(item)`, computed one item ahead in a thread.

    Items are drawn one ahead, too, in this thread. An exception of `function` is raised by the call.
    """
    with ThreadPoolExecutor(1) as pool:
        pending: tuple[Item, Future[Result]] | None = None
        for item in items:
            ahead = (item, pool.submit(function, item))
            if pending is not None:
                yield pending[0], pending[1].result
            pending = ahead
            del ahead
        if pending is not None:
            yield pending[0], pending[1].result


TRIM_THRESHOLD, MMAP_MAX = -1, -4
"""option numbers of glibc's mallopt (malloc.h)"""


def keep_freed_memory() -> bool:
    """Stop glibc from returning large blocks to the system, for the rest of this process.

    Returns whether it took effect; on other C libraries nothing happens.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(TRIM_THRESHOLD, 2**31 - 1)) and bool(mallopt(MMAP_MAX, 0))

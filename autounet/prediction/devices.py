"""Predicting a file or folder on one device, or on several in a process each, which share the cases of one folder."""

from __future__ import annotations

import signal
import uuid
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from ..processes import Lost, Raised, Returned, Tell, WorkerProcess, heard
from ..schema.errors import AutoUNetError, OutOfMemory, WorkerLost
from ..system_memory import is_out_of_memory
from ..workers import available_cores
from .folder import Outcome, OutputOptions, predict_folder
from .predictor import Predictor

Load = Callable[[str], Predictor]
"""on a device; picklable"""
PredictFolder = Callable[[Predictor], Outcome]
END_SECONDS = 5.0
"""that a process has to clean up when it is asked to end"""


def predict_on(
    devices: Sequence[str],
    load: Load,
    source: Path,
    out: Path,
    outputs: OutputOptions,
    overwrite: bool = False,
    force: bool = False,
) -> Outcome:
    """`predict_folder` on one device in this process, or on several in a process each; a device may be named twice.

    The first process that ends with an exception ends the others, and its exception is raised here, with the
    traceback in its notes where it is no AutoUNetError or OSError. Raises WorkerLost when a process is killed.
    """
    task = partial(
        predict_folder, source=source, out=out, outputs=outputs, overwrite=overwrite, run=uuid.uuid4().hex, force=force
    )
    if len(devices) == 1:
        outcome = task(_loaded(load, devices[0]))
        outcome.log_counts()
        return outcome
    threads, outcomes = max(1, available_cores() // len(devices)), []
    workers: list[WorkerProcess] = []
    try:
        for device in devices:
            workers.append(WorkerProcess(device, threads, asked=True))
            own = partial(task, tell=len(workers) == 1)
            workers[-1].call(_predict_there, load=load, task=own, device=device)
        busy = list(workers)
        while busy:
            for worker in heard(busy):
                if (found := _outcome(worker)) is not None:
                    outcomes.append(found)
                    busy.remove(worker)
    finally:
        for worker in workers:
            worker.ask_to_end()
        for worker in workers:
            worker.end(END_SECONDS)
    failures = [failure for outcome in outcomes for failure in outcome.failures]
    together = Outcome(sum(each.predicted for each in outcomes), max(each.kept for each in outcomes), failures)
    together.log_counts()
    return together


def _outcome(worker: WorkerProcess) -> Outcome | None:
    """What a process answered; None while it goes on. Raises what ended it."""
    answer = worker.answer()
    if isinstance(answer, Returned):
        return answer.value
    if isinstance(answer, Lost):
        raise WorkerLost(
            f"the process that predicted on {worker.name} was killed (status {answer.status}), perhaps because memory "
            "ran out",
            "Give the same command again: it continues where it was",
        )
    if isinstance(answer, Raised):
        if not isinstance(answer.error, (AutoUNetError, OSError)):
            answer.error.add_note(f"In the process that predicted on {worker.name}:\n{answer.trace}")
        raise answer.error
    return None


def _predict_there(tell: Tell, load: Load, task: PredictFolder, device: str) -> Outcome:
    """What a process does that was started for one of several devices; it has nothing to tell before its end."""
    signal.signal(signal.SIGTERM, _leave)
    return task(_loaded(load, device))


def _leave(*_: object) -> None:
    """Unwinds, so that claims are given back and nothing half written stays."""
    raise SystemExit(1)


def _loaded(load: Load, device: str) -> Predictor:
    try:
        return load(device)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
    raise OutOfMemory(f"the networks do not fit into the memory of {device}", "Give fewer --folds, or another --device")

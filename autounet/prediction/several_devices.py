"""Prediction of one folder on several devices: a process for each, which share the cases (`work_queue`)."""

from __future__ import annotations

import logging
import multiprocessing
import os
import pickle
import signal
import threading
import traceback
import uuid
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NamedTuple

from ..schema.errors import AutoUNetError, OutOfMemory
from ..workers import available_cores
from .folder import Outcome, OutputOptions, predict_folder
from .predictor import Predictor

log = logging.getLogger(__name__)

END_SECONDS = 5.0
"""that a process has to clean up when it is asked to end"""

Load = Callable[[str], Predictor]
"""on a device; picklable"""
PredictFolder = Callable[[Predictor], Outcome]


class ProcessFailure(NamedTuple):
    """The exception that ended a process."""

    error: Exception
    trace: str


def predict_on(
    devices: Sequence[str], load: Load, source: Path, out: Path, outputs: OutputOptions, overwrite: bool = False
) -> Outcome:
    """`predict_folder` on one device in this process, or on several in spawned ones; a device may be named twice.

    The first process that ends with an exception ends the others, and its exception is raised here, with the
    traceback in its notes where it is no AutoUNetError or OSError. Raises AutoUNetError when a process is killed.
    """
    task = partial(predict_folder, source=source, out=out, outputs=outputs, overwrite=overwrite, run=uuid.uuid4().hex)
    if len(devices) == 1:
        outcome = task(_loaded(load, devices[0]))
        outcome.log_counts()
        return outcome
    context = multiprocessing.get_context("spawn")
    waiting: dict[Connection, tuple[str, BaseProcess]] = {}
    threads = max(1, available_cores() // max(1, devices.count("cpu")))
    try:
        for device in devices:
            ours, theirs = context.Pipe(duplex=False)
            setting = (device, threads if device == "cpu" else None, logging.getLogger().level)
            process: BaseProcess = context.Process(target=_child, args=(theirs, load, task, *setting))
            process.start()
            theirs.close()
            waiting[ours] = (device, process)
        outcomes = _answers(dict(waiting))
        for _, ended in waiting.values():
            ended.join(END_SECONDS)
    finally:
        _end([process for _, process in waiting.values()])
    together = Outcome(
        predicted=sum(outcome.predicted for outcome in outcomes),
        kept=max(outcome.kept for outcome in outcomes),
        failures=[failure for outcome in outcomes for failure in outcome.failures],
    )
    together.log_counts()
    return together


def _loaded(load: Load, device: str) -> Predictor:
    from ..inference.sliding_window import is_out_of_memory

    try:
        return load(device)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
    raise OutOfMemory(f"the networks do not fit into the memory of {device}", "Give fewer --folds, or another --device")


def _answers(waiting: dict[Connection, tuple[str, BaseProcess]]) -> list[Outcome]:
    """Of all processes; raises what the first failure is."""
    outcomes = []
    while waiting:
        for connection in wait(list(waiting)):
            assert isinstance(connection, Connection)
            device, process = waiting.pop(connection)
            try:
                answer = connection.recv()
            except EOFError:
                process.join(END_SECONDS)
                raise AutoUNetError(
                    f"the process that predicted on {device} was killed (status {process.exitcode}), perhaps because "
                    "memory ran out",
                    "Give the same command again: it continues where it was",
                ) from None
            if isinstance(answer, ProcessFailure):
                if not isinstance(answer.error, (AutoUNetError, OSError)):
                    answer.error.add_note(f"In the process that predicted on {device}:\n{answer.trace}")
                raise answer.error
            outcomes.append(answer)
    return outcomes


def _end(processes: Sequence[BaseProcess]) -> None:
    """None is left; those that have answered end by themselves."""
    for process in processes:
        process.terminate()
    for process in processes:
        process.join(END_SECONDS)
        if process.is_alive():
            process.kill()
            process.join()


def _child(
    connection: Connection, load: Load, task: PredictFolder, device: str, threads: int | None, level: int
) -> None:
    logging.basicConfig(level=level, format=f"%(asctime)s {device}: %(message)s", datefmt="%H:%M:%S")
    signal.signal(signal.SIGTERM, _leave)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    try:
        answer: Outcome | ProcessFailure = task(_loaded(load, device))
    except Exception as error:
        answer = ProcessFailure(_picklable(error), traceback.format_exc())
    except KeyboardInterrupt:
        return
    connection.send(answer)


def _leave(*_: object) -> None:
    """Unwinds, so that claims are given back and nothing half written stays."""
    raise SystemExit(1)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)


def _picklable(error: Exception) -> Exception:
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error

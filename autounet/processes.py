"""Processes that take calls, one after another, and tell this one things while they do them: see `WorkerProcess`."""

from __future__ import annotations

import logging
import multiprocessing
import os
import pickle
import signal
import threading
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_for
from typing import Any, NamedTuple

from .workers import ENDING_SECONDS, INHERITED, KILL, Inherited, begin, children_with_threads, without_main


class Told(NamedTuple):
    """What a call said while it ran."""

    content: object


class Wanted(NamedTuple):
    """What a call asks with for a part of its work."""


class Returned(NamedTuple):
    """What a call gave."""

    value: Any


class Raised(NamedTuple):
    """What a call was ended by."""

    error: Exception
    trace: str


class Lost(NamedTuple):
    """A process that was ended from outside, in the middle of its call."""

    status: int | None
    """its exit code; a negative one is the number of a signal"""


Answer = Told | Returned | Raised | Lost


Tell = Callable[[object], None]
"""to the process that made the call; what is told has to be picklable"""


class Caller:
    """The process that made the call: it can be told things, and asked."""

    def __init__(self, send: Callable[[object], None], connection: Connection) -> None:
        self.send, self.connection = send, connection

    def __call__(self, content: object) -> None:
        self.send(Told(content))

    def ask(self, content: object) -> Any:
        """What that process replies, which has to (`WorkerProcess.reply`)."""
        self(content)
        return self.connection.recv()


LAUNCHERS_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class Launch(NamedTuple):
    """This process among those that torchrun, or another launcher with its variables, has started together."""

    rank: int
    processes: int
    local_rank: int
    """among those of this machine"""
    local_processes: int


def launched() -> Launch | None:
    """None where no launcher started this process, or this one alone."""
    given = os.environ
    if not all(given.get(name) for name in LAUNCHERS_VARIABLES) or given["WORLD_SIZE"] == "1":
        return None
    names = (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"), ("LOCAL_WORLD_SIZE", "1"))
    return Launch(*(int(given.get(name) or default) for name, default in names))


def processes_of_a_training(asked: int | None) -> int:
    """Those that share its batches: all of a launch, else as many as were asked for."""
    launch = launched()
    return (asked or 1) if launch is None else launch.processes


class WorkerProcess:
    """A spawned process that does one call after another, each of which may tell this process things.

    What it logs is logged here. Ctrl-C is left to this process, and it ends with this one: at once, or by SIGTERM
    where it is `asked`, so that a call can clean up.
    """

    def __init__(self, name: str, threads: int, asked: bool = False) -> None:
        """`threads` of numeric libraries."""
        self.name = name
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        level = logging.getLogger("autounet").getEffectiveLevel()
        end = int(signal.SIGTERM) if asked else KILL
        self.process = context.Process(target=_serve, args=(theirs, os.getpid(), level, end, INHERITED), name=name)
        with children_with_threads(threads), without_main():
            self.process.start()
        theirs.close()

    def call(self, function: Callable[..., object], /, **values: object) -> None:
        """Begin `function(tell, **values)` there; all of it has to be picklable."""
        with suppress(OSError):  # a process that has gone is seen when it is heard
            self.connection.send((function, values))

    def answer(self) -> Answer:
        """The next thing that is said; what is logged there is logged, and no answer."""
        try:
            while isinstance(said := self.connection.recv(), logging.LogRecord):
                logging.getLogger(said.name).handle(said)
                if not self.connection.poll():
                    return Told(None)
        except (EOFError, OSError):
            self.process.join(ENDING_SECONDS)
            return Lost(self.process.exitcode)
        assert isinstance(said, Told | Returned | Raised)
        return said

    def reply(self, content: object) -> None:
        """To what the call has asked."""
        with suppress(OSError):
            self.connection.send(content)

    def ask_to_end(self) -> None:
        """By SIGTERM: what that means is up to the function that is called."""
        self.process.terminate()

    def end(self, seconds: float) -> None:
        """Nothing is left of it afterwards; it is killed after `seconds`."""
        self.connection.close()
        self.process.join(seconds)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


def heard(workers: Sequence[WorkerProcess], seconds: float | None = None) -> list[WorkerProcess]:
    """Those that have an answer, as soon as one has, or none after `seconds`."""
    ready = set(map(id, wait_for([worker.connection for worker in workers], seconds)))
    return [worker for worker in workers if id(worker.connection) in ready]


class _Forward(logging.Handler):
    """Sends what is logged to the process that makes the calls."""

    def __init__(self, send: Callable[[object], None]) -> None:
        super().__init__()
        self.send = send

    def emit(self, record: logging.LogRecord) -> None:
        record.msg, record.args = record.getMessage(), None
        record.exc_info = record.exc_text = record.stack_info = None
        self.send(record)


def _serve(connection: Connection, parent: int, level: int, end: int, given: Inherited) -> None:
    """The main function of a `WorkerProcess`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    begin(parent, end, given)
    sending = threading.Lock()

    def send(content: object) -> None:
        with sending:
            connection.send(content)

    tell, root = Caller(send, connection), logging.getLogger()
    root.handlers[:] = [_Forward(send)]
    root.setLevel(level)
    while True:
        try:
            function, values = connection.recv()
        except EOFError:
            return
        try:
            answer: Answer = Returned(function(tell, **values))
        except Exception as error:
            answer = Raised(_picklable(error), traceback.format_exc())
        with suppress(OSError):  # nobody listens any more
            send(answer)


def _picklable(error: Exception) -> Exception:
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error

"""`run.log` of an output folder: what its runs said, each by the log of its own context.

A run in a thread keeps what that thread logs, and no other; nothing is shown that a program did not ask for.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TextIO

from .schema.disk import disk_problem
from .schema.errors import AutoUNetError
from .schema.names import printable

PACKAGE = logging.getLogger("autounet")


class RunLog(logging.Handler):
    """Keeps what is logged in its context: in memory until `open`, then in the file. `echo`: on standard error too."""

    def __init__(self, title: str, echo: bool = False) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter("%(message)s"))
        self.echo, self.waiting = echo, [f"{_now()} {title}"]
        self.file: TextIO | None = None

    def filter(self, record: logging.LogRecord) -> bool:
        return _run_log.get() is self

    def emit(self, record: logging.LogRecord) -> None:
        line = self.format(record)
        self.keep(line if record.levelno < logging.WARNING else f"{record.levelname.lower()}: {line}")
        if self.echo and record.levelno >= logging.INFO:
            sys.stderr.write(f"{time.strftime('%H:%M:%S')} {printable(line)}\n")

    def keep(self, text: str) -> None:
        self.waiting.append(f"{_now()} {printable(text)}")
        if self.file is not None:
            self._write()

    def open(self, path: Path) -> None:
        """Append to the file from now on. Raises OSError."""
        self.file = path.open("a", encoding="utf-8", errors="backslashreplace")
        self._write()

    def _write(self) -> None:
        lines, self.waiting = self.waiting, []
        try:
            assert self.file is not None
            self.file.write("".join(f"{line}\n" for line in lines))
            self.file.flush()
        except OSError:  # a full disk, which the run itself will tell of
            self.file = None

    def close(self) -> None:
        if self.file is not None:
            self.file.close()
            self.file = None
        super().close()


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S")


_run_log: ContextVar[RunLog | None] = ContextVar("run_log", default=None)


def open_run_log(path: Path) -> None:
    """The log of this context, if it has one, is kept in the file `path`, behind what that holds."""
    if (kept := _run_log.get()) is not None:
        kept.open(path)


def keep_line(text: str) -> None:
    """In the log of this context, if it has one, alone."""
    if (kept := _run_log.get()) is not None:
        kept.keep(text)


@contextmanager
def run_log(title: str, echo: bool = False) -> Iterator[None]:
    """Inside, what this context logs is kept for `open_run_log`, and at last the error that ends it."""
    kept = RunLog(title, echo)
    token = _run_log.set(kept)
    _GATE.enter(kept)
    try:
        yield
    except AutoUNetError as error:
        kept.keep(f"Error: {error}")
        raise
    except OSError as error:
        kept.keep(f"Error: {disk_problem(error)}")
        raise
    except Exception:
        kept.keep(traceback.format_exc())
        raise
    except BaseException as error:  # Ctrl-C
        kept.keep(f"ended by {type(error).__name__}")
        raise
    finally:
        _GATE.leave(kept)
        _run_log.reset(token)
        kept.close()


class Gate(logging.Handler):
    """While runs keep logs, stands before all other handlers of the package, and hands them what they got without it.

    A log needs messages of the level INFO, which a program that never asked for them must not get to see.
    """

    def __init__(self) -> None:
        super().__init__()
        self.logs: list[RunLog] = []
        self.others: list[logging.Handler] = []
        self.before, self.propagate = logging.NOTSET, True
        self.changing = threading.RLock()

    def enter(self, kept: RunLog) -> None:
        with self.changing:
            if not self.logs:
                self.before, self.propagate, self.others = PACKAGE.level, PACKAGE.propagate, PACKAGE.handlers[:]
                wanted = min(PACKAGE.getEffectiveLevel(), logging.INFO)
                PACKAGE.handlers[:] = [self]
                PACKAGE.propagate = False
                PACKAGE.setLevel(wanted)
            self.logs = [*self.logs, kept]

    def leave(self, kept: RunLog) -> None:
        with self.changing:
            self.logs = [each for each in self.logs if each is not kept]
            if not self.logs:
                added = [each for each in PACKAGE.handlers if each is not self]
                PACKAGE.handlers[:] = [*self.others, *added]
                PACKAGE.propagate = self.propagate
                PACKAGE.setLevel(self.before)

    def emit(self, record: logging.LogRecord) -> None:
        for handler in self.logs:
            handler.handle(record)
        if record.levelno < self._level(record.name):
            return
        for other in self.others:
            if record.levelno >= other.level:
                other.handle(record)
        if self.propagate and PACKAGE.parent is not None and PACKAGE.parent.hasHandlers():
            PACKAGE.parent.callHandlers(record)

    def _level(self, name: str) -> int:
        """The effective level of a logger without this gate."""
        node: logging.Logger | None = logging.getLogger(name)
        while node is not None:
            level = self.before if node is PACKAGE else node.level
            if level:
                return level
            node = node.parent
        return logging.NOTSET


_GATE = Gate()

"""What long work tells while it goes on, by a bar, plain lines or a callback; and its cancellation.

All of it belongs to a context (`contextvars`), not to the process: runs in several threads do not hear each other.
Nothing is shown unless a program asks for it, as the command line does.
"""

from __future__ import annotations

import logging
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from .run_log import keep_line
from .schema.errors import Cancelled
from .schema.quantities import format_time

if TYPE_CHECKING:
    from rich.progress import Progress as Bars

log = logging.getLogger(__name__)

LINE_INTERVAL = 10.0
"""seconds between two lines"""
CALL_INTERVAL = 0.1
"""seconds between two calls of a callback at least, its last one for a piece of work aside"""
READ_INTERVAL = 5.0
"""seconds between two readings of how long the whole run still takes"""
UNKNOWN_INTERVAL = 1.0
"""the same while that is not known"""


@dataclass(frozen=True)
class Progress:
    """What a progress callback is told."""

    task: str
    """the piece of work, for example `training 3d_fullres fold_0`"""
    done: float
    """share of it, 0..1"""
    text: str = ""
    """what else there is to say, for example the loss"""
    seconds_left: float | None = None
    """of this piece of work; None: not known yet"""
    run_seconds_left: float | None = None
    """of the whole run; None: not known yet, or there is none"""


@dataclass(frozen=True)
class Watcher:
    """Who looks at the work of a context."""

    on_progress: Callable[[Progress], None] | None = None
    cancel: Callable[[], bool] | None = None
    """asked again and again; once it returns true, the work ends with Cancelled"""
    bars: bool = False
    """drawn on a terminal"""
    lines: bool = True
    """logged every few seconds"""
    interval: float = CALL_INTERVAL
    """seconds between two calls of `on_progress` at least"""


NOBODY = Watcher()
_watcher: ContextVar[Watcher] = ContextVar("watcher", default=NOBODY)
_seconds_left: ContextVar[Callable[[], float | None]] = ContextVar("seconds_left", default=lambda: None)


@contextmanager
def watched(watcher: Watcher) -> Iterator[None]:
    """By `watcher` inside."""
    token = _watcher.set(watcher)
    try:
        yield
    finally:
        _watcher.reset(token)


def show_bars(shown: bool) -> None:
    """From now on, in this context."""
    _watcher.set(Watcher(bars=shown))


def stop_if_cancelled() -> None:
    """Raises Cancelled where the watcher wishes it. Called wherever stopping loses little."""
    cancel = _watcher.get().cancel
    if cancel is not None and cancel():
        raise Cancelled("cancelled before everything was done", "The same call continues where it was")


ASKED_BY = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name))
"""how systems ask a program to end; batch systems send the second one some time before a job has to be over"""
ENDING_SECONDS = 25.0
"""after which a program ends in the middle of what it does; batch systems kill it after about 30"""


@contextmanager
def ends_when_asked() -> Iterator[None]:
    """Inside, SIGTERM and SIGUSR1 end the program where little is lost: after the step or case that is at work.

    What cannot be waited for ends after `ENDING_SECONDS`, or when it is asked again. The exit code is 128 and the
    number of the signal. For the main thread of a program that is ours, as the command line is; elsewhere nothing
    changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked: list[int] = []

    def leave(*_: object) -> None:
        raise SystemExit(128 + asked[0])

    def ask(number: int, _: object) -> None:
        asked.append(number)
        if len(asked) > 1:
            leave()
        signal.setitimer(signal.ITIMER_REAL, ENDING_SECONDS)

    before = {number: signal.signal(number, ask) for number in ASKED_BY}
    before[signal.SIGALRM] = signal.signal(signal.SIGALRM, leave)
    try:
        with watched(replace(_watcher.get(), cancel=lambda: bool(asked))):
            yield
    except Cancelled:
        name = signal.Signals(asked[0]).name
        log.warning("asked to end by %s: what was done is kept, and the same command continues where it was", name)
        raise SystemExit(128 + asked[0]) from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def whole_run(read: Callable[[], float | None]) -> Iterator[None]:
    """Inside, `read` says how many seconds the whole run still takes; it is asked every few seconds at most."""
    asked, known = -READ_INTERVAL, None

    def left() -> float | None:
        nonlocal asked, known
        now = time.monotonic()
        if now - asked >= (READ_INTERVAL if known is not None else UNKNOWN_INTERVAL):
            asked, known = now, read()
        return None if known is None else max(0.0, known - (now - asked))

    token = _seconds_left.set(left)
    try:
        yield
    finally:
        _seconds_left.reset(token)


class ProgressLines:
    """Counts up to `total` and logs a line every few seconds; `done` may be a fraction."""

    def __init__(self, title: str, total: float) -> None:
        self.title, self.total = title, max(total, 1e-9)
        self.started = self.last_line = time.monotonic()
        self.last_call = -CALL_INTERVAL
        self.done, self.text = 0.0, ""
        self.first: float | None = None

    def advance(self, amount: float = 1.0, text: str = "") -> None:
        self.update(self.done + amount, text)

    def update(self, done: float, text: str = "") -> None:
        """An empty `text` keeps the one before. Raises Cancelled where the watcher of this context wishes it."""
        self.done, self.text = done, text or self.text
        now = time.monotonic()
        if self.first is None:
            self.first, self.since = done, now
        watcher = _watcher.get()
        call = watcher.on_progress
        due = watcher.lines and now - self.last_line >= LINE_INTERVAL
        if due or (call and (now - self.last_call >= watcher.interval or done >= self.total)):
            share = min(done / self.total, 1.0)
            told = Progress(self.title, share, self.text, self._seconds_left(now), _seconds_left.get()())
            if call:
                self.last_call = now
                call(told)
            if due:
                self.last_line = now
                self._line(told)
        stop_if_cancelled()

    def _line(self, told: Progress) -> None:
        log.info("%s", progress_line(told))

    def _seconds_left(self, now: float) -> float | None:
        """By the speed since the first update, since earlier work of a resumed command took no time now."""
        gained = self.done - (self.first or 0.0)
        return (now - self.since) * (self.total - self.done) / gained if self.first is not None and gained > 0 else None


def progress_line(told: Progress) -> str:
    """`training 2d fold_0:  40 %, loss 0.412, 4 min left, 31 min of the whole run`."""
    parts = [f"{told.task}: {100 * told.done:3.0f} %", told.text]
    if told.seconds_left:
        parts.append(f"{format_time(told.seconds_left)} left")
    if told.run_seconds_left:
        parts.append(f"{format_time(told.run_seconds_left)} of the whole run")
    return ", ".join(filter(None, parts))


class ProgressBar(ProgressLines):
    """The same as a bar on the terminal, drawn by rich; the lines go to the log of the run alone."""

    def __init__(self, title: str, total: float) -> None:
        super().__init__(title, total)
        self.display = _bars()
        self.task = self.display.add_task(title, total=self.total, text="")
        self.display.start()

    def update(self, done: float, text: str = "") -> None:
        super().update(done, text)
        left = _seconds_left.get()()
        whole = f"whole run: {format_time(left)}" if left else ""
        self.display.update(self.task, completed=done, text=", ".join(filter(None, [self.text, whole])))

    def _line(self, told: Progress) -> None:
        keep_line(progress_line(told))


def _bars() -> Bars:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[text]}"),
        console=Console(stderr=True),
        transient=True,
    )


class SideBySide:
    """Pieces of work that go on in other processes at the same time: told on, in one line, or a bar for each."""

    def __init__(self) -> None:
        self.told: dict[str, Progress] = {}
        self.last_line = time.monotonic()
        self.display = _bars() if _watcher.get().bars and sys.stderr.isatty() else None
        self.tasks: dict[str, Any] = {}
        if self.display is not None:
            self.display.start()

    def update(self, told: Progress) -> None:
        """Raises whatever the watcher's callback raises."""
        told = self.told[told.task] = replace(told, run_seconds_left=_seconds_left.get()())
        if call := _watcher.get().on_progress:
            call(told)
        if self.display is not None:
            if told.task not in self.tasks:
                self.tasks[told.task] = self.display.add_task(told.task, total=1.0, text="")
            self.display.update(self.tasks[told.task], completed=told.done, text=told.text)
        if time.monotonic() - self.last_line >= LINE_INTERVAL:
            self.last_line = time.monotonic()
            (keep_line if self.display is not None else log.info)(side_by_side_line(list(self.told.values())))
        if told.done >= 1:
            self.ended(told.task)

    def ended(self, task: str) -> None:
        """It is not shown any more; also where it was never told of."""
        self.told.pop(task, None)
        if self.display is not None and task in self.tasks:
            self.display.remove_task(self.tasks.pop(task))

    def close(self) -> None:
        if self.display is not None:
            self.display.stop()


def side_by_side_line(told: list[Progress]) -> str:
    """`training 2d fold_0: 40 %, fold_1: 41 %, 31 min of the whole run`: what tasks begin with alike is said once."""
    parts, before = [], ""
    for each in sorted(told, key=lambda each: each.task):
        kind, _, name = each.task.rpartition(" ")
        parts.append(f"{name if kind == before else each.task}: {100 * each.done:.0f} %")
        before = kind
    left = next((each.run_seconds_left for each in reversed(told) if each.run_seconds_left), None)
    if left:
        parts.append(f"{format_time(left)} of the whole run")
    return ", ".join(parts)


@contextmanager
def progress(title: str, total: float) -> Iterator[ProgressLines]:
    """Progress of the work in the `with` block, which calls `advance` or `update`."""
    stop_if_cancelled()
    bar = _watcher.get().bars and sys.stderr.isatty()
    shown = ProgressBar(title, total) if bar else ProgressLines(title, total)
    try:
        yield shown
    finally:
        if isinstance(shown, ProgressBar):
            shown.display.stop()
    if shown.done:
        log.info("%s: done in %s", title, format_time(time.monotonic() - shown.started))

"""What long work shows: a bar with the time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from .schema.quantities import format_time

log = logging.getLogger(__name__)

LINE_INTERVAL = 10.0
"""seconds between plain lines"""


class Meter:
    """Counts towards a total. `update(done)` may be fractional; the text is shown beside."""

    def __init__(self, title: str, total: float) -> None:
        self.title, self.total = title, max(total, 1e-9)
        self.started = self.last_line = time.monotonic()
        self.done = 0.0
        self.first: float | None = None

    def advance(self, amount: float = 1.0, text: str = "") -> None:
        self.update(self.done + amount, text)

    def update(self, done: float, text: str = "") -> None:
        self.done = done
        now = time.monotonic()
        if self.first is None:
            self.first, self.since = done, now
        if now - self.last_line >= LINE_INTERVAL:
            self.last_line = now
            self._show(text, self._left(now))

    def _left(self, now: float) -> float | None:
        """By the speed since the first update: what was done before a resumption took no time here."""
        gained = self.done - (self.first or 0.0)
        return (now - self.since) * (self.total - self.done) / gained if self.first is not None and gained > 0 else None

    def _show(self, text: str, left: float | None) -> None:
        share = f"{self.title}: {100 * min(self.done / self.total, 1):3.0f} %"
        time_left = f"{format_time(left)} left" if left else None
        log.info("%s", ", ".join(filter(None, [share, text, time_left])))


class Bar(Meter):
    """The same on a terminal, drawn by rich."""

    def __init__(self, title: str, total: float) -> None:
        super().__init__(title, total)
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

        self.display = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[text]}"),
            console=Console(stderr=True),
            transient=True,
        )
        self.task = self.display.add_task(title, total=self.total, text="")
        self.display.start()

    def update(self, done: float, text: str = "") -> None:
        self.done = done
        self.display.update(self.task, completed=done, text=text)


@contextmanager
def progress(title: str, total: float) -> Iterator[Meter]:
    meter = Bar(title, total) if sys.stderr.isatty() else Meter(title, total)
    try:
        yield meter
    finally:
        if isinstance(meter, Bar):
            meter.display.stop()
        if meter.done:
            log.info("%s: done in %s", title, format_time(time.monotonic() - meter.started))

"""Progress of long work: a bar with the time left on a terminal, plain lines in the log elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from .schema.quantities import format_time

log = logging.getLogger(__name__)

LINE_INTERVAL = 10.0
"""seconds between two lines"""


class ProgressLines:
    """Counts up to `total` and logs a line every few seconds; `done` may be a fraction."""

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
            left = self._seconds_left(now)
            percent = f"{self.title}: {100 * min(self.done / self.total, 1):3.0f} %"
            log.info("%s", ", ".join(filter(None, [percent, text, f"{format_time(left)} left" if left else None])))

    def _seconds_left(self, now: float) -> float | None:
        """By the speed since the first update, since earlier work of a resumed command took no time now."""
        gained = self.done - (self.first or 0.0)
        return (now - self.since) * (self.total - self.done) / gained if self.first is not None and gained > 0 else None


class ProgressBar(ProgressLines):
    """The same as a bar on the terminal, drawn by rich."""

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
def progress(title: str, total: float) -> Iterator[ProgressLines]:
    """Progress of the work in the `with` block, which calls `advance` or `update`."""
    shown = ProgressBar(title, total) if sys.stderr.isatty() else ProgressLines(title, total)
    try:
        yield shown
    finally:
        if isinstance(shown, ProgressBar):
            shown.display.stop()
        if shown.done:
            log.info("%s: done in %s", title, format_time(time.monotonic() - shown.started))

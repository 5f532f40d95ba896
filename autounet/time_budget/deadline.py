"""The promised time: one clock for the whole command, kept across interruptions."""

from __future__ import annotations

import time
from pathlib import Path

from ..schema.errors import RecordError
from ..schema.record import Record


class Clock(Record):
    """`clock.json`: time used so far under one promise."""

    promised_seconds: float | None
    spent_seconds: float


class Deadline:
    """Seconds left of `--time`.

    The time spent is kept in a file while a command runs. An interrupted command leaves it there, so that the same
    command given again spends what is left; one that ends removes it, and the next starts anew.
    """

    def __init__(self, promised: float | None, file: Path) -> None:
        self.file = file
        self.started = time.monotonic()
        self.promise(promised)

    def promise(self, seconds: float | None) -> None:
        """Set the promise; time spent earlier under the same promise counts."""
        self.promised, self.before = seconds, 0.0
        try:
            clock = Clock.load(self.file)
        except RecordError:
            return
        if clock.promised_seconds == seconds:
            self.before = clock.spent_seconds

    def spent(self) -> float:
        return self.before + time.monotonic() - self.started

    def remaining(self) -> float | None:
        """Seconds left, never negative; None without a promise."""
        return None if self.promised is None else max(0.0, self.promised - self.spent())

    def save(self) -> None:
        Clock(promised_seconds=self.promised, spent_seconds=self.spent()).save(self.file)

    @property
    def resumed(self) -> bool:
        """Whether an interrupted command has spent part of the promise."""
        return self.before > 0

    def end(self) -> None:
        """The command has come to its end."""
        self.file.unlink(missing_ok=True)

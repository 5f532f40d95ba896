"""What a tracker does, whichever service it writes to."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from pydantic import JsonValue


@dataclass(frozen=True)
class TrackedRun:
    """One line in the service's list: the training of one fold, or the results of an output folder."""

    name: str
    """for people: 3d_fullres fold_0"""
    identity: str
    """letters and digits; the same when the same training goes on, another one when it begins anew"""
    group: str
    """what the runs of one output folder share"""


class Tracker(Protocol):
    """Every call names its run, which is opened, or opened again, by the first. Any exception may be raised."""

    def describe(self, run: TrackedRun, content: Mapping[str, JsonValue]) -> None:
        """What the run was made with: its plan and options."""

    def scalars(self, run: TrackedRun, values: Mapping[str, float], step: int) -> None:
        """Numbers by name at a training step."""

    def file(self, run: TrackedRun, path: Path) -> None:
        """Keep a file, such as the report, with the run."""

    def close(self) -> None:
        """Everything has been said."""


log = logging.getLogger(__name__)

MOST_WAITING: Final = 10_000
"""things said that a slow server is still behind with; what comes then is lost"""
CLOSING_SECONDS: Final = 20.0
"""that the end of a command waits for what is still to be sent"""

Call = Callable[[Tracker], None]


class Background:
    """A `Tracker` whose calls return at once and never fail. The first failure is logged and ends the tracking."""

    def __init__(self, name: str, make: Callable[[], Tracker]) -> None:
        self.name, self._make = name, make
        self._waiting: queue.Queue[Call | None] = queue.Queue(MOST_WAITING)
        self._lost = threading.Event()
        self._thread = threading.Thread(target=self._work, name=f"track {name}", daemon=True)
        self._thread.start()

    def describe(self, run: TrackedRun, content: Mapping[str, JsonValue]) -> None:
        self._say(lambda tracker: tracker.describe(run, content))

    def scalars(self, run: TrackedRun, values: Mapping[str, float], step: int) -> None:
        self._say(lambda tracker: tracker.scalars(run, values, step))

    def file(self, run: TrackedRun, path: Path) -> None:
        self._say(lambda tracker: tracker.file(run, path))

    def close(self, seconds: float = CLOSING_SECONDS) -> None:
        """Waits until all is sent, for `seconds` at most."""
        self._say(None)
        self._thread.join(seconds)
        if self._thread.is_alive():
            self._lose(f"it did not answer within {seconds:g} s")

    def _say(self, call: Call | None) -> None:
        if self._lost.is_set():
            return
        try:
            self._waiting.put_nowait(call)
        except queue.Full:
            self._lose("it is too slow for what is to be sent")

    def _work(self) -> None:
        try:
            tracker = self._make()
            while not self._lost.is_set() and (call := self._waiting.get()) is not None:
                call(tracker)
            tracker.close()
        except Exception as error:
            self._lose(f"{type(error).__name__}: {error}")
        except SystemExit as error:  # a library that gives up must not end the thread without a word
            self._lose(f"it ended with {error.code}")

    def _lose(self, why: str) -> None:
        if not self._lost.is_set():
            self._lost.set()
            log.warning("--track %s is lost, and the run goes on without it (%s)", self.name, why)

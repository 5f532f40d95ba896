"""What a training says while it runs: log.jsonl, one line an interval, and progress.png drawn from it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from autounet.schema.log import read_log
from autounet.schema.record import write_text
from autounet.schema.run import EpochLog

LOG_STEPS = 250
"""steps between two lines at most (nnU-Net's epoch)"""
LOG_PROGRESS = 0.02
"""share of a training between two lines at most"""
DRAWING_SECONDS = 30.0
"""between two drawings at least"""
DRAWING_SHARE = 0.01
"""of the training time that drawing takes, at most"""


class Journal:
    """Lines after `step` in an existing log are dropped: an interrupted training runs them again.

    progress.png is drawn anew with a line of the log, after `DRAWING_SECONDS` or as late as `DRAWING_SHARE` asks for.
    `title` stands above it.
    """

    def __init__(
        self, folder: Path, step: int, on_log: Callable[[EpochLog], None] | None = None, title: str = ""
    ) -> None:
        self.folder, self.title = folder, title
        self.on_log = on_log
        self.curve = [line for line in read_log(folder / "log.jsonl") if line.step <= step]
        write_text(folder / "log.jsonl", "".join(line.model_dump_json() + "\n" for line in self.curve))
        self._drawn, self._drawing = time.monotonic(), 0.0

    def due(self, step: int, progress: float) -> bool:
        last_step, last_progress = (self.curve[-1].step, self.curve[-1].progress) if self.curve else (0, 0.0)
        return progress >= 1 or step - last_step >= LOG_STEPS or progress - last_progress >= LOG_PROGRESS

    def add(self, line: EpochLog) -> None:
        self.curve.append(line)
        with open(self.folder / "log.jsonl", "a", encoding="utf-8") as file:
            file.write(line.model_dump_json() + "\n")
        if time.monotonic() - self._drawn >= max(DRAWING_SECONDS, self._drawing / DRAWING_SHARE):
            self.draw()
        if self.on_log:
            self.on_log(line)

    def draw(self) -> None:
        from autounet.training.progress_chart import draw_progress

        began = time.monotonic()
        draw_progress(self.curve, self.folder / "progress.png", self.title)
        self._drawn = time.monotonic()
        self._drawing = self._drawn - began

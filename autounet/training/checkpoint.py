"""When and how an unfinished training is saved, and how it continues."""

from __future__ import annotations

import logging
import time

from autounet.training.state import TrainState
from autounet.training.task import FoldTask

logger = logging.getLogger(__name__)

LEAST_SECONDS = 15.0
"""between two checkpoints"""
TIME_SHARE = 0.02
"""of a training that writing checkpoints may take"""


class Checkpoint:
    """`state.pt` in the task's folder."""

    def __init__(self, task: FoldTask) -> None:
        self.path = task.folder / "state.pt"
        self.key = task.key
        self._saved = time.monotonic()
        self._wait = LEAST_SECONDS

    def restore(self, state: TrainState) -> str | None:
        """Continue from the file where it is of this task. Returns a sentence on what was done, None without a file."""
        if not self.path.exists():
            return None
        try:
            restored = state.restore(self.path, self.key)
        except Exception as error:
            logger.warning("%s cannot be read and is not used: %s", self.path, error)
            return f"the state of an interrupted training could not be read and was not used: {error}"
        if not restored:
            return "the state of an interrupted training with other settings was not used"
        logger.info("%s: training continues at step %d", self.path.parent, state.step)
        return f"continued at step {state.step} after an interruption"

    def due(self) -> bool:
        return time.monotonic() - self._saved >= self._wait

    def save(self, state: TrainState) -> None:
        began = time.monotonic()
        state.save(self.path, self.key)
        self._saved = time.monotonic()
        self._wait = max(LEAST_SECONDS, (self._saved - began) / TIME_SHARE)

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)

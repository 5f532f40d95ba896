"""What happened between two lines of a training's log."""

from __future__ import annotations

import math
import time

import torch

from ..ops.device import peak_memory
from ..schema.errors import AutoUNetError
from ..schema.run import EpochLog
from ..schema.stage_inputs import TrainingPlace
from .guard import ADVICE, MadeStep, count_skipped, skipped_sentence
from .journal import Journal
from .state import TrainState


class Interval:
    """The steps since the last line of the log: their losses, and how long they took."""

    def __init__(self) -> None:
        self.steps = 0
        self.losses: list[float] = []
        self.skipped: list[MadeStep] = []
        self._made: list[MadeStep] = []
        self.began = time.monotonic()

    def add(self, step: int, cases: tuple[str, ...], loss: torch.Tensor) -> None:
        self._made.append(MadeStep(step, cases, loss))
        self.steps += 1

    def look(self, state: TrainState) -> None:
        """Find out which of the steps since the last look were skipped. A GPU has to be waited for.

        Raises Unstable where too many were.
        """
        made = [each.loss for each in self._made]
        values = torch.stack(made).cpu().tolist()
        self.losses += [value for value in values if not math.isnan(value)]
        self.skipped += count_skipped(values, self._made, state)
        self._made = []

    def line(
        self, place: TrainingPlace, state: TrainState, progress: float, rate: float, waited: float, journal: Journal
    ) -> EpochLog:
        """`waited`: seconds that the device has for batches.

        Raises AutoUNetError where a training ends without a step that changed anything.
        """
        if not self.losses and not journal.curve:
            name = f"{place.configuration_name}: no step changed the network"
            raise AutoUNetError(f"{name}: {skipped_sentence(self.skipped)}", ADVICE)
        return EpochLog(
            step=state.step,
            progress=progress,
            seconds=state.elapsed,
            learning_rate=rate,
            loss=float(torch.tensor(self.losses).mean()) if self.losses else journal.curve[-1].loss,
            step_seconds=(time.monotonic() - self.began) / self.steps,
            data_wait_seconds=waited / self.steps,
            peak_memory_bytes=peak_memory(torch.device(place.device)),
            event=skipped_sentence(self.skipped),
        )

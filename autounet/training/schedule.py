"""How far a training is, and the learning rate that follows from it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from ..schema.errors import OptionError

POLY_EXPONENT = 0.9
"""nnU-Net's"""
WARMUP = 0.05
"""share of the training in which the learning rate rises linearly"""


@dataclass(frozen=True)
class Horizon:
    """The end of a training: a number of steps, a number of seconds, or whichever comes first."""

    steps: int | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        if self.steps is None and self.seconds is None:
            raise OptionError("a training needs a number of steps or of seconds")
        if (self.steps is not None and self.steps < 1) or (self.seconds is not None and not self.seconds > 0):
            raise OptionError(f"a training of {self.steps} steps and {self.seconds} seconds is empty")

    def progress(self, step: int, elapsed: float) -> float:
        """0 at the start, 1 when done; `elapsed` are the seconds of training so far."""
        by_steps = step / self.steps if self.steps is not None else 0.0
        by_time = elapsed / self.seconds if self.seconds is not None else 0.0
        return min(1.0, max(by_steps, by_time))


def poly(progress: float) -> float:
    return (1.0 - progress) ** POLY_EXPONENT


def warmup_cosine(progress: float) -> float:
    if progress < WARMUP:
        return progress / WARMUP
    return 0.5 * (1.0 + math.cos(math.pi * (progress - WARMUP) / (1.0 - WARMUP)))


def warmup_poly(progress: float) -> float:
    """nnU-Net's schedule after a warm-up, for weights that were trained before."""
    return progress / WARMUP if progress < WARMUP else poly((progress - WARMUP) / (1.0 - WARMUP))


SCHEDULES: dict[str, Callable[[float], float]] = {
    "poly": poly,
    "warmup_cosine": warmup_cosine,
    "warmup_poly": warmup_poly,
}
"""name -> factor of the learning rate as a function of progress in 0..1"""


def learning_rate(schedule: str, highest: float, progress: float) -> float:
    return highest * SCHEDULES[schedule](progress)

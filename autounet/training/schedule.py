"""How far a training is, and the learning rate that follows from it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from ..schema.errors import OptionError
from ..schema.options import TrainOptions

POLY_EXPONENT = 0.9
"""nnU-Net's"""
WARMUP = 0.05
"""share of the training in which the learning rate rises linearly"""


COOL_DOWN = 0.25
"""of the steps until then, over which the learning rate of a converged training falls to 0: a fifth of the whole
training, as much as suffices where the rate was constant before (Hägele et al. 2024, arXiv 2405.18392)"""


@dataclass(frozen=True)
class CoolDown:
    """The end of a training that has converged, in steps: its learning rate falls to 0 from `begin` to `end`."""

    since: int
    """the validation patches have gained nothing to speak of from here to `begin`"""
    begin: int
    end: int

    @classmethod
    def after(cls, since: int, begin: int) -> CoolDown:
        return cls(since, begin, begin + max(1, math.ceil(COOL_DOWN * begin)))


@dataclass(frozen=True)
class Horizon:
    """The end of a training: a number of steps, a number of seconds, or whichever comes first.

    A training that has converged has a `CoolDown`, which it ends with instead.
    """

    steps: int | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        if self.steps is None and self.seconds is None:
            raise OptionError("a training needs a number of steps or of seconds")
        if (self.steps is not None and self.steps < 1) or (self.seconds is not None and not self.seconds > 0):
            raise OptionError(f"a training of {self.steps} steps and {self.seconds} seconds is empty")

    def progress(self, step: int, elapsed: float, cool_down: CoolDown | None = None) -> float:
        """0 at the start, 1 when done; `elapsed` are the seconds of training so far."""
        steps = self.steps if cool_down is None else cool_down.end
        by_steps = step / steps if steps is not None else 0.0
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


RISING = {"poly": 0.0, "warmup_cosine": WARMUP, "warmup_poly": WARMUP}
"""share of the training until the learning rate is highest"""


def learning_rate(
    options: TrainOptions, horizon: Horizon, step: int, elapsed: float, cool_down: CoolDown | None = None
) -> float:
    """Of the step after `step` ones. A cool-down starts from the schedule's rate and falls like `poly`."""
    factor = SCHEDULES[options.schedule]
    if cool_down is None:
        return options.learning_rate * factor(horizon.progress(step, elapsed))
    reached = options.learning_rate * factor(horizon.progress(cool_down.begin, 0.0))
    return reached * poly(min(1.0, (step - cool_down.begin) / (cool_down.end - cool_down.begin)))

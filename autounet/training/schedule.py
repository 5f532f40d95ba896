"""How far a training is, the learning rate that follows from it, and when the training has converged.

Converged is decided by the Dice on the training's own validation patches, and by no single noisy value. Until it
flattens, Dice rises evenly over the logarithm of the steps, and how fast it rises is uncertain by the noise of its
values. So a straight line over that logarithm is fitted to the last part of the curve. The training has converged where
even the upper limit of the line's slope would gain next to nothing until its last step, and the Dice is in no dip. A
noisy curve, of an uncertain slope, goes on. The constants were chosen on 150 trainings by nnU-Net
(benchmarks/convergence.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from ..schema.errors import OptionError
from ..schema.options import TrainOptions
from ..schema.run import EpochLog

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


LENGTHENING = 2.5
"""the line is fitted to the last part of a training, in which it became so many times as long"""
STANDARD_ERRORS = 3.0
"""of the slope, which are added to it"""
MOST_GAIN = 0.015
"""of Dice, at that slope until the last step. Curves flatten, so the true gain is smaller"""
MOST_DIP = 0.0025
"""of the mean of the last values below the best mean of as many before, as far back as twice the last part"""
LEAST_AHEAD = 8.0
"""times: so much longer a training is at least taken to become, so that late in it the slope has to be small, too"""
LEAST_DICE = 0.1
"""of every class: one that is hardly found may be flat because it is not learnt yet"""
LEAST_VALUES = 15
"""in the last part"""
EPOCH = 250
"""steps, as in nnU-Net"""


def cool_down_after(curve: Sequence[EpochLog], horizon: Horizon, schedule: str) -> CoolDown | None:
    """How the training ends if it has converged with the last line of its log; None: it goes on.

    Values from before the learning rate was at its highest are not looked at. A training that would cool down for
    longer than its steps allow goes through them instead.
    """
    last = curve[-1].validation_dice if curve else None
    if horizon.steps is None or not last or min(last.values()) < LEAST_DICE:
        return None
    begin, rising = curve[-1].step, RISING[schedule] * horizon.steps
    cool_down = CoolDown.after(math.ceil(begin / LENGTHENING), begin)
    if cool_down.end > horizon.steps or cool_down.since <= rising:
        return None
    measured = [(line.step, fmean(line.validation_dice.values())) for line in curve if line.validation_dice]
    steps, dice = np.array([each for each in measured if each[0] > rising]).T
    return cool_down if has_converged(steps, dice, horizon.steps) else None


def has_converged(steps: np.ndarray, dice: np.ndarray, limit: int) -> bool:
    """Whether `dice` (N,), measured after rising `steps` (N,) of at most `limit`, has stopped rising.

    It has to show without any one of the values, too, so that no single one decides.
    """
    kept = (np.arange(len(steps)) != index for index in (len(steps), *range(len(steps))))
    return all(is_flat(steps[each], dice[each], limit) for each in kept)


def is_flat(steps: np.ndarray, dice: np.ndarray, limit: int) -> bool:
    """As `has_converged`, with all values."""
    place, value = (each[steps >= steps[-1] / LENGTHENING] for each in (np.log(steps), dice))
    if len(value) < LEAST_VALUES:
        return False
    place, value = place - place.mean(), value - value.mean()
    spread = np.sum(place**2)
    slope = np.sum(place * value) / spread
    error = math.sqrt(np.sum((value - slope * place) ** 2) / (len(value) - 2) / spread)
    ahead = math.log(max(LEAST_AHEAD, limit / steps[-1]))
    if (max(0.0, slope) + STANDARD_ERRORS * error) * ahead >= MOST_GAIN:
        return False
    count = len(value) // 4
    means = np.convolve(dice[steps >= steps[-1] / (2 * LENGTHENING)], np.full(count, 1 / count), "valid")
    return bool(means[-1] >= means.max() - MOST_DIP)


def sentence(cool_down: CoolDown, horizon: Horizon) -> str:
    """What was seen and what follows, for the log, the record and the report."""
    since, begin, end, limit = (
        f"{step / EPOCH:.3g}" if step < 10 * EPOCH else f"{step / EPOCH:.0f}"
        for step in (cool_down.since, cool_down.begin, cool_down.end, horizon.steps or 0)
    )
    return (
        f"converged: no gain of Dice on validation patches from epoch {since} to {begin}; from there on the learning "
        f"rate falls to 0, and the training ends after epoch {end} of at most {limit}"
    )

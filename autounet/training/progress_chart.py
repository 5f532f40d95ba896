"""Draws a training's curves: progress.png, made to be looked at while the training runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from autounet.atomic import replacing
from autounet.report.style import DASHES, GRID, INK, MUTED, RC, SERIES
from autounet.schema.quantities import format_seconds, format_size, format_time
from autounet.schema.run import EpochLog

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SMOOTHED_SHARE = 0.025
"""of the measurements, around each point, whose mean is the thick line; the thin one is what was measured"""
MOST_CLASSES = 8
"""with a line of their own name; with more, their lines are grey and their mean stands out"""
SIZE, DPI = (9.0, 6.4), 100
"""inches, and dots an inch"""


def draw_progress(curve: Sequence[EpochLog], path: Path, title: str = "") -> None:
    """Loss, Dice on validation patches, learning rate and seconds a step, each over the steps; replaces `path`."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    with rc_context(RC | {"axes.titlesize": 10}):
        figure = Figure(figsize=SIZE, layout="constrained")
        (loss, dice), (rate, speed) = figure.subplots(2, 2, sharex=True)
        for axes in (loss, dice, rate, speed):
            axes.grid(axis="y", color=GRID, linewidth=0.7)
            axes.set_axisbelow(True)
        for axes in (rate, speed):
            axes.set_xlabel("training step")
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        figure.suptitle(_headline(curve, title), fontsize=11)
        if curve:
            _loss(loss, curve)
            _dice(dice, curve)
            _rate(rate, curve)
            _speed(speed, curve)
        _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=DPI)


def _headline(curve: Sequence[EpochLog], title: str) -> str:
    if not curve:
        return title
    last = curve[-1]
    told = [f"step {last.step}, {last.progress:.0%}, {format_time(last.seconds)}"]
    if last.peak_memory_bytes is not None:
        told.append(f"at most {format_size(last.peak_memory_bytes)} of memory")
    return ": ".join(filter(None, [title, ", ".join(told)]))


def _loss(axes: Axes, curve: Sequence[EpochLog]) -> None:
    steps, values = [line.step for line in curve], [line.loss for line in curve]
    _measured(axes, steps, values, SERIES[0], "-", "loss")
    axes.set_title(f"Training loss (last {values[-1]:.3f})")
    axes.set_ylabel("loss")


def _dice(axes: Axes, curve: Sequence[EpochLog]) -> None:
    measured = [(line.step, line.validation_dice) for line in curve if line.validation_dice]
    axes.set_ylabel("Dice")
    axes.set_ylim(0, 1)
    if not measured:
        axes.set_title("Dice on validation patches (not measured)")
        return
    names = list(dict.fromkeys(name for _, scores in measured for name in scores))
    table = np.array([[scores.get(name, np.nan) for name in names] for _, scores in measured])
    steps = [step for step, _ in measured]
    means = [float(np.mean(list(scores.values()))) for _, scores in measured]
    if len(names) <= MOST_CLASSES:
        for place, name in enumerate(names):
            colour, dash = SERIES[place % len(SERIES)], DASHES[place % len(DASHES)]
            _measured(axes, steps, table[:, place], colour, dash, name)
    else:
        axes.plot(steps, table, color=MUTED, linewidth=0.5, alpha=0.5)
        _measured(axes, steps, means, SERIES[1], "-", f"mean of {len(names)} classes")
    axes.legend(loc="lower right", fontsize=8, frameon=False)
    axes.set_title(f"Dice on validation patches (last mean {means[-1]:.3f})")


def _measured(
    axes: Axes, steps: Sequence[int], values: Sequence[float] | np.ndarray, colour: str, dash: object, label: str
) -> None:
    """What was measured as a thin line, and its moving mean as a thick one; one line where there are few points."""
    half = int(SMOOTHED_SHARE * len(steps) / 2)
    if half:
        axes.plot(steps, values, color=colour, linewidth=0.5, alpha=0.4)
    mean = smoothed(np.asarray(values, dtype=np.float64), half)
    marker = "o" if len(steps) == 1 else ""
    axes.plot(steps, mean, color=colour, linestyle=dash, marker=marker, linewidth=1.8, label=label)  # type: ignore[arg-type]


def smoothed(values: np.ndarray, half: int) -> np.ndarray:
    """(N,): the mean of each value and `half` ones on either side, fewer at the ends; NaN are left out."""
    known = ~np.isnan(values)
    sums, counts = (np.concatenate([[0.0], np.cumsum(each)]) for each in (np.where(known, values, 0.0), known))
    places = np.arange(len(values))
    first, last = np.maximum(places - half, 0), np.minimum(places + half + 1, len(values))
    counted = counts[last] - counts[first]
    return np.divide(sums[last] - sums[first], counted, out=np.full(len(values), np.nan), where=counted > 0)


def _rate(axes: Axes, curve: Sequence[EpochLog]) -> None:
    rates = [line.learning_rate for line in curve]
    axes.plot([line.step for line in curve], rates, color=INK, marker="o" if len(curve) == 1 else "")
    axes.set_title(f"Learning rate (last {rates[-1]:.2g})")
    axes.set_ylabel("learning rate")
    axes.set_ylim(bottom=0)


def _speed(axes: Axes, curve: Sequence[EpochLog]) -> None:
    """Seconds a step; the part of it that the step waited for its batch is filled."""
    steps, seconds = [line.step for line in curve], [line.step_seconds for line in curve]
    waited = [line.data_wait_seconds for line in curve]
    share = sum(waited) / sum(seconds) if sum(seconds) > 0 else 0.0
    marker = "o" if len(curve) == 1 else ""
    axes.plot(steps, seconds, color=SERIES[0], marker=marker, label="seconds a step")
    axes.fill_between(steps, waited, color=SERIES[1], alpha=0.6, linewidth=0, label="of them waiting for data")
    axes.set_title(f"{format_seconds(seconds[-1])} a step, {share:.0%} of all waiting for data")
    axes.set_ylabel("seconds a step")
    axes.set_ylim(bottom=0)
    axes.legend(loc="best", fontsize=8, frameon=False)

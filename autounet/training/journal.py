"""What a training says while it runs: log.jsonl, one line an interval, and progress.png drawn from it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..figures import DASHES, GRID, INK, MUTED, SERIES, STYLE, literal
from ..schema.quantities import format_seconds, format_size, format_time
from ..schema.record import replacing, write_text
from ..schema.run import EpochLog, read_log
from ..workers import PROCESS_WIDE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

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
        began = time.monotonic()
        draw_progress(self.curve, self.folder / "progress.png", self.title)
        self._drawn = time.monotonic()
        self._drawing = self._drawn - began


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

    with PROCESS_WIDE, rc_context(STYLE | {"axes.titlesize": 10}):
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
            _measured(axes, steps, table[:, place], colour, dash, literal(name))
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

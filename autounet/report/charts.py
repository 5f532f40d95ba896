"""The charts of the page: training curves, ranked Dice per case, distribution per class."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

import numpy as np
from matplotlib.ticker import MaxNLocator

from autounet.report.ranking import Ranked
from autounet.report.style import DASHES, GRID, INK, MUTED, SERIES, Picture, as_svg, chart
from autounet.schema.run import EpochLog, Metrics, RunRecord


def fold_name(fold: int | None) -> str:
    return "all cases" if fold is None else f"fold {fold}"


def training_curves(runs: Sequence[RunRecord]) -> list[Picture]:
    """Loss, and Dice over validation patches where it was measured; one line per fold, x in steps."""
    curved = [run for run in runs if run.curve]
    if not curved:
        return []
    name = curved[0].configuration_name
    pictures = [_curves(curved, name, "loss", "training loss")]
    if any(point.validation_dice for run in curved for point in run.curve):
        pictures.append(_curves(curved, name, "dice", "Dice on validation patches"))
    return pictures


def _curves(runs: Sequence[RunRecord], name: str, what: str, label: str) -> Picture:
    figure, axes = chart()
    ends = []
    for index, run in enumerate(runs):
        points = [(point.step, value) for point in run.curve if (value := _value(point, what)) is not None]
        if not points:
            continue
        steps, values = zip(*points, strict=True)
        axes.plot(
            steps,
            values,
            color=SERIES[index % len(SERIES)],
            linestyle=DASHES[index % len(DASHES)],
            marker="o" if len(points) == 1 else "",
            linewidth=1.5,
            label=fold_name(run.fold),
        )
        ends.append(f"{fold_name(run.fold)} ends at {values[-1]:.3f}")
    axes.set_xlabel("training step")
    axes.set_ylabel(label)
    axes.legend(frameon=False, fontsize=8, ncols=2 if len(runs) > 3 else 1)
    return Picture(as_svg(figure), alt=f"{label} of {name}: {'; '.join(ends)}", title=label.capitalize())


def _value(point: EpochLog, what: str) -> float | None:
    if what == "loss":
        return point.loss
    return fmean(point.validation_dice.values()) if point.validation_dice else None


def ranked_dice(ranked: Sequence[Ranked], shown: Sequence[tuple[str, Ranked]]) -> Picture:
    """Mean Dice of each case, sorted; the cases that are shown as pictures are named."""
    figure, axes = chart()
    values = [entry.dice for entry in ranked]
    axes.plot(range(1, len(values) + 1), values, "o", color=SERIES[0], markersize=3.5 if len(values) > 60 else 5)
    position = {entry.case: index for index, entry in enumerate(ranked, start=1)}
    for word, entry in shown:
        axes.plot(position[entry.case], entry.dice, "o", color=SERIES[1], markersize=8, fillstyle="none")
        # the curve rises, so above left and below right are always free
        first = position[entry.case] == 1
        axes.annotate(
            word,
            (position[entry.case], entry.dice),
            xytext=(8, -10) if first else (-8, 5),
            textcoords="offset points",
            ha="left" if first else "right",
            color=INK,
        )
    axes.set_xlabel("case, worst to best")
    axes.set_ylabel("mean Dice over classes")
    lowest, _ = _dice_limits(values)
    axes.set_ylim(lowest, 1 + 0.06 * (1 - lowest))
    axes.set_xlim(0, len(values) + 1)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    alt = f"Mean Dice of {len(values)} cases, sorted, from {values[0]:.3f} to {values[-1]:.3f}"
    return Picture(as_svg(figure), alt=alt, title="Dice per case, sorted")


def dice_distribution(metrics: Metrics, classes: Sequence[str]) -> Picture | None:
    """Every case's Dice per class with median and quartiles. None when no class has a value."""
    values = {name: _class_dice(metrics, name) for name in classes}
    values = {name: found for name, found in values.items() if found}
    if not values:
        return None
    figure, axes = chart(height=max(3.1, 0.9 + 0.45 * len(values)))
    for row, found in enumerate(values.values()):
        # a fixed spread by rank keeps equal values apart without chance
        spread = ((np.arange(len(found)) * 0.618034) % 1 - 0.5) * 0.42
        axes.plot(found, row + spread, "o", color=SERIES[0], markersize=3.5, alpha=0.45, markeredgewidth=0)
    axes.boxplot(
        list(values.values()),
        positions=range(len(values)),
        orientation="horizontal",
        widths=0.6,
        showfliers=False,
        medianprops={"color": SERIES[1], "linewidth": 2},
        boxprops={"color": INK},
        whiskerprops={"color": MUTED},
        capprops={"color": MUTED},
    )
    axes.set_yticks(range(len(values)), [_short(name) for name in values])
    axes.set_ylim(len(values) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", color=GRID, linewidth=0.7)
    axes.set_xlabel("Dice")
    axes.set_xlim(_dice_limits([value for found in values.values() for value in found]))
    medians = "; ".join(f"{name} median {np.median(found):.3f}" for name, found in values.items())
    return Picture(as_svg(figure), alt=f"Dice over cases per class: {medians}", title="Dice per class over all cases")


def _class_dice(metrics: Metrics, name: str) -> list[float]:
    found = [case.per_class[name].dice for case in metrics.cases if name in case.per_class]
    return [value for value in found if value is not None]


def _dice_limits(values: Sequence[float]) -> tuple[float, float]:
    """0 to 1, or the upper part of it when every value is high: the lower end a multiple of 0.1."""
    lowest = np.floor((min(values) - 0.05) * 10) / 10
    return (float(max(0.0, lowest)) - 0.01, 1.01)


def _short(name: str, length: int = 22) -> str:
    return name if len(name) <= length else name[: length - 1] + "…"

"""The charts of the results: ranked Dice per case, distribution per class and fold, reliability."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.ticker import MaxNLocator

from ..figures import GRID, INK, MOST_MARKS, MUTED, SERIES, Picture, as_svg, chart, two_charts
from ..schema.metrics import Metrics
from ..schema.selection import ReliabilityBin, TemperatureScaling
from .pictured import Ranked

if TYPE_CHECKING:
    from matplotlib.axes import Axes


MOST_ROWS = 40
"""of a chart with a row for each class"""


def ranked_dice(ranked: Sequence[Ranked], shown: Sequence[tuple[str, Ranked]]) -> Picture:
    """Mean Dice of each case, sorted; the cases that are shown as pictures are named."""
    figure, axes = chart()
    values = [entry.dice for entry in ranked]
    axes.plot(
        range(1, len(values) + 1),
        values,
        "o",
        color=SERIES[0],
        markersize=3.5 if len(values) > 60 else 5,
        rasterized=len(values) > MOST_MARKS,
    )
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
    figure, axes = chart(height=max(3.0, 0.9 + 0.45 * min(len(values), MOST_ROWS)))
    strips(axes, dict(list(values.items())[:MOST_ROWS]))
    axes.set_xlabel("Dice")
    axes.set_xlim(_dice_limits([value for found in values.values() for value in found]))
    medians = "; ".join(f"{name} median {np.median(found):.3f}" for name, found in values.items())
    title = "Dice per class over all cases"
    if len(values) > MOST_ROWS:
        title += f": the first {MOST_ROWS} of {len(values)} classes"
    return Picture(as_svg(figure), alt=f"Dice over cases per class: {medians}", title=title)


def fold_distribution(ranked: Sequence[Ranked]) -> Picture | None:
    """Every case's mean Dice by the fold that predicted it: whether one fold's model is worse. None with one fold."""
    values: dict[int, list[float]] = {}
    for entry in ranked:
        if entry.metrics.fold is not None:
            values.setdefault(entry.metrics.fold, []).append(entry.dice)
    if len(values) < 2:
        return None
    figure, axes = chart(height=max(3.0, 0.9 + 0.45 * len(values)))
    strips(axes, {f"fold {fold}": values[fold] for fold in sorted(values)})
    axes.set_xlabel("mean Dice over classes")
    axes.set_xlim(_dice_limits([entry.dice for entry in ranked]))
    medians = "; ".join(f"fold {fold} median {np.median(values[fold]):.3f}" for fold in sorted(values))
    return Picture(as_svg(figure), alt=f"Mean Dice of cases per fold: {medians}", title="Dice per fold")


def strips(axes: Axes, values: Mapping[str, Sequence[float]]) -> None:
    """A row of points for each name, first on top, with the box of the quartiles and the median."""
    marks = sum(map(len, values.values()))
    for row, found in enumerate(values.values()):
        # a fixed spread by rank keeps equal values apart without chance
        spread = ((np.arange(len(found)) * 0.618034) % 1 - 0.5) * 0.42
        axes.plot(
            found,
            row + spread,
            "o",
            color=SERIES[0],
            markersize=3.5,
            alpha=0.45,
            markeredgewidth=0,
            rasterized=marks > MOST_MARKS,
        )
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
    axes.set_yticks(range(len(values)), [short(name) for name in values])
    axes.set_ylim(len(values) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", color=GRID, linewidth=0.7)


def reliability_diagram(scaling: TemperatureScaling | None) -> Picture | None:
    """How often what was said with a confidence is right, before and after scaling. None without the bins."""
    if scaling is None or not scaling.reliability_before:
        return None
    figure, (axes, counts) = two_charts()
    axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1, label="perfect")
    lowest = 1.0
    states: tuple[tuple[str, Sequence[ReliabilityBin], str, str], ...] = (
        (f"before, error {scaling.ece_before:.3f}", scaling.reliability_before, "s", "--"),
        (f"after, error {scaling.ece_after:.3f}", scaling.reliability_after, "o", "-"),
    )
    for place, (name, bins, marker, dashes) in enumerate(states):
        confidence = [each.confidence for each in bins]
        right, share = [each.right for each in bins], [each.share for each in bins]
        colour = SERIES[1 - place]
        axes.plot(confidence, right, dashes, marker=marker, markersize=4.5, color=colour, linewidth=1.5, label=name)
        counts.plot(confidence, share, dashes, marker=marker, markersize=3, color=colour, linewidth=1.2)
        lowest = min(lowest, *confidence, *right)
    axes.set_xlim(max(0.0, lowest - 0.05), 1.02)
    axes.set_ylim(max(0.0, lowest - 0.05), 1.02)
    axes.set_ylabel("share that is right")
    axes.legend(frameon=False, fontsize=8.5)
    counts.set_ylabel("share of\nvoxels")
    counts.set_yscale("log")
    counts.set_xlabel("confidence in what was decided")
    alt = (
        f"Reliability diagram of the out-of-fold probabilities: expected calibration error {scaling.ece_before:.4f} "
        f"before and {scaling.ece_after:.4f} after temperature scaling"
    )
    return Picture(as_svg(figure), alt=alt, title="Reliability of the probabilities")


def _class_dice(metrics: Metrics, name: str) -> list[float]:
    found = [case.per_class[name].dice for case in metrics.cases if name in case.per_class]
    return [value for value in found if value is not None]


def _dice_limits(values: Sequence[float]) -> tuple[float, float]:
    """0 to 1, or the upper part of it when every value is high: the lower end a multiple of 0.1."""
    lowest = np.floor((min(values) - 0.05) * 10) / 10
    return (float(max(0.0, lowest)) - 0.01, 1.01)


def short(name: str, length: int = 22) -> str:
    return name if len(name) <= length else name[: length - 1] + "…"

"""The charts of the trainings: curves, speed with waiting for data, memory as predicted and as measured."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from autounet.report.style import DASHES, GRID, SERIES, Picture, as_svg, chart
from autounet.schema.plan import Configuration
from autounet.schema.quantities import format_size
from autounet.schema.run import EpochLog, RunRecord

MOST_POINTS = 400
"""of a curve; a chart is not wider"""


def fold_name(fold: int | None) -> str:
    return "all cases" if fold is None else f"fold {fold}"


def training_curves(runs: Sequence[RunRecord]) -> list[Picture]:
    """Loss, Dice over validation patches where it was measured, and seconds a step; x in steps or folds."""
    curved = [run for run in runs if run.curve]
    if not curved:
        return []
    name = curved[0].configuration_name
    pictures = [_curves(curved, name, "loss", "training loss")]
    if any(point.validation_dice for run in curved for point in run.curve):
        pictures.append(_curves(curved, name, "dice", "Dice on validation patches"))
    return [*pictures, _speed(curved, name)]


def memory_chart(configuration: Configuration, runs: Sequence[RunRecord]) -> Picture | None:
    """The measured peak of each fold beside the prediction; None where nothing was measured."""
    measured = [(fold_name(run.fold), run.peak_memory_bytes) for run in runs if run.peak_memory_bytes]
    if not measured:
        return None
    predicted = configuration.predicted_memory_bytes
    names, peaks = ["predicted", *(name for name, _ in measured)], [predicted, *(peak for _, peak in measured)]
    unit, size = ("GB", 1024**3) if max(peaks) >= 1024**3 else ("MB", 1024**2)
    figure, axes = chart(height=max(2.0, 0.9 + 0.36 * len(names)))
    axes.barh([0], [predicted / size], height=0.6, facecolor="white", edgecolor=SERIES[1], hatch="////", linewidth=1.2)
    axes.barh(range(1, len(names)), [peak / size for peak in peaks[1:]], height=0.6, color=SERIES[0])
    axes.axvline(predicted / size, color=SERIES[1], linestyle="--", linewidth=1.2)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", color=GRID, linewidth=0.7)
    axes.set_xlabel(f"peak memory of training ({unit})")
    told = "; ".join(f"{name} {format_size(peak)}" for name, peak in zip(names, peaks, strict=True))
    return Picture(as_svg(figure), alt=f"Memory of training: {told}", title="Memory, predicted and measured")


def steady(run: RunRecord) -> Sequence[EpochLog]:
    """Without the first point, which may cover the warm-up of kernels and workers."""
    return run.curve[1:] or run.curve


def _speed(runs: Sequence[RunRecord], name: str) -> Picture:
    steps = [fmean(point.step_seconds for point in steady(run)) for run in runs]
    waits = [fmean(point.data_wait_seconds for point in steady(run)) for run in runs]
    unit, scale = ("ms", 1000.0) if max(steps) < 1 else ("s", 1.0)
    figure, axes = chart()
    places = range(len(runs))
    computed = [scale * max(0.0, step - wait) for step, wait in zip(steps, waits, strict=True)]
    axes.bar(places, computed, color=SERIES[0], width=0.6, label="computing")
    axes.bar(
        places, [scale * wait for wait in waits], bottom=computed, width=0.6, facecolor="white", edgecolor=SERIES[1],
        hatch="xxx", linewidth=0.8, label="waiting for data",
    )  # fmt: skip
    axes.set_xticks(places, [fold_name(run.fold) for run in runs])
    axes.set_ylabel(f"mean time of a step ({unit})")
    figure.legend(frameon=False, fontsize=8.5, ncols=2, loc="outside upper right")
    told = (
        f"{fold_name(run.fold)} {step:.3g} s a step, {wait:.2g} s of it waiting for data"
        for run, step, wait in zip(runs, steps, waits, strict=True)
    )
    return Picture(as_svg(figure), alt=f"Speed of {name}: {'; '.join(told)}", title="Time of a step")


def _curves(runs: Sequence[RunRecord], name: str, what: str, label: str) -> Picture:
    figure, axes = chart()
    ends = []
    for index, run in enumerate(runs):
        points = [(point.step, value) for point in run.curve if (value := _value(point, what)) is not None]
        if not points:
            continue
        points = points[:: -(-len(points) // MOST_POINTS)]
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

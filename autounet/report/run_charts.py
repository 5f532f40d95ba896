"""The charts of the trainings: curves, speed with waiting for data, memory as predicted and as measured."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from ..figures import DASHES, GRID, INK, MUTED, RC, SERIES, Picture, as_svg, chart
from ..schema.dataset import Dataset
from ..schema.fingerprint import ChannelFingerprint, Fingerprint
from ..schema.plan import Configuration
from ..schema.quantities import format_size
from ..schema.run import EpochLog, RunRecord
from .charts import MOST_ROWS, short, strips

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


MOST_CHANNELS = 12


def data_charts(fingerprint: Fingerprint, dataset: Dataset | None) -> list[Picture]:
    """Those that tell something: equal sizes or spacings need no chart."""
    found = [_extents(fingerprint), _spacings(fingerprint), _volumes(fingerprint, dataset), _intensities(fingerprint)]
    return [picture for picture in found if picture is not None]


def has_spacing(fingerprint: Fingerprint) -> bool:
    """False for pictures, and volumes in formats without one, whose spacing is 1 throughout."""
    if fingerprint.dimension == 3 and fingerprint.oriented:
        return True  # the volumes of some data sets have 1 mm in fact
    return any(value != 1 for case in fingerprint.cases for value in case.spacing[3 - fingerprint.dimension :])


def _extents(fingerprint: Fingerprint) -> Picture | None:
    return _per_axis(fingerprint, "shape", "image size (voxels)", "Image sizes")


def _spacings(fingerprint: Fingerprint) -> Picture | None:
    if not has_spacing(fingerprint):
        return None
    return _per_axis(fingerprint, "spacing", "spacing (mm)", "Voxel spacings")


def _per_axis(fingerprint: Fingerprint, what: str, label: str, title: str) -> Picture | None:
    """A strip for each axis; None where all cases are alike."""
    first = 3 - fingerprint.dimension
    names = ("z", "y", "x") if fingerprint.dimension == 3 else ("", "height", "width")
    columns = list(zip(*(getattr(case, what) for case in fingerprint.cases), strict=True))
    values = {names[axis]: [float(value) for value in columns[axis]] for axis in range(first, 3)}
    if all(min(found) == max(found) for found in values.values()):
        return None
    figure, axes = chart(height=1.2 + 0.5 * len(values))
    strips(axes, values)
    low, high = (edge(edge(found) for found in values.values()) for edge in (min, max))
    if low > 0 and high / low > 20:
        axes.set_xscale("log")
    axes.set_xlabel(label)
    medians = "; ".join(f"{name} median {np.median(found):.4g}" for name, found in values.items())
    return Picture(as_svg(figure), alt=f"{title} over {len(fingerprint.cases)} cases: {medians}", title=title)


def _volumes(fingerprint: Fingerprint, dataset: Dataset | None) -> Picture | None:
    """Of each foreground class, over the cases that have it, on a logarithmic axis."""
    if dataset is None:
        return None
    spaced = has_spacing(fingerprint)
    unit = "ml" if spaced else "voxels" if fingerprint.dimension == 3 else "pixels"
    # classes are the dense indices 1, 2, ... in the order of the foreground
    values: dict[str, list[float]] = {}
    for index, label in enumerate(dataset.labels.foreground[:MOST_ROWS], start=1):
        found = [
            case.voxels[index] * (float(np.prod(case.spacing)) / 1000 if spaced else 1.0)
            for case in fingerprint.cases
            if index < len(case.voxels) and case.voxels[index]
        ]
        if found:
            values[label.name] = found
    if not values:
        return None
    figure, axes = chart(height=max(2.0, 0.9 + 0.45 * len(values)))
    strips(axes, values)
    axes.set_xscale("log")
    within_two = max(map(max, values.values())) < 100 * min(map(min, values.values()))
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if within_two else (1,)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(f"{'volume in a case' if fingerprint.dimension == 3 else 'area in an image'} ({unit})")
    medians = "; ".join(f"{name} median {np.median(found):.3g} {unit}" for name, found in values.items())
    title = "Size of the structures"
    return Picture(as_svg(figure), alt=f"Volume of each class over cases: {medians}", title=title)


def _intensities(fingerprint: Fingerprint) -> Picture | None:
    """A scale of its own for each channel, since their units differ."""
    told = [each for each in fingerprint.channels if None not in _numbers(each)][:MOST_CHANNELS]
    if not told:
        return None
    with rc_context(RC):
        figure = Figure(figsize=(4.1, 0.5 + 0.85 * len(told)), layout="constrained")
        rows = figure.subplots(len(told), 1, squeeze=False)[:, 0]
    for axes, channel in zip(rows, told, strict=True):
        low, start, middle, stop, high = (float(value) for value in _numbers(channel) if value is not None)
        axes.plot([low, high], [0, 0], color=MUTED, linewidth=1, label="least to most")
        axes.plot([start, stop], [0, 0], color=SERIES[0], linewidth=8, solid_capstyle="butt", label="99 % of voxels")
        axes.plot([middle], [0], "|", color=SERIES[1], markersize=16, markeredgewidth=2.5, label="median")
        axes.set_yticks([])
        axes.set_ylim(-1, 1)
        axes.spines["left"].set_visible(False)
        axes.set_ylabel(short(channel.name, 12), rotation=0, ha="right", va="center", color=INK)
    handles, names = rows[0].get_legend_handles_labels()
    figure.legend(handles, names, frameon=False, fontsize=8.5, ncols=3, loc="outside upper center", handlelength=1.3)
    alt = "; ".join(f"{each.name} median {each.median:.4g}" for each in told)
    return Picture(as_svg(figure), alt=f"Intensities in the foreground: {alt}", title="Intensities in the foreground")


def _numbers(channel: ChannelFingerprint) -> Sequence[float | None]:
    return (channel.minimum, channel.percentile_00_5, channel.median, channel.percentile_99_5, channel.maximum)

"""The report's sections on plan and training (curves, speed, memory), and on selection, postprocessing, calibration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

from ..figures import DASHES, GRID, MUTED, SERIES, Picture, as_svg, chart, two_charts
from ..schema.plan import Configuration
from ..schema.quantities import format_size, format_time
from ..schema.run import Compilation, EpochLog, RunRecord
from ..schema.selection import ObjectSeparation, ReliabilityBin, Selection, TemperatureScaling
from .tables import DASH, ReportTable, interval_text, number, size_text

MAX_POINTS = 400
"""of a curve; a chart is not wider"""


def plan_table(configurations: Mapping[str, Configuration], runs: Sequence[RunRecord]) -> ReportTable:
    """A column per configuration that was trained, or of all where none was yet; notes on the others, and on what was
    trained by another plan than the one shown. Predicted memory stands above what training took."""
    trained = {run.configuration_name for run in runs}
    notes = _plan_notes(configurations, runs)
    configurations = {name: item for name, item in configurations.items() if name in trained or not trained}
    peaks = {
        name: max((run.peak_memory_bytes or 0 for run in runs if run.configuration_name == name), default=0)
        for name in configurations
    }
    options = {run.configuration_name: run.options for run in runs}
    lines = {
        "target spacing (mm)": lambda name, item: size_text(item.spacing),
        "median image size at this spacing": lambda name, item: size_text(item.median_shape),
        "patch size": lambda name, item: size_text(item.patch_size),
        "batch size": lambda name, item: str(item.batch_size),
        "normalisation": lambda name, item: ", ".join(dict.fromkeys(x.scheme for x in item.preprocess.normalisation)),
        "network family": lambda name, item: item.network.family,
        "network output": lambda name, item: item.targets,
        "features per stage": lambda name, item: ", ".join(map(str, item.network.features)),
        "total downsampling": lambda name, item: size_text(item.network.divisor),
        "precision": lambda name, item: getattr(item, "precision", DASH),
        "loss": lambda name, item: options[name].loss if name in options else DASH,
        "optimiser": lambda name, item: options[name].optimiser if name in options else DASH,
        "augmentation": lambda name, item: options[name].augmentation if name in options else DASH,
        "overlap of tiles": lambda name, item: f"{item.inference.overlap:.0%}",
        "mirroring at prediction": lambda name, item: f"{len(item.inference.mirror_axes)} axes",
        "predicted memory of training": lambda name, item: format_size(item.predicted_memory_bytes),
        "measured memory of training": lambda name, item: format_size(peaks[name]) if peaks[name] else DASH,
    }
    rows = [[title, *(line(name, item) for name, item in configurations.items())] for title, line in lines.items()]
    return ReportTable(["property", *configurations], rows, notes=notes)


def _plan_notes(configurations: Mapping[str, Configuration], runs: Sequence[RunRecord]) -> list[str]:
    """Which configurations of the plan are not the trained ones."""
    if not runs:
        return ["Nothing has been trained yet: this is what is planned"]
    notes = []
    for name, item in configurations.items():
        folds = [run for run in runs if run.configuration_name == name]
        if not folds:
            notes.append(f"{name} is planned and was not trained: no figure of this report is of it")
        elif other := [fold_title(run.fold) for run in folds if run.configuration != item.key]:
            notes.append(f"{name} was planned again after {', '.join(other)} had been trained: this is the later plan")
    return notes


def training_table(runs: Sequence[RunRecord]) -> ReportTable:
    """A row per trained fold."""
    rows = []
    for run in runs:
        points = steady(run)
        step = fmean(point.step_seconds for point in points) if points else None
        wait = fmean(point.data_wait_seconds for point in points) if points else None
        rows.append(
            [
                run.configuration_name,
                "all cases" if run.fold is None else str(run.fold),
                f"{len(run.train_cases)} / {len(run.validation_cases)}",
                f"{run.steps:,}",
                format_time(run.seconds),
                number(step),
                DASH if not step or wait is None else f"{wait / step:.1%}",
                format_size(run.peak_memory_bytes) if run.peak_memory_bytes else DASH,
                number(run.curve[-1].loss if run.curve else None),
                network_text(run.compilation),
            ]
        )
    head = [
        "configuration",
        "fold",
        "training / validation cases",
        "steps",
        "time",
        "seconds per step",
        "share waiting for data",
        "peak memory",
        "last loss",
        "network",
    ]
    keys = {4: [run.seconds for run in runs], 7: [float(run.peak_memory_bytes or 0) for run in runs]}
    return ReportTable(head, rows, numeric=range(2, 9), notes=compilation_notes(runs), sort_keys=keys)


def network_text(compilation: Compilation | None) -> str:
    """Whether steps ran a compiled network; a dash where nobody knows."""
    if compilation is None:
        return DASH
    graphs = ", CUDA graphs" if compilation.cuda_graphs else ""
    return f"compiled{graphs}" if compilation.compiled else "not compiled"


def compilation_notes(runs: Sequence[RunRecord]) -> list[str]:
    """Why networks were compiled or not, once for each reason: of most folds it is the same."""
    folds: dict[tuple[str, str, str], list[str]] = {}
    for run in runs:
        if told := run.compilation:
            told_of = run.configuration_name, network_text(told), told.reason
            folds.setdefault(told_of, []).append(fold_title(run.fold))
    return [f"{name}, {', '.join(own)}: the network was {how}: {why}" for (name, how, why), own in folds.items()]


def fold_title(fold: int | None) -> str:
    return "all cases" if fold is None else f"fold {fold}"


def training_charts(configuration: Configuration | None, runs: Sequence[RunRecord]) -> list[Picture]:
    """Of the folds of one configuration: loss, Dice on validation patches where measured, speed, memory."""
    pictures = []
    if curved := [run for run in runs if run.curve]:
        loss = [[(point.step, point.loss) for point in run.curve] for run in curved]
        pictures.append(_curves(curved, loss, "training loss"))
        dice = [
            [(point.step, fmean(point.validation_dice.values())) for point in run.curve if point.validation_dice]
            for run in curved
        ]
        if any(dice):
            pictures.append(_curves(curved, dice, "Dice on validation patches"))
        pictures.append(_speed_chart(curved))
    memory = memory_chart(configuration.predicted_memory_bytes, runs) if configuration else None
    return [*pictures, *([memory] if memory else [])]


def _curves(runs: Sequence[RunRecord], curves: Sequence[Sequence[tuple[int, float]]], label: str) -> Picture:
    """One line per fold; `curves` holds its points (step, value)."""
    figure, axes = chart()
    ends = []
    for index, (run, curve) in enumerate(zip(runs, curves, strict=True)):
        if not curve:
            continue
        steps, values = zip(*curve[:: -(-len(curve) // MAX_POINTS)], strict=True)
        axes.plot(
            steps,
            values,
            color=SERIES[index % len(SERIES)],
            linestyle=DASHES[index % len(DASHES)],
            marker="o" if len(steps) == 1 else "",
            linewidth=1.5,
            label=fold_title(run.fold),
        )
        ends.append(f"{fold_title(run.fold)} ends at {values[-1]:.3f}")
    axes.set_xlabel("training step")
    axes.set_ylabel(label)
    axes.legend(frameon=False, fontsize=9, ncols=2 if len(runs) > 3 else 1)
    alt = f"{label} of {runs[0].configuration_name}: {'; '.join(ends)}"
    return Picture(as_svg(figure), alt=alt, title=label.capitalize())


def steady(run: RunRecord) -> Sequence[EpochLog]:
    """The log without its first line, whose time may include the start of kernels and workers."""
    return run.curve[1:] or run.curve


def _speed_chart(runs: Sequence[RunRecord]) -> Picture:
    """Seconds per step of each fold, divided into computing and waiting for data."""
    steps = [fmean(point.step_seconds for point in steady(run)) for run in runs]
    waits = [fmean(point.data_wait_seconds for point in steady(run)) for run in runs]
    unit, scale = ("ms", 1000.0) if max(steps) < 1 else ("s", 1.0)
    figure, axes = chart()
    places = range(len(runs))
    computing = [scale * max(0.0, step - wait) for step, wait in zip(steps, waits, strict=True)]
    axes.bar(places, computing, color=SERIES[0], width=0.6, label="computing")
    axes.bar(
        places, [scale * wait for wait in waits], bottom=computing, width=0.6, facecolor="white", edgecolor=SERIES[1],
        hatch="xxx", linewidth=0.8, label="waiting for data",
    )  # fmt: skip
    axes.set_xticks(places, [fold_title(run.fold) for run in runs])
    axes.set_ylabel(f"mean time per step ({unit})")
    figure.legend(frameon=False, fontsize=9, ncols=2, loc="outside upper right")
    values = (
        f"{fold_title(run.fold)} {step:.3g} s, {wait:.2g} s of it waiting for data"
        for run, step, wait in zip(runs, steps, waits, strict=True)
    )
    alt = f"Time per step of {runs[0].configuration_name}: {'; '.join(values)}"
    return Picture(as_svg(figure), alt=alt, title="Time per step")


def memory_chart(predicted: int, runs: Sequence[RunRecord]) -> Picture | None:
    """Measured peak memory of each fold and the predicted one, in bytes; None where nothing was measured."""
    measured = [(fold_title(run.fold), run.peak_memory_bytes) for run in runs if run.peak_memory_bytes]
    if not measured:
        return None
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
    values = "; ".join(f"{name} {format_size(peak)}" for name, peak in zip(names, peaks, strict=True))
    return Picture(as_svg(figure), alt=f"Memory of training: {values}", title="Memory, predicted and measured")


MOST_TRIALS = 5
"""ways of making objects that are shown"""


def candidates_table(selection: Selection) -> ReportTable:
    """Every candidate with its interval and its distance from the best one."""
    rows = [
        [
            " + ".join(candidate.configurations),
            number(candidate.mean_dice, 4),
            interval_text(candidate.interval, 4),
            number(candidate.behind, 4),
            number(candidate.noise, 4),
            "chosen" if candidate.configurations == selection.chosen else "not chosen",
        ]
        for candidate in selection.compared
    ]
    head = ["candidate", "mean Dice", "95 % interval", "below the best", "standard error of that", "decision"]
    notes = [selection.rule.rstrip(".")] if selection.rule and len(rows) > 1 else []
    if selection.postprocessing:
        notes.append("These figures are from before postprocessing, all others of this report from after it")
    return ReportTable(head, rows, numeric=(1, 2, 3, 4), notes=notes)


def postprocessing_table(selection: Selection) -> ReportTable:
    """Postprocessing steps that were tried, with the gain on cases that had no part in choosing them."""
    rows = [
        [
            trial.name,
            DASH if trial.step is None else f"keep {trial.step}",
            DASH if trial.gain is None else f"{trial.gain:+.4f}",
            number(trial.noise, 4),
            "used" if trial.kept else "not used",
        ]
        for trial in selection.postprocessing_trials
    ]
    head = ["components of", "best step on all cases", "gain in mean Dice, held out", "standard error", "decision"]
    return ReportTable(head, rows, numeric=(2, 3))


def objects_table(separation: ObjectSeparation) -> ReportTable:
    """How single objects were made of expected depths, the best ways first."""
    chosen = separation.chosen
    tried = sorted(separation.compared, key=lambda trial: -(trial.score or 0.0))[:MOST_TRIALS]
    rows = [
        [
            f"{trial.height:g}",
            f"{trial.smallest:g}",
            number(trial.score),
            "used" if (trial.height, trial.smallest) == (chosen.height, chosen.smallest) else DASH,
        ]
        for trial in tried
    ]
    head = ["height of a summit", "least size", "score", "decision"]
    return ReportTable(head, rows, numeric=(0, 1, 2), notes=[separation.rule.rstrip(".")])


def calibration_text(calibration: TemperatureScaling) -> str:
    """What was measured and whether the temperature is used, for people who use the probabilities."""
    if calibration.temperature != 1.0:
        use = "is used"
    else:
        use = "did not reduce the error of held-out cases, so it is not used"
    return (
        f"Expected calibration error of the out-of-fold probabilities, from {calibration.voxels} voxels around the "
        f"structures of {calibration.cases} cases in {calibration.bins} bins: {calibration.ece_before:.4f} before and "
        f"{calibration.ece_after:.4f} after temperature scaling, where each fold is scaled by the temperature that was "
        f"fitted on the other folds. The temperature fitted on all folds, {calibration.fitted:.3g}, {use} for the "
        "probabilities that autounet predict writes. Segmentations do not depend on it."
    )


def reliability_diagram(calibration: TemperatureScaling) -> Picture | None:
    """Accuracy against confidence before and after scaling; None where the bins were not stored."""
    if not calibration.reliability_before:
        return None
    figure, (axes, counts) = two_charts()
    axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1, label="perfect calibration")
    lowest = 1.0
    states: tuple[tuple[str, Sequence[ReliabilityBin], str, str], ...] = (
        (f"before, error {calibration.ece_before:.3f}", calibration.reliability_before, "s", "--"),
        (f"after, error {calibration.ece_after:.3f}", calibration.reliability_after, "o", "-"),
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
    axes.set_ylabel("share of correct voxels")
    axes.legend(frameon=False, fontsize=9)
    counts.set_ylabel("share of\nall voxels")
    counts.set_yscale("log")
    counts.set_xlabel("confidence: probability of the predicted class")
    alt = (
        f"Reliability diagram of the out-of-fold probabilities: expected calibration error "
        f"{calibration.ece_before:.4f} before and {calibration.ece_after:.4f} after temperature scaling"
    )
    return Picture(as_svg(figure), alt=alt, title="Reliability of the probabilities")

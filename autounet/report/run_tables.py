"""What was planned, and how training went, as rows of plain text for the page. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from ..schema.plan import Configuration
from ..schema.quantities import format_size, format_time
from ..schema.run import RunRecord
from ..schema.selection import Candidate, Selection
from .run_charts import steady
from .table import DASH, Table, number, times


def plan_table(configurations: dict[str, Configuration], runs: Sequence[RunRecord]) -> Table:
    """A column per configuration; predicted memory stands beside what training took."""
    peaks = {
        name: max((run.peak_memory_bytes or 0 for run in runs if run.configuration_name == name), default=0)
        for name in configurations
    }
    lines = {
        "target spacing (mm)": lambda name, item: times(item.spacing),
        "median image size": lambda name, item: times(item.median_shape),
        "patch size": lambda name, item: times(item.patch_size),
        "batch size": lambda name, item: str(item.batch_size),
        "normalisation": lambda name, item: ", ".join(dict.fromkeys(x.scheme for x in item.preprocess.normalisation)),
        "network family": lambda name, item: item.network.family,
        "learns": lambda name, item: item.targets,
        "features per stage": lambda name, item: ", ".join(map(str, item.network.features)),
        "downsampling in all": lambda name, item: times(item.network.divisor),
        "precision": lambda name, item: getattr(item, "precision", DASH),
        "tiles overlap by": lambda name, item: f"{item.inference.overlap:.0%}",
        "mirrored at prediction": lambda name, item: f"{len(item.inference.mirror_axes)} axes",
        "memory predicted": lambda name, item: format_size(item.predicted_memory_bytes),
        "memory measured": lambda name, item: format_size(peaks[name]) if peaks[name] else DASH,
    }
    rows = [[title, *(line(name, item) for name, item in configurations.items())] for title, line in lines.items()]
    return Table(["", *configurations], rows)


def training_table(runs: Sequence[RunRecord]) -> Table:
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
            ]
        )
    head = [
        "configuration",
        "fold",
        "cases trained / validated",
        "steps",
        "time",
        "seconds a step",
        "of it waiting for data",
        "peak memory",
        "last loss",
    ]
    keys = {4: [run.seconds for run in runs], 7: [float(run.peak_memory_bytes or 0) for run in runs]}
    return Table(head, rows, numeric=range(2, 9), keys=keys)


def candidates_table(selection: Selection) -> Table:
    """Every candidate with its interval and how far behind the best it is."""
    rows = [
        [
            " + ".join(candidate.configurations),
            number(candidate.mean_dice, 4),
            _interval(candidate),
            number(candidate.behind, 4),
            number(candidate.noise, 4),
            "chosen" if candidate.configurations == selection.chosen else "",
        ]
        for candidate in selection.compared
    ]
    head = ["candidate", "mean Dice", "95 % interval", "behind the best", "one standard error", ""]
    notes = [selection.rule.rstrip(".")] if selection.rule and len(rows) > 1 else []
    return Table(head, rows, numeric=(1, 2, 3, 4), notes=notes)


def _interval(candidate: Candidate) -> str:
    return DASH if candidate.interval is None else f"{candidate.interval[0]:.4f} to {candidate.interval[1]:.4f}"


def trials_table(selection: Selection) -> Table:
    """What postprocessing was tried, and what it gained on cases that had no part in choosing it."""
    rows = [
        [
            trial.name,
            DASH if trial.step is None else f"keep {trial.step}",
            DASH if trial.gain is None else f"{trial.gain:+.4f}",
            number(trial.noise, 4),
            "kept" if trial.kept else "",
        ]
        for trial in selection.postprocessing_trials
    ]
    head = ["components of", "best on all cases", "mean Dice gained when held out", "one standard error", ""]
    return Table(head, rows, numeric=(2, 3))


def calibration_text(selection: Selection) -> str:
    """Two sentences; empty without calibration."""
    found = selection.calibration
    if found is None:
        return ""
    used = "is applied to" if found.temperature != 1.0 else "brings nothing to cases held out, so it is not applied to"
    return (
        f"Expected calibration error of the out-of-fold probabilities ({found.bins} bins, {found.voxels} voxels around "
        f"the structures of {found.cases} cases): {found.ece_before:.4f} before, {found.ece_after:.4f} after "
        f"temperature scaling, each fold at the temperature of the others. The temperature fitted on all, "
        f"{found.fitted:.3g}, {used} the probabilities that autounet predict writes. It changes no segmentation."
    )

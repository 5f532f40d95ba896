"""Records as rows of plain text for the page. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean, median

from autounet.report.ranking import Ranked
from autounet.schema.annotated import is_certain
from autounet.schema.comparison import PublishedComparison
from autounet.schema.labels import Labels
from autounet.schema.plan import Configuration
from autounet.schema.quantities import format_size, format_time
from autounet.schema.run import CaseMetrics, Metrics, RunRecord
from autounet.schema.targets import overlapping_targets, targets_of

DASH = "–"
METRIC_NAMES = {
    "dice": "Dice",
    "iou": "IoU",
    "sensitivity": "sensitivity",
    "precision": "precision",
    "hd95": "HD95",
    "nsd": "NSD",
    "volume": "volume",
    "volume_difference": "volume difference",
}


@dataclass(frozen=True)
class Table:
    """`head` and every row have the same length; columns in `numeric` are set right-aligned."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    numeric: Sequence[int] = field(default_factory=tuple)
    notes: Sequence[str] = field(default_factory=tuple)


def number(value: float | None, digits: int = 3) -> str:
    return DASH if value is None else f"{value:.{digits}f}"


def between(interval: tuple[float, float] | None) -> str:
    return DASH if interval is None else f"{interval[0]:.3f} to {interval[1]:.3f}"


def times(values: Sequence[float]) -> str:
    """40 × 56 × 40"""
    return " × ".join(f"{value:.4g}" for value in values)


def spread(values: Sequence[float], digits: int = 3) -> str:
    """median (least to most)"""
    if min(values) == max(values):
        return f"{values[0]:.{digits}g}"
    return f"{median(values):.{digits}g} ({min(values):.{digits}g} to {max(values):.{digits}g})"


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
        # the first point may cover the warm-up of kernels and workers
        steady = run.curve[1:] or run.curve
        step = fmean(point.step_seconds for point in steady) if steady else None
        wait = fmean(point.data_wait_seconds for point in steady) if steady else None
        rows.append(
            [
                run.configuration_name,
                "all cases" if run.fold is None else str(run.fold),
                f"{len(run.train_cases)} / {len(run.validation_cases)}",
                f"{run.steps:,}",
                format_time(run.seconds),
                number(step),
                number(wait),
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
        "of these waiting for data",
        "last loss",
    ]
    return Table(head, rows, numeric=range(2, 8))


def class_table(metrics: Metrics, counted: Sequence[str]) -> Table:
    """Means over the cases in which a metric is defined, with the number of cases that Dice rests on."""
    unit, volume = metrics.unit, "ml" if metrics.unit == "mm" else metrics.unit
    head = [
        "class",
        "Dice",
        "95 % interval",
        "middle half of cases",
        "IoU",
        "sensitivity",
        "precision",
        f"HD95 ({unit})",
        "NSD",
        f"volume difference ({volume})",
        "cases",
    ]
    rows = []
    for name, entry in metrics.per_class.items():
        dice = sorted(v for case in metrics.cases if (v := _dice(case, name)) is not None)
        rows.append(
            [
                name if name in counted else f"{name} (not counted in the mean)",
                number(entry.dice),
                between(metrics.intervals.get(name, {}).get("dice")),
                f"{_quantile(dice, 0.25):.3f} to {_quantile(dice, 0.75):.3f}" if dice else DASH,
                number(entry.iou),
                number(entry.sensitivity),
                number(entry.precision),
                number(entry.hd95, 2),
                number(entry.nsd),
                f"{entry.volume_difference:+.3g}".replace("-", "−") if entry.volume_difference is not None else DASH,
                f"{len(dice)} of {len(metrics.cases)}",
            ]
        )
    return Table(head, rows, numeric=range(1, len(head)), notes=_undefined(metrics))


def published_table(comparison: PublishedComparison) -> Table | None:
    """A row for each published figure; None when there is none. The sources stand in the notes, by number."""
    if not comparison.rows:
        return None
    sources = list(dict.fromkeys((row.source, row.metric, row.protocol, row.comparable) for row in comparison.rows))
    rows = [
        [
            row.method,
            row.target,
            number(row.published, 4),
            number(row.ours, 4),
            between(row.interval),
            "–" if row.verdict == "not comparable" else row.verdict,
            str(sources.index((row.source, row.metric, row.protocol, row.comparable)) + 1),
        ]
        for row in comparison.rows
    ]
    notes = [
        f"Source {place}: {source}; {metric}; {protocol}. {comparable.rstrip('.')}"
        for place, (source, metric, protocol, comparable) in enumerate(sources, start=1)
    ]
    head = ["published method", "of", "published", "this run", "95 % interval", "this run is", "source"]
    return Table(head, rows, numeric=(2, 3, 4, 6), notes=notes)


def _undefined(metrics: Metrics) -> list[str]:
    """Why values are missing: a sentence per class and reason, counted over cases."""
    found: dict[tuple[str, str], tuple[dict[str, None], set[str]]] = {}
    for case in metrics.cases:
        for name, entry in case.per_class.items():
            for metric, reason in entry.undefined.items():
                names, cases = found.setdefault((name, reason), ({}, set()))
                names[METRIC_NAMES.get(metric, metric)] = None
                cases.add(case.case)
    notes = [
        f"{name}: {_and(list(names))} undefined in {len(cases)} case{'s' if len(cases) > 1 else ''} ({reason})"
        for (name, reason), (names, cases) in sorted(found.items(), key=lambda pair: -len(pair[1][1]))
    ]
    return notes[:10] + ([f"and {len(notes) - 10} further kinds of undefined values"] if len(notes) > 10 else [])


def _and(words: list[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else words[0]


def case_table(ranked: Sequence[Ranked], classes: Sequence[str]) -> Table:
    """Every ranked case, worst first."""
    rows = [
        [
            entry.case,
            DASH if entry.metrics.fold is None else str(entry.metrics.fold),
            number(entry.dice),
            *(number(_dice(entry.metrics, name)) for name in classes),
        ]
        for entry in ranked
    ]
    return Table(["case", "fold", "mean Dice", *classes], rows, numeric=range(1, 3 + len(classes)))


def labels_table(
    labels: Labels, voxels: Sequence[Sequence[int]], annotated: Sequence[Sequence[bool]] | None = None
) -> Table:
    """Classes and regions with their file values; `voxels` holds the count per dense class of every case.

    `annotated` says of every case which dense classes were annotated; None: all in all cases.
    """
    total = sum(map(sum, voxels))
    rows = []
    for target in (*targets_of(labels, "classes"), *overlapping_targets(labels)[: len(labels.regions)]):
        told = [case for case in range(len(voxels)) if annotated is None or is_certain(target.members, annotated[case])]
        counts = [sum(count for index, count in enumerate(voxels[case]) if index in target.members) for case in told]
        rows.append(
            [
                target.name,
                " + ".join(str(labels.values[index]) for index in target.members),
                f"{sum(count > 0 for count in counts)} of {len(told)}" if voxels else DASH,
                f"{sum(counts) / total:.2%}" if total else DASH,
            ]
        )
    notes = []
    if annotated is not None:
        notes.append("in cases: of those in which it was annotated")
    return Table(["class", "value in the files", "in cases", "of all voxels"], rows, numeric=(1, 2, 3), notes=notes)


def _dice(case: CaseMetrics, name: str) -> float | None:
    return case.per_class[name].dice if name in case.per_class else None


def _quantile(ordered: Sequence[float], share: float) -> float:
    """Linear between neighbours, as numpy's default."""
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)

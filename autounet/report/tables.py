"""Records as rows of plain text for the page. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..schema.dataset import is_certain
from ..schema.labels import Labels, overlapping_targets, targets_of
from ..schema.metrics import CaseMetrics, ClassMetrics, ComparedFigure, Metrics, PublishedComparison
from .pictured import Ranked
from .table import DASH, Link, Table, between, number, plain_list

MOST_COLUMNS = 60
"""classes of the table of cases"""
METRIC_NAMES = {
    "dice": "Dice",
    "iou": "IoU",
    "sensitivity": "sensitivity",
    "precision": "precision",
    "hd95": "HD95",
    "nsd": "NSD",
    "volume": "volume",
    "volume_difference": "volume difference",
    "assd": "ASSD",
    "nsd_subvoxel": "NSD, subvoxel",
    "boundary_iou": "boundary IoU",
    "lesion_f1": "lesion F1",
    "panoptic_quality": "panoptic quality",
    "cl_dice": "centre-line Dice",
}
UNDER_DICE = {"dice", "volume"}
"""without a column of their own among the classes: Dice has several, and a mean volume says little"""


def class_table(metrics: Metrics, counted: Sequence[str]) -> Table:
    """Means over the cases in which a metric is defined, with the number of cases that Dice rests on."""
    volume = "ml" if metrics.unit == "mm" else metrics.unit
    units = {"hd95": metrics.unit, "assd": metrics.unit, "volume_difference": volume}
    others = [each for each in METRIC_NAMES if each not in UNDER_DICE and _is_measured(metrics, each)]
    head = [
        "class",
        "Dice",
        "95 % interval",
        "middle half of cases",
        *(f"{METRIC_NAMES[each]} ({units[each]})" if each in units else METRIC_NAMES[each] for each in others),
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
                *(_shown(entry, each) for each in others),
                f"{len(dice)} of {len(metrics.cases)}",
            ]
        )
    return Table(head, rows, numeric=range(1, len(head)), notes=_undefined(metrics))


def _is_measured(metrics: Metrics, name: str) -> bool:
    return any(getattr(entry, name) is not None or name in entry.undefined for entry in metrics.per_class.values())


def _shown(entry: ClassMetrics, name: str) -> str:
    value = getattr(entry, name)
    if name == "volume_difference":
        return DASH if value is None else f"{value:+.3g}".replace("-", "−")
    return number(value, 2) if name in ("hd95", "assd") else number(value)


def published_table(comparison: PublishedComparison) -> Table | None:
    """A row for each published figure; None when there is none. The sources stand in the notes, by number."""
    if not comparison.rows:
        return None
    sources = list(dict.fromkeys(_source(row) for row in comparison.rows))
    rows = [
        [
            row.method,
            row.target,
            number(row.published, 4),
            number(row.ours, 4),
            between(row.interval),
            "–" if row.verdict == "not comparable" else row.verdict,
            str(sources.index(_source(row)) + 1),
        ]
        for row in comparison.rows
    ]
    notes = [
        f"Source {place}: {source}; {metric}; {protocol}. This run: {measured_on}. {comparable.rstrip('.')}"
        for place, (source, metric, protocol, measured_on, comparable) in enumerate(sources, start=1)
    ]
    head = ["published method", "of", "published", "this run", "95 % interval", "this run is", "source"]
    return Table(head, rows, numeric=(2, 3, 4, 6), notes=notes)


def _source(row: ComparedFigure) -> tuple[str, ...]:
    """What figures of one source and one way of measuring share."""
    return row.source, row.metric, row.protocol, row.measured_on, row.comparable


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
        f"{name}: {plain_list(list(names))} undefined in {len(cases)} case{'s' if len(cases) > 1 else ''} ({reason})"
        for (name, reason), (names, cases) in sorted(found.items(), key=lambda pair: -len(pair[1][1]))
    ]
    return notes[:10] + ([f"and {len(notes) - 10} further kinds of undefined values"] if len(notes) > 10 else [])


MOST_CELLS = 30_000
"""of the table of cases; about 1.5 MB of the page"""


def case_table(ranked: Sequence[Ranked], classes: Sequence[str], links: Mapping[str, str]) -> Table:
    """Every ranked case, worst first, as many as the page can hold. `links`: case -> where its name leads."""
    unsure = any(entry.metrics.uncertainty is not None for entry in ranked)
    columns = list(classes) if len(classes) <= MOST_COLUMNS else []
    most = max(100, MOST_CELLS // (4 + len(columns)))
    rows = []
    for entry in ranked[:most]:
        name = Link(entry.case, links[entry.case]) if entry.case in links else entry.case
        fold = DASH if entry.metrics.fold is None else str(entry.metrics.fold)
        row = [name, fold, number(entry.dice), *([number(entry.metrics.uncertainty)] if unsure else [])]
        rows.append([*row, *(number(_dice(entry.metrics, each)) for each in columns)])
    head = ["case", "fold", "mean Dice", *(["uncertainty"] if unsure else []), *columns]
    notes = []
    if len(ranked) > most:
        notes.append(f"The {most} worst of {len(ranked)} cases; metrics.json holds all")
    if len(columns) < len(classes):
        notes.append(f"The Dice of each of {len(classes)} classes stands in metrics.json")
    return Table(head, rows, numeric=range(1, len(head)), notes=notes)


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

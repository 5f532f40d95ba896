"""The report's section on results: tables and charts of the selected out-of-fold segmentations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
from matplotlib.ticker import MaxNLocator

from ..figures import INK, MAX_ROWS, MAX_VECTOR_POINTS, SERIES, Picture, as_svg, box_rows, chart
from ..schema.labels import Labels, counted_targets
from ..schema.metrics import NEAR_ZERO, WHAT_HELPS, CaseMetrics, ClassMetrics, Metrics
from ..schema.run import RunRecord, fold_name
from .tables import DASH, LinkedText, ReportTable, interval_text, number, plain_list

MAX_CLASS_COLUMNS = 60
"""of the table of cases"""
MAX_CELLS = 30_000
"""of the table of cases; about 1.5 MB of the page"""
MAX_NOTES = 10
"""on undefined values"""
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
    **{f"ap{percent}": f"AP above IoU 0.{percent // 10}" for percent in (50, 60, 70, 80, 90)},
    "count_error": "error of the count",
}
WITHOUT_COLUMN = {"dice", "volume"}
"""of the table of classes: Dice has columns of its own, and a mean volume says little"""


@dataclass(frozen=True)
class RankedCase:
    """A case with its mean Dice over the counted classes or regions whose Dice is defined."""

    metrics: CaseMetrics
    dice: float

    @property
    def case(self) -> str:
        return self.metrics.case


def counted_names(labels: Labels | None, metrics: Metrics) -> list[str]:
    """Classes and regions that count in the mean Dice, in their order; all where the labels are not known."""
    if labels is None:
        return list(metrics.per_class)
    counting = {target.name for target in counted_targets(labels)}
    return [name for name in metrics.per_class if name in counting]


def case_dice(case: CaseMetrics, classes: Sequence[str]) -> float | None:
    """Mean over the classes whose Dice is defined; None where there is none."""
    values = [value for name in classes if (value := _dice(case, name)) is not None]
    return fmean(values) if values else None


def left_behind_text(metrics: Metrics | None, runs: Sequence[RunRecord]) -> str:
    """Which classes the model hardly finds, by validation and at the end of trainings, and what helps; else empty."""
    told = []
    if metrics and metrics.hardly_found:
        names = plain_list([f"{name} (Dice {dice:.3f})" for name, dice in metrics.hardly_found.items()])
        told.append(f"The model hardly finds {names}.")
    trainings: dict[str, list[str]] = {}
    for run in runs:
        for name in run.left_behind:
            trainings.setdefault(name, []).append(f"{run.configuration_name} {fold_name(run.fold)}")
    together: dict[tuple[str, ...], list[str]] = {}
    for name, ended in trainings.items():
        together.setdefault(tuple(ended), []).append(name)
    for where, classes in together.items():
        told.append(
            f"Left behind when the training of {plain_list(where)} ended, with a Dice that had stayed below "
            f"{NEAR_ZERO:g} even on patches of training cases: {plain_list(classes)}."
        )
    return " ".join([*told, f"What helps: {WHAT_HELPS}."]) if told else ""


def rank_cases(metrics: Metrics, classes: Sequence[str]) -> list[RankedCase]:
    """Worst case first, equal ones by name; without the cases in which no class has a Dice."""
    dice = ((case, case_dice(case, classes)) for case in metrics.cases)
    ranked = [RankedCase(case, value) for case, value in dice if value is not None]
    return sorted(ranked, key=lambda entry: (entry.dice, entry.case))


def class_table(metrics: Metrics, counted: Sequence[str]) -> ReportTable:
    """Means over the cases in which a metric is defined, and the number of cases with a Dice."""
    volume = "ml" if metrics.unit == "mm" else metrics.unit
    units = {"hd95": metrics.unit, "assd": metrics.unit, "volume_difference": volume}
    measured = dict.fromkeys((*METRIC_NAMES, *(name for each in metrics.per_class.values() for name in each.plugins)))
    titles = METRIC_NAMES | {name: name for name in measured if name not in METRIC_NAMES}
    others = [name for name in measured if name not in WITHOUT_COLUMN and _is_measured(metrics, name)]
    head = [
        "class",
        "Dice",
        "95 % interval",
        "middle half of the cases",
        *(f"{titles[name]} ({units[name]})" if name in units else titles[name] for name in others),
        "cases",
    ]
    rows = []
    for name, entry in metrics.per_class.items():
        dice = [value for case in metrics.cases if (value := _dice(case, name)) is not None]
        quartiles = (float(np.quantile(dice, 0.25)), float(np.quantile(dice, 0.75))) if dice else None
        rows.append(
            [
                name if name in counted else f"{name} (not counted in the mean)",
                number(entry.dice),
                interval_text(metrics.intervals.get(name, {}).get("dice")),
                interval_text(quartiles),
                *(_metric_text(entry, metric) for metric in others),
                f"{len(dice)} of {len(metrics.cases)}",
            ]
        )
    return ReportTable(head, rows, numeric=range(1, len(head)), notes=_undefined_notes(metrics))


def _is_measured(metrics: Metrics, name: str) -> bool:
    return any(entry.value(name) is not None or name in entry.undefined for entry in metrics.per_class.values())


def _metric_text(entry: ClassMetrics, name: str) -> str:
    value = entry.value(name)
    if name == "volume_difference":
        return DASH if value is None else f"{value:+.3g}".replace("-", "−")
    return number(value, 2) if name in ("hd95", "assd") else number(value)


def _undefined_notes(metrics: Metrics) -> list[str]:
    """Why values are missing: a sentence per class and reason, the most frequent first."""
    groups: dict[tuple[str, str], tuple[dict[str, None], set[str]]] = {}
    for case in metrics.cases:
        for name, entry in case.per_class.items():
            for metric, reason in entry.undefined.items():
                names, cases = groups.setdefault((name, reason), ({}, set()))
                names[METRIC_NAMES.get(metric, metric)] = None
                cases.add(case.case)
    notes = [
        f"{name}: {plain_list(list(names))} undefined in {len(cases)} case{'s' if len(cases) > 1 else ''} ({reason})"
        for (name, reason), (names, cases) in sorted(groups.items(), key=lambda pair: -len(pair[1][1]))
    ]
    more = len(notes) - MAX_NOTES
    return [*notes[:MAX_NOTES], *([f"{more} more reasons for undefined values: see metrics.json"] if more > 0 else [])]


def case_table(ranked: Sequence[RankedCase], classes: Sequence[str], links: Mapping[str, str]) -> ReportTable:
    """Every ranked case, as many as the page can hold. `links`: case -> address that its name leads to."""
    measured = any(entry.metrics.uncertainty is not None for entry in ranked)
    columns = list(classes) if len(classes) <= MAX_CLASS_COLUMNS else []
    most = max(100, MAX_CELLS // (4 + len(columns)))
    rows = []
    for entry in ranked[:most]:
        name = LinkedText(entry.case, links[entry.case]) if entry.case in links else entry.case
        fold = DASH if entry.metrics.fold is None else str(entry.metrics.fold)
        row = [name, fold, number(entry.dice), *([number(entry.metrics.uncertainty)] if measured else [])]
        rows.append([*row, *(number(_dice(entry.metrics, column)) for column in columns)])
    head = ["case", "fold", "mean Dice", *(["uncertainty"] if measured else []), *columns]
    notes = []
    if len(ranked) > most:
        notes.append(f"The {most} worst of {len(ranked)} cases; metrics.json has all")
    if len(columns) < len(classes):
        notes.append(f"The Dice of each of the {len(classes)} classes is in metrics.json")
    return ReportTable(head, rows, numeric=range(1, len(head)), notes=notes)


def _dice(case: CaseMetrics, name: str) -> float | None:
    return case.per_class[name].dice if name in case.per_class else None


def result_charts(
    metrics: Metrics, ranked: Sequence[RankedCase], marked: Sequence[tuple[str, RankedCase]]
) -> list[Picture]:
    """Dice per case, per class and per fold. `marked`: cases that are named in the first chart, with a word each."""
    if not ranked:
        return []
    charts = [_ranked_dice(ranked, marked), _dice_per_class(metrics), _dice_per_fold(ranked)]
    return [picture for picture in charts if picture is not None]


def _ranked_dice(ranked: Sequence[RankedCase], marked: Sequence[tuple[str, RankedCase]]) -> Picture:
    """Mean Dice of each case, sorted."""
    figure, axes = chart()
    values = [entry.dice for entry in ranked]
    axes.plot(
        range(1, len(values) + 1),
        values,
        "o",
        color=SERIES[0],
        markersize=3.5 if len(values) > 60 else 5,
        rasterized=len(values) > MAX_VECTOR_POINTS,
    )
    position = {entry.case: index for index, entry in enumerate(ranked, start=1)}
    for word, entry in marked:
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


def _dice_per_class(metrics: Metrics) -> Picture | None:
    """Dice of every case, with median and quartiles; None where no class has a value."""
    values = {
        name: [value for case in metrics.cases if (value := _dice(case, name)) is not None]
        for name in metrics.per_class
    }
    values = {name: dice for name, dice in values.items() if dice}
    if not values:
        return None
    figure, axes = chart(height=max(3.0, 0.9 + 0.45 * min(len(values), MAX_ROWS)))
    box_rows(axes, dict(list(values.items())[:MAX_ROWS]))
    axes.set_xlabel("Dice")
    axes.set_xlim(_dice_limits([value for dice in values.values() for value in dice]))
    medians = "; ".join(f"{name} median {np.median(dice):.3f}" for name, dice in values.items())
    title = "Dice per class over all cases"
    if len(values) > MAX_ROWS:
        title += f": the first {MAX_ROWS} of {len(values)} classes"
    return Picture(as_svg(figure), alt=f"Dice over cases per class: {medians}", title=title)


def _dice_per_fold(ranked: Sequence[RankedCase]) -> Picture | None:
    """Mean Dice of every case by the fold that predicted it, which shows a worse model; None with one fold."""
    values: dict[int, list[float]] = {}
    for entry in ranked:
        if entry.metrics.fold is not None:
            values.setdefault(entry.metrics.fold, []).append(entry.dice)
    if len(values) < 2:
        return None
    figure, axes = chart(height=max(3.0, 0.9 + 0.45 * len(values)))
    box_rows(axes, {f"fold {fold}": values[fold] for fold in sorted(values)})
    axes.set_xlabel("mean Dice over classes")
    axes.set_xlim(_dice_limits([entry.dice for entry in ranked]))
    medians = "; ".join(f"fold {fold} median {np.median(values[fold]):.3f}" for fold in sorted(values))
    return Picture(as_svg(figure), alt=f"Mean Dice of cases per fold: {medians}", title="Dice per fold")


def _dice_limits(values: Sequence[float]) -> tuple[float, float]:
    """0 to 1, or the upper part of it where every value is high: the lower end a multiple of 0.1."""
    lowest = np.floor((min(values) - 0.05) * 10) / 10
    return (float(max(0.0, lowest)) - 0.01, 1.01)

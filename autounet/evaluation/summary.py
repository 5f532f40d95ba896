"""All cases together: means per class with their intervals, and the one number."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np

from ..ops.statistics import bootstrap_interval, intervals
from ..schema.errors import DataError
from ..schema.labels import Labels, counted_targets
from ..schema.metrics import DEFAULT_METRICS, CaseMetrics, ClassMetrics, Metrics, PairedDifference

SEED = 0
"""of the bootstrap: equal cases have equal intervals"""


def summarise(
    cases: Sequence[CaseMetrics],
    labels: Labels,
    tolerance: float = 1.0,
    unit: str = "mm",
    metrics: Sequence[str] = DEFAULT_METRICS,
) -> Metrics:
    """`metrics.json`: per class and region the mean over the cases where it is defined, and `mean_dice` over them.

    That counts what is trained on: the foreground classes, or where there are regions these and the classes that they
    do not tell apart. The others, and class 0 when the user named it, are reported only. A class without a defined
    Dice in any case is left out. `metrics` names those that were measured.
    """
    names = [label.name for label in labels.reported] + [region.name for region in labels.reported_regions]
    per_class = {name: _mean([case.per_class[name] for case in cases if name in case.per_class], metrics)
                 for name in names}  # fmt: skip
    counted = [target.name for target in counted_targets(labels)]
    defined = [value for name in counted if (value := per_class[name].dice) is not None]
    return Metrics(
        mean_dice=_average(defined),
        per_class=per_class,
        cases=tuple(cases),
        tolerance=tolerance,
        unit=unit,
        mean_dice_interval=bootstrap_interval(values_of(cases, counted, "dice"), SEED) if counted else None,
        intervals=_intervals(cases, names, metrics),
    )


def values_of(cases: Sequence[CaseMetrics], classes: Sequence[str], metric: str) -> np.ndarray:
    """One metric as (cases, classes), float64; NaN where it is not defined."""
    absent = ClassMetrics()
    rows = [[case.per_class.get(name, absent).value(metric) for name in classes] for case in cases]
    return np.array(rows, dtype=np.float64).reshape(len(cases), len(classes))


def _intervals(
    cases: Sequence[CaseMetrics], names: Sequence[str], metrics: Sequence[str]
) -> dict[str, dict[str, tuple[float, float]]]:
    """Of the means of each class, for each metric that two cases have."""
    found: dict[str, dict[str, tuple[float, float]]] = {name: {} for name in names}
    if names:
        table = np.concatenate([values_of(cases, names, metric) for metric in metrics], axis=1)
        columns = product(metrics, names)
        for (metric, name), each in zip(columns, intervals(table, SEED), strict=True):
            if each is not None:
                found[name][metric] = each
    return found


def _mean(entries: Sequence[ClassMetrics], metrics: Sequence[str]) -> ClassMetrics:
    """Mean of each metric over the entries that have it."""
    values = {name: [value for each in entries if (value := each.value(name)) is not None] for name in metrics}
    return ClassMetrics.of(
        {name: _average(found) for name, found in values.items()},
        {name: f"undefined in all {len(entries)} cases" for name, found in values.items() if not found},
    )


def _average(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


NO_CASE = "no case in which both have a value"
NO_DIFFERENCE = "both have the same value in every case"


def compare_models(first: Metrics, second: Metrics, metric: str = "dice") -> tuple[PairedDifference, ...]:
    """Differences of a metric, first less second, for each class and region that both have.

    Cases are matched by name; those that one lacks are left out. Raises DataError when the two have no case or no
    class in common.
    """
    of_second = {case.case: case for case in second.cases}
    common = [case for case in first.cases if case.case in of_second]
    names = [name for name in first.per_class if name in second.per_class]
    if not common or not names:
        raise DataError("the two results have no case and class in common", "Compare models on the same data set")
    others = [of_second[case.case] for case in common]
    differences = (values_of(common, names, metric) - values_of(others, names, metric)).T
    return _corrected([_difference(name, each[~np.isnan(each)]) for name, each in zip(names, differences, strict=True)])


def _difference(name: str, values: np.ndarray) -> PairedDifference:
    """Of one class: differences (N,), all defined."""
    if not len(values):
        return PairedDifference(name=name, cases=0, undefined=NO_CASE)
    p = _signed_rank_p(values)
    return PairedDifference(
        name=name,
        cases=len(values),
        difference=float(values.mean()),
        interval=bootstrap_interval(values, SEED),
        p=p,
        undefined=NO_DIFFERENCE if p is None else None,
    )


def _signed_rank_p(values: np.ndarray) -> float | None:
    """Two-sided; cases without a difference are left out (Wilcoxon's way). None when none is left.

    Exact for up to 50 cases without ties, else by the normal approximation with its correction for ties.
    """
    changed = values[values != 0]
    if not len(changed):
        return None
    from scipy.stats import wilcoxon  # takes half a second to load

    return float(wilcoxon(changed).pvalue)


def _corrected(found: Sequence[PairedDifference]) -> tuple[PairedDifference, ...]:
    """With Holm's p: the k-th smallest of m times (m - k + 1), never below one before it, never above 1."""
    tested = sorted((each for each in found if each.p is not None), key=lambda each: each.p or 0.0)
    corrected: dict[str, float] = {}
    highest = 0.0
    for place, each in enumerate(tested):
        highest = max(highest, min(1.0, (each.p or 0.0) * (len(tested) - place)))
        corrected[each.name] = highest
    return tuple(each.model_copy(update={"p_corrected": corrected.get(each.name)}) for each in found)

"""All cases together: means per class with their intervals, and the one number."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np

from autounet.evaluation.metrics import DEFAULT_METRICS
from autounet.ops.bootstrap import bootstrap_interval, intervals
from autounet.schema.labels import Labels
from autounet.schema.metrics import CaseMetrics, ClassMetrics, Metrics
from autounet.schema.targets import counted_targets

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
    names = [label.name for label in labels.reported] + [region.name for region in labels.regions]
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
    rows = [[getattr(case.per_class.get(name, absent), metric) for name in classes] for case in cases]
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
    values = {name: [getattr(entry, name) for entry in entries if getattr(entry, name) is not None] for name in metrics}
    return ClassMetrics(
        **{name: _average(found) for name, found in values.items()},
        undefined={name: f"undefined in all {len(entries)} cases" for name, found in values.items() if not found},
    )


def _average(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None

"""All cases together: means per class, and the one number."""

from __future__ import annotations

from collections.abc import Sequence

from autounet.evaluation.metrics import METRICS
from autounet.schema.labels import Labels
from autounet.schema.run import CaseMetrics, ClassMetrics, Metrics
from autounet.schema.targets import counted_targets


def summarise(cases: Sequence[CaseMetrics], labels: Labels, tolerance: float = 1.0, unit: str = "mm") -> Metrics:
    """`metrics.json`: per class and region the mean over the cases where it is defined, and `mean_dice` over them.

    That counts what is trained on: the foreground classes, or where there are regions these and the classes that they
    do not tell apart. The others, and class 0 when the user named it, are reported only. A class without a defined
    Dice in any case is left out.
    """
    names = [label.name for label in labels.reported] + [region.name for region in labels.regions]
    per_class = {name: _mean([case.per_class[name] for case in cases if name in case.per_class]) for name in names}
    counted = [per_class[target.name].dice for target in counted_targets(labels)]
    return Metrics(
        mean_dice=_average([value for value in counted if value is not None]),
        per_class=per_class,
        cases=tuple(cases),
        tolerance=tolerance,
        unit=unit,
    )


def _mean(entries: Sequence[ClassMetrics]) -> ClassMetrics:
    """Mean of each metric over the entries that have it."""
    values = {name: [getattr(entry, name) for entry in entries if getattr(entry, name) is not None] for name in METRICS}
    return ClassMetrics(
        **{name: _average(found) for name, found in values.items()},
        undefined={name: f"undefined in all {len(entries)} cases" for name, found in values.items() if not found},
    )


def _average(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None

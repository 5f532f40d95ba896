"""Orders cases by Dice and picks those that are shown."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean

from autounet.schema.labels import Labels
from autounet.schema.run import CaseMetrics, Metrics
from autounet.schema.targets import counted_targets


@dataclass(frozen=True)
class Ranked:
    """A case with its mean Dice over what counts and has a defined Dice: foreground classes, or regions."""

    metrics: CaseMetrics
    dice: float

    @property
    def case(self) -> str:
        return self.metrics.case


def counted(labels: Labels | None, metrics: Metrics) -> list[str]:
    """Names of the classes and regions that count in mean Dice, in their order; all when the labels are unknown."""
    if labels is None:
        return list(metrics.per_class)
    counting = {target.name for target in counted_targets(labels)}
    return [name for name in metrics.per_class if name in counting]


def rank(metrics: Metrics, classes: list[str]) -> list[Ranked]:
    """Worst first, equal values by name. Cases in which no class has a Dice are left out."""
    ranked = []
    for case in metrics.cases:
        values = [case.per_class[name].dice for name in classes if name in case.per_class]
        defined = [value for value in values if value is not None]
        if defined:
            ranked.append(Ranked(case, fmean(defined)))
    return sorted(ranked, key=lambda entry: (entry.dice, entry.case))


def shown(ranked: list[Ranked]) -> list[tuple[str, Ranked]]:
    """(best | median | worst, case), each case once; of an even number the lower of the two middle cases."""
    if not ranked:
        return []
    chosen: dict[str, tuple[str, Ranked]] = {}
    for word, entry in (("worst", ranked[0]), ("best", ranked[-1]), ("median", ranked[(len(ranked) - 1) // 2])):
        chosen.setdefault(entry.case, (word, entry))
    order = ("best", "median", "worst")
    return sorted(chosen.values(), key=lambda pair: order.index(pair[0]))

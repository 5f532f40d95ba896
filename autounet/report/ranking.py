"""Orders cases by Dice and picks those that are shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from autounet.schema.labels import Labels
from autounet.schema.metrics import CaseMetrics, Metrics
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


def case_dice(case: CaseMetrics, classes: Sequence[str]) -> float | None:
    """Mean over the classes with a defined Dice; None where there is none."""
    values = [case.per_class[name].dice for name in classes if name in case.per_class]
    defined = [value for value in values if value is not None]
    return fmean(defined) if defined else None


def rank(metrics: Metrics, classes: list[str]) -> list[Ranked]:
    """Worst first, equal values by name. Cases in which no class has a Dice are left out."""
    found = ((case, case_dice(case, classes)) for case in metrics.cases)
    ranked = [Ranked(case, dice) for case, dice in found if dice is not None]
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


def least_sure(ranked: Sequence[Ranked]) -> Ranked | None:
    """The case with the highest mean entropy; None where it was not measured."""
    measured = [(entry.metrics.uncertainty, entry) for entry in ranked if entry.metrics.uncertainty is not None]
    return max(measured, key=lambda pair: (pair[0], pair[1].case))[1] if len(measured) > 1 else None


def most_contested(
    ranked: Sequence[Ranked], singles: Mapping[str, Sequence[CaseMetrics]], classes: Sequence[str]
) -> tuple[Ranked, dict[str, float]] | None:
    """The case on which the mean Dice of single configurations lies farthest apart, with these; None without two."""
    told: dict[str, dict[str, float]] = {}
    for name, cases in singles.items():
        for case in cases:
            if (dice := case_dice(case, classes)) is not None:
                told.setdefault(case.case, {})[name] = dice
    several = [(entry, told[entry.case]) for entry in ranked if len(told.get(entry.case, {})) > 1]
    if not several:
        return None
    return max(several, key=lambda pair: (max(pair[1].values()) - min(pair[1].values()), pair[0].case))

"""The cases that are shown: which, why, their pictures, and what the viewer gets."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import numpy as np

from ..figures import Picture
from ..schema.errors import AutoUNetError
from ..schema.labels import Labels, counted_targets
from ..schema.metrics import CaseMetrics, Metrics
from .overlays import case_panels, overlays, rivalries, uncertainties
from .records import Gathered
from .table import number
from .viewer import pack
from .volumes import CaseVolume, Entropy, read_volume


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


log = logging.getLogger(__name__)

IN_VIEWER = 3
"""worst cases that can be looked through"""
MOST_RIVALS = 3
"""configurations whose predictions are drawn one by one"""


@dataclass
class Shown:
    """One case of the page; `problem` says why there is no picture."""

    case: str
    entry: Ranked
    words: list[str] = field(default_factory=list)
    """why it is shown: best, median, worst, ..."""
    notes: list[str] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    uncertainties: list[Picture] = field(default_factory=list)
    rivalries: list[Picture] = field(default_factory=list)
    rivals: tuple[str, ...] = ()
    problem: str | None = None

    @property
    def anchor(self) -> str:
        return "case-" + "".join(letter if letter.isalnum() else "-" for letter in self.case)

    @property
    def dice(self) -> str:
        return number(self.entry.dice)

    @property
    def per_class(self) -> str:
        values = [f"{name} {number(found.dice)}" for name, found in self.entry.metrics.per_class.items()]
        return ", ".join(values) if len(values) > 1 else ""


@dataclass(frozen=True)
class Pictured:
    """The shown cases, and the worst ones as the viewer reads them."""

    cases: Sequence[Shown]
    viewer: Sequence[dict[str, Any]]


def pictured(found: Gathered, ranked: list[Ranked], classes: Sequence[str], entropy: Entropy | None) -> Pictured:
    """Best, median and worst, those on which configurations or probabilities are least certain; each case once."""
    wanted = _wanted(found, ranked, classes)
    in_viewer = {entry.case: entry for entry in ranked[:IN_VIEWER]}
    packed: dict[str, dict[str, Any]] = {}
    for case in [*wanted, *(case for case in in_viewer if case not in wanted)]:
        one = wanted.get(case) or Shown(case, in_viewer[case])
        try:
            volume = _read(found, one, entropy)
            if case in wanted:
                _draw(one, volume)
            if case in in_viewer:
                packed[case] = pack(volume, f"mean Dice {one.dice}" + (f": {one.per_class}" if one.per_class else ""))
        except StopIteration:
            one.problem = "the data set does not list it"
        except AutoUNetError as error:
            one.problem = str(error).rstrip(".")
        except Exception as error:  # the page comes after hours of training and is not lost for one picture
            log.warning("no picture of case %s", case, exc_info=True)
            one.problem = f"{type(error).__name__}: {error}"
    return Pictured(list(wanted.values()), [packed[case] for case in in_viewer if case in packed])


def _wanted(found: Gathered, ranked: list[Ranked], classes: Sequence[str]) -> dict[str, Shown]:
    wanted: dict[str, Shown] = {}

    def want(word: str, entry: Ranked) -> Shown:
        one = wanted.setdefault(entry.case, Shown(entry.case, entry))
        one.words.append(word)
        return one

    for word, entry in shown(ranked):
        want(word, entry)
    if contested := most_contested(ranked, found.singles, classes):
        entry, dice = contested
        one = want("configurations differ most", entry)
        told = ", ".join(f"{name} {number(value)}" for name, value in dice.items())
        one.notes.append(f"Mean Dice of each configuration by itself, each out of fold: {told}")
        one.rivals = tuple(dice)[:MOST_RIVALS]
    if unsure := least_sure(ranked):
        want("least sure", unsure)
    for one in wanted.values():
        if one.entry.metrics.uncertainty is not None:
            one.notes.append(f"Mean uncertainty around its structures {number(one.entry.metrics.uncertainty)}")
    return wanted


def _read(found: Gathered, one: Shown, entropy: Entropy | None) -> CaseVolume:
    if found.dataset is None or found.predictions is None:
        raise AutoUNetError("the records that say where its files lie are missing")
    rivals = [found.out / "crossval" / name for name in one.rivals]
    readable = _readable(entropy) if entropy else None
    return read_volume(found.dataset, found.dataset.case(one.case), found.predictions, readable, rivals)


def _readable(entropy: Entropy) -> Entropy:
    """Damaged scores cost the uncertainty of a case, not its pictures."""

    def found(case: str, z: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray | None:
        try:
            return entropy(case, z, y, x)
        except AutoUNetError as error:
            log.warning("no uncertainty of case %s: %s", case, error)
            return None

    return found


def _draw(one: Shown, volume: CaseVolume) -> None:
    panels = case_panels(volume)
    one.pictures = overlays(panels, one.case, volume.values)
    one.uncertainties = uncertainties(panels, one.case, volume.values)
    one.rivalries = rivalries(panels, one.case, volume.values)

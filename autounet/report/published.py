"""This run's cross-validation beside published results of the same data set.

The table is `published.json` beside this file: each figure with its source, and how far it can be compared.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Literal

import numpy as np

from ..ops.statistics import bootstrap_interval
from ..schema.dataset import Dataset
from ..schema.fingerprint import Fingerprint
from ..schema.labels import counted_targets
from ..schema.metrics import (
    CaseMetrics,
    ComparedFigure,
    KnownDataSet,
    Metrics,
    PublishedComparison,
    PublishedFigure,
    PublishedResults,
    PublishedTable,
    Signature,
)
from .records import Gathered
from .table import plain_list

SPACING_TOLERANCE = 0.01
"""relative: files hold spacings in float32 and rounded"""


def recognise(
    dataset: Dataset, fingerprint: Fingerprint | None, known: Sequence[KnownDataSet]
) -> tuple[KnownDataSet | None, str]:
    """The public data set that this is, by its name or else its fingerprint, and a sentence on how that was seen.

    A name counts only where dimension, channels and classes are the public set's, a fingerprint only where cases and
    image sizes are as well.
    """
    if fingerprint is None:
        return None, "There is no fingerprint.json, so the data set is not known."
    own = signature_of(dataset, fingerprint)
    name = plain_name(dataset.name)
    named = [each for each in known if any(alias in name for alias in each.aliases)]
    for each in named:
        if _same_kind(own, each.signature):
            return each, f"Recognised as {each.name} by its name, {dataset.name}."
    for each in known:
        if _same_images(own, each.signature):
            return (
                each,
                f"Recognised as {each.name} by its fingerprint: number of cases, channels, classes, image size.",
            )
    if named:
        return None, (
            f"The name {dataset.name} is like that of {named[0].name}, but dimension, channels or classes differ: "
            "no published results are known for it."
        )
    return None, f"No published results are known for the data set {dataset.name}."


def signature_of(dataset: Dataset, fingerprint: Fingerprint) -> Signature:
    """What would be in the table if this data set were."""
    shapes, spacings = (
        tuple(median(values) for values in zip(*found, strict=True))
        for found in ([case.shape for case in fingerprint.cases], [case.spacing for case in fingerprint.cases])
    )
    return Signature(
        dimension=fingerprint.dimension,
        cases=len(fingerprint.cases),
        channels=len(dataset.channels),
        classes=len(counted_targets(dataset.labels)),
        median_shape=tuple(round(size) for size in shapes),
        median_spacing=spacings,
    )


def _same_kind(own: Signature, other: Signature) -> bool:
    return (own.dimension, own.channels, own.classes) == (other.dimension, other.channels, other.classes)


def _same_images(own: Signature, other: Signature) -> bool:
    """Sizes in any order of axes: the plan's orientation may have turned them."""
    if other.median_shape is None or own.median_shape is None or not _same_kind(own, other):
        return False
    if own.cases != other.cases or sorted(own.median_shape) != sorted(other.median_shape):
        return False
    if other.median_spacing is None or own.median_spacing is None:
        return True
    steps = zip(sorted(own.median_spacing), sorted(other.median_spacing), strict=True)
    return all(abs(mine - theirs) <= SPACING_TOLERANCE * theirs for mine, theirs in steps)


def plain_name(name: str) -> str:
    """Lower-case letters and digits alone."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


TABLE = Path(__file__).with_name("published.json")
MEAN = "mean over classes"
Verdict = Literal["ahead", "level", "behind", "not comparable"]
SAID: dict[Verdict, str] = {"ahead": "ahead of", "level": "level with", "behind": "behind"}


def compare_published(
    found: Gathered, table: PublishedTable | None = None, test: Metrics | None = None
) -> PublishedComparison:
    """What is published on the data set of an output folder, beside its metrics. `table`: the package's own.

    `test` are the metrics of the data set's own test cases, as `autounet evaluate` gives them: figures that were
    measured on such cases (comparability `similar`) are then compared with these.
    """
    table = table or PublishedTable.load(TABLE)
    if found.dataset is None:
        return PublishedComparison(data_set=None, recognised="There is no dataset.json, so the data set is not known.")
    known, how = recognise(found.dataset, found.fingerprint, table.data_sets)
    if known is None:
        return PublishedComparison(data_set=None, recognised=how)
    rows, sentences = [], []
    for results in known.results:
        ours = _ours(results, known, found.metrics, test)
        if ours is None:
            sentences.append("There is no metrics.json, so there is nothing to compare yet.")
            continue
        own = [_compared(figure, results, ours, found.dataset) for figure in results.figures]
        rows += own
        sentences += _sentences(own, results, ours)
    return PublishedComparison(
        data_set=known.name, recognised=how, rows=tuple(rows), sentences=tuple(dict.fromkeys(sentences))
    )


@dataclass(frozen=True)
class _Ours:
    """The metrics of this program that figures of one source are set beside."""

    metrics: Metrics
    cases: int | None
    """that there should be; None: not told"""
    data_set: str
    is_test: bool

    @property
    def is_whole(self) -> bool:
        return self.cases is None or len(self.metrics.cases) == self.cases

    @property
    def measured_on(self) -> str:
        return f"{len(self.metrics.cases)} {'test' if self.is_test else 'out-of-fold'} cases"

    def relation(self, results: PublishedResults) -> str:
        """How the two figures relate, in a sentence."""
        if not self.is_test:
            return results.comparable
        if results.test_cases:
            return "Both are of the data set's test images."
        return "Both are of test images; whether of the same ones is not known."

    @property
    def part(self) -> str:
        """Why a part is not judged."""
        told = "The test metrics are of" if self.is_test else "This run validated"
        what = f"{self.data_set} has {self.cases}{' test cases' if self.is_test else ''}"
        return f"{told} {len(self.metrics.cases)} cases and {what}"


def _ours(results: PublishedResults, known: KnownDataSet, folds: Metrics | None, test: Metrics | None) -> _Ours | None:
    if test is not None and results.comparability == "similar":
        return _Ours(test, results.test_cases, known.name, is_test=True)
    return None if folds is None else _Ours(folds, known.signature.cases, known.name, is_test=False)


def _compared(figure: PublishedFigure, results: PublishedResults, ours: _Ours, dataset: Dataset) -> ComparedFigure:
    value, interval = _dice_of(figure.target, ours.metrics, dataset)
    if results.comparability == "other":
        value, interval = None, None
    return ComparedFigure(
        method=figure.method,
        target=figure.target or _mean_of(dataset),
        published=figure.value,
        ours=value,
        measured_on=ours.measured_on,
        interval=interval,
        verdict=_verdict(figure.value, interval) if ours.is_whole else "not comparable",
        protocol=results.protocol,
        metric=results.metric,
        source=results.source,
        comparable=ours.relation(results),
    )


def _dice_of(target: str | None, metrics: Metrics, dataset: Dataset) -> tuple[float | None, tuple[float, float] | None]:
    """This run's Dice of a class, or the mean, with its interval; results without one get it from their cases."""
    if target is None:
        names = [each.name for each in counted_targets(dataset.labels)]
        value, stored = metrics.mean_dice, metrics.mean_dice_interval
    else:
        names = [name for name in metrics.per_class if plain_name(name) == plain_name(target)][:1]
        if not names:
            return None, None
        value, stored = metrics.per_class[names[0]].dice, metrics.intervals.get(names[0], {}).get("dice")
    if stored is None and names and metrics.cases:
        stored = bootstrap_interval(np.array([[_dice(case, name) for name in names] for case in metrics.cases]))
    return value, stored


def _dice(case: CaseMetrics, name: str) -> float:
    """NaN where it is not defined."""
    entry = case.per_class.get(name)
    return float("nan") if entry is None or entry.dice is None else entry.dice


def _mean_of(dataset: Dataset) -> str:
    """What the mean Dice is called: the mean over one class is that class."""
    names = [target.name for target in counted_targets(dataset.labels)]
    return names[0] if len(names) == 1 else MEAN


def _verdict(published: float, interval: tuple[float, float] | None) -> Verdict:
    """Level: the published value lies within this run's interval."""
    if interval is None:
        return "not comparable"
    low, high = interval
    return "ahead" if low > published else "behind" if high < published else "level"


def _sentences(rows: Sequence[ComparedFigure], results: PublishedResults, ours: _Ours) -> list[str]:
    """One about each target of one source: where this run stands."""
    if results.comparability == "other":
        return [f"{results.metric} ({results.source}) cannot be compared: {results.comparable}"]
    if not ours.is_whole:
        return [f"{ours.part}: the figures of {results.source} are shown for orientation alone."]
    said = []
    for target in dict.fromkeys(row.target for row in rows):
        own = [row for row in rows if row.target == target]
        if own[0].ours is None or own[0].interval is None:
            said.append(f"This run has no Dice with an interval for {target}.")
            continue
        groups = []
        for verdict, words in SAID.items():
            if those := [f"{row.method} ({row.published:.4f})" for row in own if row.verdict == verdict]:
                groups.append(f"{words} {plain_list(those)}")
        low, high = own[0].interval
        of = f"{target}, {ours.measured_on}" if ours.is_test else target
        stands = f"Dice, {of}: {own[0].ours:.4f} (95 % interval {low:.4f} to {high:.4f}) is {'; '.join(groups)}."
        said.append(" ".join(filter(None, [stands, _difference(results, ours)])))
    return said


def _difference(results: PublishedResults, ours: _Ours) -> str:
    """What still lies between two figures that are set beside each other."""
    if ours.is_test:
        return "" if results.test_cases else ours.relation(results)
    return "" if results.comparability == "same" else "They were not measured on the same images: see the source."

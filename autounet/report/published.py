"""Comparison of a run with published results of the same data set.

They are in `published.json` in this folder: each figure with its source and how comparable it is.
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
from .tables import plain_list

SPACING_TOLERANCE = 0.01
"""relative: files hold spacings in float32 and rounded"""


def recognise(
    dataset: Dataset, fingerprint: Fingerprint | None, known: Sequence[KnownDataSet]
) -> tuple[KnownDataSet | None, str]:
    """The public data set that this is, and a sentence on how it was recognised or why not.

    Its name decides where dimension, number of channels and number of classes agree, else its fingerprint where the
    number of cases and the image sizes agree as well.
    """
    if fingerprint is None:
        return None, "There is no fingerprint.json, so the data set cannot be recognised."
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
            f"The name {dataset.name} resembles {named[0].name}, but dimension, channels or classes differ: "
            "no published results are known for it."
        )
    return None, f"No published results are known for the data set {dataset.name}."


def signature_of(dataset: Dataset, fingerprint: Fingerprint) -> Signature:
    """The properties by which public data sets are recognised."""
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
    """Whether cases, sizes and spacings agree, in any order of axes, since the orientation may differ."""
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


PUBLISHED_FILE = Path(__file__).with_name("published.json")
MEAN = "mean over classes"
Verdict = Literal["ahead", "level", "behind", "not comparable"]
VERDICT_WORDS: dict[Verdict, str] = {"ahead": "ahead of", "level": "level with", "behind": "behind"}


def compare_published(
    dataset: Dataset | None,
    fingerprint: Fingerprint | None,
    metrics: Metrics | None,
    test: Metrics | None = None,
    table: PublishedTable | None = None,
) -> PublishedComparison:
    """Published figures on a data set and this program's own. `table`: by default the one of the package.

    `metrics` are from cross-validation. `test` are those of the data set's own test cases, as `autounet evaluate`
    writes them: figures measured on such cases (comparability `similar`) are compared with these where they are given.
    """
    table = table or PublishedTable.load(PUBLISHED_FILE)
    if dataset is None:
        missing = "There is no dataset.json, so the data set cannot be recognised."
        return PublishedComparison(data_set=None, recognised=missing)
    known, how = recognise(dataset, fingerprint, table.data_sets)
    if known is None:
        return PublishedComparison(data_set=None, recognised=how)
    rows, sentences = [], []
    for results in known.results:
        if test is not None and results.comparability == "similar":
            own = _OwnMetrics(test, results.test_cases, known.name, is_test=True)
        elif metrics is not None:
            own = _OwnMetrics(metrics, known.signature.cases, known.name, is_test=False)
        else:
            sentences.append("There is no metrics.json, so there is nothing to compare yet.")
            continue
        compared = [_compare_figure(figure, results, own, dataset) for figure in results.figures]
        rows += compared
        sentences += _sentences(compared, results, own)
    return PublishedComparison(
        data_set=known.name, recognised=how, rows=tuple(rows), sentences=tuple(dict.fromkeys(sentences))
    )


@dataclass(frozen=True)
class _OwnMetrics:
    """The metrics of this program that the figures of one source are compared with."""

    metrics: Metrics
    cases: int | None
    """that the data set has; None: not known"""
    data_set: str
    is_test: bool

    @property
    def is_complete(self) -> bool:
        return self.cases is None or len(self.metrics.cases) == self.cases

    @property
    def measured_on(self) -> str:
        return f"{len(self.metrics.cases)} {'test' if self.is_test else 'out-of-fold'} cases"

    def relation(self, results: PublishedResults) -> str:
        """How comparable the two figures are, in a sentence."""
        if not self.is_test:
            return results.comparable
        if results.test_cases:
            return "Both were measured on the data set's test images."
        return "Both were measured on test images; whether on the same ones is not known."

    @property
    def incomplete_text(self) -> str:
        """Why metrics of only some cases are not judged."""
        start = "The test metrics are of" if self.is_test else "This run validated"
        return f"{start} {len(self.metrics.cases)} cases and {self.data_set} has {self.cases}" + (
            " test cases" if self.is_test else ""
        )


def _compare_figure(
    figure: PublishedFigure, results: PublishedResults, own: _OwnMetrics, dataset: Dataset
) -> ComparedFigure:
    value, interval = _dice_of(figure.target, own.metrics, dataset)
    if results.comparability == "other":
        value, interval = None, None
    return ComparedFigure(
        method=figure.method,
        target=figure.target or _mean_name(dataset),
        published=figure.value,
        ours=value,
        measured_on=own.measured_on,
        interval=interval,
        verdict=_verdict(figure.value, interval) if own.is_complete else "not comparable",
        protocol=results.protocol,
        metric=results.metric,
        source=results.source,
        comparable=own.relation(results),
    )


def _dice_of(target: str | None, metrics: Metrics, dataset: Dataset) -> tuple[float | None, tuple[float, float] | None]:
    """Dice of a class, or the mean (target None), with its interval, computed where it was not stored."""
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


def _mean_name(dataset: Dataset) -> str:
    """What the mean Dice is called: with a single class it is that class's."""
    names = [target.name for target in counted_targets(dataset.labels)]
    return names[0] if len(names) == 1 else MEAN


def _verdict(published: float, interval: tuple[float, float] | None) -> Verdict:
    """Level if the published value is within this run's interval."""
    if interval is None:
        return "not comparable"
    low, high = interval
    return "ahead" if low > published else "behind" if high < published else "level"


def _sentences(rows: Sequence[ComparedFigure], results: PublishedResults, own: _OwnMetrics) -> list[str]:
    """One for each target of one source: where this run stands."""
    if results.comparability == "other":
        return [f"{results.metric} ({results.source}) cannot be compared: {results.comparable}"]
    if not own.is_complete:
        return [f"{own.incomplete_text}: the figures of {results.source} are only shown for orientation."]
    caveat = ""
    if own.is_test and not results.test_cases:
        caveat = own.relation(results)
    elif not own.is_test and results.comparability != "same":
        caveat = "They were not measured on the same images: see the source."
    sentences = []
    for target in dict.fromkeys(row.target for row in rows):
        same = [row for row in rows if row.target == target]
        if same[0].ours is None or same[0].interval is None:
            sentences.append(f"This run has no Dice with an interval for {target}.")
            continue
        groups = []
        for verdict, words in VERDICT_WORDS.items():
            if methods := [f"{row.method} ({row.published:.4f})" for row in same if row.verdict == verdict]:
                groups.append(f"{words} {plain_list(methods)}")
        low, high = same[0].interval
        where = f"{target}, {own.measured_on}" if own.is_test else target
        text = f"Dice, {where}: {same[0].ours:.4f} (95 % interval {low:.4f} to {high:.4f}) is {'; '.join(groups)}."
        sentences.append(" ".join(filter(None, [text, caveat])))
    return sentences

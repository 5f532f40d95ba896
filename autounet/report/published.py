"""This run's cross-validation beside published results of the same data set.

The table is `published.json` beside this file: each figure with its source, and how far it can be compared.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Literal

import numpy as np

from autounet.ops.bootstrap import bootstrap_interval
from autounet.report.records import Gathered
from autounet.schema.comparison import (
    ComparedFigure,
    KnownDataSet,
    PublishedComparison,
    PublishedFigure,
    PublishedResults,
    PublishedTable,
    Signature,
)
from autounet.schema.dataset import Dataset
from autounet.schema.fingerprint import Fingerprint
from autounet.schema.run import CaseMetrics, Metrics
from autounet.schema.targets import counted_targets

TABLE = Path(__file__).with_name("published.json")
MEAN = "mean over classes"
SPACING_TOLERANCE = 0.01
"""relative: files hold spacings in float32 and rounded"""
Verdict = Literal["ahead", "level", "behind", "not comparable"]
SAID: dict[Verdict, str] = {"ahead": "ahead of", "level": "level with", "behind": "behind"}


def compare_published(found: Gathered, table: PublishedTable | None = None) -> PublishedComparison:
    """What is published on the data set of an output folder, beside its metrics. `table`: the package's own."""
    table = table or PublishedTable.load(TABLE)
    if found.dataset is None:
        return PublishedComparison(data_set=None, recognised="There is no dataset.json, so the data set is not known.")
    known, how = recognise(found.dataset, found.fingerprint, table.data_sets)
    if known is None:
        return PublishedComparison(data_set=None, recognised=how)
    if found.metrics is None:
        sentence = "There is no metrics.json, so there is nothing to compare yet."
        return PublishedComparison(data_set=known.name, recognised=how, sentences=(sentence,))
    rows, sentences = [], []
    for results in known.results:
        own = [_compared(figure, results, known, found.metrics, found.dataset) for figure in results.figures]
        rows += own
        sentences += _sentences(own, results, known, found.metrics)
    return PublishedComparison(data_set=known.name, recognised=how, rows=tuple(rows), sentences=tuple(sentences))


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
    name = _plain(dataset.name)
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


def _compared(
    figure: PublishedFigure, results: PublishedResults, known: KnownDataSet, metrics: Metrics, dataset: Dataset
) -> ComparedFigure:
    ours, interval = _ours(figure.target, metrics, dataset)
    whole = len(metrics.cases) == known.signature.cases
    if results.comparability == "other":
        ours, interval = None, None
    return ComparedFigure(
        method=figure.method,
        target=figure.target or _mean_of(dataset),
        published=figure.value,
        ours=ours,
        interval=interval,
        verdict=_verdict(figure.value, interval) if whole else "not comparable",
        protocol=results.protocol,
        metric=results.metric,
        source=results.source,
        comparable=results.comparable,
    )


def _ours(target: str | None, metrics: Metrics, dataset: Dataset) -> tuple[float | None, tuple[float, float] | None]:
    """This run's Dice of a class, or the mean, with its interval; results without one get it from their cases."""
    if target is None:
        names = [each.name for each in counted_targets(dataset.labels)]
        value, stored = metrics.mean_dice, metrics.mean_dice_interval
    else:
        names = [name for name in metrics.per_class if _plain(name) == _plain(target)][:1]
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


def _sentences(
    rows: Sequence[ComparedFigure], results: PublishedResults, known: KnownDataSet, metrics: Metrics
) -> list[str]:
    """One about each target of one source: where this run stands."""
    if results.comparability == "other":
        return [f"{results.metric} ({results.source}) cannot be compared: {results.comparable}"]
    if len(metrics.cases) != known.signature.cases:
        return [
            f"This run validated {len(metrics.cases)} cases and {known.name} has {known.signature.cases}: "
            f"the figures of {results.source} are shown for orientation alone."
        ]
    said = []
    for target in dict.fromkeys(row.target for row in rows):
        own = [row for row in rows if row.target == target]
        if own[0].ours is None or own[0].interval is None:
            said.append(f"This run has no Dice with an interval for {target}.")
            continue
        groups = []
        for verdict, words in SAID.items():
            if those := [f"{row.method} ({row.published:.4f})" for row in own if row.verdict == verdict]:
                groups.append(f"{words} {_and(those)}")
        low, high = own[0].interval
        stands = f"Dice, {target}: {own[0].ours:.4f} (95 % interval {low:.4f} to {high:.4f}) is {'; '.join(groups)}."
        alike = results.comparability == "same"
        said.append(stands if alike else f"{stands} They were not measured on the same images: see the source.")
    return said


def _and(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else words[0]


def _plain(name: str) -> str:
    """Lower-case letters and digits alone."""
    return re.sub(r"[^a-z0-9]", "", name.lower())

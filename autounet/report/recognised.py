"""Which public data set a data set is, by its name or its fingerprint."""

from __future__ import annotations

import re
from collections.abc import Sequence
from statistics import median

from autounet.schema.comparison import KnownDataSet, Signature
from autounet.schema.dataset import Dataset
from autounet.schema.fingerprint import Fingerprint
from autounet.schema.targets import counted_targets

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

"""Partially annotated cases: of which classes, and regions, the label of a case tells where they are.

A voxel labelled 0 in such a case is background or of a class that nobody looked for there.
"""

from __future__ import annotations

from collections.abc import Sequence

from autounet.schema.dataset import Case, Dataset
from autounet.schema.errors import DataError
from autounet.schema.labels import Labels

NOT_ANNOTATED = "not annotated in this case"


def annotated_classes(case: Case, labels: Labels) -> tuple[bool, ...] | None:
    """(K) whether each dense class was annotated in the case, the background always; None: all were.

    Raises DataError for a value that no class has.
    """
    if case.annotated is None:
        return None
    unknown = sorted(set(case.annotated) - {0, *labels.values})
    if unknown:
        known = ", ".join(f"{each.name}={each.value}" for each in labels.classes)
        raise DataError(
            f"case {case.identifier}: its annotated classes name the value {unknown[0]}, which no class has. "
            f"The classes are {known}"
        )
    found = tuple(index == 0 or value in case.annotated for index, value in enumerate(labels.values))
    return None if all(found) else found


def partly_annotated(dataset: Dataset) -> dict[str, tuple[bool, ...]]:
    """`annotated_classes` of the cases where some class was not; empty in most data sets. Raises DataError."""
    found = {case.identifier: annotated_classes(case, dataset.labels) for case in dataset.cases}
    return {name: classes for name, classes in found.items() if classes is not None}


def is_certain(members: Sequence[int], annotated: Sequence[bool]) -> bool:
    """Whether a case's label tells where the union of `members` (dense classes) is.

    Voxels of the classes that were not annotated (`annotated` (K) is False) are labelled 0: the union is known where
    they lie on the same side of it as the background.
    """
    inside = 0 in members
    return all(known or (index in members) == inside for index, known in enumerate(annotated))

"""How long the folds that are still to be trained take: from those that were, from the one that runs, or as planned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

LEAST_PROGRESS = 0.01
"""of a training from which its own speed is believed"""


@dataclass(frozen=True)
class FoldTime:
    """One fold of one configuration, as its files tell. Seconds; None: not known."""

    configuration: str
    trained: bool
    validated: bool
    """also where nothing is to be validated"""
    progress: float = 0.0
    """of its training, 0..1"""
    spent: float = 0.0
    """on its training until now"""
    validation: float | None = None
    """that its validation took"""
    planned_training: float | None = None
    planned_validation: float | None = None


def seconds_left(folds: Sequence[FoldTime]) -> float | None:
    """Of training and validation together; None where the time of a fold is not known. Selection is not in it."""
    total = 0.0
    for fold in folds:
        alike = [each for each in folds if each.configuration == fold.configuration]
        for left in (_training_left(fold, alike), _validation_left(fold, alike)):
            if left is None:
                return None
            total += left
    return total


def _training_left(fold: FoldTime, alike: Sequence[FoldTime]) -> float | None:
    if fold.trained:
        return 0.0
    if fold.progress >= LEAST_PROGRESS:
        return fold.spent * (1 - fold.progress) / fold.progress
    known = [each.spent for each in alike if each.trained]
    known = known or [each.spent / each.progress for each in alike if each.progress >= LEAST_PROGRESS]
    whole = fmean(known) if known else fold.planned_training
    return None if whole is None else max(0.0, whole - fold.spent)


def _validation_left(fold: FoldTime, alike: Sequence[FoldTime]) -> float | None:
    """Planned, or nothing where no plan says: it is short beside a training."""
    if fold.validated:
        return 0.0
    known = [each.validation for each in alike if each.validation is not None]
    return fmean(known) if known else fold.planned_validation or 0.0

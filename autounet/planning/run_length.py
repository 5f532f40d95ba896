"""How long a whole command takes: preprocessing, all folds' training and validation, closing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from autounet.planning.time import CLOSING_SECONDS, FOLD_OVERHEAD_SECONDS
from autounet.schema.fingerprint import Fingerprint
from autounet.schema.plan import Configuration

LOOP_SHARE = 1.02
"""validation patches shown while training take up to 2 % more (`training.monitor.TIME_SHARE`)"""
PREPARE_SECONDS_PER_VOXEL = 4e-7
"""reading, resampling and writing one voxel of one channel on one core; generous, since what is left over goes to
training"""
CLOSING_SECONDS_PER_CASE = 0.03
"""of selection, packing and report; added to what they take at least"""


@dataclass(frozen=True)
class Work:
    """What a whole command does beside training and validation."""

    cases: int
    voxels: int
    """of all images as stored, every channel counted"""
    workers: int
    """processes that preprocess; 0 and 1: this one"""


@dataclass(frozen=True)
class RunLength:
    """Seconds of each part of a run."""

    preprocessing: float
    training: float
    """of all folds"""
    validation: float
    """of all folds"""
    closing: float

    @property
    def total(self) -> float:
        return self.preprocessing + self.training + self.validation + self.closing


def work_of(fingerprint: Fingerprint, workers: int) -> Work:
    voxels = sum(math.prod(case.shape) for case in fingerprint.cases)
    return Work(len(fingerprint.cases), voxels * len(fingerprint.channels), workers)


def preprocessing_seconds(work: Work) -> float:
    """Of one prepared folder."""
    return work.voxels * PREPARE_SECONDS_PER_VOXEL / max(1, work.workers)


def closing_seconds(work: Work) -> float:
    return CLOSING_SECONDS + CLOSING_SECONDS_PER_CASE * work.cases


def run_length(configuration: Configuration, work: Work, folds: int) -> RunLength | None:
    """Of one configuration trained alone on `folds` folds; None where its step time or its steps are not known."""
    step, steps = configuration.predicted_step_seconds, configuration.predicted_steps
    if step is None or steps is None:
        return None
    return RunLength(
        preprocessing=preprocessing_seconds(work),
        training=folds * (LOOP_SHARE * steps * step + FOLD_OVERHEAD_SECONDS),
        validation=folds * (configuration.predicted_validation_seconds or 0.0),
        closing=closing_seconds(work),
    )


def total_length(trained: Sequence[tuple[Configuration, int]], work: Work) -> float | None:
    """Seconds of a run that trains each configuration on so many folds; None where one of them is not known.

    Those with the same prepared folder share its preprocessing.
    """
    lengths = [run_length(configuration, work, folds) for configuration, folds in trained]
    if not lengths or any(length is None for length in lengths):
        return None
    folders = len({configuration.prepared for configuration, _ in trained})
    parts = sum(length.training + length.validation for length in lengths if length is not None)
    return parts + folders * preprocessing_seconds(work) + closing_seconds(work)

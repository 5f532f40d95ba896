"""Measures the device and hands the seconds to `planning.time`, which decides."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from autounet.planning.time import CLOSING_SECONDS, Shape, Timing, shape_to_time
from autounet.schema.fingerprint import Fingerprint
from autounet.schema.options import PlannerOptions
from autounet.schema.plan import Configuration

if TYPE_CHECKING:
    from autounet.pipeline import Pipeline

log = logging.getLogger(__name__)

PREPARE_SECONDS_PER_VOXEL = 4e-7
"""reading, resampling and writing on one core; generous, since what is left over goes to training"""
CLOSING_SECONDS_PER_CASE = 0.03
PROBE_STEPS = 3


@dataclass(frozen=True)
class TimeFrame:
    """What is left and what must be done in it."""

    seconds: float
    """left of the whole command"""
    folds: int
    """trainings, over all configurations"""
    cases_per_fold: float
    workers: int

    def for_folds(self, fingerprint: Fingerprint) -> float:
        """Seconds for training and validation: preprocessing and closing are kept back."""
        voxels = sum(int(case.shape[0]) * case.shape[1] * case.shape[2] for case in fingerprint.cases)
        channels = len(fingerprint.channels)
        prepare = voxels * channels * PREPARE_SECONDS_PER_VOXEL / max(1, self.workers)
        return self.seconds - prepare - CLOSING_SECONDS - CLOSING_SECONDS_PER_CASE * len(fingerprint.cases)


def shape_to_device(frame: TimeFrame, pipeline: Pipeline, options: PlannerOptions, name: str) -> Shape:
    """Measured shaping of one configuration. Raises DeadlineError when even the smallest recipe does not fit."""
    from autounet.training.probe import time_steps

    def configure(candidate: PlannerOptions) -> Configuration:
        return pipeline.plan_with(candidate).configurations[name]

    def measure(configuration: Configuration) -> Timing:
        small, large = options.minimum_batch, 2 * options.minimum_batch
        seconds = {}
        forward = 0.0
        for batch in (small, large):
            sized = configuration.model_copy(update={"batch_size": batch})
            seconds[batch], forward = time_steps(
                sized, pipeline.dataset.labels, pipeline.train_options(0), pipeline.profile.device, PROBE_STEPS
            )
        per_sample = max((seconds[large] - seconds[small]) / (large - small), 0.1 * seconds[small] / small)
        timing = Timing(max(seconds[small] - small * per_sample, 0.0), per_sample, forward)
        width = configuration.network.features[0]
        log.info("measured: %d features, batch %d: %.2f s a step", width, small, timing.step(small))
        return timing

    seconds = frame.for_folds(pipeline.fingerprint)
    return shape_to_time(seconds, frame.folds, frame.cases_per_fold, options, configure, measure)

"""Measures the device and hands the seconds to `planning.time`, which decides."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass

from autounet.planning.time import CLOSING_SECONDS, Frame, Shape, Timing, shape_to_time
from autounet.schema.fingerprint import Fingerprint
from autounet.schema.labels import Labels
from autounet.schema.options import PlannerOptions, TrainOptions
from autounet.schema.plan import Configuration

log = logging.getLogger(__name__)

PREPARE_SECONDS_PER_VOXEL = 4e-7
"""reading, resampling and writing on one core; generous, since what is left over goes to training"""
CLOSING_SECONDS_PER_CASE = 0.03
PROBE_STEPS = 5
QUICK_STEP = 0.5
"""seconds; a slower step is taken to be proportional to its batch"""
BATCH_RATIO = 4
"""of the two batches that are timed"""
SAMPLE_SECONDS_PER_VOXEL = 4.5e-8
"""reading and augmenting; measured for patches of 40x56x40 (light augmentation, one core: 4 ms)"""


@dataclass(frozen=True)
class TimeFrame:
    """What is left and what must be done in it."""

    promised: float
    """seconds of the whole command"""
    seconds: float
    """left of them"""
    share: float
    """of this configuration"""
    folds: int
    cases_per_fold: float
    workers: int

    def for_folds(self, fingerprint: Fingerprint) -> float:
        """Seconds for training and validation: preprocessing and closing are kept back."""
        voxels = sum(int(case.shape[0]) * case.shape[1] * case.shape[2] for case in fingerprint.cases)
        channels = len(fingerprint.channels)
        prepare = voxels * channels * PREPARE_SECONDS_PER_VOXEL / max(1, self.workers)
        return self.seconds - prepare - CLOSING_SECONDS - CLOSING_SECONDS_PER_CASE * len(fingerprint.cases)


def shape_to_device(
    frame: TimeFrame,
    fingerprint: Fingerprint,
    labels: Labels,
    options: PlannerOptions,
    train_options: TrainOptions,
    configure: Callable[[PlannerOptions], Configuration],
    device: str,
    step_limit: int | None,
) -> Shape:
    """Measured shaping of one configuration. Raises DeadlineError when even the smallest recipe does not fit."""
    from autounet.training.probe import time_steps

    def measure(configuration: Configuration) -> Timing:
        batch = options.minimum_batch

        def timed(size: int) -> tuple[float, float]:
            sized = configuration.model_copy(update={"batch_size": size})
            return time_steps(sized, labels, train_options, device, PROBE_STEPS)

        train, forward = timed(batch)
        per_sample = train / batch
        if train < QUICK_STEP:  # what a step costs whatever its batch matters for small patches only
            slope = (timed(BATCH_RATIO * batch)[0] - train) / ((BATCH_RATIO - 1) * batch)
            per_sample = min(per_sample, max(slope, 0.1 * per_sample))
        making = SAMPLE_SECONDS_PER_VOXEL * math.prod(configuration.patch_size)
        timing = Timing(train - batch * per_sample, per_sample + making, forward)
        width = configuration.network.features[0]
        log.info("measured: %d features, batch %d: %.2f s a step", width, batch, timing.step(batch))
        return timing

    seconds = frame.share * frame.for_folds(fingerprint)
    shaped = Frame(seconds, frame.folds, frame.cases_per_fold, frame.promised - seconds, step_limit)
    return shape_to_time(shaped, options, configure, measure)

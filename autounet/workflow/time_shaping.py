"""Measures the device and hands the seconds to `planning.time`, which decides."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ..schema.fingerprint import Fingerprint
from ..schema.labels import Labels
from ..schema.options import PlannerOptions, TrainOptions
from ..schema.plan import Configuration
from ..time_budget.cost_model import Timing, making_seconds, timing_of
from ..time_budget.shape import (
    CLOSING_SECONDS_PER_CASE,
    Frame,
    Shape,
    closing_seconds,
    preprocessing_seconds,
    shape_to_time,
    work_of,
)

__all__ = ["CLOSING_SECONDS_PER_CASE", "Clock", "TimeFrame", "shape_to_device"]

log = logging.getLogger(__name__)


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
        work = work_of(fingerprint, self.workers)
        return self.seconds - preprocessing_seconds(work) - closing_seconds(work)


@dataclass(frozen=True)
class Clock:
    """Times configurations on a device, mostly by training steps of under a third of a second each."""

    labels: Labels
    device: str
    rates: Mapping[str, float]
    """`DeviceProfile.sample_rates`"""
    makers: int
    """processes that make samples beside the training; 0: none"""
    cases: int
    """of the data set"""

    def timing(self, configuration: Configuration, options: TrainOptions) -> Timing:
        """Raises torch's OutOfMemoryError where not even a small step fits into the device's memory."""
        from ..losses import BORDER_WEIGHTED
        from ..training import measure_speed
        from ..training.sources import CASE_MEMORY

        speed = measure_speed(configuration, self.labels, options, self.device)
        case_bytes = math.prod(configuration.median_shape) * (4 * configuration.network.in_channels + 2)
        read = self.cases * case_bytes * max(1, self.makers) > CASE_MEMORY
        weighted = options.loss in BORDER_WEIGHTED
        making = making_seconds(configuration, self.labels.count, options, self.rates, read, weighted)
        # on a CPU the makers take their time from the steps
        return timing_of(configuration, speed, making, 0 if self.device == "cpu" else self.makers)


def shape_to_device(
    frame: TimeFrame,
    fingerprint: Fingerprint,
    labels: Labels,
    options: PlannerOptions,
    train_options: TrainOptions,
    configure: Callable[[PlannerOptions], Configuration],
    device: str,
    step_limit: int | None,
    rates: Mapping[str, float] | None = None,
    makers: int = 0,
) -> Shape:
    """Measured shaping of one configuration; `rates` and `makers` as in `Clock`.

    Raises DeadlineError when even the smallest recipe does not fit.
    """
    clock = Clock(labels, device, rates or {}, makers, len(fingerprint.cases))

    def measure(configuration: Configuration) -> Timing:
        timing = clock.timing(configuration, train_options)
        width, batch = configuration.network.features[0], options.minimum_batch
        log.info("measured: %d features, batch %d: %.2f s a step", width, batch, timing.step(batch))
        return timing

    seconds = frame.share * frame.for_folds(fingerprint)
    shaped = Frame(seconds, frame.folds, frame.cases_per_fold, frame.promised - seconds, step_limit, fingerprint)
    return shape_to_time(shaped, options, configure, measure)

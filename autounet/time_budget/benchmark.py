"""Seconds of real training steps on random numbers, at the planned size or scaled from smaller ones."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import torch

from ..losses import BORDER_WEIGHTED, Batch, even_weight
from ..nets import FAMILIES
from ..schema.labels import Labels
from ..schema.options import TrainOptions
from ..schema.plan import Configuration
from ..step import Precision, algorithms, build_optimiser, configuration_loss, train_step
from ..torch_private import without_compiler
from ..workers import PROCESS_WIDE, keep_freed_memory
from .cost_model import (
    CASE_MEMORY,
    InputSize,
    NetworkSpeed,
    Timing,
    fit,
    next_size,
    probe_sizes,
    sample_seconds,
    timing_of,
)

log = logging.getLogger(__name__)

STEP_SECONDS = 0.2
"""after which no further step is timed"""
QUICK_STEP = 0.3
"""seconds; a step expected to take no longer is timed as planned, a slower one on a smaller input"""
STEPS = 3
"""timed per size after the warm-up"""
ENOUGH_SECONDS, ENOUGH_SIZES = 0.6, 2
"""of timed work, after which no further size is timed for a plan that is fitted to a time"""
ROUGH_SECONDS = 0.3
"""the same where a person is only told how long a run will take: one size may do, and is taken to be in proportion"""


class StepTimes(NamedTuple):
    train: float
    """seconds of one training step of the whole batch"""
    forward: float
    """seconds of one patch through the network in evaluation, where the whole batch goes through together"""


class StepTimer:
    """One network with its loss and optimiser on a device; steps of any size are timed with it.

    Preparing the batches is not included.
    """

    def __init__(self, configuration: Configuration, labels: Labels, options: TrainOptions, device: str) -> None:
        keep_freed_memory()
        self.configuration, self.labels, self.options = configuration, labels, options
        self.device = torch.device(device)
        self.precision = Precision(configuration.precision, configuration.channels_last)
        spec = configuration.network
        with PROCESS_WIDE, torch.random.fork_rng():
            self.model = self.precision.place(FAMILIES[spec.family].build(spec), self.device)
        self.loss = configuration_loss(configuration, labels, options)
        self.optimiser = build_optimiser(options, self.model.parameters())
        self.scaler = self.precision.scaler(self.device)

    def times(self, size: InputSize, steps: int) -> StepTimes:
        """Median over `steps`, after a warm-up; slow ones are run fewer times, for about `STEP_SECONDS` together."""
        batch = self._batch(size)

        def train() -> None:
            train_step(
                self.model, self.loss, self.optimiser, self.scaler, batch, self.precision, self.options.gradient_clip
            )

        def forward() -> None:
            with torch.inference_mode(), self.precision.autocast(self.device.type):
                self.model(batch.image)

        self.model.train()
        train_seconds = median_seconds(train, self.device, steps, STEP_SECONDS)
        self.optimiser.zero_grad(set_to_none=True)
        self.model.eval()
        return StepTimes(train_seconds, median_seconds(forward, self.device, steps, STEP_SECONDS) / size.batch)

    def _batch(self, size: InputSize) -> Batch:
        with PROCESS_WIDE, torch.random.fork_rng():
            image = torch.randn(size.batch, self.configuration.network.in_channels, *size.patch)
            target = torch.randint(self.labels.count, (size.batch, *size.patch), dtype=torch.int16)
        weight = even_weight(self.options.loss, target.shape)
        return Batch(image, target, weight=weight).to(self.device, self.precision.channels_last)


def measure_speed(
    configuration: Configuration, labels: Labels, options: TrainOptions, device: str, rough: bool = False
) -> NetworkSpeed:
    """What the configuration's network costs per step and voxel, without a step that is much slower than `QUICK_STEP`.

    From the smallest input on, the largest that the sizes timed so far let expect to be quick is timed, until that is
    the planned one, a step was slow, or enough was timed. Where memory ends before, what was timed until then decides.
    """
    limit, least = (ROUGH_SECONDS, 1) if rough else (ENOUGH_SECONDS, ENOUGH_SIZES)
    with algorithms(options.deterministic), without_compiler():
        timer = StepTimer(configuration, labels, options, device)
        sizes = probe_sizes(configuration.network, configuration.patch_size, configuration.batch_size)
        trained: dict[int, float] = {}
        passed: dict[int, float] = {}
        size: InputSize | None = sizes[0]
        began = time.monotonic()
        while size is not None:
            try:
                seconds = timer.times(size, STEPS)
            except torch.OutOfMemoryError:
                log.warning("%d x %s does not fit into the device's memory: timed on less", size.batch, size.patch)
                if not trained:
                    raise
                break
            trained[size.voxels], passed[size.voxels] = seconds.train, size.batch * seconds.forward
            enough = len(trained) >= least and time.monotonic() - began > limit
            size = None if enough else next_size(sizes, trained, QUICK_STEP)
        speed = NetworkSpeed(fit(list(trained.items())), fit(list(passed.items())))
    if timer.device.type == "cuda":
        del timer
        torch.cuda.empty_cache()
    return speed


def time_configuration(
    configuration: Configuration,
    labels: Labels,
    options: TrainOptions,
    device: str,
    sample_rates: Mapping[str, float],
    loader_workers: int,
    cases: int,
    rough: bool = False,
    threads: int | None = None,
) -> Timing:
    """Measured step and predicted sample times of a configuration, mostly by steps of under a third of a second.

    `sample_rates` are those of the `DeviceProfile`, `cases` the number in the data set; where they are larger than
    `CASE_MEMORY`, samples are read from the disk. `rough`: see `ROUGH_SECONDS`. `threads`: of a CPU, fewer than usual.
    Raises torch's OutOfMemoryError where not even a small step fits into the device's memory.
    """
    with cpu_threads(threads):
        speed = measure_speed(configuration, labels, options, device, rough)
    case_bytes = math.prod(configuration.median_shape) * (4 * configuration.network.in_channels + 2)
    read = cases * case_bytes * max(1, loader_workers) > CASE_MEMORY
    weighted = options.loss in BORDER_WEIGHTED
    # where `SampleSource.on_device` says so, loader workers only read
    augmented = device == "cpu" or options.augmented_by != "torch" or weighted or bool(configuration.previous_stage)
    sample = sample_seconds(configuration, labels.count, options, sample_rates, read, weighted, augmented)
    # on a CPU loader workers take their time from the steps
    return timing_of(configuration, speed, sample, 0 if device == "cpu" else loader_workers)


@contextmanager
def cpu_threads(count: int | None) -> Iterator[None]:
    """torch computes with so many threads inside; None: as before."""
    before = torch.get_num_threads()
    if count is None or count >= before:
        yield
        return
    with PROCESS_WIDE:
        torch.set_num_threads(count)
        try:
            yield
        finally:
            torch.set_num_threads(before)


def median_seconds(
    work: Callable[[], None], device: torch.device, steps: int, limit: float = float("inf"), warm_up: int = 1
) -> float:
    """Median over `steps` runs, fewer when they take more than `limit` seconds together."""
    seconds: list[float] = []
    for number in range(warm_up + steps):
        began = time.monotonic()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if number >= warm_up:
            seconds.append(time.monotonic() - began)
        if seconds and sum(seconds) > limit:
            break
    return sorted(seconds)[len(seconds) // 2]

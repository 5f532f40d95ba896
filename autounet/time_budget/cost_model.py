"""How long a planned configuration takes, from seconds that were measured on smaller inputs. Arithmetic only.

A step of one network costs an overhead (starting kernels, updating the weights) and a time for every voxel that goes
in. Both follow from two measured sizes; a third gives the planned one. Augmenting the samples comes on top, or runs in
parallel in loader workers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ..nets import FAMILIES
from ..ops.resample import prepared_shape
from ..ops.tiles import axis_starts
from ..schema.fingerprint import Fingerprint
from ..schema.options import TrainOptions
from ..schema.plan import Configuration, NetworkSpec
from ..schema.run import AugmentedBy

MAX_GROWTH = 4
"""times the voxels of a quick step that the next step may have, whatever its predicted time: it takes little more than
four times as long"""
MAX_SLOWDOWN = 4
"""times the limit of a quick step that a slow one may take if another is to follow"""
MIN_SIGNAL_RATIO = 2.0
"""times the seconds of the smallest input, above which a step shows more than overhead and noise"""
LEAST_BOTTOM = 2
"""voxels of the smallest stage: a norm over one value has no variance"""
LEAST_BATCH = 2
"""samples that are timed, where the plan has as many: libraries take other, on a CPU much slower, ways for a single one
(plain U-Net of 16 features in fp32 on one thread: 12 us a voxel instead of 3.7)"""
LEAST_VOXELS = 2**15
"""of the smallest input: the time of a smaller one is mostly that of starting kernels"""
APART = 1.9
"""times that the voxels of two sizes differ at least, so that noise does not decide on the slope"""
RATE_PREFIX: dict[AugmentedBy, str] = {"batchgeneratorsv2": "", "torch": "torch_"}
"""of the names of the rates at which a device augments"""
SAMPLE_RATES = {
    "light_2d": 5.0e7, "light_3d": 2.4e7, "full_2d": 4.0e7, "full_3d": 2.2e7,
    "torch_light_2d": 7.0e7, "torch_light_3d": 4.8e7, "torch_full_2d": 6.0e7, "torch_full_3d": 4.4e7,
    "reading": 2.0e8,
}  # fmt: skip
"""voxels a second, where a device was probed before these were measured (one core of a server of 2023)"""
FIXED_MAPS, MEASURED_MAPS = 2, 3
"""Augmenting costs as if there were this many maps more than channels and foreground classes; the rates hold for one
channel and two classes. Fitted to 1 to 4 channels with 2 to 7 classes: within 25 % (light and full, 2-D and 3-D)"""
ELASTIC_SHARE = {"2d": 1.7, "3d": 3.3}
WEIGHT_MAP_SHARE = 4.0
"""what bending a sample, and its weight map, cost in units of the light augmentation of one channel and two classes;
the second depends on the number of objects (256 x 256 and 512 x 512: 4.1 and 4.7; 40^3 and 64^3: 1.1 and 2.8)"""
FLAT_RATIO = 3.0
"""a 3-D patch this much thinner than long is augmented plane by plane, at the rate of 2-D (as the training does)"""
CASE_MEMORY = 2 * 1024**3
"""bytes of decompressed cases that a training keeps, at most; others are read again for each sample"""
LABEL_SHARE = 0.25
"""reading the labels takes this share of reading one channel"""


class InputSize(NamedTuple):
    """An input of a network."""

    patch: tuple[int, ...]
    batch: int

    @property
    def voxels(self) -> int:
        return self.batch * math.prod(self.patch)


@dataclass(frozen=True)
class LinearTime:
    """Seconds as a function of input voxels, all samples of the batch counted, channels not."""

    overhead: float
    """seconds whatever the size"""
    per_voxel: float
    """seconds"""

    def seconds(self, voxels: float) -> float:
        return self.overhead + self.per_voxel * voxels


@dataclass(frozen=True)
class NetworkSpeed:
    """What one network needs on one device."""

    step: LinearTime
    """forward, loss, backward and update"""
    forward: LinearTime
    """in evaluation"""


def fit(points: Sequence[tuple[int, float]]) -> LinearTime:
    """The line through the largest of (voxels, seconds) and the largest that is `APART` from it.

    With no such second point the seconds are proportional to the voxels. Neither overhead nor slope is negative:
    where noise gives such a line, the largest point alone decides. Raises ValueError without a point.
    """
    if not points:
        raise ValueError("nothing was measured")
    *smaller, (voxels, seconds) = sorted(points)
    smaller = [point for point in smaller if APART * point[0] <= voxels]
    if not smaller:
        return LinearTime(0.0, seconds / voxels)
    less, lower = smaller[-1]
    slope = (seconds - lower) / (voxels - less)
    per_voxel = min(max(slope, 0.0), seconds / voxels)
    return LinearTime(seconds - per_voxel * voxels, per_voxel)


def probe_sizes(network: NetworkSpec, patch: Sequence[int], batch: int) -> tuple[InputSize, ...]:
    """Inputs from small to large, the last the planned one, each about half of the next.

    First the batch becomes smaller, since then every layer keeps its shape; then the patch, along the axis with most
    voxels at the lowest stage, in sizes that the network takes. None has less than `LEAST_VOXELS`, unless the planned
    one has.
    """
    batches = [batch]
    while batches[-1] > LEAST_BATCH:
        batches.append(max(LEAST_BATCH, batches[-1] // 2))
    sizes = [InputSize(tuple(patch), each) for each in batches]
    valid_size, divisor = FAMILIES[network.family].valid_size, network.divisor
    multiples = [max(1, length // step) for length, step in zip(patch, divisor, strict=True)]
    while math.prod(multiples) > LEAST_BOTTOM:
        axis = max(range(len(multiples)), key=lambda index: multiples[index])
        multiples[axis] = math.ceil(multiples[axis] / 2)
        smaller = valid_size(network, [count * step for count, step in zip(multiples, divisor, strict=True)])
        if math.prod(smaller) < math.prod(sizes[-1].patch):
            sizes.append(InputSize(smaller, batches[-1]))
    large = [size for size in sizes if size.voxels >= LEAST_VOXELS]
    return tuple(reversed(large or sizes[:1]))


def next_size(sizes: Sequence[InputSize], timed: Mapping[int, float], quick: float) -> InputSize | None:
    """Which of `sizes` (from small to large) to time after those in `timed` (voxels -> seconds); None: none.

    The largest that is expected to take at most `quick` seconds, or one of up to `MAX_GROWTH` times the voxels of the
    last while that one was quick: on a busy machine a small step takes as long as a larger one, and a line through it
    alone would predict that nothing larger is quick. Slow steps go on, while they take seconds, until one is clearly
    slower than the first: with small inputs a deep network's step is mostly overhead, which shows no slope.
    """
    largest = max(timed)
    if timed[largest] > quick:
        slope_is_known = timed[largest] >= MIN_SIGNAL_RATIO * timed[min(timed)] and largest > min(timed)
        if slope_is_known or timed[largest] > MAX_SLOWDOWN * quick:
            return None
        return next((size for size in sizes if size.voxels >= APART * largest), None)
    line = fit(list(timed.items()))
    wanted = [
        size
        for size in sizes
        if size.voxels > largest and (line.seconds(size.voxels) <= quick or size.voxels <= MAX_GROWTH * largest)
    ]
    return wanted[-1] if wanted else next((size for size in sizes if size.voxels > largest), None)


def sample_seconds(
    configuration: Configuration,
    classes: int,
    options: TrainOptions,
    rates: Mapping[str, float],
    read: bool,
    weighted: bool = False,
    augmented: bool = True,
) -> float:
    """Seconds of one core for one sample: augmenting, and reading with `read` where the cases are on disk.

    Not `augmented`: samples are augmented on a GPU, in no time that counts.

    `weighted`: the loss needs a weight map. `classes` counts the background; `rates` are a device's `sample_rates`.
    Reading decompresses whole planes of the axes that they span (`store.prepared`), here those of the median image.
    """
    patch, channels = configuration.patch_size, configuration.network.in_channels
    rates = {**SAMPLE_RATES, **rates}
    seconds = 0.0
    dims = "2d" if len(patch) == 2 or max(patch) / patch[0] > FLAT_RATIO else "3d"
    light = math.prod(patch) / rates[f"light_{dims}"]
    if augmented and options.augmentation != "none":
        maps = FIXED_MAPS + channels + classes - 1
        bending = ELASTIC_SHARE[dims] * light if options.elastic else 0.0
        kind = "light" if options.augmentation == "light" else "full"  # plug-ins are not measured: as the dearer one
        rate = rates[f"{RATE_PREFIX[options.augmented_by]}{kind}_{dims}"]
        seconds += (math.prod(patch) / rate + bending) * maps / (FIXED_MAPS + MEASURED_MAPS)
    if weighted:
        seconds += WEIGHT_MAP_SHARE * light
    if read:
        planes = patch[0] if len(patch) == 3 else 1
        decompressed = planes * math.prod(configuration.median_shape[-2:])
        seconds += decompressed * (channels + LABEL_SHARE) / rates["reading"]
    return seconds


SHORTEST_SAMPLE = 1e-9
"""of a sample; avoids a division by zero where none was measured"""
EXPORT_SECONDS_PER_VOXEL = 5e-7
"""back to the file's grid, writing, surface distances; generous, since what is left over goes to training"""


@dataclass(frozen=True)
class Timing:
    """Measured seconds of one configuration at one width."""

    step_overhead: float
    """of a training step, whatever its batch"""
    step_per_sample: float
    forward: float
    """one patch through the network in evaluation"""
    sample: float = 0.0
    """of one core for reading and augmenting one sample"""
    loader_workers: int = 0
    """processes that prepare samples during the steps; 0: the training's own process, between them"""

    def step(self, batch: int) -> float:
        computing = self.step_overhead + batch * self.step_per_sample
        if not self.loader_workers:
            return computing + batch * self.sample
        return max(computing, batch * self.sample / self.loader_workers)

    def times(self, factor: float) -> Timing:
        """So many times as slow."""
        return Timing(
            factor * self.step_overhead, factor * self.step_per_sample, factor * self.forward, factor * self.sample,
            self.loader_workers,
        )  # fmt: skip

    def largest_batch(self, seconds: float) -> int:
        """The largest whose step takes at most `seconds`; may be 0 or less."""
        per_sample = self.step_per_sample + (0.0 if self.loader_workers else self.sample)
        largest = (seconds - self.step_overhead) / max(per_sample, SHORTEST_SAMPLE)
        if self.loader_workers and self.sample:
            largest = min(largest, seconds * self.loader_workers / self.sample)
        return math.floor(largest)


def timing_of(configuration: Configuration, speed: NetworkSpeed, sample: float, loader_workers: int) -> Timing:
    """A configuration's timing by what its network costs; `sample` seconds of one core a sample, see `Timing`."""
    voxels, batch = math.prod(configuration.patch_size), configuration.batch_size
    forward = speed.forward.seconds(batch * voxels) / batch
    return Timing(speed.step.overhead, speed.step.per_voxel * voxels, forward, sample, loader_workers)


def case_seconds(configuration: Configuration, timing: Timing, fingerprint: Fingerprint | None) -> float:
    """Mean over the cases of predicting, exporting and evaluating one with one model.

    Without a fingerprint, of one of median size: too little where the median image fits into one patch and others do
    not.
    """
    if fingerprint is None:
        return volume_seconds(configuration, timing, configuration.median_shape)
    spec = configuration.preprocess
    shapes = (prepared_shape(spec, case.cropped_shape, case.spacing) for case in fingerprint.cases)
    return sum(volume_seconds(configuration, timing, shape) for shape in shapes) / len(fingerprint.cases)


def volume_seconds(configuration: Configuration, timing: Timing, shape: Sequence[int]) -> float:
    """Of one case of `shape` (3 axes of the network) on the prepared grid."""
    dims = configuration.network.dims
    tiles = 1 if dims == 3 else shape[0]
    overlap, network = configuration.inference.overlap, configuration.network
    output = FAMILIES[network.family].output_size(network, configuration.patch_size)
    for size, length in zip(shape[-dims:], output, strict=True):
        tiles *= len(axis_starts(max(size, length), length, overlap))
    forward = tiles * 2 ** len(configuration.inference.mirror_axes) * timing.forward
    return forward + EXPORT_SECONDS_PER_VOXEL * math.prod(shape)

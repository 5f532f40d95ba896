"""Seconds of one configuration: of a training step with its samples, and of validating a case. Arithmetic only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from autounet.nets import FAMILIES
from autounet.ops.resample import prepared_shape
from autounet.ops.tiles import axis_starts
from autounet.planning.speed import Speed
from autounet.schema.fingerprint import Fingerprint
from autounet.schema.plan import Configuration

LEAST_SECONDS = 1e-9
"""of a sample: a clock that saw none is not divided by"""
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
    making: float = 0.0
    """of one core for one sample"""
    makers: int = 0
    """processes that make samples beside the steps; 0: the training's own process, between them"""

    def step(self, batch: int) -> float:
        computing = self.step_overhead + batch * self.step_per_sample
        if not self.makers:
            return computing + batch * self.making
        return max(computing, batch * self.making / self.makers)

    def largest_batch(self, seconds: float) -> int:
        """The largest whose step takes at most `seconds`; may be 0 or less."""
        per_sample = self.step_per_sample + (0.0 if self.makers else self.making)
        largest = (seconds - self.step_overhead) / max(per_sample, LEAST_SECONDS)
        if self.makers and self.making:
            largest = min(largest, seconds * self.makers / self.making)
        return math.floor(largest)


def timing_of(configuration: Configuration, speed: Speed, making: float, makers: int) -> Timing:
    """A configuration's timing by what its network costs; `making` seconds a sample, see `Timing`."""
    voxels, batch = math.prod(configuration.patch_size), configuration.batch_size
    forward = speed.forward.seconds(batch * voxels) / batch
    return Timing(speed.step.overhead, speed.step.per_voxel * voxels, forward, making, makers)


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

"""Peak memory of training and of predicting, for any network, patch and batch.

A network is traced twice, then scaled.

Every block of a step is either the same for all sizes (weights, gradients, optimiser state) or grows with the voxels
of a batch. So two traces of one network, at two sizes, give each block its size at every other, and replaying the
blocks in their order gives the peak there. The peak may move from the loss to the backward pass or to the update as
the size grows: the replay finds where it is, which a line through two peaks would not. Beside full traces the scaled
peaks of all families are off by at most 0.2 %, MedNeXt's by 2.1 % (bf16, patches 64 to 160, batches 2 to 5).
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Literal, NamedTuple

from ..nets import FAMILIES
from ..ops.orient import permute
from ..ops.resample import prepared_shape
from ..schema.fingerprint import Fingerprint
from ..schema.labels import Labels
from ..schema.options import TrainOptions
from ..schema.plan import Configuration, NetworkSpec
from ..schema.run import DeviceProfile
from .peak import Margin, alive_peak, correspond, memory_margin, scaled

if TYPE_CHECKING:
    from .measured_steps import StepSetting
    from .traced import Trace

log = logging.getLogger(__name__)

TRACED_BATCH = 2
"""samples of a traced batch: one alone would leave the axis out of what decides about memory orders"""
OTHER_BLOCKS = 1.5
"""factor of what a wider network takes: a narrower one may put the gradients of its kernels together in another way"""
TracedSize = tuple[tuple[int, ...], int]
"""patch and batch"""
Method = Literal["fake tensors", "saved tensors"]


@cache
def tracing_works() -> bool:
    """Whether this torch traces a small step rightly; tried once in a process, and logged where it does not.

    Tracing uses private interfaces of torch, which another version may lack or change in any way: hence every error
    counts here, and none later.
    """
    try:
        from .traced import self_test

        self_test()
    except Exception as error:
        log.warning("memory is estimated from saved tensors: tracing does not work with this torch (%r)", error)
        return False
    return True


@dataclass(frozen=True)
class _TracePair:
    """Two traces of one network whose blocks correspond, and their sizes (voxels of the batch)."""

    small: Trace
    large: Trace
    voxels: tuple[int, int]

    def at(self, voxels: int) -> Trace:
        """The trace as it would be for a batch of so many voxels."""
        from .traced import Trace

        share = (voxels - self.voxels[0]) / (self.voxels[1] - self.voxels[0])
        return Trace(*(scaled(*parts, share) for parts in zip(self.small, self.large, strict=True)))


@dataclass
class TrainingMemory:
    """(network, patch, batch) -> peak bytes on the device, margin included: a `Measure` for the planner.

    Deterministic: the same labels, options and margins give the same bytes on every machine.
    """

    labels: Labels
    options: TrainOptions
    precision: Literal["fp32", "bf16", "fp16"]
    channels_last: bool
    device: str
    """kind: cpu, cuda or mps"""
    margin: Margin
    partial: bool = False
    """whether cases occur in which not every class was annotated"""
    method: Method | None = None
    """how the last answer was computed"""
    _known: dict[str, _TracePair | None] = field(default_factory=dict)
    _verified: dict[tuple[str, tuple[int, ...], int], int] = field(default_factory=dict)
    _answers: list[tuple[NetworkSpec, int, int]] = field(default_factory=list)
    """network, voxels of the batch and peak bytes without margin of every answer so far"""

    def __call__(self, spec: NetworkSpec, patch: tuple[int, ...], batch: int) -> int:
        return self.margin.on(self.traced(spec, patch, batch))

    def at_most(self, spec: NetworkSpec, patch: tuple[int, ...], batch: int) -> int | None:
        """More bytes than `self(...)` gives, without a trace, by the answers for networks that are no narrower.

        None where there was none for a network of the same shape.
        """
        voxels = batch * math.prod(FAMILIES[spec.family].valid_size(spec, patch))
        limits = [
            peak * max(1.0, voxels / known)
            for wide, known, peak in self._answers
            if all(own <= other for own, other in zip(spec.features, wide.features, strict=False))
            and wide.model_copy(update={"features": spec.features}) == spec
        ]
        return self.margin.on(round(OTHER_BLOCKS * min(limits))) if limits else None

    def verify(self, spec: NetworkSpec, patch: tuple[int, ...], batch: int) -> int:
        """The same from a full trace of exactly this patch and batch."""
        return self.margin.on(self.traced_fully(spec, patch, batch))

    def traced(self, spec: NetworkSpec, patch: tuple[int, ...], batch: int) -> int:
        """Peak bytes without margin, scaled from two traces of the network at two patches.

        Where these do not correspond, or the network has no padding, from two of this patch with two batches. A patch
        or batch smaller than the traced ones is traced itself. A patch that the network does not take counts as the
        next larger one that it does.
        """
        patch = FAMILIES[spec.family].valid_size(spec, patch)
        voxels = batch * math.prod(patch)
        known = self._pair(spec, patch)
        if known is None or voxels < known.voxels[0]:
            peak = self.traced_fully(spec, patch, batch)
        else:
            peak = _peak(known.at(voxels))
        self._answers.append((spec, voxels, peak))
        return peak

    def traced_fully(self, spec: NetworkSpec, patch: tuple[int, ...], batch: int) -> int:
        """Peak bytes without margin, from a trace of this very patch and batch, or of the next larger valid patch."""
        patch = FAMILIES[spec.family].valid_size(spec, patch)
        key = spec.digest(), patch, batch
        if key not in self._verified:
            self._verified[key] = self._trace_fully(spec, patch, batch)
        return self._verified[key]

    def _trace_fully(self, spec: NetworkSpec, patch: tuple[int, ...], batch: int) -> int:
        if not tracing_works():
            from .measured_steps import saved_peak

            self.method = "saved tensors"
            return saved_peak(spec, patch, batch, self._setting())
        from .traced import trace_step

        self.method = "fake tensors"
        return _peak(trace_step(spec, patch, batch, self._setting()))

    def _pair(self, spec: NetworkSpec, patch: tuple[int, ...]) -> _TracePair | None:
        """None where the blocks of two sizes do not correspond.

        In bf16 on a CPU the gradient of a 3-D kernel is put together by samples or at once, whichever moves less, so
        that every size has blocks of its own (`nets.convolution.weight_gradient`): no pair is tried.
        """
        if spec.dims == 3 and (self.device, self.precision) == ("cpu", "bf16"):
            return None
        return self._between_patches(spec) or self._between_batches(spec, patch)

    def _between_patches(self, spec: NetworkSpec) -> _TracePair | None:
        """The patches depend on the network alone, so that no answer depends on what was asked before."""
        key = spec.digest()
        if key not in self._known:
            family = FAMILIES[spec.family]
            least = family.valid_size(spec, [2 * step for step in spec.divisor])
            large = family.valid_size(spec, [2 * length for length in least])
            # without padding sizes inside are not in proportion to the patch
            padded = family.output_size(spec, large) == large
            sizes = ((least, TRACED_BATCH), (large, TRACED_BATCH))
            self._known[key] = self._trace_both(spec, *sizes) if padded else None
        return self._known[key]

    def _between_batches(self, spec: NetworkSpec, patch: tuple[int, ...]) -> _TracePair | None:
        key = f"{spec.digest()} {patch}"
        if key not in self._known:
            self._known[key] = self._trace_both(spec, (patch, TRACED_BATCH), (patch, 2 * TRACED_BATCH))
        return self._known[key]

    def _trace_both(self, spec: NetworkSpec, small: TracedSize, large: TracedSize) -> _TracePair | None:
        """None when the blocks of the two sizes do not correspond, or this torch cannot be traced."""
        if not tracing_works():
            return None
        from .traced import trace_step

        traces = [trace_step(spec, patch, batch, self._setting()) for patch, batch in (small, large)]
        if not all(correspond(*parts) for parts in zip(*traces, strict=True)):
            return None
        self.method = "fake tensors"
        voxels = [batch * math.prod(patch) for patch, batch in (small, large)]
        return _TracePair(traces[0], traces[1], (voxels[0], voxels[1]))

    def _setting(self) -> StepSetting:
        from ..step import Precision
        from .measured_steps import StepSetting

        precision = Precision(self.precision, self.channels_last)
        device = "cpu" if self.device == "cpu" else "cuda"
        return StepSetting(self.labels, self.options, precision, device, self.partial)


def training_memory(
    labels: Labels, options: TrainOptions, profile: DeviceProfile, partial: bool = False
) -> TrainingMemory:
    """The memory model for trainings on the device of `profile`. Torch is loaded at the first question.

    `partial`: cases occur in which not every class was annotated.
    """
    return TrainingMemory(
        labels=labels,
        options=options,
        precision=profile.precision,  # type: ignore[arg-type]
        channels_last=profile.channels_last,
        device=profile.device.partition(":")[0],
        margin=memory_margin(profile),
        partial=partial,
    )


def _peak(trace: Trace) -> int:
    return alive_peak([*trace.setup, *trace.step])


FLOAT = 4
"""bytes of a float32 number"""


class InferenceMemory(NamedTuple):
    """Peak bytes. With `shared`, device and host are one memory, and both numbers are its whole peak."""

    device_bytes: int
    host_bytes: int
    shared: bool


class _LargestCase(NamedTuple):
    """The largest case of a data set, network axis order."""

    stored: tuple[int, ...]
    grid: tuple[int, ...]
    padded: tuple[int, ...]
    """the prepared grid, at least as large as the patch"""


def inference_memory(
    configuration: Configuration,
    fingerprint: Fingerprint,
    classes: int,
    device: str,
    tile_batch: int,
    networks: int = 1,
    margin: Margin | None = None,
    free_bytes: int | None = None,
) -> InferenceMemory | None:
    """Memory for predicting the case with the most voxels on the configuration's grid, and exporting its segmentation.

    None where this torch cannot be traced.

    `tile_batch`: inputs of one forward (`inference.sliding_window.default_batch`). `networks`: folds held at once.
    `free_bytes`: of a GPU; scores that would take more than half of it are kept on the host, as the prediction does.
    `margin` is added on the device. One configuration; further ones of an ensemble add their scores, which are
    host_bytes less the image. Reading and resampling come before and are not included.
    """
    if not tracing_works():
        return None
    case = _largest_case(configuration, fingerprint)
    channels, patch = configuration.network.in_channels, configuration.patch_size
    kind = device.partition(":")[0]
    scores = FLOAT * classes * math.prod(case.padded)
    on_device = kind == "cuda" and (free_bytes is None or scores < free_bytes / 2)
    tiles = max(1, tile_batch // 2 ** len(configuration.inference.mirror_axes))
    coverage = FLOAT * (math.prod(case.padded[-len(patch) :]) + math.prod(patch))
    # the mean over views and networks of a group of tiles, beside the logits of the last forward
    mean = FLOAT * classes * tiles * math.prod(patch)
    forward = _forward_peak(configuration, tile_batch, kind, networks) + mean
    image = FLOAT * channels * (math.prod(case.grid) + math.prod(case.padded))
    # cropping the padded scores, or fetching them from a GPU, makes a copy
    cropped = FLOAT * classes * math.prod(case.grid)
    copied = cropped if on_device or case.grid != case.padded else 0
    # winners on the grid (int16); of the file dense classes (int16), numpy's indices (int64), values (int32)
    exported = cropped + 2 * math.prod(case.grid) + (2 + 8 + 4) * math.prod(case.stored)
    held_image = FLOAT * channels * math.prod(case.grid)
    if kind == "cpu":
        total = max(forward + scores + coverage + image, scores + copied + image, held_image + exported)
        total = margin.on(total) if margin else total
        return InferenceMemory(total, total, True)
    at_device = forward + (scores + coverage if on_device else 0)
    host = image + (0 if on_device else scores + coverage)
    host = max(host, host + copied, held_image + exported)
    return InferenceMemory(margin.on(at_device) if margin else at_device, host, False)


def _largest_case(configuration: Configuration, fingerprint: Fingerprint) -> _LargestCase:
    """A volume is padded to the patch; of a 2d configuration only the slices are."""
    spec, patch = configuration.preprocess, configuration.patch_size
    grids = [prepared_shape(spec, case.cropped_shape, case.spacing) for case in fingerprint.cases]
    largest = max(range(len(grids)), key=lambda index: math.prod(grids[index]))
    case, grid = fingerprint.cases[largest], grids[largest]
    least = (1,) * (3 - len(patch)) + tuple(patch)
    padded = tuple(map(max, grid, least))
    return _LargestCase(permute(case.shape, spec.transpose), grid, padded)


def _forward_peak(configuration: Configuration, tile_batch: int, kind: str, networks: int) -> int:
    """Weights of all networks and one forward; inputs before and after their memory order is changed."""
    from ..step import Precision
    from .traced import trace_forward

    spec, patch = configuration.network, configuration.patch_size
    precision = Precision(configuration.precision, configuration.channels_last)
    trace = trace_forward(spec, patch, tile_batch, precision, "cpu" if kind == "cpu" else "cuda")
    weights = alive_peak(trace.setup)
    inputs = FLOAT * spec.in_channels * tile_batch * math.prod(patch)
    return alive_peak([*trace.setup, *trace.step]) + (networks - 1) * weights + inputs

"""Patch, depth and batch of one configuration as nnU-Net v2 searches them, and what its presets differ in.

`search_as_nnunet` is nnU-Net v2's search, which the presets use; `fill_memory` holds the default planner's. Both walk
through the same patches and choose the batch and word their reasons by the functions here. The numbers of the presets
are those in nnU-Net's source: `experiment_planning/experiment_planners/default_experiment_planner.py`
(ExperimentPlanner) and `residual_unets/residual_encoder_unet_planners.py` (nnUNetPlannerResEncM, L and XL).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from ..schema.errors import PlanError
from ..schema.options import GIB, Preset
from ..schema.plan import MOST_SAMPLES, Limit, Limits, NetworkSpec, Reason
from ..schema.quantities import format_size
from .memory import REFERENCE_BATCH, REFERENCE_OUTPUTS, Memory, convolution_outputs
from .spacing import Topology, find_topology, shrink

START_EDGE = {2: 2048, 3: 256}
"""the search starts from a patch with the volume of this cube (square), shaped to be isotropic in mm"""
LARGEST_SHARE = 0.05
"""a batch covers at most this share of the data set's voxels, against overfitting"""


@dataclass(frozen=True)
class SearchInputs:
    """The data on one configuration's grid, and the limits of its patch and batch.

    `spacing` (mm) and `median` (voxels of the median image) have one entry per dimension of the network.
    """

    configuration: str
    spacing: np.ndarray
    median: np.ndarray
    voxels: float
    """of the whole data set"""
    minimum_batch: int
    batch_limit: int | None
    patch_limit: int | None = None
    """most voxels of a patch"""
    largest_share: float = LARGEST_SHARE
    """of the data set's voxels in a batch"""

    def allows(self, patch: Sequence[int]) -> bool:
        return self.patch_limit is None or int(np.prod(patch)) <= self.patch_limit

    @property
    def least_batch(self) -> int:
        """The limit wins over the minimum."""
        return min(self.minimum_batch, self.batch_limit or self.minimum_batch)


@dataclass(frozen=True)
class SearchResult:
    patch: tuple[int, ...]
    batch: int
    network: NetworkSpec
    memory_bytes: int
    """predicted peak of a training step"""
    limited_by: Limits
    reasons: tuple[Reason, ...]


Propose = Callable[[Topology], NetworkSpec]


def search_as_nnunet(inputs: SearchInputs, memory: Memory, propose: Propose, budget: int) -> SearchResult:
    """Raises PlanError when images are too small for a U-Net or the budget too small for any patch."""
    patch, network = find_patch(inputs, memory, propose, budget)
    batch, batch_limit = choose_batch(inputs, memory, network, patch)
    return SearchResult(
        patch=patch,
        batch=batch,
        network=network,
        memory_bytes=memory.predicted(network, patch, batch),
        limited_by=Limits(patch=patch_limit(inputs, patch), batch=batch_limit),
        reasons=(patch_reason(inputs, patch, memory, budget), batch_reason(inputs, batch, batch_limit)),
    )


def find_patch(
    inputs: SearchInputs, memory: Memory, propose: Propose, budget: int
) -> tuple[tuple[int, ...], NetworkSpec]:
    """The first patch, from large to small, whose smallest batch fits. Raises PlanError as `search_as_nnunet` does."""
    topology = start_topology(inputs)
    if len(topology.strides) < 2:
        raise images_too_small(inputs)
    seen: set[tuple[int, ...]] = set()
    while topology.patch not in seen and len(topology.strides) > 1:
        network = propose(topology)
        if inputs.allows(topology.patch) and memory.fits(network, topology.patch, inputs.least_batch):
            return topology.patch, network
        seen.add(topology.patch)
        topology = shrink(topology, inputs.spacing, inputs.median)
    raise no_patch_fits(inputs, memory, budget)


def start_topology(inputs: SearchInputs) -> Topology:
    """Larger than most budgets allow, isotropic in mm, no larger than the median image."""
    dims = len(inputs.spacing)
    inverse = 1 / inputs.spacing
    edges = inverse * (START_EDGE[dims] ** dims / np.prod(inverse)) ** (1 / dims)
    lengths = [min(max(1, round(edge)), whole) for edge, whole in zip(edges, inputs.median, strict=True)]
    return find_topology(inputs.spacing, lengths)


def choose_batch(
    inputs: SearchInputs, memory: Memory, network: NetworkSpec, patch: tuple[int, ...]
) -> tuple[int, Limit]:
    """The largest batch within memory, 5 % of the voxels and the limit, never below the least; and what limits it."""
    limits = _batch_limits(inputs, patch)
    least, most = inputs.least_batch, most_samples(inputs, patch)
    batch = memory.largest_batch(network, patch, most)
    if batch < most:
        return (batch, "memory") if batch >= least else (least, "minimum")
    limit = min(limits, key=lambda name: limits[name])
    return most, limit if limits[limit] >= least else "minimum"


def most_samples(inputs: SearchInputs, patch: Sequence[int]) -> int:
    """The largest batch that anything but memory allows."""
    return max(inputs.least_batch, min(_batch_limits(inputs, patch).values()))


def _batch_limits(inputs: SearchInputs, patch: Sequence[int]) -> dict[Limit, int]:
    samples = inputs.voxels * inputs.largest_share / np.prod(patch, dtype=np.float64)
    limits: dict[Limit, int] = {"data": min(round(samples), MOST_SAMPLES)}
    if inputs.batch_limit is not None:
        limits["option"] = inputs.batch_limit
    return limits


def images_too_small(inputs: SearchInputs) -> PlanError:
    size = " x ".join(f"{length:g}" for length in inputs.median)
    return PlanError(
        f"the median image of {size} voxels is too small for a U-Net, which needs at least 12 voxels along one axis or "
        f"8 along two of similar spacing ({inputs.configuration})",
        "Use larger or finer images",
    )


def no_patch_fits(inputs: SearchInputs, memory: Memory, budget: int, alternative: str = "") -> PlanError:
    """`alternative` follows in the remedy."""
    if inputs.patch_limit is not None:
        return PlanError(
            f"no patch of {inputs.configuration} has at most {inputs.patch_limit} voxels, the limit that is set",
            f"Allow a larger patch{alternative}",
        )
    return PlanError(
        f"no patch fits into {format_size(budget)} by {memory.source} ({inputs.configuration})",
        f"Give more --memory, or a smaller base_features{alternative}",
    )


def patch_limit(inputs: SearchInputs, patch: Sequence[int]) -> Limit:
    """What keeps the patch from being larger."""
    if all(length >= whole for length, whole in zip(patch, inputs.median, strict=True)):
        return "image"
    if inputs.patch_limit is not None:
        return "option"
    return "search" if tuple(patch) == start_topology(inputs).patch else "memory"


def patch_reason(inputs: SearchInputs, patch: Sequence[int], memory: Memory, budget: int) -> Reason:
    median = " x ".join(f"{length:g}" for length in inputs.median)
    why = {
        "image": f"the median image ({median}) rounded up to a size that the strides divide",
        "option": f"the largest within the limit of {inputs.patch_limit} voxels that is given",
        "search": "the largest considered: of equal length in mm inside the median image",
        "memory": f"the largest that fits into {format_size(budget)} by {memory.source}",
    }
    text = f"patch {' x '.join(map(str, patch))}: {why[patch_limit(inputs, patch)]}"
    return Reason(configuration=inputs.configuration, topic="patch", text=text)


def batch_reason(inputs: SearchInputs, batch: int, limit: Limit) -> Reason:
    limits = {
        "data": f"{inputs.largest_share:.0%} of the data set's voxels",
        "option": "the limit given",
        "memory": "memory",
        "minimum": "the smallest batch allowed",
    }
    text = f"batch {batch}, limited by {limits[limit]}"
    return Reason(configuration=inputs.configuration, topic="batch", text=text)


@dataclass(frozen=True)
class PresetRules:
    """One of nnU-Net's planners. Numbers by dimension of the network where there are two."""

    planner: str
    """its class in nnU-Net"""
    family: str
    memory_bytes: int
    """nominal target when none is given"""
    reference_outputs: dict[int, int]
    """convolution outputs of one sample of which `REFERENCE_BATCH` are assumed to fill the nominal target"""
    fitting_batch: dict[int, int]
    """samples that a patch must leave room for"""
    largest_share: float
    """of the data set's voxels in a batch"""
    base_features: int = 32
    minimum_batch: int = 2


def _residual(planner: str, gigabytes: int, flat: int, volume: int) -> PresetRules:
    """A residual planner: a patch must leave room for the whole reference batch, which may hold the whole data set."""
    return PresetRules(
        planner=planner,
        family="residual",
        memory_bytes=gigabytes * GIB,
        reference_outputs={2: flat, 3: volume},
        fitting_batch=REFERENCE_BATCH,
        largest_share=1.0,
    )


PRESETS: dict[Preset, PresetRules] = {
    "nnunet": PresetRules(
        planner="ExperimentPlanner",
        family="plain",
        memory_bytes=8 * GIB,
        reference_outputs=REFERENCE_OUTPUTS,
        fitting_batch={2: 2, 3: 2},
        largest_share=LARGEST_SHARE,
    ),
    "residual-m": _residual("nnUNetPlannerResEncM", 8, 135_000_000, 680_000_000),
    "residual-l": _residual("nnUNetPlannerResEncL", 24, 380_000_000, 2_100_000_000),
    "residual-xl": _residual("nnUNetPlannerResEncXL", 40, 560_000_000, 3_600_000_000),
}


@dataclass(frozen=True)
class NominalMemory:
    """nnU-Net's prediction: a count of convolution outputs against a constant that stands for a nominal target.

    The batch is rounded to the nearest whole number, as there, so it may exceed the target by half a sample.
    """

    rules: PresetRules
    budget: int
    outputs: int
    """channels of the final head as nnU-Net counts them"""
    constant: int = 0

    @property
    def source(self) -> str:
        return f"the proxy of nnU-Net's {self.rules.planner}, as a nominal target"

    def within(self, budget: int) -> Self:
        return replace(self, budget=budget)

    def fits(self, spec: NetworkSpec, patch: tuple[int, ...], batch: int) -> bool:
        count = convolution_outputs(spec, patch, self.outputs)
        samples, reference = max(batch, self.rules.fitting_batch[spec.dims]), REFERENCE_BATCH[spec.dims]
        needed = count if samples == reference else count / reference * samples
        return not needed > self._allowed(spec.dims)

    def largest_batch(self, spec: NetworkSpec, patch: tuple[int, ...], most: int) -> int:
        count = convolution_outputs(spec, patch, self.outputs)
        return min(round(self._allowed(spec.dims) / count * REFERENCE_BATCH[spec.dims]), most)

    def predicted(self, spec: NetworkSpec, patch: tuple[int, ...], batch: int) -> int:
        """The share of the reference that is used, in bytes of the nominal target."""
        count = convolution_outputs(spec, patch, self.outputs) * batch / REFERENCE_BATCH[spec.dims]
        return round(count / self.rules.reference_outputs[spec.dims] * self.rules.memory_bytes)

    def _allowed(self, dims: int) -> float:
        return self.rules.reference_outputs[dims] * (self.budget / self.rules.memory_bytes)

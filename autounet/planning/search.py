"""Patch, depth and batch of one configuration: the largest patch for the smallest batch, then the largest batch.

nnU-Net v2's search. `Task` is what it needs to know of the data on one grid.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..schema.errors import PlanError
from ..schema.plan import Limit, Limits, NetworkSpec
from ..schema.quantities import format_size
from .memory import Memory
from .topology import Topology, find_topology

START_EDGE = {2: 2048, 3: 256}
"""the search starts from a patch with the volume of this cube (square), shaped to be isotropic in mm"""
LARGEST_SHARE = 0.05
"""a batch covers at most this share of the data set's voxels, against overfitting"""


@dataclass(frozen=True)
class Task:
    """The data on one grid; `spacing` (mm) and `median` size have one entry per dimension of the network."""

    name: str
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
class Found:
    patch: tuple[int, ...]
    batch: int
    network: NetworkSpec
    memory_bytes: int
    limited_by: Limits
    reasons: tuple[str, ...]


Propose = Callable[[Topology], NetworkSpec]


def search(task: Task, memory: Memory, propose: Propose, budget: int) -> Found:
    """Raises PlanError when images are too small for a U-Net or the budget too small for any patch."""
    patch, network = find_patch(task, memory, propose, budget)
    batch, batch_limit = choose_batch(task, memory, network, patch)
    limits = Limits(patch=patch_limit(task, patch), batch=batch_limit)
    return Found(
        patch=patch,
        batch=batch,
        network=network,
        memory_bytes=memory.predicted(network, patch, batch),
        limited_by=limits,
        reasons=(patch_reason(task, patch, memory, budget), batch_reason(task, batch, batch_limit)),
    )


def find_patch(task: Task, memory: Memory, propose: Propose, budget: int) -> tuple[tuple[int, ...], NetworkSpec]:
    """The first patch, from large to small, whose smallest batch fits. Raises PlanError as `search` does."""
    topology = start_topology(task)
    if len(topology.strides) < 2:
        raise PlanError(images_too_small(task))
    seen: set[tuple[int, ...]] = set()
    while topology.patch not in seen and len(topology.strides) > 1:
        network = propose(topology)
        if task.allows(topology.patch) and memory.fits(network, topology.patch, task.least_batch):
            return topology.patch, network
        seen.add(topology.patch)
        topology = shrink(topology, task)
    raise PlanError(no_patch_fits(task, memory, budget))


def start_topology(task: Task) -> Topology:
    """Larger than most budgets allow, isotropic in mm, no larger than the median image."""
    dims = len(task.spacing)
    inverse = 1 / task.spacing
    edges = inverse * (START_EDGE[dims] ** dims / np.prod(inverse)) ** (1 / dims)
    return find_topology(task.spacing, [min(max(1, round(a)), b) for a, b in zip(edges, task.median, strict=True)])


def shrink(topology: Topology, task: Task) -> Topology:
    """One step smaller along the axis that is largest beside the median image (the last of equal ones).

    The step is the divisor of the already smaller patch, which may be less than that of the present one: for 256 with
    divisor 64 the next size is 224, not 192.
    """
    relative = [length / median for length, median in zip(topology.patch, task.median, strict=True)]
    axis = max(range(len(relative)), key=lambda index: (relative[index], index))
    probe = list(topology.patch)
    probe[axis] -= topology.divisor[axis]
    smaller = list(topology.patch)
    smaller[axis] -= find_topology(task.spacing, probe).divisor[axis]
    return find_topology(task.spacing, smaller)


def choose_batch(task: Task, memory: Memory, network: NetworkSpec, patch: tuple[int, ...]) -> tuple[int, Limit]:
    """The largest batch within memory, 5 % of the voxels and the limit, never below the least; and what limits it."""
    limits = _sample_limits(task, patch)
    least, most = task.least_batch, most_samples(task, patch)
    batch = memory.largest_batch(network, patch, most)
    if batch < most:
        return (batch, "memory") if batch >= least else (least, "minimum")
    limit = min(limits, key=lambda name: limits[name])
    return most, limit if limits[limit] >= least else "minimum"


def most_samples(task: Task, patch: Sequence[int]) -> int:
    """The largest batch that anything but memory allows."""
    return max(task.least_batch, min(_sample_limits(task, patch).values()))


def _sample_limits(task: Task, patch: Sequence[int]) -> dict[Limit, int]:
    limits: dict[Limit, int] = {"data": round(task.voxels * task.largest_share / np.prod(patch, dtype=np.float64))}
    if task.batch_limit is not None:
        limits["option"] = task.batch_limit
    return limits


def images_too_small(task: Task) -> str:
    size = " x ".join(f"{length:g}" for length in task.median)
    return (
        f"{task.name}: the median image of {size} voxels is too small for a U-Net, which needs at least 12 voxels "
        "along one axis or 8 along two of similar spacing. Use larger or finer images"
    )


def no_patch_fits(task: Task, memory: Memory, budget: int) -> str:
    if task.patch_limit is not None:
        return f"{task.name}: no patch of at most {task.patch_limit} voxels, which is the limit given, fits the data"
    return (
        f"{task.name}: no patch fits into {format_size(budget)} by {memory.source}. "
        "Give more --memory, or a smaller base_features"
    )


def patch_limit(task: Task, patch: Sequence[int]) -> Limit:
    """What keeps the patch from being larger."""
    if all(length >= whole for length, whole in zip(patch, task.median, strict=True)):
        return "image"
    if task.patch_limit is not None:
        return "option"
    return "search" if tuple(patch) == start_topology(task).patch else "memory"


def patch_reason(task: Task, patch: Sequence[int], memory: Memory, budget: int) -> str:
    size = " x ".join(str(length) for length in patch)
    median = " x ".join(f"{length:g}" for length in task.median)
    why = {
        "image": f"the median image ({median}) rounded up to what the strides divide",
        "option": f"the largest within the limit of {task.patch_limit} voxels that is given",
        "search": "the largest considered: of equal length in mm inside the median image",
        "memory": f"the largest that fits into {format_size(budget)} by {memory.source}",
    }
    return f"{task.name}: patch {size}, {why[patch_limit(task, patch)]}."


def batch_reason(task: Task, batch: int, limit: Limit) -> str:
    what = {
        "data": f"{task.largest_share:.0%} of the data set's voxels",
        "option": "the limit given",
        "memory": "memory",
        "minimum": "the smallest batch allowed",
    }
    return f"{task.name}: batch {batch}, limited by {what[limit]}."

"""Patch, depth, batch and width of one configuration that fill a memory budget: the default planner's search.

The largest patch whose smallest batch fits comes first, then the largest batch, then the widest network. A data set
that is too small to use the memory by patch and batch gets no wider network for that: it would cost time and overfit.
nnU-Net's own search, which the presets use, is `search.search_as_nnunet`; both walk through the same patches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Literal

import numpy as np

from ..schema.plan import Limit, Limits, NetworkSpec, Reason
from .memory import Memory
from .search import (
    SearchInputs,
    SearchResult,
    batch_reason,
    choose_batch,
    images_too_small,
    most_samples,
    no_patch_fits,
    patch_limit,
    patch_reason,
    start_topology,
)
from .spacing import Topology, shrink

WIDTH = 32
"""features of the first stage before what memory is left is filled with wider ones (nnU-Net's)"""
WIDTH_STEP = 4
"""from 32 to 36 is an eighth more memory, so that a budget is filled to more than 85 %"""
MOST_WIDTH = 128
"""rarely reached: what is left where memory limits patch and batch is less than another sample"""
WELL_USED = 0.85
"""share of the budget from which on nothing needs to be explained"""
COMPARED_SHARE = 0.25
"""patches smaller than this share of the chosen one cannot hold more voxels in a batch, and are not tried"""

LEAST_SHARE = 0.5
"""of the memory for each voxel of a batch, that a smaller patch with a shallower network takes at least: stages that it
lacks have an eighth of the voxels each of the stage above, or a quarter where slices are thick"""

ProposeWidth = Callable[[Topology, int], NetworkSpec]
"""(topology, features of the first stage) -> network"""
ValidSize = Callable[[NetworkSpec, tuple[int, ...]], tuple[int, ...]]
"""(network, size) -> the smallest patch that the network takes and whose output is at least this large"""


@dataclass(frozen=True)
class PatchCandidate:
    """One patch that may be chosen, and its network."""

    topology: Topology
    network: NetworkSpec
    patch: tuple[int, ...]

    @property
    def voxels(self) -> int:
        return int(np.prod(self.patch))


@dataclass(frozen=True)
class MemoryFillingSearch:
    """The search of one configuration for `budget` bytes."""

    inputs: SearchInputs
    memory: Memory
    propose: ProposeWidth
    valid_size: ValidSize
    budget: int
    width: int | None
    """features of the first stage; None: `WIDTH`, or more where memory limits patch or batch and some is left"""

    def find(self) -> SearchResult:
        """More memory never gives fewer voxels in a batch, unless the width is given.

        Raises PlanError when images are too small for a U-Net or the budget too small for any patch.
        """
        fitting, (size, batch, limit) = self._chosen()
        patch_limited = patch_limit(self.inputs, size.patch) if size is fitting else limit
        widened = self.width is None and "memory" in (patch_limited, limit)
        network = self._widest(size, batch) if widened else size.network
        used = self.memory.predicted(network, size.patch, batch)
        return SearchResult(
            patch=size.patch,
            batch=batch,
            network=network,
            memory_bytes=used,
            limited_by=Limits(
                patch=patch_limited,
                batch=limit,
                width=self._width_limit(network, widened),
            ),
            reasons=(
                self._patch_reason(size, fitting),
                batch_reason(self.inputs, batch, limit),
                *self._width_reasons(network, used),
            ),
        )

    def patch(self) -> tuple[int, ...]:
        """That of `find`, with less work; raises PlanError as it does."""
        return self._chosen()[1][0].patch

    def _chosen(self) -> tuple[PatchCandidate, tuple[PatchCandidate, int, Limit]]:
        """The largest candidate that fits, and the candidate and batch that are chosen."""
        sizes = self._sizes()
        first = self._first(sizes)
        # a given width is set by --time or a person and goes with the largest patch, not with the most voxels
        return sizes[first], self._most_voxels(sizes[first], [] if self.width else sizes[first + 1 :])

    def _first(self, sizes: Sequence[PatchCandidate]) -> int:
        """Index of the largest that fits, from few predictions, since each topology must be traced by itself.

        Between two candidates memory is assumed to be linear in the voxels, which says which one to try next.
        """
        low, high = -1, len(sizes)  # the smallest known not to fit, the largest known to fit
        probe, known = 0, [(0, 0)]
        while high - low > 1:
            size = sizes[probe]
            used = self._least_bytes(size)
            low, high = (low, probe) if used <= self.budget else (probe, high)
            (voxels, before), known = known[-1], [*known, (size.voxels, used)]
            slope = max((used - before) / (size.voxels - voxels or 1), used / size.voxels / 2)
            affordable = size.voxels + (self.budget - used) / slope
            guess = next((index for index in range(low + 1, high) if sizes[index].voxels <= affordable), high - 1)
            probe = min(max(guess, low + 1), high - 1)
        if high == len(sizes):
            raise no_patch_fits(self.inputs, self.memory, self.budget)
        return high

    def _sizes(self) -> list[PatchCandidate]:
        """From large to small, each patch once."""
        topology = start_topology(self.inputs)
        if len(topology.strides) < 2:
            raise images_too_small(self.inputs)
        sizes: list[PatchCandidate] = []
        seen: set[tuple[int, ...]] = set()
        while topology.patch not in seen and len(topology.strides) > 1:
            network = self.propose(topology, self.width or WIDTH)
            patch = self.valid_size(network, topology.patch)
            if self.inputs.allows(patch):
                sizes.append(PatchCandidate(topology, network, patch))
            seen.add(topology.patch)
            topology = shrink(topology, self.inputs.spacing, self.inputs.median)
        return sizes

    def _most_voxels(
        self, first: PatchCandidate, smaller: Sequence[PatchCandidate]
    ) -> tuple[PatchCandidate, int, Limit]:
        """The first size that fits, unless a smaller one held more voxels in a batch with less memory.

        That happens where the larger patch needs a deeper network and has just begun to fit. The smaller patch then
        keeps the batch it had before, and memory that is left makes the network wider.
        """
        best = (first, *choose_batch(self.inputs, self.memory, first.network, first.patch))
        close = list(takewhile(lambda size: size.voxels >= COMPARED_SHARE * first.voxels, smaller))
        below = self._least_bytes(first) - 1
        by_voxel = self._bytes_by_voxel(first, best[1])
        unasked: list[PatchCandidate] = []  # whose smallest batch may lower `below`; asked only where that can matter
        for size in close:
            needed = best[0].voxels * best[1] // size.voxels + 1
            hopeless = self.memory.constant + LEAST_SHARE * by_voxel * needed * size.voxels > below
            enough = not hopeless and most_samples(self.inputs, size.patch) >= needed
            if enough and self._takes(size, needed) <= below:
                below = min([below, *(self._least_bytes(each) - 1 for each in unasked)])
                unasked = []
                held = choose_batch(self.inputs, self.memory.within(below), size.network, size.patch)
                if held[0] >= needed:
                    best = (size, *held)
            unasked.append(size)
        return best

    def _bytes_by_voxel(self, size: PatchCandidate, batch: int) -> float:
        """By which a batch of more voxels takes more; 0 where only the smallest is known."""
        more = batch - self.inputs.least_batch
        return (self._takes(size, batch) - self._least_bytes(size)) / (more * size.voxels) if more > 0 else 0.0

    def _least_bytes(self, size: PatchCandidate) -> int:
        """Of the smallest batch."""
        return self._takes(size, self.inputs.least_batch)

    def _takes(self, size: PatchCandidate, batch: int) -> int:
        """Bytes."""
        return self.memory.predicted(size.network, size.patch, batch)

    def _widest(self, size: PatchCandidate, batch: int) -> NetworkSpec:
        """The widest network that fits, from few predictions: the next guess is in proportion to memory."""
        networks = [self.propose(size.topology, width) for width in range(WIDTH, MOST_WIDTH + 1, WIDTH_STEP)]

        def used(index: int) -> int:
            return self.memory.predicted(networks[index], size.patch, batch)

        low, high = 0, len(networks)  # the widest known to fit, and the narrowest known not to
        growth = used(0) * WIDTH_STEP / WIDTH
        while high - low > 1:
            more = int((self.budget - used(low)) / growth)
            probe = min(max(low + more, low + 1), high - 1)
            if used(probe) <= self.budget:
                low = probe
            else:
                high = probe
        return networks[low]

    def _width_limit(self, network: NetworkSpec, widened: bool) -> Limit:
        if not widened:
            return "option" if self.width else "data"
        return "search" if network.features[0] + WIDTH_STEP > MOST_WIDTH else "memory"

    def _reason(self, topic: Literal["patch", "network"], text: str) -> Reason:
        return Reason(configuration=self.inputs.configuration, topic=topic, text=text)

    def _patch_reason(self, size: PatchCandidate, fitting: PatchCandidate) -> Reason:
        if size is fitting:
            return patch_reason(self.inputs, size.patch, self.memory, self.budget)
        chosen, larger = (" x ".join(map(str, each.patch)) for each in (size, fitting))
        return self._reason("patch", f"patch {chosen}; the next larger, {larger}, would hold fewer voxels in a batch")

    def _width_reasons(self, network: NetworkSpec, used: int) -> Iterator[Reason]:
        width = network.features[0]
        if self.width is None and width > WIDTH:
            yield self._reason("network", f"{width} features in the first stage instead of {WIDTH}: memory was left")
        if used < WELL_USED * self.budget:
            why = "the data set is too small to use more: neither patch nor batch may grow"
            if self.width or width + WIDTH_STEP > MOST_WIDTH:
                why = f"{width} features in the first stage are {'given' if self.width else 'the most'}"
            yield self._reason("network", f"memory of the budget is left, since {why}")

"""What all configurations of one plan share, and the search for patch, batch and network of one of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

import numpy as np

from ..nets import FAMILIES
from ..nets.family import covering_size
from ..schema.fingerprint import Fingerprint
from ..schema.labels import Labels, TargetKind, planned_targets, targets_of
from ..schema.options import PlannerOptions
from ..schema.plan import ChannelNormalisation, NetworkSpec
from ..schema.run import DeviceProfile
from .fill_memory import WIDTH, MemoryFillingSearch
from .memory import Measure, Memory
from .plan_transfer import StartingModel, search_with_network
from .search import LARGEST_SHARE, PRESETS, PresetRules, SearchInputs, SearchResult, find_patch, search_as_nnunet
from .spacing import Grid, Topology


@dataclass(frozen=True)
class PlanInputs:
    """The data, options and device of one plan, and what follows from them for every configuration."""

    fingerprint: Fingerprint
    labels: Labels
    options: PlannerOptions
    profile: DeviceProfile | None
    memory: Memory
    measure: Measure | None
    grid: Grid
    normalisation: tuple[ChannelNormalisation, ...]
    extra_channels: int = 0
    """input channels that hold a previous stage's segmentation"""
    starting: StartingModel | None = None
    """whose networks are transferred"""
    _specs: dict[tuple[object, ...], NetworkSpec] = field(default_factory=dict, compare=False)

    @property
    def rules(self) -> PresetRules | None:
        """Those of the preset; None without one."""
        return PRESETS[self.options.preset] if self.options.preset else None

    @property
    def family(self) -> str:
        """The preset's, whatever the options say."""
        return self.rules.family if self.rules else self.options.family

    @property
    def targets(self) -> TargetKind:
        return planned_targets(self.labels)

    def search_inputs(self, configuration: str, spacing: np.ndarray, median: np.ndarray, voxels: float) -> SearchInputs:
        """`spacing` (mm) and `median` size: one entry per dimension of the network; `voxels` of the whole data set."""
        rules, options = self.rules, self.options
        return SearchInputs(
            configuration,
            spacing,
            median,
            voxels,
            rules.minimum_batch if rules else options.minimum_batch,
            options.batch_limit,
            options.patch_limit,
            rules.largest_share if rules else LARGEST_SHARE,
        )

    def propose(self, topology: Topology, base_features: int | None = None) -> NetworkSpec:
        """The family's network; without `base_features` with those of the preset."""
        base = base_features or (self.rules.base_features if self.rules else WIDTH)
        key = (topology.strides, topology.kernel_sizes, base, self.extra_channels)
        if key not in self._specs:
            family = FAMILIES[self.family]
            self._specs[key] = family.propose(
                len(topology.patch),
                len(self.fingerprint.channels) + self.extra_channels,
                len(targets_of(self.labels, self.targets)),
                topology.strides,
                topology.kernel_sizes,
                base,
                family.deep_supervision,
            )
        return self._specs[key]

    def search(self, inputs: SearchInputs) -> SearchResult:
        """Patch, batch and network. Raises PlanError when images are too small or the budget is."""
        if self.rules:
            return search_as_nnunet(inputs, self.memory, self.propose, self.options.memory_bytes)
        source = self.starting.source(inputs.configuration) if self.starting else None
        if self.starting is None or source is None:
            return self._memory_filling(inputs).find()
        trained = self.starting.configurations[source]
        network = trained.network.model_copy(update={
            "in_channels": len(self.fingerprint.channels) + self.extra_channels,
            "out_channels": len(targets_of(self.labels, self.targets)),
        })  # fmt: skip
        return search_with_network(inputs, self.memory, source, trained, network, self.options.memory_bytes)

    def patch(self, inputs: SearchInputs) -> tuple[int, ...]:
        """The patch alone, as `search` finds it, with less work."""
        if self.rules:
            return find_patch(inputs, self.memory, self.propose, self.options.memory_bytes)[0]
        return self._memory_filling(inputs).patch()

    def _memory_filling(self, inputs: SearchInputs) -> MemoryFillingSearch:
        covering, options = partial(covering_size, FAMILIES[self.family]), self.options
        return MemoryFillingSearch(
            inputs, self.memory, self.propose, covering, options.memory_bytes, options.base_features
        )

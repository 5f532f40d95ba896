"""The presets as numbers: what the planners of nnU-Net 2.8.1 that they reproduce differ in.

All numbers are those in nnU-Net's source: `experiment_planning/experiment_planners/default_experiment_planner.py`
(ExperimentPlanner) and `residual_unets/residual_encoder_unet_planners.py` (nnUNetPlannerResEncM, L and XL).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

from ..schema.options import GIB, Preset
from ..schema.plan import NetworkSpec
from .memory import REFERENCE_BATCH, REFERENCE_OUTPUTS, convolution_outputs
from .search import LARGEST_SHARE


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

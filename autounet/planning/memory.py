"""What fits into memory: nnU-Net's proxy, or a measure that is handed in."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, Self

from ..schema.options import GIB
from ..schema.plan import NetworkSpec

Measure = Callable[[NetworkSpec, tuple[int, ...], int], int]
"""(network, patch, batch) -> peak bytes of a training step"""

REFERENCE_BYTES = 8 * GIB
REFERENCE_OUTPUTS = {2: 85_000_000, 3: 560_000_000}
"""convolution outputs per reference batch that nnU-Net v2 takes to fill the reference memory"""
REFERENCE_BATCH = {2: 12, 3: 2}
USUAL_LEAST = 2
"""batch that most searches ask for first (`PlannerOptions.minimum_batch`)"""


class Memory(Protocol):
    """A budget in bytes, and a prediction of what fits into it."""

    @property
    def source(self) -> str:
        """How memory is predicted, for sentences."""
        ...

    @property
    def constant(self) -> int:
        """Bytes of every step, whatever the network; 0 where that is not known."""
        ...

    def within(self, budget: int) -> Self:
        """The same prediction with another budget (bytes)."""
        ...

    def fits(self, spec: NetworkSpec, patch: tuple[int, ...], batch: int) -> bool: ...

    def largest_batch(self, spec: NetworkSpec, patch: tuple[int, ...], most: int) -> int:
        """The largest batch of at most `most` that fits; 0 when none does."""
        ...

    def predicted(self, spec: NetworkSpec, patch: tuple[int, ...], batch: int) -> int:
        """Bytes."""
        ...


def convolution_outputs(spec: NetworkSpec, patch: Sequence[int], outputs: int) -> int:
    """Numbers that all convolutions give for one sample: blocks, transposed convolutions, the final head.

    A residual block has two convolutions; its skip counts as one more where stride or features change, as in nnU-Net,
    though it is only pooled where the features stay. A stem comes before the first stage.
    """
    size, total, voxels = list(patch), 0, []
    before = spec.features[0]
    if spec.family == "residual":
        total += before * math.prod(size)
    for features, stride, blocks in zip(spec.features, spec.strides, spec.encoder_blocks, strict=True):
        size = [length // step for length, step in zip(size, stride, strict=True)]
        voxels.append(math.prod(size))
        convolutions = blocks
        if spec.family == "residual":
            convolutions = 2 * blocks + (features != before or max(stride) > 1)
        total += features * convolutions * voxels[-1]
        before = features
    for stage, blocks in enumerate(spec.decoder_blocks):
        total += spec.features[stage] * (blocks + 1) * voxels[stage]
    return total + outputs * voxels[0]


@dataclass(frozen=True)
class ProxyMemory:
    """nnU-Net's count of convolution outputs against a constant; knows neither precision nor optimiser.

    The batch is rounded down; `presets.NominalMemory` rounds it as nnU-Net does.
    """

    budget: int
    outputs: int
    """channels of the final head"""
    source: str = "nnU-Net's proxy for memory (a count of convolution outputs, converted to bytes)"
    constant: int = 0

    def within(self, budget: int) -> Self:
        return replace(self, budget=budget)

    def fits(self, spec: NetworkSpec, patch: tuple[int, ...], batch: int) -> bool:
        count = convolution_outputs(spec, patch, self.outputs)
        return not count / REFERENCE_BATCH[spec.dims] * batch > self._allowed(spec.dims)

    def largest_batch(self, spec: NetworkSpec, patch: tuple[int, ...], most: int) -> int:
        count = convolution_outputs(spec, patch, self.outputs)
        return min(int(self._allowed(spec.dims) / count * REFERENCE_BATCH[spec.dims]), most)

    def predicted(self, spec: NetworkSpec, patch: tuple[int, ...], batch: int) -> int:
        count = convolution_outputs(spec, patch, self.outputs)
        share = count * batch / REFERENCE_BATCH[spec.dims] / REFERENCE_OUTPUTS[spec.dims]
        return round(share * REFERENCE_BYTES)

    def _allowed(self, dims: int) -> float:
        return REFERENCE_OUTPUTS[dims] * (self.budget / REFERENCE_BYTES)


@dataclass(frozen=True)
class MeasuredMemory:
    """A measure that is handed in, assumed to grow with the batch; each value is measured once."""

    budget: int
    measure: Measure
    source: str = "the memory model"
    constant: int = 0
    _known: dict[tuple[str, tuple[int, ...], int], int] = field(default_factory=dict)

    def within(self, budget: int) -> Self:
        return replace(self, budget=budget)

    def fits(self, spec: NetworkSpec, patch: tuple[int, ...], batch: int) -> bool:
        return self.predicted(spec, patch, batch) <= self.budget

    def largest_batch(self, spec: NetworkSpec, patch: tuple[int, ...], most: int) -> int:
        """From few measures: the next batch is where the line through the last two meets the budget.

        They begin with a small batch, which is known already and quick to trace.
        """
        low, high = 0, most + 1  # the largest known to fit, the smallest known not to
        probe, last = min(most, USUAL_LEAST), (0, 0)
        while high - low > 1:
            used = self.predicted(spec, patch, probe)
            low, high = (probe, high) if used <= self.budget else (low, probe)
            slope = (used - last[1]) / (probe - last[0]) or 1
            guess = probe + math.floor((self.budget - used) / slope)
            last = probe, used
            probe = min(max(guess, low + 1), high - 1)
        return low

    def predicted(self, spec: NetworkSpec, patch: tuple[int, ...], batch: int) -> int:
        key = (spec.digest(), patch, batch)
        if key not in self._known:
            self._known[key] = self.measure(spec, patch, batch)
        return self._known[key]

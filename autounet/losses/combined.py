"""Terms over one encoding, added up: a loss of one network output."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from autounet.losses.voxels import Encoding, Voxels

Term = Callable[[Voxels], Tensor]


class VoxelLoss:
    """`loss(logits, labels, weight, annotated) -> scalar`, the sum of `terms`, which share one softmax or sigmoid."""

    def __init__(self, encoding: Encoding, *terms: Term) -> None:
        self.encoding = encoding
        self.terms = terms

    def __call__(
        self, logits: Tensor, labels: Tensor, weight: Tensor | None = None, annotated: Tensor | None = None
    ) -> Tensor:
        voxels = self.encoding(logits, labels, weight, annotated)
        first, *others = (term(voxels) for term in self.terms)
        return sum(others, start=first)

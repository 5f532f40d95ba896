"""Network outputs with their targets, as all losses except the fast Dice plus cross-entropy read them.

Two encodings. Exclusive: a softmax over K classes, of which one is right. Overlapping: a sigmoid for each channel,
whose target is a union of classes. Terms of a loss see likelihoods, sums and weights, and work for both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, distributed
from torch.nn import functional

SMALLEST_TOTAL = 1e-8
"""least divisor of a mean over weights: with every voxel ignored the loss and its gradient are 0"""


class Voxels(Protocol):
    """One level of a batch. B samples, C channels, N voxels; C' is 1 for exclusive classes and C for overlapping."""

    weight: Tensor | None
    """(B, 1, N) or (B, C, N): weight of the likelihoods, 0 where nothing is known; None: 1 everywhere"""

    def log_likelihood(self) -> Tensor:
        """(B, C', N) log-probability of what is true."""
        ...

    def error(self) -> Tensor:
        """(B, C', N) probability of what is not true: 1 - exp(log_likelihood), without cancellation."""
        ...

    def sums(self) -> Tensor:
        """(3, B, F) sums over voxels of p y, p and y with their weights; F channels, without the background."""
        ...

    def annotated(self) -> Tensor:
        """(B, F) 1 where the sample's case was annotated for the channel, else 0; in the type of the likelihoods."""
        ...


class _Summed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part: Tensor) -> Tensor:
        whole = part.detach().clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(whole)
        return whole

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Tensor:
        return upstream


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part: Tensor, lengths: Sequence[int], rank: int, axis: int) -> Tensor:
        ctx.place = (axis, sum(lengths[:rank]), lengths[rank])
        first = part.detach().movedim(axis, 0)
        whole = first.new_zeros(sum(lengths), *first.shape[1:])
        whole[ctx.place[1] : ctx.place[1] + lengths[rank]] = first
        distributed.all_reduce(whole)  # parts of unequal length, which not every backend gathers
        return whole.movedim(0, axis)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        return upstream.narrow(*ctx.place), None, None, None


@dataclass(frozen=True)
class Shares:
    """How the samples of a batch are spread over several processes, of which each computes the loss of all of them.

    The gradient that a process gets is that by its own samples: the sum of the processes' gradients is that of the
    batch in one process. So nothing is exchanged on the way back.
    """

    samples: tuple[int, ...] = (1,)
    """of each process, by rank; one process: of any number"""
    rank: int = 0

    def all_of(self, own: int) -> tuple[int, ...]:
        """What each process has of something of which this one has `own`, in proportion to its samples."""
        return tuple(own // self.samples[self.rank] * samples for samples in self.samples)

    def summed(self, part: Tensor) -> Tensor:
        """The sum of every process's part, the same everywhere."""
        return _Summed.apply(part) if len(self.samples) > 1 else part

    def gathered(self, part: Tensor, axis: int, lengths: Sequence[int] | None = None) -> Tensor:
        """Every process's part along `axis`, by rank: as long as `lengths`, or in proportion to the samples."""
        if len(self.samples) < 2:
            return part
        return _Gathered.apply(part, lengths or self.all_of(part.shape[axis]), self.rank, axis)


_shares = [Shares()]


def shares() -> Shares:
    """Those of the training of this process."""
    return _shares[0]


def share_batches(new: Shares) -> None:
    """From here on the losses of this process are those of batches spread like this."""
    _shares[0] = new


Encoding = Callable[[Tensor, Tensor, Tensor | None, Tensor | None], Voxels]
"""(logits (B,C,*S), labels (B,*S), weight (B,*S) or None, annotated (B,K) or None) -> Voxels"""


def flat_logits(logits: Tensor) -> Tensor:
    """(B, C, N) in float32 (float64 stays), contiguous whatever the memory order of `logits`."""
    wanted = torch.float64 if logits.dtype == torch.float64 else torch.float32
    return logits.flatten(2).to(wanted, memory_format=torch.contiguous_format)


def known_weight(target: Tensor, weight: Tensor | None, ignores: bool, dtype: torch.dtype) -> Tensor | None:
    """(B, N) weight of each voxel, 0 where `target` (B, N) is -1; None where all are 1."""
    flat = None if weight is None else weight.flatten(1).to(dtype)
    if not ignores:
        return flat
    known = (target >= 0).to(dtype)
    return known if flat is None else flat * known


def merge_unannotated(logits: Tensor, target: Tensor, annotated: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Classes that were not annotated become part of the background: the marginal loss.

    In such a case label 0 means: background, or one of them. So its probability is the sum of theirs, and they have
    none of their own (Shi, Xiao, Chen, Zhou 2021, Marginal loss and exclusion loss for partially supervised
    multi-organ segmentation, Medical Image Analysis 70, 101979). `logits` (B, K, N), `target` (B, N) with -1 kept,
    `annotated` (B, K) bool, whose column 0 is not read. Returns all three, the last with column 0 set.
    """
    missing = ~annotated.bool()
    missing = torch.cat((torch.zeros_like(missing[:, :1]), missing[:, 1:]), 1)  # (B, K)
    never = float("-inf")
    in_background = torch.cat((torch.ones_like(missing[:, :1]), missing[:, 1:]), 1)
    background = logits.masked_fill(~in_background[:, :, None], never).logsumexp(1, keepdim=True)
    merged = torch.cat((background, logits[:, 1:].masked_fill(missing[:, 1:, None], never)), 1)
    unseen = missing.gather(1, target.clamp(min=0))
    return merged, target.masked_fill(unseen & (target >= 0), 0), ~missing


@dataclass(frozen=True)
class Exclusive:
    """Encoding of K classes of which every voxel has one; -1 occurs among the labels only with `ignores`."""

    ignores: bool = True

    def __call__(
        self, logits: Tensor, labels: Tensor, weight: Tensor | None = None, annotated: Tensor | None = None
    ) -> Voxels:
        flat, target = flat_logits(logits), labels.flatten(1).long()
        if annotated is not None:
            flat, target, annotated = merge_unannotated(flat, target, annotated)
        share = known_weight(target, weight, self.ignores, flat.dtype)
        if self.ignores:
            target = target.clamp(min=0)
        return ExclusiveVoxels(flat, target, None if share is None else share[:, None], annotated)


class ExclusiveVoxels:
    """Softmax; the background takes part in the likelihood and not in the sums."""

    def __init__(self, logits: Tensor, target: Tensor, weight: Tensor | None, annotated: Tensor | None) -> None:
        """`logits` (B, K, N), `target` (B, N) in 0..K-1, `weight` (B, 1, N), `annotated` (B, K)."""
        self.logits, self.target, self.weight, self._annotated = logits, target, weight, annotated
        self._log_probability = logits.log_softmax(1)
        self._index = target[:, None]

    def log_likelihood(self) -> Tensor:
        return self._log_probability.gather(1, self._index)

    def error(self) -> Tensor:
        return -torch.expm1(self.log_likelihood())

    def sums(self) -> Tensor:
        probability = self._log_probability.exp()
        weight = self.target.new_ones((), dtype=probability.dtype) if self.weight is None else self.weight
        own = (probability.gather(1, self._index) * weight)[:, 0]  # (B, N)
        empty = own.new_zeros(probability.shape[:2])
        overlap = empty.scatter_add(1, self.target, own)
        present = empty.scatter_add(1, self.target, weight.expand_as(self._index)[:, 0])
        return torch.stack((overlap, (probability * weight).sum(-1), present))[:, :, 1:]

    def annotated(self) -> Tensor:
        if self._annotated is None:
            return self.logits.new_ones(self.logits.shape[0], self.logits.shape[1] - 1)
        return self._annotated[:, 1:].to(self.logits.dtype)


class Overlapping:
    """Encoding of channels that are unions of classes; -1 occurs among the labels only with `ignores`.

    `members` holds the dense classes of each channel, `classes` is K.
    """

    def __init__(self, members: Sequence[Sequence[int]], classes: int, ignores: bool = True) -> None:
        self.table = tuple(tuple(index in set(each) for index in range(classes)) for each in members)
        self.ignores = ignores

    def __call__(
        self, logits: Tensor, labels: Tensor, weight: Tensor | None = None, annotated: Tensor | None = None
    ) -> Voxels:
        flat, target = flat_logits(logits), labels.flatten(1).long()
        share = known_weight(target, weight, self.ignores, flat.dtype)
        if self.ignores:
            target = target.clamp(min=0)
        table = torch.tensor(self.table).to(flat.device, non_blocking=True)  # (C, K)
        certain = None if annotated is None else self._certain(table, annotated.bool()).to(flat.dtype)
        if certain is not None:
            share = certain[:, :, None] if share is None else certain[:, :, None] * share[:, None]
        elif share is not None:
            share = share[:, None]
        return OverlappingVoxels(flat, table[:, target].transpose(0, 1), share, certain)

    def _certain(self, table: Tensor, annotated: Tensor) -> Tensor:
        """(B, C) bool: whether the labels determine what is in the channel.

        Classes that were not annotated are labelled 0: they must lie on the same side as the background.
        """
        differs = table != table[:, :1]  # (C, K); never the background itself
        return ~(differs[None] & ~annotated[:, None]).any(-1)


class OverlappingVoxels:
    """A sigmoid for each channel, none of which is a background."""

    def __init__(self, logits: Tensor, target: Tensor, weight: Tensor | None, annotated: Tensor | None) -> None:
        """`logits` (B, C, N), `target` (B, C, N) bool, `weight` (B, 1 or C, N), `annotated` (B, C)."""
        self.logits, self.target, self.weight, self._annotated = logits, target, weight, annotated
        self._towards = torch.where(target, logits, -logits)

    def log_likelihood(self) -> Tensor:
        return functional.logsigmoid(self._towards)

    def error(self) -> Tensor:
        return torch.sigmoid(-self._towards)

    def sums(self) -> Tensor:
        probability, present = torch.sigmoid(self.logits), self.target.to(self.logits.dtype)
        if self.weight is not None:
            probability, present = probability * self.weight, present * self.weight
        return torch.stack(((probability * self.target).sum(-1), probability.sum(-1), present.sum(-1)))

    def annotated(self) -> Tensor:
        return self.logits.new_ones(self.logits.shape[:2]) if self._annotated is None else self._annotated

"""Sums over the processes of one distributed training, right under DistributedDataParallel."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, distributed


class Ranks(Protocol):
    """The processes that share one training, each with its part of the batch."""

    @property
    def size(self) -> int: ...

    def sum(self, values: Tensor) -> Tensor:
        """Sum of `values` over all ranks, on all ranks; `values` stays as it is. No gradient flows through."""
        ...


class ProcessGroup:
    """The ranks of a torch.distributed process group; None is the default group, which must be initialised."""

    def __init__(self, group: distributed.ProcessGroup | None = None) -> None:
        self.group = group

    @property
    def size(self) -> int:
        return distributed.get_world_size(self.group)

    def sum(self, values: Tensor) -> Tensor:
        total = values.detach().clone()
        distributed.all_reduce(total, group=self.group)
        return total


class _Total(torch.autograd.Function):
    """Every rank computes the same function of the sum, so what arrives is equal on all: their sum is `size` times it.

    That is the gradient of the sum of all ranks' losses; DistributedDataParallel's mean over ranks makes it that of
    the one loss.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, ranks: Ranks) -> Tensor:
        ctx.size = ranks.size
        return ranks.sum(values)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        return upstream * ctx.size, None


def total(values: Tensor, ranks: Ranks | None) -> Tensor:
    """Sum of `values` over `ranks` (None: this process alone), with the gradient that makes DDP's mean right."""
    return values if ranks is None else _Total.apply(values, ranks)


def mean_total(values: Tensor, ranks: Ranks | None) -> Tensor:
    """Mean over `ranks` of `values` that no gradient needs: a divisor shared by all, so that ranks' means average to
    the mean over the whole batch."""
    return values if ranks is None else ranks.sum(values) / ranks.size

"""Stochastic depth (Huang et al., ECCV 2016). This module loads torch: import it inside `build` only."""

from __future__ import annotations

from torch import Tensor, nn


class DropPath(nn.Module):
    """In training sets a residual branch to zero for a share `rate` of the samples, and scales the others up."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:  # (B, ...) -> (B, ...)
        if not self.training or self.rate == 0:
            return x
        kept = x.new_empty((len(x), *(1 for _ in x.shape[1:]))).bernoulli_(1 - self.rate)
        return x * (kept / (1 - self.rate))


def rising_rates(highest: float, count: int) -> list[float]:
    """From 0 for the first block to `highest` for the last, linearly (Sec. 3 of the paper)."""
    return [highest * index / max(1, count - 1) for index in range(count)]

"""Attention within windows that may be shifted, in 2-D and 3-D (Liu et al., ICCV 2021, arXiv 2103.14030).

This module loads torch: import it inside `build` only. Tokens lie in (B, *S, C), channels last. The batch is read
from shapes, not by `len`, which would fix it in exported programs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

BIAS_DEVIATION = 0.02
"""standard deviation of initial position biases and weights (Liu's code, where the normal distribution is cut at 2, a
hundred deviations)"""


def into_blocks(x: Tensor, step: Sequence[int]) -> Tensor:
    """(B, *S, C) -> (B, *S / step, tokens of a block, C)."""
    dims = len(step)
    pairs = [part for length, edge in zip(x.shape[1:-1], step, strict=True) for part in (length // edge, edge)]
    order = [0, *range(1, 2 * dims, 2), *range(2, 2 * dims + 1, 2), 2 * dims + 1]
    return x.reshape(x.shape[0], *pairs, x.shape[-1]).permute(order).flatten(dims + 1, 2 * dims)


def from_blocks(x: Tensor, step: Sequence[int]) -> Tensor:
    """The inverse of `into_blocks`: (B, *S / step, tokens of a block, C) -> (B, *S, C)."""
    dims = len(step)
    order = [0, *(axis for pair in range(1, dims + 1) for axis in (pair, pair + dims)), 2 * dims + 1]
    size = [length * edge for length, edge in zip(x.shape[1:-2], step, strict=True)]
    return x.unflatten(-2, tuple(step)).permute(order).reshape(x.shape[0], *size, x.shape[-1])


class WindowGrid:
    """How tokens of one size are cut into windows of at most `window` along each axis.

    Windows are made as even as that allows: 10 tokens are cut into 2 x 5, not into 7 and a rest of 3. What is left is
    padded at the end. Where one window covers an axis there is nothing to shift along it (Liu's code).
    """

    def __init__(self, size: Sequence[int], window: int, shifted: bool) -> None:
        self.size = tuple(size)
        counts = [math.ceil(length / window) for length in size]
        self.edges = tuple(math.ceil(length / count) for length, count in zip(size, counts, strict=True))
        self.padded = tuple(edge * count for edge, count in zip(self.edges, counts, strict=True))
        self.shift = tuple(edge // 2 if shifted and n > 1 else 0 for edge, n in zip(self.edges, counts, strict=True))
        self.axes = tuple(range(1, len(self.size) + 1))

    def cut(self, x: Tensor) -> Tensor:
        """(B, *S, C) -> (B, windows, tokens of a window, C), padded with zeros, then shifted cyclically."""
        if self.padded != self.size:
            margins = [part for a, b in zip(self.size, self.padded, strict=True) for part in (b - a, 0)]
            x = functional.pad(x, (0, 0, *reversed(margins)))
        if any(self.shift):
            x = torch.roll(x, [-step for step in self.shift], self.axes)
        return into_blocks(x, self.edges).flatten(1, len(self.size))

    def join(self, x: Tensor) -> Tensor:
        """The inverse of `cut`; the padding is cut off."""
        counts = tuple(length // edge for length, edge in zip(self.padded, self.edges, strict=True))
        x = from_blocks(x.unflatten(1, counts), self.edges)
        if any(self.shift):
            x = torch.roll(x, self.shift, self.axes)
        for axis, length in zip(self.axes, self.size, strict=True):
            x = x.narrow(axis, 0, length)
        return x

    def mask(self, device: torch.device) -> Tensor | None:
        """(windows, tokens, tokens): 0 where a token may look at another, -inf elsewhere; None where all may.

        Tokens that the cyclic shift brought together from opposite ends do not see each other (Liu, Sec. 3.2), and
        none sees the padding, which sees itself alone.
        """
        if self.padded == self.size and not any(self.shift):
            return None
        region = torch.zeros((1, *self.padded, 1), dtype=torch.int64, device=device)
        for axis, (length, padded, shift) in enumerate(zip(self.size, self.padded, self.shift, strict=True), start=1):
            place = torch.arange(shift, padded + shift, device=device)  # before the shift, ends not yet wrapped
            part = (place >= padded).long() + 2 * (place % padded >= length).long()
            region = 3 * region + part.reshape([-1 if other == axis else 1 for other in range(region.ndim)])
        regions = into_blocks(region, self.edges).flatten(0, len(self.size)).squeeze(-1)  # (windows, tokens)
        apart = regions[:, :, None] != regions[:, None, :]
        return torch.zeros(apart.shape, device=device).masked_fill(apart, -torch.inf)


def relative_places(edges: Sequence[int], window: int, device: torch.device) -> Tensor:
    """(tokens, tokens): row of the bias table for the offset between two tokens of a window with these edges."""
    places = torch.cartesian_prod(*(torch.arange(edge, device=device) for edge in edges))  # (tokens, axes)
    offsets = places[:, None] - places[None] + window - 1  # (tokens, tokens, axes), each 0 .. 2 window - 2
    row = offsets[..., 0]
    for axis in range(1, len(edges)):
        row = row * (2 * window - 1) + offsets[..., axis]
    return row


class WindowAttention(nn.Module):
    """Multi-head self-attention within windows, with a learnt bias for each relative position (Liu, Sec. 3.2).

    The table holds the offsets of the largest window, so that windows of any smaller size use the same biases.
    """

    def __init__(self, features: int, dims: int, heads: int, window: int, shifted: bool) -> None:
        super().__init__()
        self.heads, self.window, self.shifted = heads, window, shifted
        self.queries = nn.Linear(features, 3 * features)  # keys and values too
        self.project = nn.Linear(features, features)
        self.position = nn.Parameter(torch.empty((2 * window - 1) ** dims, heads))
        nn.init.normal_(self.position, std=BIAS_DEVIATION)

    def forward(self, x: Tensor) -> Tensor:  # (B, *S, C) -> (B, *S, C)
        grid = WindowGrid(x.shape[1:-1], self.window, self.shifted)
        packed = self.queries(grid.cut(x)).unflatten(-1, (3, self.heads, -1))  # (B, windows, tokens, 3, heads, C/heads)
        query, key, value = packed.permute(3, 0, 1, 4, 2, 5).unbind(0)  # (B, windows, heads, tokens, C/heads)
        bias = self.position[relative_places(grid.edges, self.window, x.device)].permute(2, 0, 1)
        mask = grid.mask(x.device)
        if mask is not None:
            bias = bias + mask[:, None]  # (windows, heads, tokens, tokens)
        scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
        weights = (scores + bias.to(scores.dtype)).softmax(-1)
        together = (weights.to(value.dtype) @ value).transpose(2, 3).flatten(-2)  # (B, windows, tokens, C)
        return grid.join(self.project(together))

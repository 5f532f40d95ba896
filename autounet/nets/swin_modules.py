"""The torch modules of Swin-Unet. Import inside `build` only. Tokens lie in (B, *S, C), channels last."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..schema.plan import NetworkSpec
from .blocks import CONVOLUTIONS, conv_blocks, initialise
from .depthwise import DropPath, rising_rates

HEAD_FEATURES = 32
"""query dimension of a head (Liu, Sec. 3.3)"""
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


def heads(features: int) -> int:
    """The most heads that divide `features` into at least `HEAD_FEATURES` each: 3, 6, 12, 24 for 96 to 768 (Swin-T)."""
    return max((count for count in range(1, features // HEAD_FEATURES + 1) if features % count == 0), default=1)


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


class SwinBlock(nn.Module):
    """Attention, then an MLP, each on normed tokens beside a residual connection (Cao, Sec. 3.2, equations 1 to 4)."""

    def __init__(
        self, features: int, dims: int, window: int, mlp_ratio: float, shifted: bool, drop_path: float
    ) -> None:
        super().__init__()
        hidden = round(mlp_ratio * features)
        self.norm = nn.LayerNorm(features)
        self.attention = WindowAttention(features, dims, heads(features), window, shifted)
        self.mlp = nn.Sequential(
            nn.LayerNorm(features), nn.Linear(features, hidden), nn.GELU(), nn.Linear(hidden, features)
        )
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.attention(self.norm(x)))
        return x + self.drop_path(self.mlp(x))


def swin_blocks(features: int, dims: int, window: int, mlp_ratio: float, rates: Sequence[float]) -> nn.Sequential:
    """A block for each rate of stochastic depth; every second one shifts its windows."""
    return nn.Sequential(
        *(SwinBlock(features, dims, window, mlp_ratio, index % 2 == 1, rate) for index, rate in enumerate(rates))
    )


class Embedding(nn.Module):
    """Each patch of the image becomes a token, by a linear map and a norm (Cao, Sec. 3.1)."""

    def __init__(self, inputs: int, features: int, stride: Sequence[int]) -> None:
        super().__init__()
        self.project = CONVOLUTIONS[len(stride)](inputs, features, tuple(stride), tuple(stride))
        self.norm = nn.LayerNorm(features)

    def forward(self, x: Tensor) -> Tensor:  # (B, inputs, *S) -> (B, *S / stride, features)
        return self.norm(self.project(x).movedim(1, -1))


class Merging(nn.Module):
    """Neighbouring tokens are joined, normed and mapped to `outputs` features (Cao, Sec. 3.3)."""

    def __init__(self, inputs: int, outputs: int, stride: Sequence[int]) -> None:
        super().__init__()
        self.stride = tuple(stride)
        joined = math.prod(self.stride) * inputs
        self.norm = nn.LayerNorm(joined)
        self.reduce = nn.Linear(joined, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:  # (B, *S, inputs) -> (B, *S / stride, outputs)
        return self.reduce(self.norm(into_blocks(x, self.stride).flatten(-2)))


class Expanding(nn.Module):
    """A linear map gives each token the features of several, which are laid out side by side (Cao, Sec. 3.4)."""

    def __init__(self, inputs: int, outputs: int, stride: Sequence[int]) -> None:
        super().__init__()
        self.stride = tuple(stride)
        self.expand = nn.Linear(inputs, math.prod(self.stride) * outputs, bias=False)
        self.norm = nn.LayerNorm(outputs)

    def forward(self, x: Tensor) -> Tensor:  # (B, *S, inputs) -> (B, *S x stride, outputs)
        return self.norm(from_blocks(self.expand(x).unflatten(-1, (math.prod(self.stride), -1)), self.stride))


class SwinDecoderStage(nn.Module):
    """Expand to the resolution of `stage`, join the skip by a linear map (Cao, Sec. 3.5), attend.

    The head is applied by the network.
    """

    def __init__(self, spec: NetworkSpec, stage: int, window: int, mlp_ratio: float, rates: Sequence[float]) -> None:
        super().__init__()
        features = spec.features[stage]
        self.up = Expanding(spec.features[stage + 1], features, spec.strides[stage + 1])
        self.join = nn.Linear(2 * features, features)
        self.blocks = swin_blocks(features, spec.dims, window, mlp_ratio, rates)
        self.head = None
        if spec.deep_supervision:
            self.head = nn.Sequential(nn.LayerNorm(features), nn.Linear(features, spec.out_channels))

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return self.blocks(self.join(torch.cat((self.up(x), skip), -1)))


class FullResolution(nn.Module):
    """From the tokens of stage 1 to logits at full resolution, with or without convolutions of the image."""

    def __init__(self, spec: NetworkSpec, convolve: bool) -> None:
        super().__init__()
        features, kernel, ones = spec.features[0], spec.kernel_sizes[0], (1,) * spec.dims
        self.up = Expanding(spec.features[1], features, spec.strides[1])
        self.image = conv_blocks(spec.in_channels, features, kernel, ones, spec.encoder_blocks[0]) if convolve else None
        self.blocks = conv_blocks(2 * features, features, kernel, ones, spec.decoder_blocks[0]) if convolve else None
        self.head = CONVOLUTIONS[spec.dims](features, spec.out_channels, 1, bias=convolve)

    def forward(self, x: Tensor, image: Tensor) -> Tensor:
        y = self.up(x).movedim(-1, 1)
        if self.image is not None and self.blocks is not None:
            y = self.blocks(torch.cat((y, self.image(image).to(y.dtype)), 1))
        return self.head(y)


class SwinUNet(nn.Module):
    """Input (B, C, *P), P divisible by the strides; see `Family` for what forward returns.

    Stages count from the highest resolution; stage 0 has no attention. Skips are the results of a stage's blocks (Cao,
    Figure 1). As in the authors' code norms stand after the bottleneck and before the last expanding, and a stage's
    rates of stochastic depth are the same on both ways.

    `window`: most tokens along the edge of a window; `mlp_ratio`: hidden features of the MLP in multiples of its
    inputs; `drop_path`: rate of stochastic depth in the last block; `convolve`: see `FullResolution`.
    """

    def __init__(self, spec: NetworkSpec, window: int, mlp_ratio: float, drop_path: float, convolve: bool) -> None:
        super().__init__()
        stages = len(spec.features)
        counts = spec.encoder_blocks[1:]
        rising = rising_rates(drop_path, sum(counts))
        rates = [rising[sum(counts[:level]) : sum(counts[: level + 1])] for level in range(stages - 1)]
        features, strides = spec.features, spec.strides
        self.embed = Embedding(spec.in_channels, features[1], strides[1])
        self.merge = nn.ModuleList(
            Merging(features[stage - 1], features[stage], strides[stage]) for stage in range(2, stages)
        )
        self.encoder = nn.ModuleList(
            swin_blocks(features[stage], spec.dims, window, mlp_ratio, rates[stage - 1]) for stage in range(1, stages)
        )
        self.bottleneck_norm = nn.LayerNorm(features[-1])
        self.decoder = nn.ModuleList(
            SwinDecoderStage(spec, stage, window, mlp_ratio, resized(rates[stage - 1], spec.decoder_blocks[stage]))
            for stage in range(1, stages - 1)
        )
        self.norm = nn.LayerNorm(features[1])
        self.full = FullResolution(spec, convolve)
        self._initialise()

    def _initialise(self) -> None:
        """Convolutions by He, linear maps as in the authors' code."""
        initialise(self)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=BIAS_DEVIATION)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, image: Tensor) -> Tensor | tuple[Tensor, ...]:
        x = self.encoder[0](self.embed(image))
        skips = [x]
        for merge, blocks in zip(self.merge, self.encoder[1:], strict=True):  # type: ignore[arg-type]
            x = blocks(merge(x))
            skips.append(x)
        x = self.bottleneck_norm(x)
        outputs: list[Tensor] = []
        for index in range(len(self.decoder) - 1, -1, -1):
            stage: SwinDecoderStage = self.decoder[index]  # type: ignore[assignment]
            x = stage(x, skips[index])
            if stage.head is not None and self.training:
                outputs.append(stage.head(x).movedim(-1, 1))
        outputs.append(self.full(self.norm(x), image))
        return tuple(reversed(outputs)) if self.training else outputs[-1]


def resized(rates: Sequence[float], count: int) -> list[float]:
    """The first `count` rates, the last one repeated where there are fewer."""
    return [rates[min(index, len(rates) - 1)] for index in range(count)]

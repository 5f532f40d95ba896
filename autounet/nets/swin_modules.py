"""The torch modules of Swin-Unet. Import inside `build` only. Tokens lie in (B, *S, C), channels last."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from autounet.nets.blocks import CONVOLUTIONS, conv_blocks, initialise
from autounet.nets.drop_path import DropPath, rising_rates
from autounet.nets.swin import SwinOptions, heads
from autounet.nets.window_attention import BIAS_DEVIATION, WindowAttention, from_blocks, into_blocks
from autounet.schema.plan import NetworkSpec


class SwinBlock(nn.Module):
    """Attention, then an MLP, each on normed tokens beside a residual connection (Cao, Sec. 3.2, equations 1 to 4)."""

    def __init__(self, features: int, dims: int, options: SwinOptions, shifted: bool, drop_path: float) -> None:
        super().__init__()
        hidden = round(options.mlp_ratio * features)
        self.norm = nn.LayerNorm(features)
        self.attention = WindowAttention(features, dims, heads(features), options.window, shifted)
        self.mlp = nn.Sequential(
            nn.LayerNorm(features), nn.Linear(features, hidden), nn.GELU(), nn.Linear(hidden, features)
        )
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.attention(self.norm(x)))
        return x + self.drop_path(self.mlp(x))


def swin_blocks(features: int, dims: int, options: SwinOptions, rates: Sequence[float]) -> nn.Sequential:
    """A block for each rate of stochastic depth; every second one shifts its windows."""
    return nn.Sequential(
        *(SwinBlock(features, dims, options, index % 2 == 1, rate) for index, rate in enumerate(rates))
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


class DecoderStage(nn.Module):
    """Expand to the resolution of `stage`, join the skip by a linear map (Cao, Sec. 3.5), attend.

    The head is applied by the network.
    """

    def __init__(self, spec: NetworkSpec, stage: int, options: SwinOptions, rates: Sequence[float]) -> None:
        super().__init__()
        features = spec.features[stage]
        self.up = Expanding(spec.features[stage + 1], features, spec.strides[stage + 1])
        self.join = nn.Linear(2 * features, features)
        self.blocks = swin_blocks(features, spec.dims, options, rates)
        self.head = None
        if spec.deep_supervision:
            self.head = nn.Sequential(nn.LayerNorm(features), nn.Linear(features, spec.out_channels))

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return self.blocks(self.join(torch.cat((self.up(x), skip), -1)))


class FullResolution(nn.Module):
    """From the tokens of stage 1 to logits at full resolution, with or without convolutions of the image."""

    def __init__(self, spec: NetworkSpec, options: SwinOptions) -> None:
        super().__init__()
        features, kernel, ones = spec.features[0], spec.kernel_sizes[0], (1,) * spec.dims
        self.up = Expanding(spec.features[1], features, spec.strides[1])
        convolve = options.full_resolution == "convolve"
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
    """

    def __init__(self, spec: NetworkSpec, options: SwinOptions) -> None:
        super().__init__()
        stages = len(spec.features)
        if stages < 2:
            raise ValueError("a U-Net needs at least two stages")
        counts = spec.encoder_blocks[1:]
        rising = rising_rates(options.drop_path, sum(counts))
        rates = [rising[sum(counts[:level]) : sum(counts[: level + 1])] for level in range(stages - 1)]
        features, strides = spec.features, spec.strides
        self.embed = Embedding(spec.in_channels, features[1], strides[1])
        self.merge = nn.ModuleList(
            Merging(features[stage - 1], features[stage], strides[stage]) for stage in range(2, stages)
        )
        self.encoder = nn.ModuleList(
            swin_blocks(features[stage], spec.dims, options, rates[stage - 1]) for stage in range(1, stages)
        )
        self.bottleneck_norm = nn.LayerNorm(features[-1])
        self.decoder = nn.ModuleList(
            DecoderStage(spec, stage, options, resized(rates[stage - 1], spec.decoder_blocks[stage]))
            for stage in range(1, stages - 1)
        )
        self.norm = nn.LayerNorm(features[1])
        self.full = FullResolution(spec, options)
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
            stage: DecoderStage = self.decoder[index]  # type: ignore[assignment]
            x = stage(x, skips[index])
            if stage.head is not None and self.training:
                outputs.append(stage.head(x).movedim(-1, 1))
        outputs.append(self.full(self.norm(x), image))
        return tuple(reversed(outputs)) if self.training else outputs[-1]


def resized(rates: Sequence[float], count: int) -> list[float]:
    """The first `count` rates, the last one repeated where there are fewer."""
    return [rates[min(index, len(rates) - 1)] for index in range(count)]

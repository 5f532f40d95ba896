"""The torch modules of the families plain and residual. Import inside `build` only."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..schema.plan import NetworkSpec
from .blocks import CONVOLUTIONS, SLOPE, ConvBlock, UpConvolution, average_pool, conv_blocks, initialise


class PlainEncoderStage(nn.Module):
    def __init__(self, spec: NetworkSpec, stage: int) -> None:
        super().__init__()
        inputs = spec.features[stage - 1] if stage else spec.in_channels
        self.blocks = conv_blocks(
            inputs, spec.features[stage], spec.kernel_sizes[stage], spec.strides[stage], spec.encoder_blocks[stage]
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(x)


class PlainDecoderStage(nn.Module):
    """Up from stage + 1 to the resolution of `stage`, join the skip, convolve. The head is applied by the network."""

    def __init__(self, spec: NetworkSpec, stage: int) -> None:
        super().__init__()
        features, stride = spec.features[stage], spec.strides[stage + 1]
        self.up = UpConvolution(spec.features[stage + 1], features, stride)
        ones = (1,) * spec.dims
        self.blocks = conv_blocks(2 * features, features, spec.kernel_sizes[stage], ones, spec.decoder_blocks[stage])
        supervised = stage == 0 or spec.deep_supervision
        self.head = CONVOLUTIONS[spec.dims](features, spec.out_channels, ones) if supervised else None

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return self.blocks(torch.cat((self.up(x), skip), 1))


def decode(decoder: nn.ModuleList, skips: list[Tensor], training: bool) -> Tensor | tuple[Tensor, ...]:
    """From the results of all encoder stages to logits, as `Family` describes them for train() and eval() mode."""
    x = skips[-1]
    outputs: list[Tensor] = []
    for index in range(len(decoder) - 1, -1, -1):
        stage: PlainDecoderStage = decoder[index]  # type: ignore[assignment]
        x = stage(x, skips[index])
        if stage.head is not None and (index == 0 or training):
            outputs.append(stage.head(x))
    return tuple(reversed(outputs)) if training else outputs[-1]


class PlainUNet(nn.Module):
    """Input (B, C, *P), P divisible by the strides; see `Family` for what forward returns.

    Stages count from the highest resolution. Without deep supervision only the head of decoder stage 0 exists.
    """

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__()
        stages = len(spec.features)
        self.encoder = nn.ModuleList(PlainEncoderStage(spec, stage) for stage in range(stages))
        self.decoder = nn.ModuleList(PlainDecoderStage(spec, stage) for stage in range(stages - 1))
        initialise(self)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        skips = []
        for down in self.encoder:
            x = down(x)
            skips.append(x)
        return decode(self.decoder, skips, self.training)


class ResidualBlock(nn.Module):
    """Two convolutions beside a skip, added before the last activation (ResNet-D: He et al., CVPR 2019).

    The skip is averaged where the block has a stride, and projected where it changes the number of features.
    """

    def __init__(self, inputs: int, outputs: int, kernel: Sequence[int], stride: Sequence[int]) -> None:
        super().__init__()
        ones = (1,) * len(kernel)
        self.stride = tuple(stride)
        self.first = ConvBlock(inputs, outputs, kernel, stride)
        self.second = ConvBlock(outputs, outputs, kernel, ones, slope=1.0)
        self.project = ConvBlock(inputs, outputs, ones, ones, slope=1.0, bias=False) if inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:  # (B, inputs, *S) -> (B, outputs, *S / stride)
        skip = average_pool(x, self.stride) if max(self.stride) > 1 else x
        if self.project is not None:
            skip = self.project(skip)
        return functional.leaky_relu_(self.second(self.first(x)).add_(skip), SLOPE)


class ResidualStage(nn.Module):
    def __init__(self, spec: NetworkSpec, stage: int) -> None:
        super().__init__()
        features, kernel, ones = spec.features[stage], spec.kernel_sizes[stage], (1,) * spec.dims
        before = spec.features[max(stage - 1, 0)]
        self.blocks = nn.Sequential(
            ResidualBlock(before, features, kernel, spec.strides[stage]),
            *(ResidualBlock(features, features, kernel, ones) for _ in range(spec.encoder_blocks[stage] - 1)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(x)


class ResidualUNet(nn.Module):
    """Input (B, C, *P), P divisible by the strides; see `Family` for what forward returns.

    The stem is one convolution with the first stage's kernel and features. The decoder is that of the plain U-Net.
    """

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__()
        stages = len(spec.features)
        self.stem = ConvBlock(spec.in_channels, spec.features[0], spec.kernel_sizes[0], (1,) * spec.dims)
        self.encoder = nn.ModuleList(ResidualStage(spec, stage) for stage in range(stages))
        self.decoder = nn.ModuleList(PlainDecoderStage(spec, stage) for stage in range(stages - 1))
        initialise(self)
        for module in self.modules():
            if isinstance(module, ResidualBlock):
                # at first every block passes on its skip alone (nnU-Net)
                nn.init.zeros_(module.second.norm.weight)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        x = self.stem(x)
        skips = []
        for down in self.encoder:
            x = down(x)
            skips.append(x)
        return decode(self.decoder, skips, self.training)

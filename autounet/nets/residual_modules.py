"""The torch modules of the residual encoder U-Net. Import inside `build` only."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

from ..schema.plan import NetworkSpec
from .blocks import SLOPE, ConvBlock, average_pool, initialise
from .plain_modules import DecoderStage, decode


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
        if stages < 2:
            raise ValueError("a U-Net needs at least two stages")
        self.stem = ConvBlock(spec.in_channels, spec.features[0], spec.kernel_sizes[0], (1,) * spec.dims)
        self.encoder = nn.ModuleList(ResidualStage(spec, stage) for stage in range(stages))
        self.decoder = nn.ModuleList(DecoderStage(spec, stage) for stage in range(stages - 1))
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

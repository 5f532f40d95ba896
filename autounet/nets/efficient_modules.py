"""The torch modules of the U-Net with an EfficientNet encoder. Import inside `build` only.

Modules of the encoder are named as in timm (`EfficientNet` in timm/models/efficientnet.py), so that its weights load.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..schema.plan import NetworkSpec
from .blocks import CONVOLUTIONS, conv_blocks, initialise
from .depthwise import DropPath, depthwise
from .plain_modules import PlainDecoderStage, decode

SQUEEZE = 0.25
"""features inside squeeze-and-excitation as a share of the block's inputs (MnasNet, as the paper takes it over)"""
STEM_KERNEL = 3


class BlockRow(Protocol):
    """A row of the paper's Table 1, scaled: blocks whose depthwise kernel has `kernel` voxels along an axis."""

    @property
    def kernel(self) -> int: ...
    @property
    def expansion(self) -> int: ...
    @property
    def features(self) -> int: ...
    @property
    def blocks(self) -> int: ...


class BatchNorm(nn.BatchNorm2d):
    """Batch norm, in 3-D as well. A single number per channel has no variance: the running statistics stand in."""

    def forward(self, x: Tensor) -> Tensor:
        training = self.training and x.numel() > x.shape[1]
        if training and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        return functional.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, training, self.momentum or 0.0, self.eps
        )


class SqueezeExcite(nn.Module):
    """Features are weighted by what their means over the image say (Hu et al., CVPR 2018)."""

    def __init__(self, features: int, squeezed: int, dims: int) -> None:
        super().__init__()
        self.conv_reduce = CONVOLUTIONS[dims](features, squeezed, 1)
        self.conv_expand = CONVOLUTIONS[dims](squeezed, features, 1)

    def forward(self, x: Tensor) -> Tensor:  # (B, C, *S) -> (B, C, *S)
        means = x.mean(tuple(range(2, x.ndim)), keepdim=True)
        return x * torch.sigmoid(self.conv_expand(functional.silu(self.conv_reduce(means))))


class MBConv(nn.Module):
    """Inverted residual block: 1x1 expansion, depthwise convolution, squeeze-and-excitation, 1x1 projection.

    Without expansion the first convolution does not exist, and the names are those of timm's DepthwiseSeparableConv:
    conv_dw, bn1, conv_pw, bn2 instead of conv_pw, bn1, conv_dw, bn2, conv_pwl, bn3.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        expansion: int,
        kernel: Sequence[int],
        stride: Sequence[int],
        epsilon: float,
        drop_path: float,
    ) -> None:
        super().__init__()
        dims, hidden = len(kernel), expansion * inputs
        pointwise = CONVOLUTIONS[dims]
        self.expanded = expansion > 1
        if self.expanded:
            self.conv_pw = pointwise(inputs, hidden, 1, bias=False)
            self.bn1 = BatchNorm(hidden, epsilon)
            self.conv_dw = depthwise(hidden, kernel, stride, bias=False)
            self.bn2 = BatchNorm(hidden, epsilon)
            self.se = SqueezeExcite(hidden, max(1, int(inputs * SQUEEZE)), dims)
            self.conv_pwl = pointwise(hidden, outputs, 1, bias=False)
            self.bn3 = BatchNorm(outputs, epsilon)
        else:
            self.conv_dw = depthwise(hidden, kernel, stride, bias=False)
            self.bn1 = BatchNorm(hidden, epsilon)
            self.se = SqueezeExcite(hidden, max(1, int(inputs * SQUEEZE)), dims)
            self.conv_pw = pointwise(hidden, outputs, 1, bias=False)
            self.bn2 = BatchNorm(outputs, epsilon)
        self.skip = inputs == outputs and max(stride) == 1
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:  # (B, inputs, *S) -> (B, outputs, *S / stride)
        if self.expanded:
            y = functional.silu(self.bn1(self.conv_pw(x)))
            y = self.se(functional.silu(self.bn2(self.conv_dw(y))))
            y = self.bn3(self.conv_pwl(y))
        else:
            y = self.se(functional.silu(self.bn1(self.conv_dw(x))))
            y = self.bn2(self.conv_pw(y))
        return x + self.drop_path(y) if self.skip else y


class EfficientEncoder(nn.Module):
    """(B, C, *P) -> the results of stages 1, 2, ... of `spec`. Without the classifier and the convolution before it.

    Arguments as in `EfficientUNet`.
    """

    def __init__(
        self,
        spec: NetworkSpec,
        stem: int,
        table: Sequence[BlockRow],
        rows: Sequence[Sequence[int]],
        epsilon: float,
        drop_path: float,
    ) -> None:
        super().__init__()
        self.rows = rows
        kernel = along(STEM_KERNEL, spec.kernel_sizes[1])
        padding = tuple(size // 2 for size in kernel)
        self.conv_stem = CONVOLUTIONS[spec.dims](spec.in_channels, stem, kernel, spec.strides[1], padding, bias=False)
        self.bn1 = BatchNorm(stem, epsilon)
        self.blocks = nn.Sequential()
        total = sum(row.blocks for row in table)
        for stage, stage_rows in enumerate(rows, start=1):
            for row in stage_rows:
                # the stem carries the stride of stage 1, the first row that of a later stage
                first = stage > 1 and row == stage_rows[0]
                stride = spec.strides[stage] if first else (1,) * spec.dims
                inputs = table[row - 1].features if row else stem
                done = sum(before.blocks for before in table[:row])
                rates = [drop_path * (done + index) / total for index in range(table[row].blocks)]
                self.blocks.append(mbconv_row(inputs, table[row], spec.kernel_sizes[stage], stride, epsilon, rates))

    def forward(self, x: Tensor) -> list[Tensor]:
        x = functional.silu(self.bn1(self.conv_stem(x)))
        results = []
        for rows in self.rows:
            for row in rows:
                x = self.blocks[row](x)
            results.append(x)
        return results


def mbconv_row(
    inputs: int, row: BlockRow, axes: Sequence[int], stride: Sequence[int], epsilon: float, rates: Sequence[float]
) -> nn.Sequential:
    """The blocks of one row of Table 1; the first carries the stride. `axes`: the topology's kernel size."""
    kernel, ones = along(row.kernel, axes), (1,) * len(axes)
    return nn.Sequential(
        *(
            MBConv(
                inputs if index == 0 else row.features,
                row.features,
                row.expansion,
                kernel,
                stride if index == 0 else ones,
                epsilon,
                rate,
            )
            for index, rate in enumerate(rates)
        )
    )


def along(size: int, axes: Sequence[int]) -> tuple[int, ...]:
    """A kernel of `size` along the axes where the topology convolves, 1 elsewhere."""
    return tuple(size if length > 1 else 1 for length in axes)


class EfficientUNet(nn.Module):
    """Input (B, C, *P), P divisible by the strides; see `Family` for what forward returns.

    `stem`: features of the encoder's first convolution; `table`: its rows of blocks; `rows`: which of them belong to
    stages 1, 2, ...; `epsilon`: added to the variance; `drop_path`: rate of stochastic depth after the last block.
    """

    def __init__(
        self,
        spec: NetworkSpec,
        stem: int,
        table: Sequence[BlockRow],
        rows: Sequence[Sequence[int]],
        epsilon: float,
        drop_path: float,
    ) -> None:
        super().__init__()
        ones = (1,) * spec.dims
        self.image = conv_blocks(spec.in_channels, spec.features[0], spec.kernel_sizes[0], ones, spec.encoder_blocks[0])
        self.encoder = EfficientEncoder(spec, stem, table, rows, epsilon, drop_path)
        self.decoder = nn.ModuleList(PlainDecoderStage(spec, stage) for stage in range(len(spec.features) - 1))
        initialise(self.image)
        initialise(self.decoder)
        initialise_encoder(self.encoder)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        return decode(self.decoder, [self.image(x), *self.encoder(x)], self.training)


def initialise_encoder(encoder: nn.Module) -> None:
    """Normal with variance 2 / outputs that a voxel reaches (the authors' conv_kernel_initializer); biases zero."""
    for module in encoder.modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d):
            reached = math.prod(module.kernel_size) * module.out_channels // module.groups
            nn.init.normal_(module.weight, std=math.sqrt(2 / reached))
            if module.bias is not None:
                nn.init.zeros_(module.bias)

"""The torch modules of MedNeXt, and UpKern. Import inside `build` only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..schema.errors import ModelError
from ..schema.plan import NetworkSpec
from .blocks import CONVOLUTIONS, InstanceNorm
from .convolution import conv3d
from .depthwise import depthwise, depthwise_transposed, spread
from .plain_modules import decode

INTERPOLATION = {4: "bilinear", 5: "trilinear"}
"""by the dimensions of a convolution's weight"""
UPKERN_REMEDY = "Start from a network that differs in its kernel sizes only"


class MedNeXtBlock(nn.Module):
    """Depthwise convolution, norm, 1x1 expansion, GELU, 1x1 compression, beside a residual connection.

    The norm is group norm with one channel a group, which is instance norm.
    """

    def __init__(self, first: nn.Module, inputs: int, outputs: int, dims: int, expansion: int) -> None:
        super().__init__()
        self.depthwise = first
        self.norm = InstanceNorm(inputs, slope=1.0)
        self.expand = CONVOLUTIONS[dims](inputs, expansion * inputs, 1)
        self.compress = CONVOLUTIONS[dims](expansion * inputs, outputs, 1)

    def change(self, x: Tensor) -> Tensor:
        return self.compress(functional.gelu(self.expand(self.norm(self.depthwise(x)))))

    def forward(self, x: Tensor) -> Tensor:  # (B, C, *S) -> (B, C, *S)
        return x + self.change(x)


def blocks(features: int, kernel: Sequence[int], expansion: int, count: int) -> nn.Sequential:
    dims, ones = len(kernel), (1,) * len(kernel)
    return nn.Sequential(
        *(MedNeXtBlock(depthwise(features, kernel, ones), features, features, dims, expansion) for _ in range(count))
    )


class DownBlock(MedNeXtBlock):
    """A block whose depthwise convolution is strided; a strided 1x1 convolution is the residual path."""

    def __init__(self, inputs: int, outputs: int, kernel: Sequence[int], stride: Sequence[int], expansion: int) -> None:
        super().__init__(depthwise(inputs, kernel, stride), inputs, outputs, len(kernel), expansion)
        self.residual = CONVOLUTIONS[len(kernel)](inputs, outputs, 1, tuple(stride))

    def forward(self, x: Tensor) -> Tensor:  # (B, inputs, *S) -> (B, outputs, *S / stride)
        return self.change(x) + self.residual(x)


class PointwiseTranspose2d(nn.ConvTranspose2d):
    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        return pointwise_transposed(functional.conv2d(x, self.weight.transpose(0, 1)), self.bias, self.stride)


class PointwiseTranspose3d(nn.ConvTranspose3d):
    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        return pointwise_transposed(conv3d(x, self.weight.transpose(0, 1)), self.bias, self.stride)


POINTWISE_TRANSPOSED: dict[int, type[nn.Module]] = {2: PointwiseTranspose2d, 3: PointwiseTranspose3d}
"""torch's transposed convolutions for kernel 1, whose own way is slow on a CPU"""


def pointwise_transposed(y: Tensor, bias: Tensor | None, stride: Sequence[int]) -> Tensor:
    """The results `y` (B, C, *S) of a 1x1 convolution -> (B, C, *(S - 1) x stride + 1), zeros between, plus `bias`."""
    y = spread(y, stride, [(length - 1) * step + 1 for length, step in zip(y.shape[2:], stride, strict=True)])
    return y if bias is None else y + bias.to(y.dtype).reshape(-1, *(1 for _ in stride))


class UpBlock(MedNeXtBlock):
    """A block whose depthwise convolution is transposed; a transposed 1x1 convolution is the residual path.

    Both give (S - 1) x stride + 1 voxels along an axis and are padded with zeros in front, as the authors do.
    """

    def __init__(self, inputs: int, outputs: int, kernel: Sequence[int], stride: Sequence[int], expansion: int) -> None:
        super().__init__(depthwise_transposed(inputs, kernel, stride), inputs, outputs, len(kernel), expansion)
        self.residual = POINTWISE_TRANSPOSED[len(kernel)](inputs, outputs, 1, tuple(stride))
        self.margin = [length for step in reversed(stride) for length in (step - 1, 0)]

    def forward(self, x: Tensor) -> Tensor:  # (B, inputs, *S) -> (B, outputs, *S x stride)
        return functional.pad(self.change(x) + self.residual(x), self.margin)


class MedNeXtEncoderStage(nn.Module):
    def __init__(self, spec: NetworkSpec, stage: int, expansion: int) -> None:
        super().__init__()
        features, kernel = spec.features[stage], spec.kernel_sizes[stage]
        self.down: nn.Module = (
            DownBlock(spec.features[stage - 1], features, kernel, spec.strides[stage], expansion)
            if stage
            else CONVOLUTIONS[spec.dims](spec.in_channels, features, 1)
        )
        self.blocks = blocks(features, kernel, expansion, spec.encoder_blocks[stage])

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.down(x))


class MedNeXtDecoderStage(nn.Module):
    """Up from stage + 1 to the resolution of `stage`, add the skip, refine. The head is applied by the network."""

    def __init__(self, spec: NetworkSpec, stage: int, expansion: int) -> None:
        super().__init__()
        features, stride = spec.features[stage], spec.strides[stage + 1]
        self.up = UpBlock(spec.features[stage + 1], features, spec.kernel_sizes[stage + 1], stride, expansion)
        self.blocks = blocks(features, spec.kernel_sizes[stage], expansion, spec.decoder_blocks[stage])
        supervised = stage == 0 or spec.deep_supervision
        self.head = CONVOLUTIONS[spec.dims](features, spec.out_channels, 1) if supervised else None

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return self.blocks(self.up(x) + skip)


class MedNeXt(nn.Module):
    """Input (B, C, *P), P divisible by the strides; see `Family` for what forward returns.

    `expansions`: ratio of the 1x1 expansion in the blocks of each stage. Stages count from the highest resolution.
    """

    def __init__(self, spec: NetworkSpec, expansions: tuple[int, ...]) -> None:
        super().__init__()
        stages = len(spec.features)
        self.encoder = nn.ModuleList(MedNeXtEncoderStage(spec, stage, expansions[stage]) for stage in range(stages))
        self.decoder = nn.ModuleList(MedNeXtDecoderStage(spec, stage, expansions[stage]) for stage in range(stages - 1))

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        skips = []
        for down in self.encoder:
            x = down(x)
            skips.append(x)
        return decode(self.decoder, skips, self.training)


def upkern(network: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """UpKern (Sec. 2.3): start a network of large kernels from the trained `weights` of one with small kernels.

    Kernels of another size are interpolated linearly along every axis, everything else is copied. Raises ModelError
    naming the tensor when it is missing, is not known to `network`, or differs in more than the kernel's size. Nothing
    is changed in that case.
    """
    state = network.state_dict()
    odd = sorted(state.keys() ^ weights.keys())
    if odd:
        where = "the network does not have" if odd[0] in weights else "the weights lack"
        raise ModelError(f"{where} {odd[0]}", UPKERN_REMEDY)
    network.load_state_dict({name: _resized(name, weights[name], tensor.shape) for name, tensor in state.items()})


def _resized(name: str, small: Tensor, shape: torch.Size) -> Tensor:
    if small.shape == shape:
        return small
    if small.ndim not in INTERPOLATION or small.shape[:2] != shape[:2]:
        shapes = f"{tuple(small.shape)} in the weights and {tuple(shape)} in the network"
        raise ModelError(f"the shape of {name} is {shapes}", UPKERN_REMEDY)
    return functional.interpolate(small.float(), size=shape[2:], mode=INTERPOLATION[small.ndim], align_corners=False)

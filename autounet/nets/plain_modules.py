"""The torch modules of the plain U-Net. Import inside `build` only."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..schema.plan import NetworkSpec
from .blocks import CONVOLUTIONS, UpConvolution, conv_blocks, initialise


class EncoderStage(nn.Module):
    def __init__(self, spec: NetworkSpec, stage: int) -> None:
        super().__init__()
        inputs = spec.features[stage - 1] if stage else spec.in_channels
        self.blocks = conv_blocks(
            inputs, spec.features[stage], spec.kernel_sizes[stage], spec.strides[stage], spec.encoder_blocks[stage]
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(x)


class DecoderStage(nn.Module):
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
        stage: DecoderStage = decoder[index]  # type: ignore[assignment]
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
        if stages < 2:
            raise ValueError("a U-Net needs at least two stages")
        self.encoder = nn.ModuleList(EncoderStage(spec, stage) for stage in range(stages))
        self.decoder = nn.ModuleList(DecoderStage(spec, stage) for stage in range(stages - 1))
        initialise(self)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        skips = []
        for down in self.encoder:
            x = down(x)
            skips.append(x)
        return decode(self.decoder, skips, self.training)

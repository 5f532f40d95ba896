"""The U-Net that crops its skips to what unpadded convolutions leave. Import inside `build` only."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..schema.plan import NetworkSpec
from .blocks import CONVOLUTIONS, UpConvolution, centre, he_initialise, max_pool, unit_row
from .family import Normalisation


class ExpandingStage(nn.Module):
    """Up from the stage below, crop the skip to the same size, join, convolve."""

    def __init__(self, up: UpConvolution, blocks: nn.Sequential) -> None:
        super().__init__()
        self.up = up
        self.blocks = blocks

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = self.up(x)
        return self.blocks(torch.cat((centre(skip, x.shape[2:]), x), 1))


class CroppingUNet(nn.Module):
    """Input (B, C, *P) of a valid size; see `Family` for what forward returns: one output, in the middle of the input.

    `widths` are the features of each convolution, per encoder stage from the highest resolution, and the last of a
    stage's equal `spec.features`; `up_widths` those of the up-convolution into each decoder stage. `dropout` is the
    probability behind each of the last two encoder stages.
    """

    def __init__(
        self,
        spec: NetworkSpec,
        widths: Sequence[Sequence[int]],
        up_widths: Sequence[int],
        normalisation: Normalisation,
        padded: bool,
        dropout: float = 0.0,
        up_bias: bool = True,
    ) -> None:
        super().__init__()
        stages = len(spec.features)
        if spec.deep_supervision:
            raise ValueError(f"the family {spec.family} has one output: set deep_supervision to false")
        self.strides = spec.strides
        inputs = (spec.in_channels, *spec.features)
        self.encoder = nn.ModuleList(
            unit_row(inputs[stage], widths[stage], spec.kernel_sizes[stage], normalisation, padded=padded)
            for stage in range(stages)
        )
        self.dropout = nn.Dropout(dropout)
        self.decoder = nn.ModuleList(
            ExpandingStage(
                UpConvolution(spec.features[stage + 1], up_widths[stage], spec.strides[stage + 1], bias=up_bias),
                unit_row(
                    spec.features[stage] + up_widths[stage],
                    (spec.features[stage],) * spec.decoder_blocks[stage],
                    spec.kernel_sizes[stage],
                    normalisation,
                    padded=padded,
                ),
            )
            for stage in range(stages - 1)
        )
        self.head = CONVOLUTIONS[spec.dims](spec.features[0], spec.out_channels, (1,) * spec.dims)
        he_initialise(self)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        skips: list[Tensor] = []
        for stage, down in enumerate(self.encoder):
            x = down(max_pool(x, self.strides[stage]))
            if stage >= max(1, len(self.encoder) - 2):
                x = self.dropout(x)
            skips.append(x)
        for stage in range(len(self.decoder) - 1, -1, -1):
            x = self.decoder[stage](x, skips[stage])
        logits = self.head(x)
        return (logits,) if self.training else logits

"""The torch modules of the attention U-Net. Import inside `build` only."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..schema.plan import NetworkSpec
from .blocks import CONVOLUTIONS, Unit, UpConvolution, initialise, max_pool, norm_slope, unit_row, upsample_linear
from .family import Normalisation


class AttentionGate(nn.Module):
    """`map` passes on the coefficients (B, 1, *S), so that a hook can see them; nothing is kept here."""

    def __init__(self, skip: int, coarse: int, stride: Sequence[int]) -> None:
        super().__init__()
        convolution, ones = CONVOLUTIONS[len(stride)], (1,) * len(stride)
        self.stride = tuple(stride)
        self.theta = convolution(skip, skip, self.stride, self.stride, bias=False)
        self.phi = convolution(coarse, skip, ones)
        self.psi = convolution(skip, 1, ones)
        self.map = nn.Identity()

    def forward(self, skip: Tensor, coarse: Tensor) -> Tensor:  # (B, C, *S), (B, D, *S / stride) -> (B, C, *S)
        share = torch.sigmoid(self.psi(functional.relu_(self.theta(skip) + self.phi(coarse))))
        return skip * self.map(upsample_linear(share, self.stride))


class LinearUp(nn.Module):
    def __init__(self, stride: Sequence[int]) -> None:
        super().__init__()
        self.stride = tuple(stride)

    def forward(self, x: Tensor) -> Tensor:
        return upsample_linear(x, self.stride)


class GatedStage(nn.Module):
    """Gate the skip by what comes from below, bring that up, join, convolve. The head is applied by the network."""

    def __init__(
        self, spec: NetworkSpec, stage: int, gated: bool, normalisation: Normalisation, upsampling: str
    ) -> None:
        super().__init__()
        features, below, stride = spec.features[stage], spec.features[stage + 1], spec.strides[stage + 1]
        transposed = upsampling == "transposed"
        self.up = UpConvolution(below, features, stride) if transposed else LinearUp(stride)
        self.gate = AttentionGate(features, below, stride) if gated else None
        self.blocks = unit_row(
            features + (features if transposed else below),
            (features,) * spec.decoder_blocks[stage],
            spec.kernel_sizes[stage],
            normalisation,
            norm_slope(normalisation),
        )
        supervised = stage == 0 or spec.deep_supervision
        self.head = CONVOLUTIONS[spec.dims](features, spec.out_channels, (1,) * spec.dims) if supervised else None

    def forward(self, x: Tensor, skip: Tensor, signal: Tensor) -> Tensor:
        if self.gate is not None:
            skip = self.gate(skip, signal)
        return self.blocks(torch.cat((skip, self.up(x)), 1))


class AttentionUNet(nn.Module):
    """Input (B, C, *P), P divisible by the strides; see `Family` for what forward returns.

    `gated` are the stages whose skips pass a gate, 0 the highest resolution.
    """

    def __init__(
        self,
        spec: NetworkSpec,
        gated: Collection[int],
        normalisation: Normalisation,
        upsampling: Literal["transposed", "linear"],
    ) -> None:
        super().__init__()
        stages = len(spec.features)
        self.strides = spec.strides
        inputs, slope = (spec.in_channels, *spec.features), norm_slope(normalisation)
        self.encoder = nn.ModuleList(
            unit_row(
                inputs[stage],
                (spec.features[stage],) * spec.encoder_blocks[stage],
                spec.kernel_sizes[stage],
                normalisation,
                slope,
            )
            for stage in range(stages)
        )
        self.signal = Unit(spec.features[-1], spec.features[-1], (1,) * spec.dims, normalisation, slope)
        self.decoder = nn.ModuleList(
            GatedStage(spec, stage, stage in gated, normalisation, upsampling) for stage in range(stages - 1)
        )
        initialise(self, slope)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        skips: list[Tensor] = []
        for stride, down in zip(self.strides, self.encoder, strict=True):
            x = down(max_pool(x, stride))
            skips.append(x)
        signal = self.signal(x)
        outputs: list[Tensor] = []
        for index in range(len(self.decoder) - 1, -1, -1):
            stage: GatedStage = self.decoder[index]  # type: ignore[assignment]
            x = signal = stage(x, skips[index], signal)
            if stage.head is not None and (index == 0 or self.training):
                outputs.append(stage.head(x))
        return tuple(reversed(outputs)) if self.training else outputs[-1]


@contextmanager
def recorded_gates(network: AttentionUNet) -> Iterator[dict[int, Tensor]]:
    """While open, every forward puts its coefficients into the dict: stage -> (B, 1, *S) in 0..1 on the stage's grid.

    Not for compiled networks: their forward does not run the hooks that are set here.
    """
    maps: dict[int, Tensor] = {}
    hooks = []
    for index, stage in enumerate(network.decoder):
        assert isinstance(stage, GatedStage)
        if stage.gate is not None:

            def keep(module: nn.Module, inputs: object, result: Tensor, index: int = index) -> None:
                maps[index] = result.detach()

            hooks.append(stage.gate.map.register_forward_hook(keep))
    try:
        yield maps
    finally:
        for hook in hooks:
            hook.remove()


class GateMaps(nn.Module):
    """In place of a network in prediction: (B, C, *P) -> its gates' coefficients (B, gates, *P), finest stage first.

    Coarser maps are repeated to the size of the input.
    """

    def __init__(self, network: AttentionUNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        with recorded_gates(self.network) as maps:
            self.network(x)
        full = [functional.interpolate(maps[stage].float(), x.shape[2:], mode="nearest") for stage in sorted(maps)]
        return torch.cat(full, 1)

"""The torch modules of the family squeeze."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from autounet.nets.plain_modules import PlainUNet, decode
from autounet.schema.plan import NetworkSpec


class Excitation(nn.Module):
    """Scales each feature map by a number in 0..1 that follows from the means of all."""

    def __init__(self, features: int, reduction: int) -> None:
        super().__init__()
        squeezed = max(1, features // reduction)
        self.squeeze, self.excite = nn.Linear(features, squeezed), nn.Linear(squeezed, features)

    def forward(self, x: Tensor) -> Tensor:
        means = x.mean(dim=tuple(range(2, x.ndim)))  # (B, F)
        scales = torch.sigmoid(self.excite(torch.relu(self.squeeze(means))))
        return x * scales.reshape(*scales.shape, *[1] * (x.ndim - 2))


class SqueezeUNet(PlainUNet):
    """Input (B, C, *P), P divisible by the strides; see `autounet.nets.Family` for what forward returns."""

    def __init__(self, spec: NetworkSpec, reduction: int) -> None:
        super().__init__(spec)
        self.excitations = nn.ModuleList(Excitation(features, reduction) for features in spec.features)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        skips = []
        for stage, excitation in zip(self.encoder, self.excitations, strict=True):
            x = excitation(stage(x))
            skips.append(x)
        return decode(self.decoder, skips, self.training)

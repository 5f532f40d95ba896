"""The torch modules of U-Net++. Import inside `build` only."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..schema.plan import NetworkSpec
from .blocks import CONVOLUTIONS, UpConvolution, initialise, max_pool, norm_slope, unit_row
from .family import Normalisation


class Node(nn.Module):
    """Node (stage, column): the nodes before it in its row, joined with the one below brought up."""

    def __init__(self, spec: NetworkSpec, stage: int, column: int, normalisation: Normalisation) -> None:
        super().__init__()
        features = spec.features[stage]
        self.up = UpConvolution(spec.features[stage + 1], features, spec.strides[stage + 1])
        self.blocks = unit_row(
            (column + 1) * features,
            (features,) * spec.decoder_blocks[stage],
            spec.kernel_sizes[stage],
            normalisation,
            norm_slope(normalisation),
        )

    def forward(self, row: list[Tensor], below: Tensor) -> Tensor:
        return self.blocks(torch.cat((*row, self.up(below)), 1))


class NestedUNet(nn.Module):
    """Input (B, C, *P), P divisible by the strides; see `Family` for what forward returns.

    In training the outputs are those of the deepest U-Net first, all at full resolution. `nodes[i][j - 1]` is node
    (i, j), `heads[j - 1]` the head of node (0, j); without deep supervision only the last exists. `prune` is the
    depth that evaluation uses, None the whole one.
    """

    def __init__(self, spec: NetworkSpec, normalisation: Normalisation, prune: int | None) -> None:
        super().__init__()
        stages = len(spec.features)
        self.strides = spec.strides
        self.depth = stages - 1
        self.pruned_depth = prune or self.depth
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
        self.nodes = nn.ModuleList(
            nn.ModuleList(Node(spec, stage, column, normalisation) for column in range(1, stages - stage))
            for stage in range(stages - 1)
        )
        self.heads = nn.ModuleList(
            CONVOLUTIONS[spec.dims](spec.features[0], spec.out_channels, (1,) * spec.dims)
            for _ in range(self.depth if spec.deep_supervision else 1)
        )
        initialise(self, slope)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        depth = self.depth if self.training else self.pruned_depth
        rows: list[list[Tensor]] = []
        for stage in range(depth + 1):
            x = self.encoder[stage](max_pool(x, self.strides[stage]))
            rows.append([x])
        for column in range(1, depth + 1):
            for stage in range(depth + 1 - column):
                node = self.nodes[stage][column - 1]  # type: ignore[index]
                rows[stage].append(node(rows[stage], rows[stage + 1][column - 1]))
        ends = rows[0][1:]
        if not self.training:
            return self.heads[min(depth, len(self.heads)) - 1](ends[-1])
        supervised = ends[-len(self.heads) :]
        return tuple(head(end) for head, end in zip(reversed(self.heads), reversed(supervised), strict=True))

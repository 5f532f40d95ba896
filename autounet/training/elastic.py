"""Smooth random deformations, which the first U-Net was trained with.

Displacements are drawn at the nodes of a coarse grid of 3 points per axis from a Gaussian, and interpolated in between
by cubic splines (Ronneberger, Fischer, Brox 2015, section 3.1: 10 pixels of standard deviation on tiles of 572).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from scipy.interpolate import CubicSpline
from torch import Tensor
from torch.nn.functional import grid_sample

NODES = 3
"""per axis, the outer ones at the borders"""
DEVIATION = 10 / 572
"""standard deviation of a displacement as a share of the axis's length: small patches are bent as large ones are"""


@dataclass(frozen=True)
class Bend:
    """One drawn deformation."""

    nodes: np.ndarray
    """(D, 3, ...) displacements in voxels, the first axis naming the direction"""
    size: tuple[int, ...]
    """of what comes out, which `nodes` span"""
    source_size: tuple[int, ...]
    """what has to be read, centred: as many voxels more on both sides as the farthest one comes from"""

    def apply(self, source: Tensor) -> Tensor:
        """(C, *size) float32 from (C, *source_size) by linear interpolation; 0 beyond the borders of the source."""
        field = displacement(self.nodes, self.size)
        positions = []
        for axis, (length, have) in enumerate(zip(self.size, self.source_size, strict=True)):
            shape = [-1 if other == axis else 1 for other in range(len(self.size))]
            place = torch.arange(length, dtype=torch.float32).view(shape) + (have - length) / 2 + field[axis]
            positions.append(2 * place / max(1, have - 1) - 1)
        grid = torch.stack(positions[::-1], dim=-1)[None]  # grid_sample counts axes from the last one
        return grid_sample(source[None].float(), grid, mode="bilinear", padding_mode="zeros", align_corners=True)[0]


def draw_bend(generator: np.random.Generator, size: Sequence[int]) -> Bend:
    lengths = np.reshape(size, (len(size), *[1] * len(size)))
    nodes = generator.normal(size=(len(size), *[NODES] * len(size))) * DEVIATION * lengths
    return bend_by(nodes, size)


def bend_by(nodes: np.ndarray, size: Sequence[int]) -> Bend:
    reach = displacement(nodes, size).abs().flatten(1).max(1).values.ceil()
    source = tuple(int(length + 2 * more) for length, more in zip(size, reach, strict=True))
    return Bend(nodes, tuple(size), source)


def displacement(nodes: np.ndarray, size: Sequence[int]) -> Tensor:
    """(D, *size) float32 voxels, interpolated between `nodes` (D, 3, ...), which span `size`."""
    field = torch.from_numpy(nodes.astype(np.float32))
    for length in size:
        field = torch.tensordot(field, _spline(length), dims=([1], [1]))  # the axis that is done becomes the last one
    return field


@lru_cache(maxsize=64)
def _spline(length: int) -> Tensor:
    """(length, 3) weights of the nodes for each voxel: the natural cubic spline through them."""
    through = CubicSpline(np.arange(NODES), np.eye(NODES), bc_type="natural")
    return torch.from_numpy(through(np.linspace(0, NODES - 1, length)).astype(np.float32))

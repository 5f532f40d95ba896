"""How deep the network is along each axis: nnU-Net v2's rule for strides and kernel sizes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LEAST_EDGE = 4
"""voxels along an axis at the bottleneck, at least"""
SIMILAR = 2.0
"""axes whose spacing is below this many times the finest are treated alike"""

Triple = tuple[int, ...]


@dataclass(frozen=True)
class Topology:
    """Strides and kernel sizes per encoder stage, highest resolution first, and the patch padded to fit them."""

    strides: tuple[Triple, ...]
    kernel_sizes: tuple[Triple, ...]
    patch: Triple
    divisor: Triple


def find_topology(spacing: Sequence[float] | np.ndarray, size: Sequence[float]) -> Topology:
    """Halve, stage by stage, the axes that are large enough and about as fine as the finest such axis.

    A kernel spans 3 voxels along an axis from the stage on where its spacing is near the finest, before that 1;
    at the bottleneck 3 everywhere. `size` is the wanted patch, possibly with halves, as a median shape has.
    """
    steps, edges = [float(value) for value in spacing], [float(value) for value in size]
    axes = range(len(steps))
    kernel = [1 for _ in axes]
    strides, kernels = [tuple(1 for _ in axes)], []
    while halved := _axes_to_halve(steps, edges):
        finest = min(steps)
        kernel = [3 if kernel[axis] == 3 or steps[axis] / finest < SIMILAR else 1 for axis in axes]
        kernels.append(tuple(kernel))
        strides.append(tuple(2 if axis in halved else 1 for axis in axes))
        for axis in halved:
            steps[axis] *= 2
            edges[axis] = math.ceil(edges[axis] / 2)
    kernels.append(tuple(3 for _ in axes))
    divisor = tuple(math.prod(stride[axis] for stride in strides) for axis in axes)
    patch = tuple(math.ceil(length / step) * step for length, step in zip(size, divisor, strict=True))
    return Topology(tuple(strides), tuple(kernels), patch, divisor)


def shrink(topology: Topology, spacing: np.ndarray, median: np.ndarray) -> Topology:
    """One step smaller along the axis that is largest relative to the median image (the last of equal ones).

    The step is the divisor of the already smaller patch, which may be less than that of the present one: for 256 with
    divisor 64 the next size is 224, not 192.
    """
    relative = [length / whole for length, whole in zip(topology.patch, median, strict=True)]
    axis = max(range(len(relative)), key=lambda index: (relative[index], index))
    probe = list(topology.patch)
    probe[axis] -= topology.divisor[axis]
    smaller = list(topology.patch)
    smaller[axis] -= find_topology(spacing, probe).divisor[axis]
    return find_topology(spacing, smaller)


def _axes_to_halve(spacing: Sequence[float], edges: Sequence[float]) -> list[int]:
    """Empty when the network is deep enough."""
    large = [axis for axis, edge in enumerate(edges) if edge >= 2 * LEAST_EDGE]
    if not large:
        return []
    finest = min(spacing[axis] for axis in large)
    similar = [axis for axis in large if spacing[axis] / finest < SIMILAR]
    # one axis alone must be worth another stage
    if len(similar) == 1 and edges[similar[0]] < 3 * LEAST_EDGE:
        return []
    return similar

"""From an array as stored to one whose axes run along the patient's, and back.

An orientation is a pair `(axes, flips)`: axis i of the oriented array is stored axis `axes[i]`, and `flips[i]` says
that it runs against it. Both refer to the last three axes of an array, so images (C, Z, Y, X) and labels (Z, Y, X) go
through the same functions. Orienting only moves voxels: the inverse is exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations
from typing import TypeVar

import numpy as np

from ..schema.geometry import Geometry

Axes = tuple[int, int, int]
Flips = tuple[bool, bool, bool]
Value = TypeVar("Value")
IDENTITY_AXES: Axes = (0, 1, 2)
NO_FLIPS: Flips = (False, False, False)
TIE = 1e-6
"""a permutation must beat the one before by this much, so that rounding never decides between two at 45 degrees"""


def canonical_axes(direction: Sequence[float], dimension: int = 3) -> tuple[Axes, Flips]:
    """The orientation in which the world coordinates (LPS) increase along x, y and z.

    The oriented axes (z, y, x) run from inferior to superior, anterior to posterior and right to left; an oblique
    image gets the permutation whose axes are nearest. `direction` is the 3x3 matrix of `Geometry`, row by row.
    Images of dimension 2 have no patient axes and stay as they are.
    """
    if dimension == 2:
        return IDENTITY_AXES, NO_FLIPS
    cosines = np.asarray(direction, dtype=float).reshape(3, 3)[::-1, ::-1]  # [world z,y,x ; stored z,y,x]
    best, axes = -np.inf, IDENTITY_AXES
    for first, second, third in permutations(range(3)):
        candidate = (first, second, third)
        total = sum(abs(cosines[world, stored]) for world, stored in enumerate(candidate))
        if total > best + TIE:
            best, axes = total, candidate
    a, b, c = (bool(cosines[world, stored] < 0) for world, stored in enumerate(axes))
    return axes, (a, b, c)


def network_axes(
    direction: Sequence[float], dimension: int, orientation: str, transpose: Sequence[int] = IDENTITY_AXES
) -> tuple[Axes, Flips]:
    """Orientation (`canonical`, `as_stored` or `ras`) and the plan's transposition joined into one pair."""
    as_stored = orientation == "as_stored"
    axes, flips = (IDENTITY_AXES, NO_FLIPS) if as_stored else canonical_axes(direction, dimension)
    if orientation == "ras" and dimension == 3:  # its y and x run against the canonical ones
        flips = (flips[0], not flips[1], not flips[2])
    return permute(axes, transpose), permute(flips, transpose)


def permute(values: Sequence[Value], axes: Sequence[int]) -> tuple[Value, Value, Value]:
    """A shape or spacing in stored axis order, in oriented axis order."""
    a, b, c = (values[axis] for axis in axes)
    return a, b, c


def unpermute(values: Sequence[Value], axes: Sequence[int]) -> tuple[Value, Value, Value]:
    """Inverse of `permute`."""
    a, b, c = (values[axes.index(axis)] for axis in range(3))
    return a, b, c


def orient(array: np.ndarray, axes: Sequence[int], flips: Sequence[bool]) -> np.ndarray:
    """View of (..., Z, Y, X) with its last three axes oriented."""
    lead = array.ndim - 3
    moved = array.transpose(*range(lead), *(lead + axis for axis in axes))
    return _flip(moved, flips)


def unorient(array: np.ndarray, axes: Sequence[int], flips: Sequence[bool]) -> np.ndarray:
    """Inverse of `orient`, again a view."""
    lead = array.ndim - 3
    straight = _flip(array, flips)
    return straight.transpose(*range(lead), *(lead + axis for axis in unpermute(range(3), axes)))


def _flip(array: np.ndarray, flips: Sequence[bool]) -> np.ndarray:
    return np.flip(array, tuple(axis - 3 for axis, flip in enumerate(flips) if flip))


SAME_VOXEL = 0.1
"""voxels by which the corners of two grids may miss each other that are the same: headers keep few digits"""
ROUNDING = 1e-6
"""voxels by which a position may miss another grid's voxel through rounding"""


def world_matrix(geometry: Geometry) -> np.ndarray:
    """(4, 4): a voxel (z, y, x, 1) to its place (x, y, z, 1) in mm, LPS."""
    direction = np.reshape(geometry.direction, (3, 3))[:, ::-1]  # columns for z, y, x
    matrix = np.eye(4)
    matrix[:3, :3] = direction * np.asarray(geometry.spacing)
    matrix[:3, 3] = geometry.origin
    return matrix


def orientation_towards(own: Geometry, target: Geometry) -> tuple[Axes, Flips]:
    """The orientation of arrays of `own` in which their axes run along those of `target`, as near as they come."""
    directions = [np.reshape(each.direction, (3, 3)) for each in (target, own)]
    return canonical_axes(np.linalg.solve(*directions).ravel().tolist())


def oriented_geometry(
    geometry: Geometry, axes: Axes, flips: Flips, direction: Sequence[float] | None = None
) -> Geometry:
    """Of the array that `orient` makes of one of this geometry: the same voxels in the same places.

    `direction`, that of the result, stands for the own one where that was rounded: over a long axis the rounding moves
    the first voxel of a flipped array.
    """
    columns = world_matrix(geometry)[:3, list(axes)] * np.where(flips, -1, 1)
    spacing, shape = permute(geometry.spacing, axes), permute(geometry.shape, axes)
    own = columns[:, ::-1] / np.asarray(spacing)[::-1]
    steps = columns if direction is None else np.reshape(direction, (3, 3))[:, ::-1] * np.asarray(spacing)
    origin = np.asarray(geometry.origin) - sum(
        steps[:, axis] * (shape[axis] - 1) for axis, flip in enumerate(flips) if flip
    )
    x, y, z = (float(place) + 0.0 for place in origin)
    a, b, c, d, e, f, g, h, i = (float(cosine) + 0.0 for cosine in own.ravel())
    return geometry.model_copy(
        update={"shape": shape, "spacing": spacing, "origin": (x, y, z), "direction": (a, b, c, d, e, f, g, h, i)}
    )


def voxel_map(source: Geometry, target: Geometry) -> np.ndarray:
    """(4, 4): a voxel (z, y, x, 1) of `target` to the place in voxels of `source` that is the same in space."""
    return np.linalg.solve(world_matrix(source), world_matrix(target))


def same_voxels(source: Geometry, target: Geometry) -> bool:
    """Whether the voxels of one grid are those of the other, stored along other axes or against their directions."""
    matrix = voxel_map(source, target)
    steps = np.abs(matrix[:3, :3])
    ends = np.sort(matrix[:3, [3]] + np.column_stack([np.zeros(3), matrix[:3, :3] @ np.subtract(target.shape, 1)]), 1)
    last = np.column_stack([np.zeros(3), np.subtract(source.shape, 1)])
    lengths = [np.abs(steps - np.rint(steps)).max(), np.abs(steps.sum(0) - 1).max(), np.abs(ends - last).max()]
    return max(lengths) < SAME_VOXEL


def regrid_labels(values: np.ndarray, source: Geometry, target: Geometry) -> np.ndarray:
    """(Z, Y, X) of `source` to the grid of `target`: each voxel takes the nearest one's value, 0 beyond the border."""
    matrix = voxel_map(source, target)
    result = np.zeros(target.shape, values.dtype)
    y, x = np.meshgrid(*(np.arange(size) for size in target.shape[1:]), indexing="ij")
    for z, row in enumerate(result):
        places = [along[0] * z + along[1] * y + along[2] * x + along[3] for along in matrix[:3]]
        # halves go up after the rounding errors of the map, so that grids that fit exactly give exact copies
        nearest = [np.floor(place + 0.5 + ROUNDING).astype(np.int64) for place in places]
        inside = np.logical_and.reduce(
            [(place >= 0) & (place < size) for place, size in zip(nearest, values.shape, strict=True)]
        )
        row[inside] = values[tuple(place[inside] for place in nearest)]
    return result


def regrid_image(image: np.ndarray, source: Geometry, target: Geometry) -> np.ndarray:
    """float32 (C, Z, Y, X) of `source` on the grid of `target`: linear; beyond the border a channel's least value."""
    from scipy.ndimage import affine_transform  # inside: bundles of MONAI hold this file and have no scipy

    matrix = voxel_map(source, target)
    result = np.empty((len(image), *target.shape), np.float32)
    for channel, moved in zip(image, result, strict=True):
        least = float(channel.min())
        # not "constant", which leaves out voxels on the border that rounding puts beyond it
        affine_transform(
            channel, matrix[:3, :3], matrix[:3, 3], target.shape, moved, order=1, mode="grid-constant", cval=least
        )
    return result


def share_inside(voxels: np.ndarray, source: Geometry, target: Geometry) -> float:
    """Of voxels (N, 3) of `source`, in [0, 1] the share whose centres lie in `target`'s extent; 1 of no voxels."""
    if not len(voxels):
        return 1.0
    matrix = voxel_map(target, source)
    places = voxels @ matrix[:3, :3].T + matrix[:3, 3]
    inside = (places >= -0.5 - ROUNDING) & (places <= np.asarray(target.shape) - 0.5 + ROUNDING)
    return float(inside.all(axis=1).mean())

"""An array on the voxels of another file, by where both lie in space."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import affine_transform

from autounet.schema.geometry import Geometry

ROUNDING = 1e-6
"""voxels by which a position may miss another grid's voxel through rounding"""


def world_matrix(geometry: Geometry) -> np.ndarray:
    """(4, 4): a voxel (z, y, x, 1) to its place (x, y, z, 1) in mm, LPS."""
    direction = np.reshape(geometry.direction, (3, 3))[:, ::-1]  # columns for z, y, x
    matrix = np.eye(4)
    matrix[:3, :3] = direction * np.asarray(geometry.spacing)
    matrix[:3, 3] = geometry.origin
    return matrix


def voxel_map(source: Geometry, target: Geometry) -> np.ndarray:
    """(4, 4): a voxel (z, y, x, 1) of `target` to the place in voxels of `source` that is the same in space."""
    return np.linalg.solve(world_matrix(source), world_matrix(target))


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

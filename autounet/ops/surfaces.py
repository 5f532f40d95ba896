"""Surfaces of masks and the distances between them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from itertools import pairwise, product
from math import dist

import edt
import numpy as np
from scipy.spatial import cKDTree


def surface(mask: np.ndarray, axes: Sequence[int] | None = None) -> np.ndarray:
    """The voxels of a boolean mask with background, or the border of the array, at one of their faces.

    Only faces along `axes` count (default: all); leaving out the axis of a single slice gives the contour in 2-D.
    """
    inner = mask.copy()
    padded = np.pad(mask, 1)
    for axis in range(mask.ndim) if axes is None else axes:
        for shift in (0, 2):
            window = [slice(1, -1)] * mask.ndim
            window[axis] = slice(shift, shift + mask.shape[axis])
            inner &= padded[tuple(window)]
    return mask & ~inner


def distances_to_outside(mask: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    """Distance of each voxel's centre to that of the nearest one outside a boolean mask, float32, same shape.

    0 outside; beyond the array is outside. In units of `spacing`, one entry an axis.
    """
    steps = tuple(float(step) for step in spacing)
    anisotropy = steps if len(steps) > 1 else steps[0]  # the library's way for one axis
    return edt.edt(np.ascontiguousarray(mask), anisotropy=anisotropy, black_border=True, parallel=1)


def surface_distances(
    first: np.ndarray, second: np.ndarray, spacing: Sequence[float], axes: Sequence[int] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Distance of each surface voxel's centre to the nearest one of the other mask, both ways, in units of `spacing`.

    Both masks are boolean and not empty. A k-d tree over the surface voxels gives what a Euclidean distance
    transform gives, at half the time of edt's and a seventh of scipy's for structures of 110 voxels in diameter.
    """
    points = [np.argwhere(surface(mask, axes)) * np.asarray(spacing, dtype=np.float64) for mask in (first, second)]
    trees = [cKDTree(cloud, balanced_tree=False, compact_nodes=False) for cloud in points]
    return trees[1].query(points[0])[0], trees[0].query(points[1])[0]


Point = tuple[float, ...]
Corner = tuple[int, ...]
CORNERS = tuple(product((0, 1), repeat=3))
"""of a cell of 2 x 2 x 2 voxels (z, y, x); the first has the highest bit of the cell's pattern"""


def cell_patterns(mask: np.ndarray) -> np.ndarray:
    """Which of its 2^n voxels are in the mask, for each cell of 2 voxels an axis; uint8, each axis one longer.

    Beyond the array is outside. `mask` has n = 1 to 3 axes.
    """
    padded = np.pad(mask, 1).astype(np.uint8)
    patterns = np.zeros([size + 1 for size in mask.shape], np.uint8)
    for corner in product((0, 1), repeat=mask.ndim):
        patterns <<= 1
        patterns |= padded[
            tuple(slice(start, start + size + 1) for start, size in zip(corner, mask.shape, strict=True))
        ]
    return patterns


def surface_elements(mask: np.ndarray, spacing: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Centres (N, n) of the cells that the surface crosses, and how much of it each holds (N,), in units of `spacing`.

    Areas for n = 3 axes, lengths for 2, ends for 1.
    """
    patterns = cell_patterns(mask)
    cells = np.argwhere((patterns > 0) & (patterns < 2 ** (2**mask.ndim) - 1))
    sizes = element_sizes(tuple(float(step) for step in spacing))[patterns[tuple(cells.T)]]
    return cells * np.asarray(spacing, np.float64), sizes


def element_sizes(spacing: tuple[float, ...]) -> np.ndarray:
    """How much surface each pattern of a cell holds: (4,), (16,) or (256,) for 1 to 3 axes."""
    if len(spacing) == 1:
        return np.array([0.0, 1.0, 1.0, 0.0])
    if len(spacing) == 2:
        return _lengths(*spacing)
    factors = np.prod(spacing) / np.asarray(spacing)  # an area vector's z grows with the spacings of y and x
    return np.array([np.linalg.norm(vectors * factors, axis=1).sum() for vectors in _area_vectors()])


def _lengths(height: float, width: float) -> np.ndarray:
    """By the number of corners inside and where they are: an end cut off is half a diagonal, a half is a side."""
    cut = np.hypot(height, width) / 2
    sizes = np.full(16, cut)
    sizes[[0, 15]] = 0
    sizes[[0b0110, 0b1001]] = 2 * cut
    sizes[[0b1100, 0b0011]] = width
    sizes[[0b1010, 0b0101]] = height
    return sizes


@cache
def _area_vectors() -> tuple[np.ndarray, ...]:
    """Of each pattern the triangles' area vectors (T, 3) on a grid of spacing 1."""
    return tuple(_pattern_vectors(pattern) for pattern in range(256))


def _pattern_vectors(pattern: int) -> np.ndarray:
    inside = {corner: bool(pattern >> (7 - place) & 1) for place, corner in enumerate(CORNERS)}
    triangles = [np.array(triangle) for loop in _loops(inside) for triangle in _largest_triangulation(loop)[1]]
    vectors = [np.cross(second - first, third - first) / 2 for first, second, third in triangles]
    return np.array(vectors).reshape(-1, 3)


def _faces() -> Iterator[list[Corner]]:
    """The corners of each of the six faces of a cell, in a circle."""
    for axis, side in product(range(3), (0, 1)):
        for_axis = [corner for corner in CORNERS if corner[axis] == side]
        yield [for_axis[place] for place in (0, 1, 3, 2)]


def _loops(inside: dict[Corner, bool]) -> list[list[Point]]:
    """Where the surface leaves the cell: closed loops through the middles of the edges that it crosses."""
    isolated = sum(inside.values()) <= 4
    links: dict[Point, list[Point]] = {}
    for face in _faces():
        middles = [tuple((a + b) / 2 for a, b in zip(*pair, strict=True)) for pair in pairwise([*face, face[0]])]
        crossed = [middle for place, middle in enumerate(middles) if inside[face[place]] != inside[face[place - 3]]]
        pairs = [crossed] if len(crossed) == 2 else []
        if len(crossed) == 4:
            pairs = [[middles[place - 1], middles[place]] for place in range(4) if inside[face[place]] == isolated]
        for first, second in pairs:
            links.setdefault(first, []).append(second)
            links.setdefault(second, []).append(first)
    found = []
    while links:
        loop = [next(iter(links))]
        while ahead := [point for point in links.pop(loop[-1]) if point in links]:
            loop.append(ahead[0])
        found.append(loop)
    return found


def _largest_triangulation(loop: list[Point]) -> tuple[float, list[tuple[Point, Point, Point]]]:
    """Area and triangles of a polygon in space."""
    if len(loop) < 3:
        return 0.0, []
    found = []
    for place in range(1, len(loop) - 1):
        before, after = _largest_triangulation(loop[: place + 1]), _largest_triangulation(loop[place:])
        triangle = (loop[0], loop[place], loop[-1])
        found.append((before[0] + _area(*triangle) + after[0], [triangle, *before[1], *after[1]]))
    return max(found)


def _area(first: Point, second: Point, third: Point) -> float:
    """Of a triangle in space, by Heron's formula."""
    a, b, c = dist(first, second), dist(second, third), dist(third, first)
    half = (a + b + c) / 2
    return max(half * (half - a) * (half - b) * (half - c), 0.0) ** 0.5

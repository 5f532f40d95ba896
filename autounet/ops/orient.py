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

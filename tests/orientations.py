"""Every axis-aligned orientation as a direction matrix."""

from __future__ import annotations

from itertools import permutations, product

import numpy as np

ALL_48 = [(axes, signs) for axes in permutations(range(3)) for signs in product((1.0, -1.0), repeat=3)]


def direction_of(axes, signs) -> tuple[float, ...]:
    """Row-wise matrix whose column j is the world direction of index axis j."""
    matrix = np.zeros((3, 3))
    for column, (world, sign) in enumerate(zip(axes, signs, strict=True)):
        matrix[world, column] = sign
    return tuple(matrix.ravel().tolist())

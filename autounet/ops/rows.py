"""Arrays that are computed row by row along one axis, and forgotten behind: what is larger than the memory."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np


class RowBuffer:
    """Rows of an array that an iterator yields in blocks, from the first row to the last; only what is needed is held.

    Each row is made once. Rows are asked for in order: once rows from `start` on were taken, those before are gone.
    """

    def __init__(self, blocks: Iterator[np.ndarray], axis: int) -> None:
        self._source = blocks
        self._axis = axis
        self._blocks: list[np.ndarray] = []
        self._first = 0
        self._stop = 0

    def take(self, start: int, stop: int) -> np.ndarray:
        """The rows `start` to `stop` - 1. Raises ValueError for rows that are gone, or beyond the last."""
        while self._stop < stop:
            block = next(self._source, None)
            if block is None:
                raise ValueError(f"rows up to {stop} were asked for, and there are {self._stop}")
            self._blocks.append(block)
            self._stop += block.shape[self._axis]
            self._forget(min(start, self._stop))
        self._forget(start)
        if start < self._first:
            raise ValueError(f"row {start} is gone: the first that is held is {self._first}")
        whole = self._blocks[0] if len(self._blocks) == 1 else np.concatenate(self._blocks, self._axis)
        return whole[(slice(None),) * self._axis + (slice(start - self._first, stop - self._first),)]

    def _forget(self, start: int) -> None:
        """Drop the blocks before a row."""
        while self._blocks and self._first + self._blocks[0].shape[self._axis] <= start:
            self._first += self._blocks.pop(0).shape[self._axis]


class RowComponents:
    """Connected components of a mask (Z, Y, X) that is seen in pieces along one axis, and later once more.

    What is held grows with the number of components, not of voxels.
    """

    def __init__(self, axis: int, connectivity: int) -> None:
        """`connectivity` 6: across faces; 26: also across edges and corners."""
        self._axis, self._connectivity = axis, connectivity
        self._offsets: list[int] = []
        self._sizes: list[np.ndarray] = []
        self._at_border: list[np.ndarray] = []
        self._joined: list[np.ndarray] = []
        self._edge: np.ndarray | None = None
        self._count = 0
        self._of = np.zeros(0, np.int32)
        """the component of each number"""

    def add(self, mask: np.ndarray) -> None:
        """The next piece, from the first to the last."""
        numbers = self._numbered(mask)
        sizes = np.bincount(numbers[mask], minlength=1)  # of few voxels, mostly
        border = np.zeros(len(sizes), bool)
        for axis in {0, 1, 2} - {self._axis}:
            border[numbers.take((0, -1), axis)] = True
        first, last = (numbers.take(end, self._axis).astype(np.int64) for end in (0, -1))
        if self._edge is None:
            border[first] = True
        else:
            self._join(self._edge, np.where(first > 0, first + self._count, 0))
        self._edge = np.where(last > 0, last + self._count, 0)
        self._offsets.append(self._count)
        self._sizes.append(sizes[1:])
        self._at_border.append(border[1:])
        self._count += len(sizes) - 1

    def finish(self) -> tuple[np.ndarray, np.ndarray]:
        """(N,) voxels of each component, in the order of first pieces, and whether it touches the whole's border."""
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        joined = np.concatenate([*self._joined, np.zeros((0, 2), np.int64)]) - 1
        at_border = np.concatenate([*self._at_border, np.zeros(0, bool)])
        if self._edge is not None:
            at_border[self._edge[self._edge > 0] - 1] = True
        links = coo_array((np.ones(len(joined), bool), joined.T), shape=(self._count, self._count))
        number, self._of = connected_components(links, directed=False) if self._count else (0, self._of)
        self._joined, self._edge = [], None
        sizes = np.concatenate([*self._sizes, np.zeros(0, np.int64)])
        touching = np.zeros(number, bool)
        touching[self._of[at_border]] = True
        return np.bincount(self._of, sizes, number).astype(np.int64), touching

    def chosen(self, piece: int, mask: np.ndarray, choice: np.ndarray) -> np.ndarray:
        """Where a piece, given again, belongs to components of the (N,) `choice`."""
        offset, count = self._offsets[piece], len(self._sizes[piece])
        own = np.concatenate([[False], choice[self._of[offset : offset + count]]])
        result = np.zeros(mask.shape, bool)
        result[mask] = own[self._numbered(mask)[mask]]
        return result

    def _numbered(self, mask: np.ndarray) -> np.ndarray:
        import cc3d

        # as numbers: for booleans cc3d 4.1 runs out of labels where two axes have a single voxel
        array = np.ascontiguousarray(mask, dtype=bool).view(np.uint8)
        found = cc3d.connected_components(array, connectivity=self._connectivity)  # type: ignore[call-overload]
        return np.asarray(found)

    def _join(self, before: np.ndarray, after: np.ndarray) -> None:
        """Components of two planes that touch."""
        steps = ((0, 0),) if self._connectivity == 6 else itertools.product((-1, 0, 1), repeat=2)
        span, found = np.int64(after.max()) + 1, []
        for step in steps:
            own, other = (
                plane[
                    tuple(
                        slice(max(0, side), min(size, size + side)) for side, size in zip(way, plane.shape, strict=True)
                    )
                ]
                for plane, way in ((before, step), (after, [-side for side in step]))
            )
            both = (own > 0) & (other > 0)
            pairs = own[both] * span + other[both]
            found.append(pairs[np.diff(pairs, prepend=-1) != 0])  # neighbours are mostly of one pair
        self._joined.append(np.stack(np.divmod(np.unique(np.concatenate(found)), span), 1))

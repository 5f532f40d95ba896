"""Where a patch may lie in a case, and reading it: what is inside the image, and what stands for the rest."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from autounet.ops.mirror import mirrored_indices
from autounet.training.cases import TrainCase


def corner_limits(shape: Sequence[int], size: Sequence[int]) -> tuple[list[int], list[int]]:
    """Lowest and highest first voxel per axis: inside the image, or centred where the image is the smaller."""
    lowest, highest = [], []
    for length, patch in zip(shape, size, strict=True):
        missing = max(0, patch - length)
        lowest.append(-(missing // 2))
        highest.append(length - patch if missing == 0 else -(missing // 2))
    return lowest, highest


def read_patch(
    case: TrainCase, corner: Sequence[int], margin: Sequence[int], size: Sequence[int], beyond: int | None
) -> tuple[np.ndarray, ...]:
    """Image (C, *size) float32 and labels (*size) int16 around a patch; 0 and `beyond` outside the image's borders.

    In a cascade also the previous stage's labels (*size) int16, 0 outside. With `size` of two axes the slice
    `corner[0]` is read. `beyond` None: everything goes on outside as in a mirror.
    """
    plane = tuple(corner[: 3 - len(size)])
    starts = [first - m for first, m in zip(corner[len(plane) :], margin, strict=True)]
    shape = case.labels.shape[len(plane) :]
    if beyond is None:
        return _read_mirrored(case, plane, starts, size)
    inside = [slice(max(0, s), min(n, s + p)) for s, p, n in zip(starts, size, shape, strict=True)]
    target = tuple(slice(i.start - s, i.stop - s) for i, s in zip(inside, starts, strict=True))
    image = np.zeros((case.image.shape[0], *size), np.float32)
    maps = [(case.labels, np.full(tuple(size), beyond, np.int16))]
    if case.previous is not None:
        maps.append((case.previous, np.zeros(tuple(size), np.int16)))
    if all(i.stop > i.start for i in inside):
        image[(slice(None), *target)] = case.image[(slice(None), *plane, *inside)]
        for stored, read in maps:
            read[target] = stored[(*plane, *inside)]
    return image, *(read for _, read in maps)


def _read_mirrored(
    case: TrainCase, plane: tuple[int, ...], starts: Sequence[int], size: Sequence[int]
) -> tuple[np.ndarray, ...]:
    """As `read_patch`: the box that is reached is read once, then its voxels are repeated."""
    shape = case.labels.shape[len(plane) :]
    reached = [mirrored_indices(s, s + p, n) for s, p, n in zip(starts, size, shape, strict=True)]
    box = tuple(slice(int(each.min()), int(each.max()) + 1) for each in reached)
    inside = np.ix_(*(each - each.min() for each in reached))
    image = case.image[(slice(None), *plane, *box)][(slice(None), *inside)].astype(np.float32, copy=False)
    maps = [case.labels] if case.previous is None else [case.labels, case.previous]
    return np.ascontiguousarray(image), *(stored[(*plane, *box)][inside].astype(np.int16) for stored in maps)


def middle(labels: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """The middle (*size) of (*S)."""
    starts = [(length - asked) // 2 for length, asked in zip(labels.shape, size, strict=True)]
    return labels[tuple(slice(start, start + asked) for start, asked in zip(starts, size, strict=True))]

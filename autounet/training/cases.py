"""Prepared cases for training: kept decompressed in memory when all of them fit, read piece by piece otherwise."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from ..ops.tiles import mirrored_indices
from ..schema.dataset import ChannelAvailability
from ..schema.geometry import CaseProperties
from ..store import open_prepared, open_stage_labels, read_class_counts, read_properties

OPEN_CASES = 64
"""held open at once, each with two or three files; systems allow a process 256 (macOS) or 1024 of them"""


class TrainCase(NamedTuple):
    """`image` (C, *S3) float32, `labels` and `previous` (*S3) integers.

    They are numpy arrays, or arrays of files, read when sliced.
    """

    identifier: str
    image: Any
    labels: Any
    locations: dict[int, np.ndarray]
    """dense class -> (N, 3) voxel indices; only classes that occur, 0 only where some voxels have no label"""
    previous: Any | None = None
    """dense labels of the previous stage of a cascade"""


class CaseStore:
    """The cases of one training, each opened when it is first asked for. Picklable: a spawned worker opens its own."""

    def __init__(self, folder: Path, identifiers: Sequence[str], memory: int, previous: Path | None = None) -> None:
        """`memory` bytes may be used to keep all cases; where they need more, the last `OPEN_CASES` are kept open.

        `previous` is the folder of the labels that the previous stage of a cascade made of these cases. Raises
        RecordError when a case is not there.
        """
        self.folder, self.previous = Path(folder), previous
        self.identifiers = tuple(identifiers)
        properties = [read_properties(self.folder, name) for name in self.identifiers]
        self.in_memory = sum(decompressed_size(each, previous is not None) for each in properties) <= memory
        self.channels = max((len(each.spec.normalisation) for each in properties), default=0)
        self._cases: OrderedDict[int, TrainCase] = OrderedDict()  # the one asked for last stands last

    def __len__(self) -> int:
        return len(self.identifiers)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cases": OrderedDict()}

    def __getitem__(self, index: int) -> TrainCase:
        if index not in self._cases:
            self._cases[index] = self._read(self.identifiers[index])
            if len(self._cases) > OPEN_CASES and not self.in_memory:
                self._cases.popitem(last=False)
        self._cases.move_to_end(index)
        return self._cases[index]

    @cached_property
    def counts(self) -> tuple[dict[int, int], ...]:
        """Of each case, without opening it: dense foreground class that occurs -> how many locations it has."""
        found = (read_class_counts(self.folder, name) for name in self.identifiers)
        return tuple({label: count for label, count in each.items() if label and count} for each in found)

    def holding(self, classes: Collection[int]) -> list[int]:
        """Numbers of the cases in which one of these dense classes occurs."""
        return [number for number, each in enumerate(self.counts) if not each.keys().isdisjoint(classes)]

    def _read(self, identifier: str) -> TrainCase:
        case = open_prepared(self.folder, identifier)
        assert case.labels is not None, identifier
        shape, folder = case.properties.shape, self.previous
        return TrainCase(
            identifier,
            self._array(case.image),
            self._array(case.labels),
            {index: voxels for index, voxels in case.locations.items() if len(voxels)},
            None if folder is None else self._array(open_stage_labels(folder, identifier, shape)),
        )

    def _array(self, stored: Any) -> Any:
        return np.ascontiguousarray(stored[:]) if self.in_memory else stored


def decompressed_size(properties: CaseProperties, staged: bool = False) -> int:
    """Bytes of image (one channel for each normalisation) and labels, at most; `staged`: and the previous stage's."""
    return math.prod(properties.shape) * (4 * len(properties.spec.normalisation) + (4 if staged else 2))


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


P_DROPOUT = 0.5
"""of a sample whose case has more channels than some other combination"""


@dataclass(frozen=True)
class ChannelDropout:
    """Which channels a sample shows. Inactive where every case has all channels."""

    combinations: tuple[ChannelAvailability, ...] = ()
    """those that occur, of the whole data set"""
    present: Mapping[str, ChannelAvailability] = field(default_factory=dict)
    """of the cases that lack channels"""
    probability: float = P_DROPOUT

    def draw(self, generator: np.random.Generator, case: str, channels: int) -> ChannelAvailability | None:
        """The channels that a sample of a case shows: its own, or a smaller combination; None for all of them.

        Nothing is drawn where there is nothing to choose, so that samples of other data sets stay what they were.
        """
        if not self.combinations:
            return None
        own = self.present.get(case, (True,) * channels)
        smaller = [each for each in self.combinations if each != own and not any(np.greater(each, own))]
        if smaller and generator.random() < self.probability:
            own = smaller[int(generator.integers(len(smaller)))]
        return None if all(own) else own


def drop_channels(image: Tensor, shown: ChannelAvailability | None) -> Tensor:
    """Image (C + previous stage's channels, *P) with 0 in the channels that are not shown, as prepared cases have it.

    After intensity transforms, which would put noise into absent channels.
    """
    if shown is not None:
        for index, there in enumerate(shown):
            if not there:
                image[index] = 0
    return image

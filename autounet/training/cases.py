"""Prepared cases for training: kept decompressed in memory when all of them fit, read piece by piece otherwise."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from autounet.schema.prepared import CaseProperties
from autounet.store import open_prepared, open_stage_labels, read_properties

OPEN_CASES = 64
"""held open at once, each with two or three files; systems allow a process 256 (macOS) or 1024 of them"""


class TrainCase(NamedTuple):
    """`image` (C, *S3) float32, `labels` and `previous` (*S3) integers.

    They are numpy arrays, or blosc2 arrays read when sliced.
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
        sizes = (
            decompressed_size(read_properties(self.folder, name), previous is not None) for name in self.identifiers
        )
        needed = sum(sizes)
        self.in_memory = needed <= memory
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

    def _read(self, identifier: str) -> TrainCase:
        case = open_prepared(self.folder, identifier)
        assert case.labels is not None, identifier
        return TrainCase(
            identifier,
            self._array(case.image),
            self._array(case.labels),
            {index: voxels for index, voxels in case.locations.items() if len(voxels)},
            None if self.previous is None else self._array(open_stage_labels(self.previous, identifier)),
        )

    def _array(self, stored: Any) -> Any:
        return np.ascontiguousarray(stored[:]) if self.in_memory else stored


def decompressed_size(properties: CaseProperties, staged: bool = False) -> int:
    """Bytes of image (one channel for each normalisation) and labels, at most; `staged`: and the previous stage's."""
    return math.prod(properties.shape) * (4 * len(properties.spec.normalisation) + (4 if staged else 2))

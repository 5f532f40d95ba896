"""Prepared cases for training: kept decompressed in memory when they are small, read piece by piece otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from autounet.store import open_prepared

MEMORY_LIMIT = 2 * 1024**3
"""bytes of decompressed cases that a training may keep"""


class TrainCase(NamedTuple):
    """`image` (C, *S3) float32 and `labels` (*S3) integers are numpy arrays, or blosc2 arrays read when sliced."""

    identifier: str
    image: Any
    labels: Any
    locations: dict[int, np.ndarray]
    """dense class -> (N, 3) voxel indices; only classes that occur"""


class CaseStore:
    """The cases of one training, opened once. Picklable: a spawned worker opens them again."""

    def __init__(self, folder: Path, identifiers: Sequence[str], copies: int = 1) -> None:
        """`copies` processes share the memory limit."""
        self.folder = Path(folder)
        self.identifiers = tuple(identifiers)
        self.copies = copies
        self._cases: list[TrainCase] | None = None

    def __len__(self) -> int:
        return len(self.identifiers)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cases": None}

    def __getitem__(self, index: int) -> TrainCase:
        return self.cases[index]

    @property
    def cases(self) -> list[TrainCase]:
        if self._cases is None:
            self._cases = self._open()
        return self._cases

    def _open(self) -> list[TrainCase]:
        stored = [open_prepared(self.folder, identifier) for identifier in self.identifiers]
        size = sum(4 * int(np.prod(case.image.shape)) + 2 * int(np.prod(case.labels.shape)) for case in stored)
        small = size * self.copies <= MEMORY_LIMIT
        return [
            TrainCase(
                case.identifier,
                np.ascontiguousarray(case.image[:]) if small else case.image,
                np.ascontiguousarray(case.labels[:]) if small else case.labels,
                {index: voxels for index, voxels in case.locations.items() if len(voxels)},
            )
            for case in stored
        ]

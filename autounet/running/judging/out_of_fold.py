"""How unsure the out-of-fold probabilities of the selected result are, for the report."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from autounet.preprocessing import Decision, PooledScores
from autounet.schema.dataset import Dataset
from autounet.schema.plan import Configuration
from autounet.schema.selection import Selection
from autounet.schema.targets import TargetKind
from autounet.store import read_properties, read_scores, scores_file


def relative_entropy(logits: np.ndarray, decision: Decision, targets: TargetKind, temperature: float) -> np.ndarray:
    """(N,) 0..1 of logits (N, C): the entropy of the probabilities as a share of the greatest that C outputs can have.

    That is log(C) of exclusive classes, C log(2) of overlapping targets.
    """
    channels = logits.shape[1]
    greatest = np.log(channels) if targets == "classes" else channels * np.log(2)
    found = decision.entropy(decision.probabilities(logits / np.float32(temperature)))
    return np.clip(found / greatest, 0, 1).astype(np.float32)


class OutOfFoldEntropy:
    """Of any voxels of a case, from the kept scores; the case asked for last is held."""

    def __init__(
        self, out: Path, dataset: Dataset, configurations: Mapping[str, Configuration], selection: Selection
    ) -> None:
        self._dataset, self._temperature, self._weights = dataset, 1.0, selection.weights or None
        if selection.calibration:
            self._temperature = selection.calibration.temperature
        chosen = [configurations[name] for name in selection.chosen]
        self._targets = chosen[0].targets
        self._sources = [
            (out / "crossval" / name / "scores", out / "prepared" / configuration.prepared)
            for name, configuration in zip(selection.chosen, chosen, strict=True)
        ]
        self._held: tuple[str, PooledScores] | None = None

    def __call__(self, identifier: str, z: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray | None:
        """(len(z), len(y), len(x)) float32 0..1 at these indices of the file's array; None where no scores are kept.

        0 outside the crop, where background was taken for sure. Raises RecordError for a damaged file.
        """
        if not all(scores_file(scores, identifier).exists() for scores, _ in self._sources):
            return None
        pooled = self._pooled(identifier)
        result = np.zeros((len(z), len(y), len(x)), np.float32)
        inside = [
            (np.flatnonzero((index >= start) & (index < stop)), start)
            for index, (start, stop) in zip((z, y, x), pooled.box, strict=True)
        ]
        (planes, first), (rows, top), (columns, left) = inside
        own_y, own_x = (own.ravel() for own in np.meshgrid(y[rows] - top, x[columns] - left, indexing="ij"))
        for plane in planes:
            logits = pooled.at(int(z[plane] - first), own_y, own_x)
            found = relative_entropy(logits, pooled.decision, self._targets, self._temperature)
            result[plane, rows[:, None], columns] = found.reshape(len(rows), len(columns))
        return result

    def _pooled(self, identifier: str) -> PooledScores:
        if self._held is None or self._held[0] != identifier:
            self._held = None  # before the next is read
            sources = [
                (read_scores(scores, identifier), read_properties(prepared, identifier))
                for scores, prepared in self._sources
            ]
            self._held = identifier, PooledScores(sources, self._dataset.labels, self._weights, self._targets)
        return self._held[1]

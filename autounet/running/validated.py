"""Out-of-fold results of single cases that still hold: one changed case does not predict its whole fold again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from autounet.datasets.stamps import FileHashes
from autounet.running.case_work import segmentation_name
from autounet.schema.annotated import annotated_classes
from autounet.schema.dataset import Dataset
from autounet.schema.errors import RecordError
from autounet.schema.metrics import CaseMetrics
from autounet.schema.plan import Configuration
from autounet.schema.record import Record, digest
from autounet.store import read_properties, scores_file, stage_labels_file

STAGE_VERSION = 2
"""raised whenever the same case would be predicted or evaluated differently"""


class ValidatedCase(Record):
    """`crossval/<configuration>/cases/<case>.json`."""

    key: str
    """digest of all that the result depends on"""
    metrics: CaseMetrics


class ValidatedCases:
    """The results in `crossval/<configuration>/` or, of an ensemble, `crossval/<configuration>+<configuration>/`."""

    def __init__(self, dataset: Dataset, folder: Path, keys: Mapping[str, str], keep_scores: bool = False) -> None:
        """`keys` holds the cases wanted, and what their results depend on."""
        self.dataset, self.folder, self.keys, self.keep_scores = dataset, folder, keys, keep_scores

    def kept(self) -> dict[str, CaseMetrics]:
        """The cases that need no work: same key, and all files there."""
        found = {}
        for identifier, key in self.keys.items():
            record = _load(self.folder, identifier)
            if record is not None and record.key == key and all(file.exists() for file in self._files(identifier)):
                found[identifier] = record.metrics
        return found

    def keep(self, found: Sequence[CaseMetrics]) -> None:
        for metrics in found:
            ValidatedCase(key=self.keys[metrics.case], metrics=metrics).save(_record(self.folder, metrics.case))

    def _files(self, identifier: str) -> list[Path]:
        scores = [scores_file(self.folder / "scores", identifier)] if self.keep_scores else []
        return [self.folder / segmentation_name(self.dataset.case(identifier)), *scores]


def validation_keys(
    dataset: Dataset,
    configuration: Configuration,
    fold: int,
    cases: Sequence[str],
    weights: Path,
    prepared: Path,
    previous: Path | None,
) -> dict[str, str]:
    """Of one fold's cases. `prepared` is the folder of the cases on the configuration's grid, `previous` that of labels
    handed over by a previous stage."""
    depends = configuration.key, configuration.inference.digest(), dataset.labels.digest()
    common = [STAGE_VERSION, fold, FileHashes().of(weights), *depends]

    def key(identifier: str) -> str:
        handed = None if previous is None else FileHashes().of(stage_labels_file(previous, identifier))
        annotated = annotated_classes(dataset.case(identifier), dataset.labels)
        return digest([*common, read_properties(prepared, identifier).key, handed, annotated])

    return {identifier: key(identifier) for identifier in cases}


def ensemble_keys(folders: Sequence[Path], cases: Sequence[str]) -> dict[str, str]:
    """Of cases whose results in several folders are averaged: what these depend on."""
    found = {}
    for identifier in cases:
        members = [_load(folder, identifier) for folder in folders]
        found[identifier] = digest([STAGE_VERSION, [member.key if member else None for member in members]])
    return found


def _record(folder: Path, identifier: str) -> Path:
    return folder / "cases" / f"{identifier}.json"


def _load(folder: Path, identifier: str) -> ValidatedCase | None:
    try:
        return ValidatedCase.load(_record(folder, identifier))
    except RecordError:
        return None

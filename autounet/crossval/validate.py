"""Out-of-fold work on cases, from the files to the files: prepare, validate, average, evaluate."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..datasets import load_case, read_reference
from ..datasets.file_hashes import FileHashes
from ..evaluation import distance_unit, evaluate_case, summarise
from ..imageio import output_suffix, read_geometry, suffix, write_labels
from ..inference.export import append_one_hot, export
from ..preprocessing import case_key, prepare_case
from ..schema.dataset import Case, Dataset, annotated_classes, channel_availability
from ..schema.errors import RecordError
from ..schema.metrics import CaseMetrics, Metrics
from ..schema.plan import Configuration, PreprocessSpec, prediction_swap
from ..schema.prepared import CaseProperties
from ..schema.record import Record, digest
from ..store import (
    is_prepared,
    open_prepared,
    open_stage_labels,
    read_properties,
    read_scores,
    scores_file,
    stage_labels_file,
    write_prepared,
    write_scores,
)
from ..workers import map_parallel

OnCase = Callable[[str], None]


class _PrepareTask(NamedTuple):
    dataset: Dataset
    identifier: str
    key: str
    spec: PreprocessSpec
    folder: Path


def _prepare_one(task: _PrepareTask) -> str:
    case = load_case(task.dataset, task.identifier)
    present = channel_availability(task.dataset.case(task.identifier), len(task.dataset.channels))
    prepared = prepare_case(task.identifier, task.key, case.image, case.labels, case.geometry, task.spec, present)
    write_prepared(task.folder, *prepared)
    return task.identifier


def prepare_cases(
    dataset: Dataset,
    hashes: Mapping[str, str],
    spec: PreprocessSpec,
    folder: Path,
    workers: int,
    on_case: OnCase | None = None,
) -> None:
    """Preprocess every case into `folder`, in parallel; cases already there with the same key are kept.

    `hashes` holds the content hash of each case.
    """
    keys = {case.identifier: case_key(spec, hashes[case.identifier]) for case in dataset.cases}
    tasks = [
        _PrepareTask(
            dataset.model_copy(update={"cases": (case,)}), case.identifier, keys[case.identifier], spec, folder
        )
        for case in dataset.cases
    ]
    kept = {task.identifier for task in tasks if is_prepared(folder, task.identifier, task.key)}
    if on_case:
        for identifier in kept:
            on_case(identifier)
    missing = [task for task in tasks if task.identifier not in kept]
    map_parallel(_prepare_one, missing, workers, on_case)


def validate_cases(
    dataset: Dataset,
    configuration: Configuration,
    models: Sequence[Any],
    prepared: Path,
    cases: Sequence[str],
    fold: int,
    folder: Path,
    device: str,
    keep_scores: bool,
    on_case: OnCase | None = None,
    previous: Path | None = None,
) -> Metrics:
    """Predict whole out-of-fold volumes into `folder` and evaluate them; ensembles need the scores kept.

    `previous` is the folder of the labels that the previous stage of a cascade handed over.
    """
    from ..inference.sliding_window import predict_scores

    results = []
    outputs, swap = configuration.network.out_channels, prediction_swap(configuration, dataset.labels)
    for identifier in cases:
        case = open_prepared(prepared / configuration.prepared, identifier)
        image = case.image[:]
        if previous is not None:
            image = append_one_hot(image, open_stage_labels(previous, identifier)[:], dataset.labels.count)
        scores = predict_scores(models, image, configuration, outputs, device, swap=swap)
        if keep_scores:
            write_scores(folder / "scores", identifier, scores)
        segmentation = export([(scores, case.properties)], dataset.labels, targets=configuration.targets)
        results.append(_write_and_evaluate(dataset, case.properties, segmentation, folder, fold))
        if on_case:
            on_case(identifier)
    return summarise_cases(results, dataset)


def ensemble_cases(
    dataset: Dataset,
    sources: Mapping[str, tuple[Configuration, Path]],
    prepared: Path,
    folds: Mapping[str, int],
    folder: Path,
    weights: Mapping[str, Sequence[float]] | None = None,
) -> Metrics:
    """Average the kept out-of-fold scores of several configurations into `folder` and evaluate them.

    `sources` maps a configuration's name to itself and its scores folder; `folds` maps each case to its fold, and
    `weights` to those of the configurations (None: equal). All configurations have the same targets, which
    `planning.validate` sees to.
    """
    results = []
    targets = next(configuration.targets for configuration, _ in sources.values())
    for identifier, fold in folds.items():
        pairs = [
            (
                read_scores(scores, identifier).astype(np.float32),
                open_prepared(prepared / configuration.prepared, identifier).properties,
            )
            for configuration, scores in sources.values()
        ]
        own = None if weights is None else weights[identifier]
        segmentation = export(pairs, dataset.labels, own, targets=targets)
        results.append(_write_and_evaluate(dataset, pairs[0][1], segmentation, folder, fold))
    return summarise_cases(results, dataset)


def summarise_cases(cases: Sequence[CaseMetrics], dataset: Dataset) -> Metrics:
    """Means over out-of-fold cases; distances in the unit of the data set's own images."""
    image = read_geometry(Path(dataset.root) / dataset.cases[0].images[0])
    return summarise(cases, dataset.labels, unit=distance_unit(image))


def segmentation_name(case: Case) -> str:
    """In the format of the case's own image."""
    return f"{case.identifier}{output_suffix(suffix(case.images[0]))}"


def _write_and_evaluate(
    dataset: Dataset, properties: CaseProperties, segmentation: np.ndarray, folder: Path, fold: int
) -> CaseMetrics:
    """The image's geometry is used throughout: a label file's own may be damaged."""
    case, geometry = dataset.case(properties.identifier), properties.geometry
    assert case.label is not None
    reference, _ = read_reference(dataset, case)
    write_labels(folder / segmentation_name(case), segmentation, geometry)
    unit, annotated = distance_unit(geometry), annotated_classes(case, dataset.labels)
    per_class = evaluate_case(segmentation, reference, geometry.spacing, dataset.labels, unit=unit, annotated=annotated)
    return CaseMetrics(case=case.identifier, fold=fold, per_class=per_class)


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

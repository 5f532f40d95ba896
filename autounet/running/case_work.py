"""Out-of-fold work on cases, from the files to the files: prepare, validate, average, evaluate."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from autounet.datasets import load_case
from autounet.evaluation import distance_unit, evaluate_case, summarise
from autounet.images import output_suffix, read_geometry, read_labels, write_labels
from autounet.preprocessing import case_key, export, prepare_case
from autounet.schema.dataset import Dataset
from autounet.schema.plan import Configuration, PreprocessSpec
from autounet.schema.run import CaseMetrics, Metrics
from autounet.store import is_prepared, open_prepared, read_scores, write_prepared, write_scores
from autounet.workers import map_parallel

OnCase = Callable[[str], None]


class _PrepareTask(NamedTuple):
    dataset: Dataset
    identifier: str
    key: str
    spec: PreprocessSpec
    folder: Path


def _prepare_one(task: _PrepareTask) -> str:
    if not is_prepared(task.folder, task.identifier, task.key):
        case = load_case(task.dataset, task.identifier)
        prepared = prepare_case(task.identifier, task.key, case.image, case.labels, case.geometry, task.spec)
        write_prepared(task.folder, prepared.properties, prepared.image, prepared.labels, prepared.locations)
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
    missing = [task for task in tasks if not is_prepared(folder, task.identifier, task.key)]
    if on_case:
        for task in tasks:
            if task not in missing:
                on_case(task.identifier)
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
    on_case: OnCase | None = None,
) -> Metrics:
    """Predict whole out-of-fold volumes into `folder` (segmentations and `scores/`) and evaluate them."""
    from autounet.inference.sliding import predict_scores

    results = []
    for identifier in cases:
        case = open_prepared(prepared / configuration.prepared, identifier)
        scores = predict_scores(models, case.image[:], configuration, dataset.labels.count, device)
        write_scores(folder / "scores", identifier, scores.astype(np.float16))
        segmentation = export([(scores, case.properties)], dataset.labels)
        results.append(_write_and_evaluate(dataset, identifier, segmentation, folder, fold))
        if on_case:
            on_case(identifier)
    return summarise_cases(results, dataset)


def ensemble_cases(
    dataset: Dataset,
    sources: Mapping[str, tuple[Configuration, Path]],
    prepared: Path,
    folds: Mapping[str, int],
    folder: Path,
) -> Metrics:
    """Average the kept out-of-fold scores of several configurations into `folder` and evaluate them.

    `sources` maps a configuration's name to itself and its scores folder; `folds` maps each case to its fold.
    """
    results = []
    for identifier, fold in folds.items():
        pairs = [
            (
                read_scores(scores, identifier).astype(np.float32),
                open_prepared(prepared / configuration.prepared, identifier).properties,
            )
            for configuration, scores in sources.values()
        ]
        segmentation = export(pairs, dataset.labels)
        results.append(_write_and_evaluate(dataset, identifier, segmentation, folder, fold))
    return summarise_cases(results, dataset)


def summarise_cases(cases: Sequence[CaseMetrics], dataset: Dataset) -> Metrics:
    """Means over out-of-fold cases; distances in the unit of the data set's own images."""
    first = dataset.cases[0].label
    unit = distance_unit(read_geometry(Path(dataset.root) / first)) if first else "mm"
    return summarise(cases, dataset.labels, unit=unit)


def _write_and_evaluate(dataset: Dataset, identifier: str, segmentation: Any, folder: Path, fold: int) -> CaseMetrics:
    case = dataset.case(identifier)
    assert case.label is not None
    reference, geometry = read_labels(Path(dataset.root) / case.label)
    write_labels(folder / f"{identifier}{output_suffix(dataset.suffix)}", segmentation, geometry)
    per_class = evaluate_case(segmentation, reference, geometry.spacing, dataset.labels, unit=distance_unit(geometry))
    return CaseMetrics(case=identifier, fold=fold, per_class=per_class)

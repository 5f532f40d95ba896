"""Out-of-fold work on cases, from the files to the files: prepare, validate, average, evaluate."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from autounet.datasets import load_case, read_reference
from autounet.evaluation import distance_unit, evaluate_case, summarise
from autounet.images import output_suffix, read_geometry, suffix, write_labels
from autounet.preprocessing import (
    append_one_hot,
    case_key,
    export,
    prepare_case,
)
from autounet.schema.annotated import annotated_classes
from autounet.schema.dataset import Case, Dataset
from autounet.schema.metrics import CaseMetrics, Metrics
from autounet.schema.plan import Configuration, PreprocessSpec
from autounet.schema.prepared import CaseProperties
from autounet.schema.presence import presence
from autounet.schema.swaps import prediction_swap
from autounet.store import (
    is_prepared,
    open_prepared,
    open_stage_labels,
    read_scores,
    write_prepared,
    write_scores,
)
from autounet.workers import map_parallel

OnCase = Callable[[str], None]


class _PrepareTask(NamedTuple):
    dataset: Dataset
    identifier: str
    key: str
    spec: PreprocessSpec
    folder: Path


def _prepare_one(task: _PrepareTask) -> str:
    case = load_case(task.dataset, task.identifier)
    present = presence(task.dataset.case(task.identifier), len(task.dataset.channels))
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
    from autounet.inference.sliding import predict_scores

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

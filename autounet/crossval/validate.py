"""Out-of-fold predictions and their metrics, of one configuration and of several averaged, and labels for a cascade."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..datasets import read_reference
from ..evaluation import distance_unit, evaluate_case, summarise
from ..imageio import output_suffix, read_geometry, suffix, write_labels
from ..inference.ensembling import Decision, decision_for
from ..inference.export import append_one_hot, export, labels_for_next_stage
from ..schema.dataset import Case, Dataset, annotated_classes
from ..schema.geometry import CaseProperties
from ..schema.labels import Labels, TargetKind
from ..schema.metrics import CaseMetrics, Metrics
from ..schema.plan import Configuration, prediction_swap
from ..store import open_prepared, open_stage_labels, read_properties, read_scored, write_scores, write_stage_labels
from ..store.run_folder import CrossvalFolder, RunFolder
from ..workers import map_parallel


def validate_cases(
    dataset: Dataset,
    configuration: Configuration,
    models: Sequence[Any],
    prepared: Path,
    cases: Iterable[str],
    fold: int,
    folder: CrossvalFolder,
    device: str,
    keep_scores: bool = True,
    on_case: Callable[[CaseMetrics], None] | None = None,
    previous: Path | None = None,
) -> list[CaseMetrics]:
    """Predict whole out-of-fold volumes into `folder` and evaluate them; ensembles need the scores kept.

    `prepared` is the folder of the cases on the configuration's grid, `previous` that of the labels of the previous
    stage of a cascade. `on_case` is called with each case when all of its files are written.
    """
    from ..inference.sliding_window import predict_scores

    results = []
    outputs, swap = configuration.network.out_channels, prediction_swap(configuration, dataset.labels)
    for identifier in cases:
        case = open_prepared(prepared, identifier)
        image = case.image[:]
        if previous is not None:
            stage = open_stage_labels(previous, identifier, case.properties.shape)
            image = append_one_hot(image, stage[:], dataset.labels.count)
        scores = predict_scores(models, image, configuration, outputs, device, swap=swap)
        if keep_scores:
            write_scores(folder.scores, identifier, scores)
        segmentation = export([(scores, case.properties)], dataset.labels, targets=configuration.targets)
        results.append(_write_and_evaluate(dataset, case.properties, segmentation, folder.path, fold))
        if on_case:
            on_case(results[-1])
    return results


def score_sources(
    folder: RunFolder, configurations: Mapping[str, Configuration], names: Sequence[str]
) -> tuple[tuple[Path, Path], ...]:
    """Folder of the kept scores and of the prepared cases, of each configuration in `names`."""
    return tuple((folder.crossval(name).scores, folder.prepared(configurations[name].prepared)) for name in names)


def ensemble_cases(
    dataset: Dataset,
    sources: Sequence[tuple[Path, Path]],
    targets: TargetKind,
    folds: Mapping[str, int],
    folder: Path,
    weights: Mapping[str, Sequence[float]] | None = None,
    on_case: Callable[[CaseMetrics], None] | None = None,
) -> list[CaseMetrics]:
    """Average the kept out-of-fold scores of several configurations into `folder` and evaluate them.

    `sources` are those of `score_sources`; all configurations have the same `targets`, which `planning.validate` sees
    to. `folds` maps each case to its fold, and `weights` to those of the configurations (None: equal).
    """
    results = []
    for identifier, fold in folds.items():
        pairs = [read_scored(scores, prepared, identifier) for scores, prepared in sources]
        own = None if weights is None else weights[identifier]
        segmentation = export(pairs, dataset.labels, own, targets=targets)
        results.append(_write_and_evaluate(dataset, pairs[0][1], segmentation, folder, fold))
        if on_case:
            on_case(results[-1])
    return results


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


class _CascadeTask(NamedTuple):
    identifier: str
    scores: Path
    grid: Path
    next_grid: Path
    folder: Path
    decision: Decision


def write_cascade_labels(
    cases: Sequence[str],
    labels: Labels,
    targets: TargetKind,
    scores: Path,
    grid: Path,
    next_grid: Path,
    folder: Path,
    workers: int,
    on_case: Callable[[str], None],
) -> None:
    """Kept out-of-fold scores on their grid to labels on the next stage's, into `folder`, in parallel.

    `grid` and `next_grid` are the folders of the cases as prepared for the two stages. `on_case` is called with each
    case when its labels are written.
    """
    decision = decision_for(labels, targets)
    tasks = [_CascadeTask(case, scores, grid, next_grid, folder, decision) for case in cases]
    map_parallel(_write_one, tasks, workers, on_case)


def _write_one(task: _CascadeTask) -> str:
    name = task.identifier
    scores, source = read_scored(task.scores, task.grid, name, np.float16)
    labels = labels_for_next_stage(scores, source, read_properties(task.next_grid, name), task.decision)
    write_stage_labels(task.folder, name, labels)
    return name

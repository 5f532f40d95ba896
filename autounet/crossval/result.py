"""The out-of-fold result of what was selected: postprocessed, calibrated and measured, from files to files."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..datasets import read_numbers, read_reference
from ..evaluation import (
    DEFAULT_METRICS,
    METRICS,
    OBJECT_METRICS,
    distance_unit,
    evaluate_case,
    evaluate_objects,
    summarise,
)
from ..imageio import read_labels, write_labels
from ..inference.ensembling import decision_for
from ..inference.export import ensemble_scores
from ..ops.masks import NO_LOSS, apply_steps, encode
from ..progress import progress
from ..schema.dataset import Dataset, annotated_classes, is_certain
from ..schema.labels import counted_targets, targets_of
from ..schema.metrics import CaseMetrics, Metrics
from ..schema.plan import Configuration
from ..schema.selection import PostprocessStep, Selection
from ..store import read_scored
from ..store.run_folder import CrossvalFolder, RunFolder
from ..workers import map_parallel
from .calibrate import LogitSample, calibrate, relative_entropy, sample_voxels
from .postprocess import CaseTable, Judgement, held_out, judge, tabulate
from .validate import score_sources, segmentation_name, summarise_cases

log = logging.getLogger(__name__)

MOST_VOXELS, MOST_PER_CASE = 200_000, 10_000
"""that calibration looks at; the standard error of an error of 0.01 is then below 0.001"""


NOT_OF_OBJECTS = Judgement((), {}, (), "No postprocessing of components: objects have a least size of their own.")


class _CaseTask(NamedTuple):
    dataset: Dataset
    """of this case alone"""
    segmentations: Path
    sources: tuple[tuple[Path, Path], ...]
    """folder of the scores and of the prepared cases, of each configuration"""
    configuration: Configuration
    """one of them: all have the same targets"""
    voxels: int
    weights: tuple[float, ...] | None = None
    """of the configurations, fitted without this case; None: equal"""


class _CaseEvidence(NamedTuple):
    """What postprocessing and calibration are fitted on."""

    tables: dict[str, CaseTable]
    sample: LogitSample


def postprocess_and_calibrate(
    selection: Selection,
    metrics: Metrics,
    dataset: Dataset,
    configurations: Mapping[str, Configuration],
    folder: RunFolder,
    workers: int,
) -> tuple[Selection, Metrics]:
    """The selection with its postprocessing and calibration, and the metrics of its result.

    `metrics` are those of the unprocessed result. Each case is postprocessed with what was chosen without it, so that
    the metrics flatter nothing. Writes `crossval/<selected>/postprocessed/`, and removes any other.
    """
    for former in folder.former_results("postprocessed"):
        shutil.rmtree(former)
    place = folder.selected(selection)
    groups = held_out({case.case: case.fold or 0 for case in metrics.cases})
    evidence = _gather(selection, groups, dataset, configurations, folder, workers)
    judgement = NOT_OF_OBJECTS
    if dataset.labels.objects is None:
        judgement = judge({case: each.tables for case, each in evidence.items()}, groups, dataset.labels)
    if judgement.steps:
        processed = _postprocess(place, judgement.by_group, groups, metrics, dataset, workers)
        if (processed.mean_dice or 0.0) > (metrics.mean_dice or 0.0):
            metrics = processed
        else:
            shutil.rmtree(place.postprocessed)
            judgement = _dropped(judgement)
    log.info("%s", judgement.reason)
    calibration = calibrate({case: each.sample for case, each in evidence.items()}, groups)
    targets = configurations[selection.chosen[0]].targets
    temperature = calibration.temperature if calibration else 1.0
    cases = []
    for case in metrics.cases:  # with the mean of its entropy over the sampled voxels
        logits = evidence[case.case].sample.logits
        entropy = relative_entropy(logits, decision_for(dataset.labels, targets), targets, temperature)
        cases.append(case.model_copy(update={"uncertainty": float(entropy.mean()) if len(entropy) else None}))
    decided = {
        "postprocessing": judgement.steps,
        "postprocessing_trials": judgement.trials,
        "postprocessing_reason": judgement.reason,
        "calibration": calibration,
    }
    return (
        selection.model_copy(update=decided),
        metrics.model_copy(update={"cases": tuple(cases), "calibration": calibration}),
    )


def _gather(
    selection: Selection,
    groups: Mapping[str, int],
    dataset: Dataset,
    configurations: Mapping[str, Configuration],
    folder: RunFolder,
    workers: int,
) -> dict[str, _CaseEvidence]:
    sources = score_sources(folder, configurations, selection.chosen)
    segmentations = folder.selected(selection).path
    voxels = min(MOST_PER_CASE, MOST_VOXELS // len(groups) + 1)
    weights = selection.weighting.by_group if selection.weights and selection.weighting else None
    first = configurations[selection.chosen[0]]
    tasks = [
        _CaseTask(dataset.only(case), segmentations, sources, first, voxels, weights[group] if weights else None)
        for case, group in groups.items()
    ]
    with progress("postprocessing and calibration", len(tasks)) as meter:
        found = map_parallel(_gather_one, tasks, workers, lambda _: meter.advance())
    return dict(zip(groups, found, strict=True))


def _postprocess(
    place: CrossvalFolder,
    by_group: Mapping[int, tuple[PostprocessStep, ...]],
    groups: Mapping[str, int],
    metrics: Metrics,
    dataset: Dataset,
    workers: int,
) -> Metrics:
    tasks = [
        _PostprocessTask(dataset.only(case.case), case, place, by_group[groups[case.case]]) for case in metrics.cases
    ]
    with progress("postprocessing", len(tasks)) as meter:
        found = map_parallel(_postprocess_one, tasks, workers, lambda _: meter.advance())
    return summarise_cases(found, dataset)


class _PostprocessTask(NamedTuple):
    dataset: Dataset
    metrics: CaseMetrics
    """of the plain segmentation"""
    place: CrossvalFolder
    steps: tuple[PostprocessStep, ...]


def _dropped(judgement: Judgement) -> Judgement:
    """Steps that help one by one and not together, as overlapping regions may have it."""
    trials = tuple(trial.model_copy(update={"kept": False}) for trial in judgement.trials)
    reason = "No postprocessing: what gains by itself gains nothing together."
    return Judgement((), {group: () for group in judgement.by_group}, trials, reason)


def _gather_one(task: _CaseTask) -> _CaseEvidence:
    dataset, labels, case = task.dataset, task.dataset.labels, task.dataset.cases[0]
    segmentation, geometry = read_labels(task.segmentations / segmentation_name(case))
    reference, _ = read_reference(dataset, case)
    annotated = annotated_classes(case, labels)
    certain = [annotated is None or is_certain(target.members, annotated) for target in counted_targets(labels)]
    tables = tabulate(segmentation, reference, geometry.spacing, labels, certain)
    sources = [read_scored(scores, prepared, case.identifier) for scores, prepared in task.sources]
    pooled = ensemble_scores(sources, labels, task.weights, task.configuration.targets)
    dense = encode(reference, labels)
    if annotated is not None and not all(annotated):
        dense = np.full_like(dense, NO_LOSS)  # what was not annotated may be anything
    structures = (reference != 0) | (segmentation != 0)
    voxels = sample_voxels(case.identifier, dense, structures, pooled.box, task.voxels)
    logits, classes = voxels.logits(pooled), voxels.classes
    if task.configuration.targets == "regions":
        members = [target.members for target in targets_of(labels, "regions")]
        return _CaseEvidence(
            tables, LogitSample(logits, np.stack([np.isin(classes, each) for each in members], axis=1))
        )
    return _CaseEvidence(tables, LogitSample(logits, classes))


def _postprocess_one(task: _PostprocessTask) -> CaseMetrics:
    """Writes the segmentation, also where nothing is removed from it."""
    dataset, labels = task.dataset, task.dataset.labels
    case = dataset.cases[0]
    name = segmentation_name(case)
    plain, geometry = read_labels(task.place.path / name)
    processed = apply_steps(plain, geometry.spacing, task.steps)
    write_labels(task.place.postprocessed / name, processed, geometry)
    if np.array_equal(plain, processed):
        return task.metrics
    reference, _ = read_reference(dataset, case)
    unit, annotated = distance_unit(geometry), annotated_classes(case, labels)
    per_class = evaluate_case(processed, reference, geometry.spacing, labels, unit=unit, annotated=annotated)
    return task.metrics.model_copy(update={"per_class": per_class})


class _MetricsTask(NamedTuple):
    dataset: Dataset
    """of this case alone"""
    case: CaseMetrics
    """as measured in validation"""
    segmentation: Path
    wanted: Sequence[str]


def measure(
    selection: Selection, metrics: Metrics, dataset: Dataset, folder: RunFolder, wanted: Sequence[str], workers: int
) -> Metrics:
    """`metrics` of the selected result with those of the names `wanted` in place of the default ones, in parallel.

    Configurations are compared by Dice, so validation measures the default, whatever is wanted.
    """
    if tuple(wanted) == DEFAULT_METRICS:
        return metrics
    place = folder.selected(selection)
    segmentations = place.postprocessed if selection.postprocessing else place.path
    if dataset.labels.objects is not None:
        segmentations, wanted = place.objects, [name for name in METRICS if name in (*wanted, *OBJECT_METRICS)]
    tasks = []
    for each in metrics.cases:
        only = dataset.only(each.case)
        tasks.append(_MetricsTask(only, each, segmentations / segmentation_name(only.cases[0]), wanted))
    with progress("measuring", len(tasks)) as meter:
        cases = map_parallel(_measure_one, tasks, workers, lambda _: meter.advance())
    found = summarise(cases, dataset.labels, metrics.tolerance, metrics.unit, wanted)
    return found.model_copy(update={"calibration": metrics.calibration})


def _measure_one(task: _MetricsTask) -> CaseMetrics:
    case, labels = task.dataset.cases[0], task.dataset.labels
    segmentation, geometry = read_labels(task.segmentation)
    unit, annotated = distance_unit(geometry), annotated_classes(case, labels)
    if labels.objects is not None:
        numbers, _ = read_numbers(task.dataset, case)
        per_class = evaluate_objects(segmentation, numbers, geometry.spacing, labels, unit=unit, metrics=task.wanted)
        return task.case.model_copy(update={"per_class": per_class})
    reference, _ = read_reference(task.dataset, case)
    per_class = evaluate_case(
        segmentation, reference, geometry.spacing, labels, unit=unit, annotated=annotated, metrics=task.wanted
    )
    return task.case.model_copy(update={"per_class": per_class})

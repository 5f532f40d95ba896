"""Single objects of what was selected: how they are made of expected depths is chosen on out-of-fold cases.

Tried are the heights of summits and least sizes of an object. A case gets the objects of what was chosen without it,
so that its metrics flatter nothing; new images get those of what was chosen on all cases.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from ..datasets import read_numbers
from ..evaluation import DEFAULT_METRICS, OBJECT_METRICS, distance_unit, evaluate_objects, summarise
from ..evaluation.overlap_metrics import objects
from ..imageio import write_labels
from ..inference.export import ensemble_scores
from ..inference.objects import UNTRIED, ObjectMaps, numbered_objects, object_maps
from ..ops.objects import separate
from ..progress import progress
from ..schema.dataset import Dataset
from ..schema.geometry import Geometry
from ..schema.metrics import CaseMetrics, Metrics
from ..schema.plan import Configuration
from ..schema.selection import ObjectSeparation, ObjectTrial, Selection
from ..store import read_properties, read_scored
from ..store.run_folder import RunFolder
from ..workers import map_parallel
from .postprocess import held_out
from .validate import score_sources, segmentation_name

log = logging.getLogger(__name__)

HEIGHTS: Final = (0.1, 0.05, 0.15, 0.2, 0.3, 0.02)
"""of summits that are tried; of equal ones the first is taken"""
SHARES: Final = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5)
"""least sizes that are tried, as shares of the median volume of the objects in the references"""
THRESHOLDS: Final = (0.5, 0.6, 0.7, 0.8, 0.9)
"""of the IoU from which on objects match"""
RULE: Final = (
    "The average precision TP / (TP + FP + FN) over objects, its mean over the IoU thresholds 0.5 to 0.9 and over "
    "cases; of equal ones the first that was tried."
)


class _Source(NamedTuple):
    """What the objects of one case are made of."""

    dataset: Dataset
    """of this case alone"""
    sources: tuple[tuple[Path, Path], ...]
    """folder of the scores and of the prepared cases, of each configuration"""
    configuration: Configuration
    """one of them: all have the same targets"""
    weights: tuple[float, ...] | None
    """of the configurations, fitted without this case; None: equal"""


def separate_objects(
    selection: Selection,
    metrics: Metrics,
    dataset: Dataset,
    configurations: Mapping[str, Configuration],
    folder: RunFolder,
    workers: int,
) -> tuple[Selection, Metrics]:
    """The selection with the separation of objects, and the metrics of these; `metrics` are those of the one class.

    Writes `crossval/<selected>/objects/`, and removes any other.
    """
    for former in folder.former_results("objects"):
        shutil.rmtree(former)
    groups = held_out({case.case: case.fold or 0 for case in metrics.cases})
    weights = selection.weighting.by_group if selection.weights and selection.weighting else None
    sources = score_sources(folder, configurations, selection.chosen)
    first = configurations[selection.chosen[0]]
    cases = {
        case: _Source(dataset.only(case), sources, first, weights[group] if weights else None)
        for case, group in groups.items()
    }
    volumes = np.concatenate(map_parallel(_volumes, list(cases.values()), workers, lambda _: None) or [np.zeros(0)])
    median = float(np.median(volumes)) if len(volumes) else 0.0
    trials = [ObjectTrial(height=height, smallest=share * median) for height in HEIGHTS for share in SHARES]
    with progress("objects: heights and sizes", len(cases)) as meter:
        tasks = [_ScoreTask(source, tuple(trials)) for source in cases.values()]
        scores = np.array(map_parallel(_score_one, tasks, workers, lambda _: meter.advance()))
    separation = _choose(trials, scores, list(groups.values()))
    place = folder.selected(selection).objects
    with progress("objects", len(cases)) as meter:
        written = [
            _WriteTask(cases[case.case], separation.by_group[groups[case.case]], case, place) for case in metrics.cases
        ]
        found = map_parallel(_write_one, written, workers, lambda _: meter.advance())
    chosen = separation.chosen
    log.info(
        "objects: two are told apart where the way between them is shallower by %g of an object's depth; none is "
        "smaller than %g (mm3 or mm2, or pixels)", chosen.height, chosen.smallest,
    )  # fmt: skip
    measured = summarise(
        found, dataset.labels, metrics.tolerance, metrics.unit, (*DEFAULT_METRICS, *OBJECT_METRICS)
    ).model_copy(update={"calibration": metrics.calibration})
    return selection.model_copy(update={"objects": separation}), measured


def _choose(trials: Sequence[ObjectTrial], scores: np.ndarray, groups: Sequence[int]) -> ObjectSeparation:
    """`scores` (cases, trials), NaN for cases without objects; `groups` of the cases."""
    member = np.array(groups)

    def best(rows: np.ndarray) -> ObjectTrial:
        told = scores[rows][~np.isnan(scores[rows]).any(axis=1)]
        return trials[int(told.mean(axis=0).argmax())] if len(told) else UNTRIED

    everything = np.ones(len(member), bool)
    told = scores[~np.isnan(scores).any(axis=1)]
    means = told.mean(axis=0) if len(told) else [None] * len(trials)
    compared = tuple(
        trial.model_copy(update={"score": None if mean is None else float(mean)})
        for trial, mean in zip(trials, means, strict=True)
    )
    several = len(set(groups)) > 1
    by_group = {group: best(member != group if several else everything) for group in sorted(set(groups))}
    return ObjectSeparation(chosen=best(everything), compared=compared, by_group=by_group, rule=RULE)


def _reference(source: _Source) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the objects (Z, Y, X), and which voxels count."""
    numbers, _ = read_numbers(source.dataset, source.dataset.cases[0])
    counted = numbers != source.dataset.labels.ignore
    return np.where(counted, np.maximum(numbers, 0), 0), counted


def _volumes(source: _Source) -> np.ndarray:
    numbers, _ = _reference(source)
    _, sizes = np.unique(numbers[numbers > 0], return_counts=True)
    return sizes * float(np.prod(_geometry(source).spacing))


def _geometry(source: _Source) -> Geometry:
    """Of the image: a label file's own may be damaged."""
    return read_properties(source.sources[0][1], source.dataset.cases[0].identifier).geometry


def _maps(source: _Source) -> ObjectMaps:
    name, labels = source.dataset.cases[0].identifier, source.dataset.labels
    pairs = [read_scored(scores, prepared, name) for scores, prepared in source.sources]
    return object_maps(ensemble_scores(pairs, labels, source.weights, source.configuration.targets), labels)


class _ScoreTask(NamedTuple):
    source: _Source
    trials: tuple[ObjectTrial, ...]


def _score_one(task: _ScoreTask) -> list[float]:
    """Mean average precision after each trial; NaN where there are no objects in either."""
    reference, counted = _reference(task.source)
    maps, spacing = _maps(task.source), _geometry(task.source).spacing
    voxel = float(np.prod(spacing))
    found = {}
    for height in {trial.height for trial in task.trials}:
        numbers = np.where(counted, separate(*maps, height, spacing), 0)
        overlaps = objects(numbers > 0, reference > 0, (numbers, reference))
        found[height] = overlaps, np.unique(numbers[numbers > 0], return_counts=True)[1] * voxel
    scores = []
    for trial in task.trials:
        overlaps, volumes = found[trial.height]
        kept = volumes >= trial.smallest
        iou = overlaps.iou[kept[overlaps.first]]
        matched = [int(np.count_nonzero(iou > threshold)) for threshold in THRESHOLDS]
        total = int(kept.sum()) + overlaps.true
        scores.append(float(np.mean([each / (total - each) for each in matched])) if total else np.nan)
    return scores


class _WriteTask(NamedTuple):
    source: _Source
    trial: ObjectTrial
    metrics: CaseMetrics
    """of the one class"""
    folder: Path


def _write_one(task: _WriteTask) -> CaseMetrics:
    dataset, geometry = task.source.dataset, _geometry(task.source)
    case = dataset.cases[0]
    numbers = numbered_objects(_maps(task.source), task.trial, geometry.spacing)
    write_labels(task.folder / segmentation_name(case), numbers, geometry)
    reference, _ = read_numbers(dataset, case)
    unit = distance_unit(geometry)
    per_class = evaluate_objects(numbers, reference, geometry.spacing, dataset.labels, unit=unit)
    return task.metrics.model_copy(update={"per_class": per_class})

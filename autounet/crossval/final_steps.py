"""What follows the choice: postprocessing and calibration of the selected out-of-fold result, from files to files."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..datasets import read_reference
from ..evaluation import DEFAULT_METRICS, distance_unit, evaluate_case, summarise
from ..imageio import read_labels, write_labels
from ..inference.decisions import decision_for
from ..inference.export import EnsembleScores, ensemble_scores
from ..ops.components import apply_steps
from ..ops.label_values import NO_LOSS, encode
from ..progress import progress
from ..schema.dataset import Dataset, annotated_classes, is_certain
from ..schema.labels import counted_targets, targets_of
from ..schema.metrics import CaseMetrics, Metrics
from ..schema.options import RunOptions
from ..schema.plan import Configuration
from ..schema.selection import WEIGHTED, PostprocessStep, Selection
from ..store import read_properties, read_scores
from ..workers import map_parallel
from ..workflow.context import Context
from .calibrate import Sample, calibrate, relative_entropy
from .postprocess import CaseTable, Judgement, held_out, judge, tabulate
from .sampled_voxels import draw
from .validate import segmentation_name, summarise_cases

log = logging.getLogger(__name__)

POSTPROCESSED = "postprocessed"
"""folder of the postprocessed out-of-fold segmentations, beside the plain ones"""
MOST_VOXELS, MOST_PER_CASE = 200_000, 10_000
"""that calibration looks at; the standard error of an error of 0.01 is then below 0.001"""


class _Task(NamedTuple):
    dataset: Dataset
    """of this case alone"""
    identifier: str
    segmentations: Path
    sources: tuple[tuple[Path, Path], ...]
    """folder of the scores and of the prepared cases, of each configuration"""
    configuration: Configuration
    """one of them: all have the same targets"""
    voxels: int
    weights: tuple[float, ...] | None = None
    """of the configurations, fitted without this case; None: equal"""


class _Seen(NamedTuple):
    tables: dict[str, CaseTable]
    sample: Sample


class Aftercare:
    """Of one run; writes `crossval/<selected>/postprocessed/`."""

    def __init__(self, context: Context) -> None:
        self.context, self.dataset = context, context.known.dataset
        self.crossval = context.out / "crossval"

    def of(self, selection: Selection, metrics: Metrics) -> tuple[Selection, Metrics]:
        """The selection with what was judged, and the metrics of its result; `metrics` are those of the plain one.

        Each case is postprocessed with what was chosen without it, so that the metrics flatter nothing.
        """
        folder = self.crossval / selection.folder
        for former in [*self.crossval.glob(f"*/{POSTPROCESSED}"), *self.crossval.glob(f"*/{WEIGHTED}/{POSTPROCESSED}")]:
            shutil.rmtree(former)
        groups = held_out({case.case: case.fold or 0 for case in metrics.cases})
        seen = self._look(selection, groups)
        judgement = judge({case: each.tables for case, each in seen.items()}, groups, self.dataset.labels)
        if judgement.steps:
            processed = self._postprocess(folder, judgement.by_group, groups, metrics)
            if (processed.mean_dice or 0.0) > (metrics.mean_dice or 0.0):
                metrics = processed
            else:
                shutil.rmtree(folder / POSTPROCESSED)
                judgement = _dropped(judgement)
        log.info("%s", judgement.reason)
        calibration = calibrate({case: each.sample for case, each in seen.items()}, groups)
        metrics = self._with_uncertainty(metrics, seen, selection, calibration.temperature if calibration else 1.0)
        judged = {
            "postprocessing": judgement.steps,
            "postprocessing_trials": judgement.trials,
            "postprocessing_reason": judgement.reason,
            "calibration": calibration,
        }
        return selection.model_copy(update=judged), metrics.model_copy(update={"calibration": calibration})

    def _with_uncertainty(
        self, metrics: Metrics, seen: Mapping[str, _Seen], selection: Selection, temperature: float
    ) -> Metrics:
        """Each case with the mean of its entropy over the voxels that calibration looked at."""
        targets = self.context.configurations[selection.chosen[0]].targets
        decision, cases = decision_for(self.dataset.labels, targets), []
        for case in metrics.cases:
            logits = seen[case.case].sample.logits
            found = relative_entropy(logits, decision, targets, temperature)
            cases.append(case.model_copy(update={"uncertainty": float(found.mean()) if len(found) else None}))
        return metrics.model_copy(update={"cases": tuple(cases)})

    def _look(self, selection: Selection, groups: Mapping[str, int]) -> dict[str, _Seen]:
        configurations = [self.context.configurations[name] for name in selection.chosen]
        prepared = self.context.out / "prepared"
        sources = tuple(
            (self.crossval / name / "scores", prepared / configuration.prepared)
            for name, configuration in zip(selection.chosen, configurations, strict=True)
        )
        folder, voxels = self.crossval / selection.folder, min(MOST_PER_CASE, MOST_VOXELS // len(groups) + 1)
        tasks = [
            _Task(
                _only(self.dataset, case), case, folder, sources, configurations[0], voxels,
                selection.weighting.by_group[group] if selection.weights and selection.weighting else None,
            )
            for case, group in groups.items()
        ]  # fmt: skip
        with progress("judging postprocessing and probabilities", len(tasks)) as meter:
            seen = map_parallel(_look_one, tasks, self.context.workers, lambda _: meter.advance())
        return dict(zip(groups, seen, strict=True))

    def _postprocess(
        self,
        folder: Path,
        by_group: Mapping[int, tuple[PostprocessStep, ...]],
        groups: Mapping[str, int],
        metrics: Metrics,
    ) -> Metrics:
        tasks = [
            _PostprocessTask(_only(self.dataset, case.case), case, folder, by_group[groups[case.case]])
            for case in metrics.cases
        ]
        with progress("postprocessing", len(tasks)) as meter:
            found = map_parallel(_postprocess_one, tasks, self.context.workers, lambda _: meter.advance())
        return summarise_cases(found, self.dataset)


class _PostprocessTask(NamedTuple):
    dataset: Dataset
    metrics: CaseMetrics
    """of the plain segmentation"""
    folder: Path
    steps: tuple[PostprocessStep, ...]


def _only(dataset: Dataset, identifier: str) -> Dataset:
    return dataset.model_copy(update={"cases": (dataset.case(identifier),)})


def _dropped(judgement: Judgement) -> Judgement:
    """Steps that help one by one and not together, as overlapping regions may have it."""
    trials = tuple(trial.model_copy(update={"kept": False}) for trial in judgement.trials)
    reason = "No postprocessing: what gains by itself gains nothing together."
    return Judgement((), {group: () for group in judgement.by_group}, trials, reason)


def _look_one(task: _Task) -> _Seen:
    dataset, labels = task.dataset, task.dataset.labels
    case = dataset.case(task.identifier)
    segmentation, geometry = read_labels(task.segmentations / segmentation_name(case))
    reference, _ = read_reference(dataset, case)
    annotated = annotated_classes(case, labels)
    told = [annotated is None or is_certain(target.members, annotated) for target in counted_targets(labels)]
    tables = tabulate(segmentation, reference, geometry.spacing, labels, told)
    sources = [
        (read_scores(scores, task.identifier).astype(np.float32), read_properties(prepared, task.identifier))
        for scores, prepared in task.sources
    ]
    pooled = ensemble_scores(sources, labels, task.weights, task.configuration.targets)
    dense = encode(reference, labels)
    if annotated is not None and not all(annotated):
        dense = np.full_like(dense, NO_LOSS)  # what was not looked for may be anything
    sample = _sample(pooled, dense, (reference != 0) | (segmentation != 0), task)
    return _Seen(tables, sample)


def _sample(pooled: EnsembleScores, dense: np.ndarray, structures: np.ndarray, task: _Task) -> Sample:
    """Voxels drawn evenly around the structures of the case."""
    voxels = draw(task.identifier, dense, structures, pooled.box, task.voxels)
    logits, classes = voxels.logits(pooled), voxels.classes
    if task.configuration.targets == "classes":
        return Sample(logits, classes)
    targets = targets_of(task.dataset.labels, "regions")
    return Sample(logits, np.stack([np.isin(classes, target.members) for target in targets], axis=1))


def _postprocess_one(task: _PostprocessTask) -> CaseMetrics:
    """Writes the segmentation, also where nothing is removed from it."""
    dataset, labels = task.dataset, task.dataset.labels
    case = dataset.cases[0]
    name = segmentation_name(case)
    plain, geometry = read_labels(task.folder / name)
    processed = apply_steps(plain, geometry.spacing, task.steps)
    write_labels(task.folder / POSTPROCESSED / name, processed, geometry)
    if np.array_equal(plain, processed):
        return task.metrics
    reference, _ = read_reference(dataset, case)
    unit, annotated = distance_unit(geometry), annotated_classes(case, labels)
    per_class = evaluate_case(processed, reference, geometry.spacing, labels, unit=unit, annotated=annotated)
    return task.metrics.model_copy(update={"per_class": per_class})


def wanted_metrics(options: RunOptions) -> tuple[str, ...]:
    """Names of what `metrics.json` of a run holds."""
    return options.metrics or DEFAULT_METRICS


class _MetricsTask(NamedTuple):
    dataset: Dataset
    """of this case alone"""
    case: CaseMetrics
    """as measured in validation"""
    segmentation: Path
    wanted: Sequence[str]


def measured(context: Context, selection: Selection, metrics: Metrics) -> Metrics:
    """`metrics` of the selected result, with what was asked for in place of the default ones, in parallel.

    Configurations are compared by Dice, so validation measures the default, whatever is asked for.
    """
    wanted, dataset = wanted_metrics(context.options), context.known.dataset
    if wanted == DEFAULT_METRICS:
        return metrics
    folder = context.out / "crossval" / selection.folder
    folder = folder / POSTPROCESSED if selection.postprocessing else folder
    tasks = []
    for each in metrics.cases:
        case = dataset.case(each.case)
        only = dataset.model_copy(update={"cases": (case,)})
        tasks.append(_MetricsTask(only, each, folder / segmentation_name(case), wanted))
    with progress("measuring", len(tasks)) as meter:
        cases = map_parallel(_measure_one, tasks, context.workers, lambda _: meter.advance())
    found = summarise(cases, dataset.labels, metrics.tolerance, metrics.unit, wanted)
    return found.model_copy(update={"calibration": metrics.calibration})


def _measure_one(task: _MetricsTask) -> CaseMetrics:
    case, labels = task.dataset.cases[0], task.dataset.labels
    segmentation, geometry = read_labels(task.segmentation)
    reference, _ = read_reference(task.dataset, case)
    per_class = evaluate_case(
        segmentation,
        reference,
        geometry.spacing,
        labels,
        unit=distance_unit(geometry),
        annotated=annotated_classes(case, labels),
        metrics=task.wanted,
    )
    return task.case.model_copy(update={"per_class": per_class})

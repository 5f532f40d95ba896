"""Metrics that were asked for with `--metrics`, of the selected out-of-fold result. Nothing is predicted for them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from autounet.datasets import read_reference
from autounet.evaluation import DEFAULT_METRICS, distance_unit, evaluate_case, summarise
from autounet.images import read_labels
from autounet.running.case_work import segmentation_name
from autounet.running.context import Context
from autounet.running.judging.aftercare import POSTPROCESSED
from autounet.running.watching.progress import progress
from autounet.schema.annotated import annotated_classes
from autounet.schema.dataset import Dataset
from autounet.schema.metrics import CaseMetrics, Metrics
from autounet.schema.options import RunOptions
from autounet.schema.selection import Selection
from autounet.workers import map_parallel


def wanted_metrics(options: RunOptions) -> tuple[str, ...]:
    """Names of what `metrics.json` of a run holds."""
    return options.metrics or DEFAULT_METRICS


class _Task(NamedTuple):
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
        tasks.append(_Task(only, each, folder / segmentation_name(case), wanted))
    with progress("measuring", len(tasks)) as meter:
        cases = map_parallel(_measure_one, tasks, context.workers, lambda _: meter.advance())
    found = summarise(cases, dataset.labels, metrics.tolerance, metrics.unit, wanted)
    return found.model_copy(update={"calibration": metrics.calibration})


def _measure_one(task: _Task) -> CaseMetrics:
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

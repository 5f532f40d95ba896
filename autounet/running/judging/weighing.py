"""Weights for the selected ensemble, from the kept out-of-fold scores: fitted, judged, and used where they help."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from autounet.datasets import read_reference
from autounet.images import read_labels
from autounet.ops.label_values import encode
from autounet.preprocessing import PooledScores, decision_for
from autounet.running.case_work import ensemble_cases, segmentation_name
from autounet.running.context import Context
from autounet.running.judging.drawn import draw
from autounet.running.watching.progress import progress
from autounet.schema.aftercare import Weighting
from autounet.schema.annotated import annotated_classes
from autounet.schema.dataset import Dataset
from autounet.schema.metrics import Metrics
from autounet.schema.quantities import format_time
from autounet.schema.selection import WEIGHTED, Selection
from autounet.schema.targets import TargetKind, counted_targets
from autounet.selection import held_out
from autounet.selection.bootstrap import dice_table, mean_dice, standard_error
from autounet.selection.weights import dice_by_weights, judge_weights, judged, weight_options
from autounet.store import read_properties, read_scores
from autounet.workers import map_parallel

log = logging.getLogger(__name__)

MOST_VOXELS = 20_000
"""of a case: the standard error of a Dice of 0.9 is then below 0.005, and the same voxels judge all weights"""
SHARE = 0.2
"""of the promised time that is left, which weighing may take; postprocessing and calibration come after it"""


class _Task(NamedTuple):
    dataset: Dataset
    """of this case alone"""
    identifier: str
    segmentations: Path
    sources: tuple[tuple[Path, Path], ...]
    """folder of the scores and of the prepared cases, of each configuration"""
    targets: TargetKind


class Weighing:
    """Of one run; writes `crossval/<selected>/weighted/` where weights are kept."""

    def __init__(self, context: Context) -> None:
        self.context, self.dataset = context, context.known.dataset
        self.crossval = context.out / "crossval"

    def of(self, selection: Selection, metrics: Metrics) -> tuple[Selection, Metrics]:
        """The selection with the weights, and the metrics of its result; `metrics` are those of equal weights.

        Each case is averaged with weights that were fitted without it, so that the metrics flatter nothing.
        """
        for former in self.crossval.glob(f"*/{WEIGHTED}"):
            shutil.rmtree(former)
        if len(selection.chosen) < 2:
            return selection, metrics
        groups = held_out({case.case: case.fold or 0 for case in metrics.cases})
        weighting = self._judged(selection, groups)
        if weighting.kept:
            weighting, metrics = self._proved(selection, weighting, groups, metrics)
        log.info("%s", weighting.reason)
        weights = weighting.fitted if weighting.kept else ()
        return selection.model_copy(update={"weights": weights, "weighting": weighting}), metrics

    def _judged(self, selection: Selection, groups: Mapping[str, int]) -> Weighting:
        """On drawn voxels. Partly annotated cases tell too little."""
        labels = self.dataset.labels
        known = [case for case in groups if annotated_classes(self.dataset.case(case), labels) is None]
        if not known:
            return Weighting(fitted=(), reason="Equal weights: no case is wholly annotated, to fit others on.")
        first, *others = (self._task(selection, case) for case in known)
        started = time.monotonic()
        found = [_look_one(first)]
        needed = (time.monotonic() - started) * len(others) / max(1, min(self.context.workers, len(others)))
        left = self.context.deadline.remaining()
        if left is not None and needed > SHARE * left:
            told = f"{format_time(needed)} of the {format_time(left)} left"
            return Weighting(fitted=(), reason=f"Equal weights: fitting others would take {told}.")
        with progress("weighing configurations", len(others)) as meter:
            found += map_parallel(_look_one, others, self.context.workers, lambda _: meter.advance())
        dice = dict(zip(known, found, strict=True))
        return judge_weights(dice, groups, weight_options(len(selection.chosen)), selection.chosen)

    def _task(self, selection: Selection, case: str) -> _Task:
        configurations = [self.context.configurations[name] for name in selection.chosen]
        prepared = self.context.out / "prepared"
        sources = tuple(
            (self.crossval / name / "scores", prepared / configuration.prepared)
            for name, configuration in zip(selection.chosen, configurations, strict=True)
        )
        only = self.dataset.model_copy(update={"cases": (self.dataset.case(case),)})
        return _Task(only, case, self.crossval / "+".join(selection.chosen), sources, configurations[0].targets)

    def _proved(
        self, selection: Selection, weighting: Weighting, groups: Mapping[str, int], equal: Metrics
    ) -> tuple[Weighting, Metrics]:
        """On whole segmentations, which drawn voxels only estimate; those of weights that fail are removed."""
        folder = self.crossval / "+".join(selection.chosen) / WEIGHTED
        sources = {
            name: (self.context.configurations[name], self.crossval / name / "scores") for name in selection.chosen
        }
        folds = {case.case: case.fold or 0 for case in equal.cases}
        weights = {case: weighting.by_group[groups[case]] for case in folds}
        with progress("averaging with weights", 1):
            weighted = ensemble_cases(self.dataset, sources, self.context.out / "prepared", folds, folder, weights)
        names = [target.name for target in counted_targets(self.dataset.labels)]
        tables = [dice_table(each.cases, names) for each in (weighted, equal)]
        gain, noise = mean_dice(tables[0]) - mean_dice(tables[1]), standard_error(*tables) or 0.0
        weighting = judged(weighting, None if np.isnan(gain) else gain, noise, selection.chosen)
        if weighting.kept:
            return weighting, weighted
        shutil.rmtree(folder)
        return weighting, equal


def _look_one(task: _Task) -> np.ndarray:
    """(G, T) Dice of each option of weights, over drawn voxels of a case."""
    dataset, labels = task.dataset, task.dataset.labels
    case = dataset.cases[0]
    segmentation, _ = read_labels(task.segmentations / segmentation_name(case))
    reference, _ = read_reference(dataset, case)
    decision = decision_for(labels, task.targets)
    pooled = [
        PooledScores(
            [(read_scores(scores, task.identifier).astype(np.float32), read_properties(prepared, task.identifier))],
            labels,
            targets=task.targets,
        )
        for scores, prepared in task.sources
    ]
    structures = (reference != 0) | (segmentation != 0)
    voxels = draw(task.identifier, encode(reference, labels), structures, pooled[0].box, MOST_VOXELS)
    shares = np.stack([decision.shares(voxels.logits(own)) for own in pooled])

    def decide(mean: np.ndarray) -> np.ndarray:
        winners = decision.choose(mean)
        return winners if decision.classes is None else decision.classes[winners]

    members: Sequence[Sequence[int]] = [target.members for target in counted_targets(labels)]
    return dice_by_weights(shares, voxels.classes, weight_options(len(pooled)), decide, members)

"""Weights for the selected ensemble, fitted on the kept out-of-fold scores and used where they help."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from math import comb
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..datasets import read_reference
from ..imageio import read_labels
from ..inference.ensembling import PROBABILITIES, decision_for
from ..inference.export import ensemble_scores
from ..ops.masks import encode
from ..progress import progress
from ..schema.dataset import Dataset, annotated_classes
from ..schema.labels import TargetKind, counted_targets
from ..schema.metrics import Metrics
from ..schema.plan import Configuration
from ..schema.quantities import format_time
from ..schema.selection import Selection, Weighting
from ..store import read_scored
from ..store.run_folder import RunFolder
from ..workers import map_parallel
from .calibrate import sample_voxels
from .postprocess import held_out
from .select import dice_table, mean_dice, standard_error
from .validate import ensemble_cases, score_sources, segmentation_name, summarise_cases

MOST_OPTIONS = 300
"""weights that are tried: finer steps would only be chance, and each costs as much"""
FINEST = 10
"""steps that a weight is counted in: tenths"""


def weight_options(count: int) -> np.ndarray:
    """(G, count) weights that sum to 1, the equal ones first and then by their distance from these.

    All multiples of a tenth (of a larger share where these would be too many) above 0: leaving a configuration out is
    another candidate, which was compared by itself.
    """
    steps = next(each for each in range(max(FINEST, count), 0, -1) if _count(each, count) < MOST_OPTIONS)
    cuts = np.array(list(combinations(range(1, steps), count - 1)), dtype=float).reshape(-1, count - 1)
    ends = np.hstack([np.zeros((len(cuts), 1)), cuts, np.full((len(cuts), 1), float(steps))])
    options = np.diff(ends, axis=1) / steps
    equal = np.full(count, 1 / count)
    distance = np.abs(options - equal).max(axis=1)
    others = options[np.lexsort((np.arange(len(options)), distance.round(9)))]
    return np.vstack([equal, others[np.abs(others - equal).max(axis=1) > 1e-9]])


def _count(steps: int, count: int) -> int:
    """Ways to divide `steps` into `count` parts of at least one."""
    return comb(steps - 1, count - 1)


def dice_by_weights(
    shares: np.ndarray,
    truth: np.ndarray,
    options: np.ndarray,
    decide: Callable[[np.ndarray], np.ndarray],
    targets: Sequence[Sequence[int]],
) -> np.ndarray:
    """(G, T) Dice of one case for each option, over voxels sampled of it; NaN where a target is in neither.

    `shares` (M, N, C) is the shares of M configurations at N voxels, of which the weighted mean is decided on: `decide`
    gives dense classes (N,) of (N, C). `truth` (N,) holds the true ones, `targets` the dense classes of T targets.
    """
    result = np.full((len(options), len(targets)), np.nan)
    true = [np.isin(truth, members) for members in targets]
    for row, weights in enumerate(options):
        found = decide(np.tensordot(weights.astype(np.float32), shares, axes=1))
        for column, (members, own) in enumerate(zip(targets, true, strict=True)):
            predicted = np.isin(found, members)
            size = np.count_nonzero(predicted) + np.count_nonzero(own)
            if size:
                result[row, column] = 2 * np.count_nonzero(predicted & own) / size
    return result


def judge_weights(
    dice: Mapping[str, np.ndarray], groups: Mapping[str, int], options: np.ndarray, names: Sequence[str]
) -> Weighting:
    """`dice` (G, T) by case, `groups` the fold (or group) of each case, `options` (G, M), the equal weights first."""
    cases = list(dice)
    tables = np.stack([dice[case] for case in cases], axis=1)  # (G, cases, T)
    member = np.array([groups[case] for case in cases])
    present = sorted(set(groups.values()))
    fitted = options[_best(tables)]
    if len(set(member.tolist())) < 2:
        return Weighting(fitted=_weights(fitted), reason="Equal weights: with one group of cases none can be held out.")
    chosen = {group: _best(tables[:, member != group]) for group in present}
    held = np.array([tables[chosen[group], row] for row, group in enumerate(member)])
    gain, noise = mean_dice(held) - mean_dice(tables[0]), standard_error(held, tables[0]) or 0.0
    return decided(
        Weighting(
            fitted=_weights(fitted),
            by_group={group: _weights(options[index]) for group, index in chosen.items()},
            reason="",
        ),
        None if np.isnan(gain) else gain,
        noise,
        names,
    )


def decided(weighting: Weighting, gain: float | None, noise: float, names: Sequence[str]) -> Weighting:
    """With the verdict, and a sentence that says it."""
    uniform = all(abs(weight - 1 / len(names)) < 1e-9 for weight in weighting.fitted)
    kept = gain is not None and gain > noise and not uniform
    listed = ", ".join(f"{weight:.2g} of {name}" for weight, name in zip(weighting.fitted, names, strict=True))
    rule = "chosen on the other folds and scored on the one held out"
    if kept:
        reason = (
            f"Weights: {listed}; they gain {gain:+.4f} mean Dice over equal ones, {rule}, more than one standard error "
            f"({noise:.4f})."
        )
    elif uniform:
        reason = "Equal weights: none have a better mean Dice on all out-of-fold cases."
    else:
        told = "nothing that is defined" if gain is None else f"{gain:+.4f} mean Dice"
        reason = f"Equal weights: fitted ones ({listed}) gain {told}, {rule}; one standard error is {noise:.4f}."
    return weighting.model_copy(update={"gain": gain, "noise": noise, "kept": kept, "reason": reason})


def _best(tables: np.ndarray) -> int:
    """Of tables (G, cases, T), the option with the best mean Dice; of equal ones the nearest to equal weights."""
    means = [mean_dice(table) for table in tables]
    return int(np.argmax([-1.0 if np.isnan(value) else value for value in means]))


def _weights(weights: np.ndarray) -> tuple[float, ...]:
    return tuple(float(round(weight, 12)) for weight in weights)


log = logging.getLogger(__name__)

MOST_VOXELS = 20_000
"""of a case: the standard error of a Dice of 0.9 is then below 0.005, and the same voxels judge all weights"""
TIME_SHARE = 0.2
"""of the promised time that is left, which the fit may take; postprocessing and calibration come after it"""


class _WeightTask(NamedTuple):
    dataset: Dataset
    """of this case alone"""
    segmentations: Path
    sources: tuple[tuple[Path, Path], ...]
    """folder of the scores and of the prepared cases, of each configuration"""
    targets: TargetKind


def fit_weights(
    selection: Selection,
    metrics: Metrics,
    dataset: Dataset,
    configurations: Mapping[str, Configuration],
    folder: RunFolder,
    workers: int,
    seconds_left: float | None,
) -> tuple[Selection, Metrics]:
    """The selection with the weights of its ensemble, and the metrics of its result; `metrics` are of equal weights.

    Each case is averaged with weights that were fitted without it, so that the metrics flatter nothing. Nothing is
    fitted where it would take more than a fifth of `seconds_left`. Writes `crossval/<selected>/weighted/` where weights
    are kept, and removes any other.
    """
    for former in folder.former_results("weighted"):
        shutil.rmtree(former)
    if len(selection.chosen) < 2:
        return selection, metrics
    groups = held_out({case.case: case.fold or 0 for case in metrics.cases})
    weighting = _fitted(selection, groups, dataset, configurations, folder, workers, seconds_left)
    if weighting.kept:
        weighting, metrics = _confirmed(selection, weighting, groups, metrics, dataset, configurations, folder)
    log.info("%s", weighting.reason)
    weights = weighting.fitted if weighting.kept else ()
    return selection.model_copy(update={"weights": weights, "weighting": weighting}), metrics


def _fitted(
    selection: Selection,
    groups: Mapping[str, int],
    dataset: Dataset,
    configurations: Mapping[str, Configuration],
    folder: RunFolder,
    workers: int,
    seconds_left: float | None,
) -> Weighting:
    """On sampled voxels of the cases that are annotated completely."""
    complete = [case for case in groups if annotated_classes(dataset.case(case), dataset.labels) is None]
    if not complete:
        return Weighting(fitted=(), reason="Equal weights: no case is annotated completely, to fit others on.")
    segmentations = folder.crossval(*selection.chosen).path
    sources = score_sources(folder, configurations, selection.chosen)
    targets = configurations[selection.chosen[0]].targets
    first, *others = (_WeightTask(dataset.only(case), segmentations, sources, targets) for case in complete)
    started = time.monotonic()
    found = [_dice_of_case(first)]
    needed = (time.monotonic() - started) * len(others) / max(1, min(workers, len(others)))
    if seconds_left is not None and needed > TIME_SHARE * seconds_left:
        costs = f"{format_time(needed)} of the {format_time(seconds_left)} left"
        return Weighting(fitted=(), reason=f"Equal weights: fitting others would take {costs}.")
    with progress("fitting ensemble weights", len(others)) as meter:
        found += map_parallel(_dice_of_case, others, workers, lambda _: meter.advance())
    dice = dict(zip(complete, found, strict=True))
    return judge_weights(dice, groups, weight_options(len(selection.chosen)), selection.chosen)


def _confirmed(
    selection: Selection,
    weighting: Weighting,
    groups: Mapping[str, int],
    equal: Metrics,
    dataset: Dataset,
    configurations: Mapping[str, Configuration],
    folder: RunFolder,
) -> tuple[Weighting, Metrics]:
    """On whole segmentations, which sampled voxels only estimate; those of weights that fail are removed."""
    place = folder.crossval(*selection.chosen).weighted
    folds = {case.case: case.fold or 0 for case in equal.cases}
    weights = {case: weighting.by_group[groups[case]] for case in folds}
    sources, targets = (
        score_sources(folder, configurations, selection.chosen),
        configurations[selection.chosen[0]].targets,
    )
    with progress("averaging with weights", 1):
        weighted = summarise_cases(ensemble_cases(dataset, sources, targets, folds, place.path, weights), dataset)
    names = [target.name for target in counted_targets(dataset.labels)]
    tables = [dice_table(each.cases, names) for each in (weighted, equal)]
    gain, noise = mean_dice(tables[0]) - mean_dice(tables[1]), standard_error(*tables) or 0.0
    weighting = decided(weighting, None if np.isnan(gain) else gain, noise, selection.chosen)
    if weighting.kept:
        return weighting, weighted
    shutil.rmtree(place.path)
    return weighting, equal


def _dice_of_case(task: _WeightTask) -> np.ndarray:
    """(G, T) Dice of each option of weights, over sampled voxels of a case."""
    dataset, labels = task.dataset, task.dataset.labels
    case = dataset.cases[0]
    segmentation, _ = read_labels(task.segmentations / segmentation_name(case))
    reference, _ = read_reference(dataset, case)
    decision = decision_for(labels, task.targets)
    pooled = [
        ensemble_scores([read_scored(scores, prepared, case.identifier)], labels, targets=task.targets)
        for scores, prepared in task.sources
    ]
    structures = (reference != 0) | (segmentation != 0)
    voxels = sample_voxels(case.identifier, encode(reference, labels), structures, pooled[0].box, MOST_VOXELS)
    shares = np.stack([PROBABILITIES[task.targets].from_logits(voxels.logits(own)) for own in pooled])

    def decide(mean: np.ndarray) -> np.ndarray:
        winners = decision.choose(mean)
        return winners if decision.classes is None else decision.classes[winners]

    members: Sequence[Sequence[int]] = [target.members for target in counted_targets(labels)]
    return dice_by_weights(shares, voxels.classes, weight_options(len(pooled)), decide, members)

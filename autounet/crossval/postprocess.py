"""Removing connected components from a segmentation, and whether that helps.

Candidates are the largest component, or components of at least some size, of every counted class or region by itself,
or of all foreground. What is chosen on the other folds is scored on the fold that was held out, so that no case judges
a choice that it had a part in. A step is kept where that gains more than one standard error, by bootstrap over cases.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ..ops.masks import components, crop, kept_components, nonzero_box
from ..schema.labels import Labels, counted_targets
from ..schema.selection import PostprocessStep, PostprocessTrial
from .select import mean_dice, standard_error

FOREGROUND = "foreground"
SMALLEST, LARGEST = 1e-3, 0.3
"""minimum sizes that are tried, as shares of the median volume of the structure in the references"""
DECADE = np.sqrt(10.0)
"""ratio of neighbouring minimum sizes: finer steps would only be chance"""
GROUPS = 5
"""where a single fold is finished, its cases are held out in this many groups"""


class Scope(NamedTuple):
    """What components are taken of."""

    name: str
    values: tuple[int, ...]
    """file values"""


class CaseTable(NamedTuple):
    """One scope in one case: all that the Dice after any step depends on. T counted targets, N components."""

    volumes: np.ndarray
    """(N,) mm^3, or voxels where the spacing is 1"""
    predicted: np.ndarray
    """(N, T) voxels of each component in each target"""
    common: np.ndarray
    """(N, T) of these, voxels that are in the reference's target too"""
    totals: np.ndarray
    """(3, T) voxels predicted, common and in the reference, of the whole segmentation"""
    reference_volume: float
    """of the scope, as `volumes`"""


def scopes(labels: Labels) -> tuple[Scope, ...]:
    """All foreground first, then every counted class or region, unless it is all there is."""
    everything = Scope(FOREGROUND, tuple(each.value for each in labels.foreground))
    single = [
        Scope(target.name, tuple(labels.values[member] for member in target.members))
        for target in counted_targets(labels)
    ]
    return (everything, *(scope for scope in single if set(scope.values) != set(everything.values)))


def tabulate(
    segmentation: np.ndarray, reference: np.ndarray, spacing: Sequence[float], labels: Labels, told: Sequence[bool]
) -> dict[str, CaseTable]:
    """By scope, from file values (Z, Y, X). `told` says of each counted target whether the reference tells where it is.

    Voxels with the ignore value are in no count, as in the metrics.
    """
    targets = [tuple(labels.values[member] for member in target.members) for target in counted_targets(labels)]
    if not any(0 in values for values in targets):  # then there is nothing to count around what is labelled in either
        box = nonzero_box((segmentation | reference)[None])
        segmentation, reference = crop(segmentation, box), crop(reference, box)
    counted = np.ones(reference.shape, bool) if labels.ignore is None else reference != labels.ignore
    predicted = [np.isin(segmentation, values) & counted for values in targets]
    true = [np.isin(reference, values) & counted for values in targets]
    both = [own & other for own, other in zip(predicted, true, strict=True)]
    totals = np.array([[np.count_nonzero(each) for each in masks] for masks in (predicted, both, true)], np.float64)
    totals[:, ~np.asarray(told, bool)] = np.nan
    voxel = float(np.prod(spacing))
    tables = {}
    for scope in scopes(labels):
        found = components(np.isin(segmentation, scope.values))
        tables[scope.name] = CaseTable(
            volumes=found.voxels * voxel,
            predicted=_per_component(found.numbers, predicted, len(found.voxels)),
            common=_per_component(found.numbers, both, len(found.voxels)),
            totals=totals,
            reference_volume=np.count_nonzero(np.isin(reference, scope.values)) * voxel,
        )
    return tables


def _per_component(numbers: np.ndarray, masks: Sequence[np.ndarray], count: int) -> np.ndarray:
    counts = [np.bincount(numbers[mask], minlength=count + 1)[1:] for mask in masks]
    return np.stack(counts, axis=1).astype(np.float64)


def dice_after(table: CaseTable, step: PostprocessStep | None) -> np.ndarray:
    """(T,) Dice of each counted target; NaN where it is empty in both, or not told."""
    predicted, common, true = table.totals
    if step is not None:
        removed = ~kept_components(step, table.volumes)
        predicted = predicted - table.predicted[removed].sum(axis=0)
        common = common - table.common[removed].sum(axis=0)
    size = predicted + true
    return np.divide(2 * common, size, out=np.full(len(size), np.nan), where=size > 0)


class Judgement(NamedTuple):
    """What is to be applied."""

    steps: tuple[PostprocessStep, ...]
    """to new images: chosen on all cases"""
    by_group: dict[int, tuple[PostprocessStep, ...]]
    """to the cases of each group that was held out: chosen on the others"""
    trials: tuple[PostprocessTrial, ...]
    reason: str


def judge(tables: Mapping[str, Mapping[str, CaseTable]], groups: Mapping[str, int], labels: Labels) -> Judgement:
    """`tables` by case, then by scope; `groups` holds the fold (or group, see `held_out`) of each case.

    Either all foreground together or the classes and regions by themselves, whichever gains more.
    """
    trials, held = [], {}
    for scope in scopes(labels):
        own = {case: found[scope.name] for case, found in tables.items()}
        trial, held[scope.name] = _try(scope, own, groups)
        trials.append(trial)
    together = [trial for trial in trials if trial.kept and trial.name == FOREGROUND]
    single = [trial for trial in trials if trial.kept and trial.name != FOREGROUND]
    chosen = together if _gained(together) >= _gained(single) else single
    trials = [trial.model_copy(update={"kept": trial in chosen}) for trial in trials]
    by_group = {
        group: tuple(step for trial in chosen if (step := held[trial.name].get(group)) is not None)
        for group in sorted(set(groups.values()))
    }
    steps = tuple(trial.step for trial in chosen if trial.step is not None)
    return Judgement(steps, by_group, tuple(trials), _reason(chosen, trials, len(by_group)))


def held_out(folds: Mapping[str, int]) -> dict[str, int]:
    """The groups that cases are held out in: their folds, or of a single fold five groups by position."""
    if len(set(folds.values())) > 1:
        return dict(folds)
    return {case: index % GROUPS for index, case in enumerate(sorted(folds))}


def _try(
    scope: Scope, tables: Mapping[str, CaseTable], groups: Mapping[str, int]
) -> tuple[PostprocessTrial, dict[int, PostprocessStep | None]]:
    """And for each group the step chosen without it."""
    cases = list(tables)
    options = _options(scope, tables)
    dice = {index: np.array([dice_after(tables[case], step) for case in cases]) for index, step in enumerate(options)}
    member = np.array([groups[case] for case in cases])
    everything = np.ones(len(cases), bool)
    step = options[_best(dice, everything)]
    present = sorted(set(groups.values()))
    if len(present) < 2:
        return PostprocessTrial(name=scope.name, step=step, gain=None, noise=None, kept=False), {}
    chosen = {group: _best(dice, member != group) for group in present}
    after = np.array([dice[chosen[group]][row] for row, group in enumerate(member)])
    gain = mean_dice(after) - mean_dice(dice[0])
    noise = standard_error(after, dice[0]) or 0.0
    kept = step is not None and bool(gain > noise)
    trial = PostprocessTrial(name=scope.name, step=step, gain=None if np.isnan(gain) else gain, noise=noise, kept=kept)
    return trial, {group: options[index] for group, index in chosen.items()}


def _options(scope: Scope, tables: Mapping[str, CaseTable]) -> list[PostprocessStep | None]:
    """Nothing, the largest, and minimum sizes on a grid that does not depend on what was predicted."""
    volumes = [table.reference_volume for table in tables.values() if table.reference_volume > 0]
    options: list[PostprocessStep | None] = [
        None,
        PostprocessStep(name=scope.name, values=scope.values, keep="largest"),
    ]
    if volumes:
        median = float(np.median(volumes))
        lowest, highest = (np.log(share * median) / np.log(DECADE) for share in (SMALLEST, LARGEST))
        exponents = range(int(np.ceil(lowest)), int(np.floor(highest)) + 1)
        sizes = [float(f"{DECADE**exponent:.3g}") for exponent in exponents]
        options += [
            PostprocessStep(name=scope.name, values=scope.values, keep="minimum", minimum=size) for size in sizes
        ]
    return options


def _best(dice: Mapping[int, np.ndarray], rows: np.ndarray) -> int:
    """The option with the best mean Dice over some cases; of equals the first, so that nothing is done in vain."""
    means = [mean_dice(table[rows]) for table in dice.values()]
    return int(np.argmax([-1.0 if np.isnan(value) else value for value in means]))


def _gained(trials: Sequence[PostprocessTrial]) -> float:
    return sum(trial.gain or 0.0 for trial in trials)


def _reason(chosen: Sequence[PostprocessTrial], trials: Sequence[PostprocessTrial], groups: int) -> str:
    if groups < 2:
        return "No postprocessing: with a single case nothing can be held out to judge it by."
    rule = "chosen on the other folds and scored on the one held out, more than one standard error"
    if not chosen:
        best = max(trials, key=lambda trial: trial.gain if trial.gain is not None else -1.0)
        gained = "nothing" if best.gain is None else f"{best.gain:+.4f} ({best.name})"
        return f"No postprocessing: none gains, {rule}; the most is {gained}."
    listed = ", ".join(f"keep {trial.step} ({trial.gain:+.4f} mean Dice)" for trial in chosen)
    return f"Postprocessing: {listed}; it gains, {rule}."

"""What to try next: what the record shows where a result is poor, each with its figures, and what helps then.

A rule is a function of the records of one output folder. It says nothing where the record lacks what it needs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean, median, stdev

from ..schema.metrics import Metrics
from ..schema.quantities import format_time
from ..schema.run import RunRecord
from .output_records import OutputRecords
from .results_section import RankedCase, counted_names, rank_cases
from .tables import plain_list

GOOD = 0.9
"""mean Dice from which on nothing needs to be tried; candidates for a second look are listed all the same"""
FEW_STEPS = 1000
"""of a training: nnU-Net takes 250,000; a small network on Task04 needs 3,000 for 0.86 (DESIGN 4)"""
STILL_FALLING = 0.05
"""share of the whole fall of a loss that falls in the last quarter of the steps"""
BEHIND = 0.1
"""of Dice: how far a class lies below the mean of the others, and a training above its validation"""
FOLD_BEHIND = 0.03
STANDARD_ERRORS = 2.0
"""by which a fold must lie below the others, since folds of few cases differ by chance"""
THIN = 4.0
"""voxels of the network's grid across a structure, below which it is small against the spacing"""
OUTLIER = 3.0
"""robust standard deviations (1.4826 times the median deviation) below the median"""
CONVINCING = 0.7
"""median Dice of a model whose confident disagreement says something of a label"""
MOST_CASES = 5


@dataclass(frozen=True)
class Advice:
    """One thing that the record shows."""

    shown: str
    """with the figures; a sentence"""
    remedy: str
    cases: tuple[str, ...] = ()
    """concerned, the worst first"""

    def __str__(self) -> str:
        return f"{self.shown} {self.remedy}"


def find_advice(records: OutputRecords) -> list[Advice]:
    """In the order in which it is worth trying; empty where nothing stands out, or nothing was validated."""
    metrics = records.metrics
    if metrics is None or not metrics.cases:
        return []
    counted = counted_names(records.dataset.labels if records.dataset else None, metrics)
    ranked = rank_cases(metrics, counted)
    found: list[Advice] = []
    objects = [each.ap50 for each in metrics.per_class.values() if each.ap50 is not None]
    if metrics.mean_dice is None or min([metrics.mean_dice, *objects]) < GOOD:
        found += [*_training_length(records), *_one_fold(records, counted), *_gap(records.runs)]
        found += _one_class(records, metrics, counted)
    return [*found, *_labels_to_look_at(ranked)]


# ---- the training ----------------------------------------------------------------------------------------------------


def _training_length(records: OutputRecords) -> Iterator[Advice]:
    """Loss that still falls at the end, or few steps; not of trainings that ended because they had converged."""
    running = [run for run in records.runs if run.curve and not any(point.converged for point in run.curve)]
    falling = [share for run in running if (share := last_fall(run)) is not None and share >= STILL_FALLING]
    short = [run for run in running if run.steps < FEW_STEPS]
    if not falling and not short:
        return
    parts = []
    if falling:
        shares = [f"{share:.0%}" for share in (min(falling), max(falling))]
        of_all = " to ".join(dict.fromkeys(shares))
        parts.append(
            f"The loss was still falling when {_count(len(falling), 'training')} of {len(records.runs)} ended: "
            f"{of_all} of its whole fall came in the last quarter of the steps"
        )
    if short:
        counts = sorted(run.steps for run in short)
        steps = " to ".join(dict.fromkeys(f"{count:,}" for count in (counts[0], counts[-1])))
        parts.append(f"{_count(len(short), 'training')} of {len(records.runs)} took {steps} steps, which are few")
    yield Advice(". ".join(parts) + ".", f"A longer training helps: {_more_time(records)}.")


def last_fall(run: RunRecord) -> float | None:
    """Share of the fall of the loss, from the first quarter of the steps to the last, that lies between the third and
    the last; None where the curve is too short, the loss did not fall, or the last fall is within its scatter."""
    last = max(1, run.curve[-1].step)
    quarters = [
        [point.loss for point in run.curve if math.ceil(4 * point.step / last) == number] for number in (1, 3, 4)
    ]
    if min(map(len, quarters)) < 3:
        return None
    first, third, fourth = (fmean(each) for each in quarters)
    scatter = math.hypot(*(stdev(each) / math.sqrt(len(each)) for each in quarters[1:]))
    if first <= fourth or third - fourth <= 2 * scatter:
        return None
    return (third - fourth) / (first - fourth)


def _more_time(records: OutputRecords) -> str:
    options = records.options
    if options is not None and options.seconds:
        return f"a larger --time (it was {format_time(options.seconds)})"
    if options is not None and (options.epochs or options.iterations):
        return "more --epochs or --iterations" if options.epochs else "more --iterations"
    return "a larger --time"


def _gap(runs: Sequence[RunRecord]) -> Iterator[Advice]:
    """Dice on patches of training cases far above that on validation patches, where both were measured at the end."""
    gaps: dict[str, list[tuple[float, float]]] = {}
    for run in runs:
        ends = [
            next((fmean(dice.values()) for point in reversed(run.curve) if (dice := getattr(point, name))), None)
            for name in ("training_dice", "validation_dice")
        ]
        if ends[0] is not None and ends[1] is not None:
            gaps.setdefault(run.configuration_name, []).append((ends[0], ends[1]))
    for name, pairs in gaps.items():
        training, validation = (fmean(each) for each in zip(*pairs, strict=True))
        if training - validation < BEHIND:
            continue
        augmentation = next(run.options.augmentation for run in runs if run.configuration_name == name)
        stronger = "" if augmentation == "full" else f"--augmentation full (it was {augmentation}), "
        yield Advice(
            f"{name} knows its training cases far better than new ones: Dice {training:.2f} on patches of training "
            f"cases, {validation:.2f} on validation patches, at the end of {_count(len(pairs), 'training')}.",
            f"{stronger[:1].upper()}{stronger[1:]}{'more' if stronger else 'More'} cases, or cases that differ more.",
        )


# ---- a fold, a class -------------------------------------------------------------------------------------------------


def _one_fold(records: OutputRecords, counted: Sequence[str]) -> Iterator[Advice]:
    """A fold below all others together by more than chance."""
    assert records.metrics is not None
    folds: dict[int, list[RankedCase]] = {}
    for entry in rank_cases(records.metrics, counted):
        if entry.metrics.fold is not None:
            folds.setdefault(entry.metrics.fold, []).append(entry)
    if len(folds) < 3 or min(map(len, folds.values())) < 2:
        return
    worst = min(folds, key=lambda fold: (fmean(entry.dice for entry in folds[fold]), fold))
    own = [entry.dice for entry in folds[worst]]
    others = [entry.dice for fold, entries in folds.items() if fold != worst for entry in entries]
    difference = fmean(others) - fmean(own)
    if difference < FOLD_BEHIND:
        return
    means = f"mean Dice {fmean(own):.3f} over {len(own)} cases, {fmean(others):.3f} over the others"
    shown = f"Fold {worst} is behind: {means}."
    lowest = tuple(entry.case for entry in folds[worst][:3])
    if len(own) > 2 and fmean(others) - fmean(own[1:]) < FOLD_BEHIND and own[1] - own[0] > BEHIND:
        remedy = "Look at this case, its image and its label."
        yield Advice(f"{shown} Without {lowest[0]} (Dice {own[0]:.3f}) it is not.", remedy, lowest[:1])
        return
    chance = math.hypot(stdev(own) / math.sqrt(len(own)), stdev(others) / math.sqrt(len(others)))
    if difference < STANDARD_ERRORS * chance:
        return
    steps = {run.fold: run.steps for run in records.runs if run.fold is not None}
    usual = median(steps[fold] for fold in folds if fold != worst and fold in steps) if len(steps) > 2 else 0
    if worst in steps and steps[worst] < usual / 2:
        yield Advice(
            f"{shown} It was trained for {steps[worst]:,} steps, the others for {usual:,.0f} (median).",
            f"Give all of them time, {_more_time(records)}, or a machine that does nothing else meanwhile.",
        )
    else:
        grouped = records.dataset is not None and any(case.group for case in records.dataset.cases)
        group = "" if grouped else "If cases belong together (patients, scanners, sites), say so by --group. "
        yield Advice(shown, f"{group}See what its cases have in common; the worst are {plain_list(lowest)}.", lowest)


def _one_class(records: OutputRecords, metrics: Metrics, counted: Sequence[str]) -> Iterator[Advice]:
    """The class that lies furthest below the mean of the others."""
    dice = {name: value for name in counted if (value := metrics.per_class[name].dice) is not None}
    if len(dice) < 2:
        return
    worst = min(dice, key=lambda name: (dice[name], counted.index(name)))
    others = fmean(value for name, value in dice.items() if name != worst)
    if others - dice[worst] < BEHIND:
        return
    lowest = tuple(entry.case for entry in rank_cases(metrics, [worst])[:3])
    shown = f"{worst} is behind the others: Dice {dice[worst]:.3f}, where their mean is {others:.3f}."
    across = size_in_voxels(records, worst)
    if across is not None and across < THIN:
        yield Advice(
            f"{shown} It is small: half of the cases have less of it than a ball of {across:.1f} voxels across on the "
            "network's coarsest axis.",
            "A finer grid if there is one (--configurations 3d_fullres, more --memory), images with smaller voxels, or "
            f"a --region that unites it with a neighbour. Worst cases: {plain_list(lowest)}.",
            lowest,
        )
    else:
        size = "" if across is None else f" Its size does not explain it ({across:.0f} voxels across)."
        yield Advice(
            f"{shown}{size}",
            f"Look at its worst cases, {plain_list(lowest)}: are their labels drawn alike? More cases help.",
            lowest,
        )


def size_in_voxels(records: OutputRecords, name: str) -> float | None:
    """Diameter, in voxels of the coarsest axis of the grid that was selected, of a ball (a disc in 2-D) with the median
    volume of a class or region over the cases that show it; None where the record does not say."""
    dataset, fingerprint, plan, selection = records.dataset, records.fingerprint, records.plan, records.selection
    if dataset is None or fingerprint is None or plan is None or selection is None:
        return None
    values = next((each.values for each in dataset.labels.regions if each.name == name), None)
    values = values or tuple(each.value for each in dataset.labels.classes if each.name == name)
    places = [dataset.labels.values.index(value) for value in values]
    spacings = [plan.configurations[each].spacing for each in selection.chosen if each in plan.configurations]
    flat = fingerprint.dimension == 2
    volumes = [
        voxels * math.prod(case.spacing[1:] if flat else case.spacing)
        for case in fingerprint.cases
        if (voxels := sum(case.voxels[place] for place in places if place < len(case.voxels)))
    ]
    if not volumes or not spacings:
        return None
    size = median(volumes)
    across = 2 * math.sqrt(size / math.pi) if flat else 2 * (3 * size / (4 * math.pi)) ** (1 / 3)
    return min(across / max(spacing) for spacing in spacings)


# ---- labels ----------------------------------------------------------------------------------------------------------


def _labels_to_look_at(ranked: Sequence[RankedCase]) -> Iterator[Advice]:
    found = suspicious_cases(ranked)
    if not found:
        return
    usual = median(entry.dice for entry in ranked)
    shown = ", ".join(f"{entry.case} (Dice {entry.dice:.3f})" for entry in found)
    yield Advice(
        f"The model is sure of itself and disagrees with the label of {shown}; half of all cases have {usual:.3f} "
        "or more.",
        "Candidates for a second look, with pictures in the report: the label may be wrong, or the image another one.",
        tuple(entry.case for entry in found),
    )


def suspicious_cases(ranked: Sequence[RankedCase]) -> list[RankedCase]:
    """Cases far below the others in Dice in which the model is no less certain than in half of them, worst first."""
    measured = [entry for entry in ranked if entry.metrics.uncertainty is not None]
    if len(measured) < 5 or (middle := median(entry.dice for entry in measured)) < CONVINCING:
        return []
    spread = 1.4826 * median(abs(entry.dice - middle) for entry in measured)
    usual = median(entry.metrics.uncertainty or 0.0 for entry in measured)
    margin = max(OUTLIER * spread, BEHIND)
    folds: dict[int | None, list[float]] = {}
    for entry in measured:
        folds.setdefault(entry.metrics.fold, []).append(entry.dice)
    levels = {fold: min(middle, median(dice)) for fold, dice in folds.items()}  # where a fold is behind, labels are not
    far = [entry for entry in measured if entry.dice < levels[entry.metrics.fold] - margin]
    return [entry for entry in far if (entry.metrics.uncertainty or 0.0) <= usual][:MOST_CASES]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"

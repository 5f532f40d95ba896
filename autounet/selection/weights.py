"""Weights of the configurations of an ensemble, and whether they are better than equal ones.

Of each fold, the weights with the best mean Dice on the other folds are taken, so that no case judges weights that it
had a part in. They are kept where that gains more than one standard error over equal weights, by bootstrap over cases.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from math import comb

import numpy as np

from autounet.schema.aftercare import Weighting
from autounet.selection.bootstrap import mean_dice, standard_error

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
    """(G, T) Dice of one case for each option, over voxels that were drawn of it; NaN where a target is in neither.

    `shares` (M, N, C) is what M configurations say of N voxels, of which the weighted mean is decided on: `decide`
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
    return judged(
        Weighting(
            fitted=_weights(fitted),
            by_group={group: _weights(options[index]) for group, index in chosen.items()},
            reason="",
        ),
        None if np.isnan(gain) else gain,
        noise,
        names,
    )


def judged(weighting: Weighting, gain: float | None, noise: float, names: Sequence[str]) -> Weighting:
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

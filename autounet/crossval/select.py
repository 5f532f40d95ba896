"""The best configuration or ensemble by its out-of-fold Dice, or a cheaper one where the difference may be chance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ..ops.statistics import LEAST_VALUES, resampled_means
from ..schema.metrics import CaseMetrics, Metrics
from ..schema.selection import Candidate, Selection

SEED = 0
"""of the draws: equal cases have equal errors"""


def dice_table(cases: Sequence[CaseMetrics], names: Sequence[str]) -> np.ndarray:
    """(cases, names) float64 Dice; NaN where it is undefined."""
    values = [[case.per_class[name].dice if name in case.per_class else None for name in names] for case in cases]
    return np.array(values, dtype=np.float64).reshape(len(cases), len(names))


def mean_dice(table: np.ndarray) -> float:
    """Of a table (cases, names): the mean over names of the mean over cases where defined; NaN if it is nowhere."""
    defined = ~np.isnan(table)
    counts, sums = defined.sum(axis=0), np.where(defined, table, 0.0).sum(axis=0)
    per_name = np.divide(sums, counts, out=np.full(sums.shape, np.nan), where=counts > 0)
    return float(_over_names(per_name[None])[0])


def standard_error(table: np.ndarray, other: np.ndarray) -> float | None:
    """Of the difference of the mean Dice of two tables of the same cases; None with fewer than two cases."""
    if len(table) < LEAST_VALUES or not table.shape[1]:
        return None
    means = [_over_names(resampled_means(each, SEED)) for each in (table, other)]
    differences = means[0] - means[1]
    differences = differences[~np.isnan(differences)]
    return float(differences.std()) if len(differences) else None


def _over_names(means: np.ndarray) -> np.ndarray:
    """(B,) of means (B, names): their mean where defined, NaN if they are nowhere."""
    known = ~np.isnan(means)
    counts, sums = known.sum(axis=1), np.where(known, means, 0.0).sum(axis=1)
    return np.divide(sums, counts, out=np.full(len(means), np.nan), where=counts > 0)


EQUAL_DICE = 1e-3
"""candidates this close in mean Dice are equal, whatever the bootstrap says: below what another seed changes"""
RULE = (
    "The cheapest candidate whose mean Dice is at most one standard error below the best wins, the standard error "
    f"being that of the difference, by bootstrap over cases (at least {EQUAL_DICE:g}). This is the one-standard-error "
    "rule of Breiman, Friedman, Olshen and Stone, Classification and Regression Trees, 1984, on paired differences. "
    "Cost is the number of configurations to be predicted, previous stages included."
)


def select(
    scores: Mapping[str, Metrics],
    counted: Sequence[str] | None = None,
    costs: Mapping[str, int] | None = None,
    folds: Sequence[int] = (),
) -> Selection:
    """The cheapest of the candidates that are as good as the best (`RULE`); among equally cheap ones the first given.

    `scores` maps candidates ('2d', '3d_fullres', '2d+3d_fullres': joined by '+') to the metrics of their out-of-fold
    predictions. `counted` names the classes and regions in mean Dice (all when None), `costs` the number of
    configurations that each candidate needs (its parts when None). A candidate that covers fewer cases than another
    cannot win: their means are not comparable. Raises ValueError without candidates.
    """
    if not scores:
        raise ValueError("nothing to select from")
    cases = {name: {case.case for case in metrics.cases} for name, metrics in scores.items()}
    fullest = max(cases.values(), key=len)
    complete = [name for name in scores if cases[name] == fullest]
    scored = {name: dice for name in complete if (dice := scores[name].mean_dice) is not None}
    best = max(scored, key=lambda name: scored[name]) if scored else None
    expense = {name: (costs or {}).get(name, len(_parts(name))) for name in scores}
    compared = {name: _candidate(name, best if name in scored else None, scores, counted, expense) for name in scores}
    equal = [name for name in scored if _is_equal(compared[name])] or complete
    winner = min(equal, key=lambda name: (expense[name], len(_parts(name)), list(scores).index(name)))
    return Selection(
        chosen=_parts(winner),
        compared=tuple(compared.values()),
        reason=_reason(winner, best, equal, compared, {name: len(covered) for name, covered in cases.items()}),
        rule=RULE,
        folds=tuple(folds),
    )


def _parts(name: str) -> tuple[str, ...]:
    return tuple(name.split("+"))


def _candidate(
    name: str,
    best: str | None,
    scores: Mapping[str, Metrics],
    counted: Sequence[str] | None,
    costs: Mapping[str, int],
) -> Candidate:
    """With its distance to the best where there is one."""
    own, behind, noise = _table(scores[name], counted), None, None
    if best is not None:
        found, highest = scores[name].mean_dice, scores[best].mean_dice
        assert found is not None
        assert highest is not None
        behind = highest - found
        order = {case.case: index for index, case in enumerate(scores[name].cases)}
        rows = [order[case.case] for case in scores[best].cases]
        noise = standard_error(_table(scores[best], counted), own[rows])
    return Candidate(
        configurations=_parts(name),
        mean_dice=scores[name].mean_dice,
        interval=scores[name].mean_dice_interval,
        behind=behind,
        noise=noise,
        networks=costs[name],
    )


def _table(metrics: Metrics, counted: Sequence[str] | None) -> np.ndarray:
    return dice_table(metrics.cases, list(metrics.per_class) if counted is None else counted)


def _is_equal(candidate: Candidate) -> bool:
    assert candidate.behind is not None
    return candidate.behind <= max(EQUAL_DICE, candidate.noise or 0.0)


def _reason(
    winner: str, best: str | None, equal: list[str], compared: Mapping[str, Candidate], counts: Mapping[str, int]
) -> str:
    """One to three plain sentences."""
    dice = compared[winner].mean_dice
    short = [f"{name} ({counts[name]} of {counts[winner]})" for name in compared if counts[name] < counts[winner]]
    left_out = f" Left out because they cover fewer cases: {', '.join(short)}." if short else ""
    if len(compared) == 1:
        return f"{winner} is the only candidate."
    if dice is None or best is None:
        return f"No candidate has a defined mean Dice; {winner} is the cheapest.{left_out}"
    others = [f"{name} ({compared[name].mean_dice:.4f})" for name in equal if name != winner]
    if winner == best:
        tied = f" {', '.join(others)} would be as good within one standard error, and is no cheaper." if others else ""
        return f"{winner} has the best mean Dice, {dice:.4f}.{tied}{left_out}"
    of_best = compared[best].mean_dice
    noise = max(EQUAL_DICE, compared[winner].noise or 0.0)
    listed = [each for each in others if not each.startswith(f"{best} (")]
    also = f" So are {', '.join(listed)}, no cheaper." if listed else ""
    return (
        f"{winner} has a mean Dice of {dice:.4f} and is cheaper than {best} ({of_best:.4f}): the difference is within "
        f"{noise:.4f}, one standard error over {counts[winner]} cases.{also}{left_out}"
        if compared[winner].networks != compared[best].networks
        else f"{winner} has a mean Dice of {dice:.4f}; {best} ({of_best:.4f}) differs by no more than {noise:.4f}, one "
        f"standard error over {counts[winner]} cases, and is no cheaper.{also}{left_out}"
    )

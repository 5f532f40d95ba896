"""The best configuration or ensemble by its out-of-fold Dice."""

from __future__ import annotations

from collections.abc import Mapping

from autounet.schema.run import Candidate, Metrics, Selection

EQUAL_DICE = 1e-3
"""candidates this close in mean Dice are equal, and the cheaper one wins: below what another seed changes"""


def select(scores: Mapping[str, Metrics]) -> Selection:
    """The candidate with the best mean Dice; among equals the one with fewer configurations, then the first given.

    `scores` maps candidates ('2d', '3d_fullres', '2d+3d_fullres': joined by '+') to the metrics of their out-of-fold
    predictions. A candidate that covers fewer cases than another cannot win: their means are not comparable.
    Raises ValueError without candidates.
    """
    if not scores:
        raise ValueError("nothing to select from")
    cases = {name: {case.case for case in metrics.cases} for name, metrics in scores.items()}
    most = max(len(covered) for covered in cases.values())
    complete = [name for name in scores if len(cases[name]) == most]
    scored = {name: dice for name in complete if (dice := scores[name].mean_dice) is not None}
    best = max(scored.values(), default=None)
    equal = [name for name, dice in scored.items() if best is not None and dice >= best - EQUAL_DICE] or complete
    winner = min(equal, key=lambda name: (len(_parts(name)), list(scores).index(name)))
    return Selection(
        chosen=_parts(winner),
        compared=tuple(Candidate(configurations=_parts(name), mean_dice=scores[name].mean_dice) for name in scores),
        reason=_reason(winner, equal, {name: len(covered) for name, covered in cases.items()}, scores),
    )


def _parts(name: str) -> tuple[str, ...]:
    return tuple(name.split("+"))


def _reason(winner: str, equal: list[str], counts: Mapping[str, int], scores: Mapping[str, Metrics]) -> str:
    """One or two plain sentences."""
    dice = scores[winner].mean_dice
    short = [f"{name} ({counts[name]} of {counts[winner]})" for name in scores if counts[name] < counts[winner]]
    left_out = f" Left out because they cover fewer cases: {', '.join(short)}." if short else ""
    if len(scores) == 1:
        return f"{winner} is the only candidate."
    if dice is None:
        return f"No candidate has a defined mean Dice; {winner} is the cheapest.{left_out}"
    others = [name for name in equal if name != winner]
    if others:
        listed = ", ".join(f"{name} ({scores[name].mean_dice:.4f})" for name in others)
        return (
            f"{winner} has a mean Dice of {dice:.4f}; {listed} differs by less than {EQUAL_DICE} "
            f"and is no cheaper.{left_out}"
        )
    return f"{winner} has the best mean Dice, {dice:.4f}.{left_out}"

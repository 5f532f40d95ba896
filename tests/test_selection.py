"""The best out-of-fold Dice wins, and the cheaper one among equals."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autounet.crossval.select import select
from autounet.schema.metrics import CaseMetrics, Metrics
from autounet.schema.selection import Selection

NAMES = ("2d", "3d_fullres", "2d+3d_fullres")


def metrics(dice: float | None, cases: int = 3) -> Metrics:
    covered = tuple(CaseMetrics(case=str(index), per_class={}) for index in range(cases))
    return Metrics(mean_dice=dice, per_class={}, cases=covered)


def choose(*dice: float | None) -> Selection:
    return select({name: metrics(value) for name, value in zip(NAMES, dice, strict=False)})


def test_the_best_wins() -> None:
    assert choose(0.7, 0.8, 0.75).chosen == ("3d_fullres",)
    selection = choose(0.7, 0.8, 0.85)
    assert selection.chosen == ("2d", "3d_fullres")
    assert selection.compared[2].configurations == ("2d", "3d_fullres")
    assert selection.compared[2].mean_dice == 0.85
    assert "0.8500" in selection.reason


def test_ties_go_to_the_cheaper_then_to_the_first() -> None:
    selection = choose(0.70, 0.8, 0.8009)
    assert selection.chosen == ("3d_fullres",)
    assert "2d+3d_fullres (0.8009)" in selection.reason
    assert choose(0.8, 0.8, 0.8).chosen == ("2d",)
    assert choose(0.8, 0.8, 0.802).chosen == ("2d", "3d_fullres")


def test_undefined_and_single_candidates() -> None:
    assert choose(None, 0.1, None).chosen == ("3d_fullres",)
    assert choose(None, None, None).chosen == ("2d",)
    assert choose(0.5).reason == "2d is the only candidate."
    with pytest.raises(ValueError, match="nothing"):
        select({})


def test_a_candidate_with_fewer_cases_cannot_win() -> None:
    selection = select({"2d": metrics(0.9, cases=1), "3d_fullres": metrics(0.8, cases=5)})
    assert selection.chosen == ("3d_fullres",)
    assert "2d (1 of 5)" in selection.reason


@given(dice=st.lists(st.none() | st.floats(0, 1), min_size=1, max_size=3))
def test_nothing_better_by_more_than_a_tie_is_passed_over(dice: list[float | None]) -> None:
    selection = choose(*dice)
    defined = [value for value in dice if value is not None]
    chosen = dict(zip(NAMES, dice, strict=False))["+".join(selection.chosen)]
    assert len(selection.compared) == len(dice)
    if defined:
        assert chosen is not None
        assert chosen >= max(defined) - 1.001e-3
    assert Selection.model_validate_json(selection.model_dump_json()) == selection

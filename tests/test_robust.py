"""Outliers: what lies apart is told, and nothing else."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from autounet.datasets.checks.set_checks import outliers

numbers = st.lists(st.floats(-1, 1), min_size=6, max_size=30)


@given(numbers, st.floats(100, 1000), st.data())
def test_one_number_far_away_is_found(values: list[float], far: float, data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(values)))
    assert outliers([*values[:place], far, *values[place:]], least=10) == [place]


@given(st.lists(st.integers(-40, 40), min_size=6, max_size=30), st.integers(-50, 50), st.integers(1, 20))
def test_shift_and_scale_change_nothing(values: list[int], shift: int, scale: int) -> None:
    assert outliers([shift + scale * value for value in values], least=5 * scale) == outliers(values, least=5)


@given(numbers)
def test_numbers_close_together_are_no_outliers(values: list[float]) -> None:
    assert outliers(values, least=2.5) == []


def test_too_few_numbers_and_several_sources_tell_nothing() -> None:
    assert outliers([0, 0, 0, 99], least=1) == []
    assert outliers([0, 0, 0, 0, 99], least=1) == [4]
    mixed = [0.0] * 17 + [99.0] * 3
    assert outliers(mixed, least=1) == []
    assert outliers([0.0] * 57 + [99.0] * 3, least=1) == [57, 58, 59]

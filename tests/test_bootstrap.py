"""Intervals of means over cases, and the comparison of two models over the same cases."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import bootstrap, wilcoxon

from autounet.evaluation import compare_models, summarise
from autounet.ops.statistics import bootstrap_interval, intervals, resampled_means
from autounet.schema.errors import DataError
from autounet.schema.labels import LabelClass, Labels
from autounet.schema.metrics import CaseMetrics, ClassMetrics, Metrics

FEW = settings(max_examples=30, deadline=None)
values = st.lists(st.floats(0, 1, width=16), min_size=2, max_size=30)
LABELS = Labels(classes=tuple(LabelClass(name=name, value=value) for value, name in enumerate("bgacd")))


@FEW
@given(values, st.integers(0, 5))
def test_an_interval_holds_the_mean_and_lies_within_the_values(found: list[float], seed: int) -> None:
    low, high = bootstrap_interval(found, seed)
    assert min(found) - 1e-9 <= low <= high <= max(found) + 1e-9
    assert (low, high) == bootstrap_interval(found, seed)
    assert bootstrap_interval([*found, float("nan")], seed) == (low, high)
    assert bootstrap_interval([[value, float("nan")] for value in found], seed) == (low, high)


def test_it_is_the_percentile_bootstrap() -> None:
    found = np.random.default_rng(0).beta(8, 2, 60)
    theirs = bootstrap((found,), np.mean, n_resamples=20000, method="percentile", rng=1).confidence_interval
    assert bootstrap_interval(found, draws=20000) == pytest.approx((theirs.low, theirs.high), abs=1e-3)


def test_one_case_has_no_interval() -> None:
    assert bootstrap_interval([0.5]) is None
    assert bootstrap_interval([0.5, float("nan")]) is None
    assert bootstrap_interval([]) is None
    assert intervals(np.array([[0.5, 1.0], [np.nan, 1.0]])) == [None, (1.0, 1.0)]
    assert intervals(np.zeros((0, 2))) == [None, None]


def test_memory_bounds_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    table = np.random.default_rng(0).random((30, 2))
    whole = resampled_means(table, seed=3)
    monkeypatch.setattr("autounet.ops.statistics.PICKS", 100)
    np.testing.assert_allclose(resampled_means(table, seed=3), whole)


def test_columns_share_their_draws() -> None:
    table = np.random.default_rng(0).random((20, 1)) + np.array([0.0, 0.25])
    means = resampled_means(table, seed=3)
    np.testing.assert_allclose(means[:, 1] - means[:, 0], 0.25)


def test_the_interval_of_a_mean_over_classes_weighs_classes_and_not_cases() -> None:
    """One class is in every case, the other in two: as `mean_dice` does it."""
    table = np.full((40, 2), np.nan)
    table[:, 0], table[:2, 1] = 1.0, 0.0
    low, high = bootstrap_interval(table)
    assert low == 0.5
    assert high == 1.0  # some draws have no case of the second class


def model(**dice: list[float | None]) -> Metrics:
    count = len(next(iter(dice.values())))
    cases = [
        CaseMetrics(case=f"c{place}", per_class={name: ClassMetrics(dice=found[place]) for name, found in dice.items()})
        for place in range(count)
    ]
    return summarise(cases, LABELS.model_copy(update={"classes": (LABELS.classes[0], *(
        LabelClass(name=name, value=place + 1) for place, name in enumerate(dice)))}))  # fmt: skip


def test_two_models_over_the_same_cases() -> None:
    random = np.random.default_rng(0)
    base = random.uniform(0.6, 0.9, (2, 24))
    better = base[0] + random.uniform(0.0, 0.05, 24)
    found = {each.name: each for each in compare_models(
        model(a=list(better), c=list(base[1])), model(a=list(base[0]), c=list(base[1][::-1]))
    )}  # fmt: skip
    assert found["a"].difference == pytest.approx((better - base[0]).mean())
    assert found["a"].p == pytest.approx(wilcoxon(better, base[0]).pvalue)
    assert found["a"].p_corrected == pytest.approx(2 * found["a"].p)
    assert found["a"].interval[0] > 0
    assert found["c"].p_corrected == found["c"].p > 0.5
    assert found["c"].interval[0] < 0 < found["c"].interval[1]


def test_swapping_the_models_changes_the_sign_alone() -> None:
    one, other = model(a=[0.9, 0.8, 0.5, 0.7]), model(a=[0.8, 0.6, 0.6, 0.3])
    (forth,), (back,) = compare_models(one, other), compare_models(other, one)
    assert (forth.difference, forth.p) == (pytest.approx(-back.difference), back.p)


def test_holm_never_goes_down_and_never_above_one() -> None:
    names = "acd"
    shifts = (0.05, 0.002, 0.0005)
    random = np.random.default_rng(2)
    base = random.uniform(0.5, 0.8, 20)
    other = model(**{name: list(base) for name in names})
    noisy = {name: list(base + shift + random.normal(0, 0.01, 20)) for name, shift in zip(names, shifts, strict=True)}
    found = sorted(compare_models(model(**noisy), other), key=lambda each: each.p)
    corrected = [each.p_corrected for each in found]
    assert corrected == sorted(corrected)
    assert corrected[0] == pytest.approx(min(1, 3 * found[0].p))
    assert all(each.p <= each.p_corrected <= 1 for each in found)


def test_what_cannot_be_tested_has_a_reason() -> None:
    one, other = model(a=[0.5, 0.7], c=[0.5, None]), model(a=[0.5, 0.7], c=[None, 0.5])
    equal, never = compare_models(one, other)
    assert (equal.p, equal.difference, equal.undefined) == (None, 0.0, "both have the same value in every case")
    assert (never.cases, never.undefined) == (0, "no case in which both have a value")
    elsewhere = other.model_copy(update={"cases": ()})
    with pytest.raises(DataError, match="no case and class in common"):
        compare_models(one, elsewhere)

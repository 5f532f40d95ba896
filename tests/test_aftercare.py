"""Selection with noise, postprocessing judged on held-out folds, temperature scaling: laws on tiny arrays."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from autounet.crossval.calibrate import (
    LogitSample,
    calibrate,
    calibration_error,
    fit_temperature,
    judged,
    negative_log_likelihood,
    reliability,
)
from autounet.crossval.postprocess import CaseTable, dice_after, held_out, judge, scopes, tabulate
from autounet.crossval.select import dice_table, mean_dice, select, standard_error
from autounet.evaluation import evaluate_case, summarise
from autounet.ops.masks import apply_steps, components
from autounet.schema.labels import LabelClass, Labels, Region, counted_targets
from autounet.schema.metrics import CaseMetrics, ClassMetrics, Metrics
from autounet.schema.selection import PostprocessStep

LABELS = Labels(classes=tuple(LabelClass(name=f"c{value}", value=value) for value in (0, 3, 9)))
REGIONS = LABELS.model_copy(update={"regions": (Region(name="whole", values=(3, 9)),)})
SPACING = (2.0, 1.0, 1.0)


def labelled(
    seed: int, values: tuple[int, ...] = (0, 0, 0, 3, 9), shape: tuple[int, int, int] = (3, 6, 7)
) -> np.ndarray:
    return np.random.default_rng(seed).choice(values, shape).astype(np.int32)


# ---- which candidate ------------------------------------------------------------------------------------------


def with_dice(*dice: float | None) -> Metrics:
    cases = [CaseMetrics(case=str(index), per_class={"a": ClassMetrics(dice=each)}) for index, each in enumerate(dice)]
    return summarise(cases, Labels(classes=(LabelClass(name="background", value=0), LabelClass(name="a", value=1))))


def test_a_difference_within_one_standard_error_goes_to_the_cheaper() -> None:
    noisy = {"2d": with_dice(0.5, 0.9, 0.6, 0.8), "2d+3d": with_dice(0.9, 0.5, 0.8, 0.7)}
    selection = select(noisy, ["a"], {"2d": 1, "2d+3d": 2})
    assert selection.chosen == ("2d",)
    assert "cheaper than 2d+3d" in selection.reason
    assert "one standard error" in selection.rule
    found = selection.compared[0]
    assert found.behind == pytest.approx(0.025)
    assert found.noise is not None
    assert found.noise > found.behind
    assert selection.compared[1].behind == 0
    constant = {"2d": with_dice(0.5, 0.9, 0.6, 0.8), "2d+3d": with_dice(0.52, 0.92, 0.63, 0.82)}
    selection = select(constant, ["a"], {"2d": 1, "2d+3d": 2})
    assert selection.chosen == ("2d", "3d"), "the same gain in every case is no noise, however much cases differ"
    assert selection.compared[0].interval == constant["2d"].mean_dice_interval


def test_a_previous_stage_costs() -> None:
    equal = {"3d_cascade": with_dice(0.8, 0.9), "3d": with_dice(0.8, 0.9)}
    assert select(equal, ["a"], {"3d_cascade": 2, "3d": 1}).chosen == ("3d",)
    assert select(equal, ["a"], {"3d_cascade": 1, "3d": 1}).chosen == ("3d_cascade",)


@given(values=st.lists(st.none() | st.floats(0, 1), min_size=2, max_size=6), moved=st.floats(0, 0.5))
def test_errors_of_differences(values: list[float | None], moved: float) -> None:
    table = np.array([[np.nan if value is None else value] for value in values])
    error = standard_error(table, table - moved)
    assert error is None or error == pytest.approx(0, abs=1e-9)
    mean = with_dice(*values).mean_dice
    assert (np.isnan(mean_dice(table)) and mean is None) or mean == pytest.approx(mean_dice(table))


# ---- components -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("labels", [LABELS, REGIONS])
@pytest.mark.parametrize("seed", range(4))
def test_tables_know_the_dice_after_every_step(labels: Labels, seed: int) -> None:
    """As it is when the step is applied and the case evaluated; classes are removed into the background."""
    predicted, reference = labelled(seed), labelled(seed + 100, (0, 3, 9, 3))
    counted = [target.name for target in counted_targets(labels)]
    tables = tabulate(predicted, reference, SPACING, labels, [True] * len(counted))
    for scope in scopes(labels):
        common = {"name": scope.name, "values": scope.values}
        for step in (
            PostprocessStep(**common, keep="largest"),
            PostprocessStep(**common, keep="minimum", minimum=4.0),
            PostprocessStep(**common, keep="minimum", minimum=1e9),
        ):
            processed = apply_steps(predicted, SPACING, [step])
            found = evaluate_case(processed, reference, SPACING, labels)
            dice = dice_after(tables[scope.name], step)
            if scope.name in ("foreground", "c3", "c9"):
                expected = [np.nan if found[name].dice is None else found[name].dice for name in counted]
                np.testing.assert_allclose(dice, expected)
    plain = evaluate_case(predicted, reference, SPACING, labels)
    np.testing.assert_allclose(dice_after(tables["foreground"], None), [plain[name].dice for name in counted])


def test_scopes_are_not_named_twice() -> None:
    single = Labels(classes=LABELS.classes[:2])
    assert [scope.name for scope in scopes(single)] == ["foreground"]
    assert [scope.name for scope in scopes(LABELS)] == ["foreground", "c3", "c9"]
    assert [scope.name for scope in scopes(REGIONS)] == ["foreground", "c9"]


@given(seed=st.integers(0, 99), flat=st.booleans(), minimum=st.floats(0.5, 30))
@settings(max_examples=40)
def test_steps_only_remove_and_repeat_nothing(seed: int, flat: bool, minimum: float) -> None:
    shape = (1, 6, 7) if flat else (3, 4, 5)
    values = labelled(seed, shape=shape)
    for step in (
        PostprocessStep(name="c3", values=(3,), keep="largest"),
        PostprocessStep(name="foreground", values=(3, 9), keep="minimum", minimum=minimum),
    ):
        once = apply_steps(values, SPACING, [step])
        assert ((once == values) | (once == 0)).all()
        np.testing.assert_array_equal(apply_steps(once, SPACING, [step]), once)
        others = ~np.isin(values, step.values)
        np.testing.assert_array_equal(once[others], values[others])
        left = components(np.isin(once, step.values)).voxels
        assert len(left) <= 1 if step.keep == "largest" else (left * 2 >= minimum).all()


def test_ignored_voxels_and_untold_classes_do_not_count() -> None:
    labels = LABELS.model_copy(update={"ignore": 7})
    predicted, reference = labelled(1), labelled(2, (0, 3, 9, 7))
    table = tabulate(predicted, reference, SPACING, labels, [True, False])["foreground"]
    expected = evaluate_case(predicted, reference, SPACING, labels)
    assert dice_after(table, None)[0] == pytest.approx(expected["c3"].dice)
    assert np.isnan(dice_after(table, None)[1])


# ---- whether to postprocess -----------------------------------------------------------------------------------


def case_tables(seed: int, stray: int) -> dict[str, CaseTable]:
    """A block that is found, and `stray` voxels elsewhere, which are in the reference where `stray` is below 0."""
    random = np.random.default_rng(seed)
    reference = np.zeros((1, 20, 20), np.int32)
    reference[0, 2:8, 2:8] = 3
    reference[0, 12:15, 2:8] = 9
    reference[0, 19, 19] = 9
    predicted = reference.copy()
    predicted[0, 2, 2 : 2 + random.integers(1, 4)] = 0
    for index in range(abs(stray)):
        predicted[0, 17, 2 + 3 * index] = 3
        reference[0, 17, 2 + 3 * index] = 3 if stray < 0 else 0
    return tabulate(predicted, reference, (1.0, 1.0, 1.0), LABELS, [True, True])


FOLDS = {str(index): index % 3 for index in range(9)}


def test_stray_voxels_are_removed_from_their_class_alone() -> None:
    """Over all foreground a true part of the second class would go with them."""
    judgement = judge({case: case_tables(int(case), 1 + int(case) % 5) for case in FOLDS}, FOLDS, LABELS)
    assert [(step.name, step.values) for step in judgement.steps] == [("c3", (3,))]
    trials = {trial.name: trial for trial in judgement.trials}
    assert trials["c3"].kept
    assert trials["c3"].gain is not None
    assert trials["c3"].noise is not None
    assert trials["c3"].gain > trials["c3"].noise > 0
    assert trials["c9"].step is None
    assert set(judgement.by_group) == {0, 1, 2}
    assert all(len(steps) == 1 for steps in judgement.by_group.values())
    assert "keep" in judgement.reason


def test_what_helps_in_one_case_alone_is_not_kept() -> None:
    tables = {case: case_tables(int(case), 5 if case == "0" else 0) for case in FOLDS}
    judgement = judge(tables, FOLDS, LABELS)
    assert judgement.steps == ()
    assert any(trial.step is not None for trial in judgement.trials), "on all cases together it looks like a gain"


def test_true_parts_are_not_removed_and_no_case_judges_itself() -> None:
    tables = {case: case_tables(int(case), -3) for case in FOLDS}
    judgement = judge(tables, FOLDS, LABELS)
    assert judgement.steps == ()
    assert "No postprocessing" in judgement.reason
    alone = judge({"0": tables["0"]}, held_out({"0": 0}), LABELS)
    assert alone.steps == ()
    assert alone.trials[0].gain is None


@given(seed=st.integers(0, 50), fold=st.integers(0, 2))
@settings(max_examples=15)
def test_what_is_done_to_a_fold_does_not_depend_on_it(seed: int, fold: int) -> None:
    """Only its references' sizes matter, for the sizes that are tried: they are kept equal here."""
    tables = {case: case_tables(seed + int(case), 1 + int(case) % 4) for case in FOLDS}
    without = judge(tables, FOLDS, LABELS)
    changed = {case: case_tables(seed, 5) if FOLDS[case] == fold else found for case, found in tables.items()}
    again = judge(changed, FOLDS, LABELS)
    assume(without.steps and again.steps)
    assert without.by_group[fold] == again.by_group[fold]


def test_groups_are_folds_or_parts_of_a_single_one() -> None:
    assert held_out({"a": 1, "b": 2}) == {"a": 1, "b": 2}
    single = held_out({str(index): 4 for index in range(7)})
    assert len(set(single.values())) == 5


# ---- calibration ----------------------------------------------------------------------------------------------


def told(temperature: float, count: int = 4000, seed: int = 0, overlapping: bool = False) -> LogitSample:
    """Voxels whose logits are right at that temperature."""
    random = np.random.default_rng(seed)
    logits = random.normal(0, 1.5, (count, 3))
    if overlapping:
        truth = random.random((count, 3)) < 1 / (1 + np.exp(-logits))
        return LogitSample((logits * temperature).astype(np.float32), truth)
    chances = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    truth = (random.random((count, 1)) > chances.cumsum(axis=1)).sum(axis=1).clip(0, 2)
    return LogitSample((logits * temperature).astype(np.float32), truth)


@pytest.mark.parametrize("overlapping", [False, True])
@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_the_temperature_is_found_and_lowers_the_error(temperature: float, overlapping: bool) -> None:
    samples = {str(case): told(temperature, seed=case, overlapping=overlapping) for case in range(6)}
    found = calibrate(samples, {case: int(case) % 3 for case in samples})
    assert found is not None
    assert found.fitted == pytest.approx(temperature, rel=0.1)
    assert found.ece_after < 0.02
    if temperature != 1.0:
        assert found.ece_before > 3 * found.ece_after
        assert found.temperature == found.fitted


def test_a_temperature_that_brings_nothing_to_others_is_not_applied() -> None:
    samples = {"a": told(5.0, seed=1), "b": told(0.2, seed=2)}
    found = calibrate(samples, {"a": 0, "b": 1})
    assert found is not None
    assert found.ece_after >= found.ece_before
    assert found.temperature == 1.0
    assert calibrate({"a": samples["a"]}, {"a": 0}) is None


@given(seed=st.integers(0, 20), temperature=st.floats(0.1, 10))
@settings(max_examples=15)
def test_the_fit_is_the_least_and_decisions_stay(seed: int, temperature: float) -> None:
    sample = told(2.0, count=200, seed=seed)
    best = fit_temperature(sample)
    assert negative_log_likelihood(sample, best) <= negative_log_likelihood(sample, temperature) + 1e-6
    one, other = judged(sample, 1.0), judged(sample, temperature)
    np.testing.assert_array_equal(one.right, other.right)
    bins = reliability(other)
    assert sum(each.share for each in bins) == pytest.approx(1)
    error = calibration_error(other)
    assert 0 <= error <= 1
    assert error == pytest.approx(sum(each.share * abs(each.confidence - each.right) for each in bins))
    assert (other.confidence >= 1 / 3 - 1e-6).all()


def test_the_error_by_hand() -> None:
    from autounet.crossval.calibrate import Judged

    sure = Judged(np.array([0.9, 0.9, 0.9, 0.9, 0.55, 0.55]), np.array([True, True, True, False, True, False]))
    assert calibration_error(sure) == pytest.approx((4 * 0.15 + 2 * 0.05) / 6)
    low, high = reliability(sure)
    assert (low.confidence, low.right, low.share) == pytest.approx((0.55, 0.5, 2 / 6))
    assert (high.confidence, high.right, high.share) == pytest.approx((0.9, 0.75, 4 / 6))


def test_dice_tables_keep_their_cases() -> None:
    table = dice_table(with_dice(0.25, None, 1.0).cases, ["a", "b"])
    np.testing.assert_array_equal(table, [[0.25, np.nan], [np.nan, np.nan], [1.0, np.nan]])

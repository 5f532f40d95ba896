"""Weights of an ensemble: where one configuration is better they are found, judged without peeking, and used."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_aftercare_files import CHOSEN, refined, run  # noqa: F401  a fixture
from test_predict_options import configuration, volume
from test_uncertainty import repacked

from autounet import api
from autounet.crossval.ensemble_weights import dice_by_weights, fit_weights, judge_weights, weight_options
from autounet.crossval.validate import ensemble_cases, score_sources, summarise_cases
from autounet.evaluation import summarise
from autounet.imageio import read_image, read_labels
from autounet.inference.ensembling import decision_for
from autounet.inference.export import export
from autounet.schema.metrics import Metrics
from autounet.schema.plan import InferenceSpec
from autounet.schema.selection import Selection, Weighting
from autounet.store import read_properties, read_scores, write_scores


@pytest.mark.parametrize("count", [2, 3, 4, 5, 12])
def test_options_are_weights(count: int) -> None:
    options = weight_options(count)
    assert 1 <= len(options) <= 300
    np.testing.assert_allclose(options.sum(axis=1), 1)
    assert (options > 0).all()
    np.testing.assert_allclose(options[0], 1 / count)
    assert len(np.unique(options.round(9), axis=0)) == len(options)
    distance = np.abs(options - 1 / count).max(axis=1)
    assert (np.diff(distance) > -1e-9).all(), "of equally good ones the first is the nearest to equal"


def test_dice_of_drawn_voxels_is_that_of_the_weighted_mean() -> None:
    random = np.random.default_rng(0)
    shares = random.dirichlet(np.ones(3), (2, 500)).astype(np.float32)
    truth = random.integers(0, 3, 500)
    options = weight_options(2)
    found = dice_by_weights(shares, truth, options, decision_for_choice, [(1,), (1, 2), (7,)])
    assert found.shape == (len(options), 3)
    for row, (first, second) in enumerate(options):
        decided = (first * shares[0] + second * shares[1]).argmax(axis=1)
        both, either = ((decided > 0) & (truth > 0)).sum(), (decided > 0).sum() + (truth > 0).sum()
        assert found[row, 1] == pytest.approx(2 * both / either)
    assert np.isnan(found[:, 2]).all()


def decision_for_choice(values: np.ndarray) -> np.ndarray:
    from autounet.schema.labels import LabelClass, Labels

    return decision_for(Labels(classes=(LabelClass(name="b", value=0),)), "classes").choose(values)


def tables(best: float, cases: int, noise: float, seed: int = 0) -> dict[str, np.ndarray]:
    """Dice that falls with the distance of the first weight from `best`."""
    random, options = np.random.default_rng(seed), weight_options(2)
    return {
        f"c{index}": (0.9 - 0.3 * np.abs(options[:, :1] - best) + random.normal(0, noise, (len(options), 2))).clip(0, 1)
        for index in range(cases)
    }


GROUPS = {f"c{index}": index % 3 for index in range(12)}


def test_what_every_fold_says_is_kept_and_equal_weights_need_no_reason() -> None:
    options = weight_options(2)
    found = judge_weights(tables(0.8, 12, 0.001), GROUPS, options, ("2d", "3d_fullres"))
    assert found.kept
    assert found.fitted == pytest.approx((0.8, 0.2))
    assert set(found.by_group) == {0, 1, 2}
    assert found.gain is not None
    assert found.gain == pytest.approx(0.09, abs=0.01)
    assert "0.8 of 2d, 0.2 of 3d_fullres" in found.reason
    equal = judge_weights(tables(0.5, 12, 0.0), GROUPS, options, ("a", "b"))
    assert (equal.kept, equal.fitted) == (False, (0.5, 0.5))
    assert "none have a better mean Dice" in equal.reason
    assert Weighting.model_validate_json(found.model_dump_json()) == found


def test_chance_is_told_from_gain_by_cases_that_had_no_part() -> None:
    """Of pure noise the best option always looks better on the cases it was chosen on; held out it must not."""
    options, kept = weight_options(2), 0
    for seed in range(20):
        random = np.random.default_rng(seed)
        noise = {f"c{index}": random.uniform(0.4, 0.9, (len(options), 2)) for index in range(12)}
        found = judge_weights(noise, GROUPS, options, ("a", "b"))
        stacked = np.stack(list(noise.values()), axis=1).mean(axis=(1, 2))
        assert stacked.max() >= stacked[0]
        kept += found.kept
    assert kept <= 6, "one standard error lets chance through in less than a third"
    one = judge_weights(tables(0.8, 4, 0.0), dict.fromkeys(("c0", "c1", "c2", "c3"), 0), options, ("a", "b"))
    assert (one.kept, one.gain) == (False, None)


@settings(max_examples=20)
@given(best=st.floats(0, 1), cases=st.integers(1, 9), noise=st.floats(0, 0.3), seed=st.integers(0, 99))
def test_a_verdict_is_always_consistent(best: float, cases: int, noise: float, seed: int) -> None:
    groups = {f"c{index}": index % 2 for index in range(cases)}
    found = judge_weights(tables(best, cases, noise, seed), groups, weight_options(2), ("a", "b"))
    assert sum(found.fitted) == pytest.approx(1)
    assert found.kept <= (found.gain is not None and found.gain > (found.noise or 0) and found.fitted != (0.5, 0.5))
    assert found.reason.startswith("Weights" if found.kept else "Equal weights")


# ---- from files to files ----------------------------------------------------------------------------------------


def weighted(prepared: SimpleNamespace, selection: Selection, metrics: Metrics, left: float | None = None):
    given = prepared.dataset, prepared.configurations, prepared.folder
    return fit_weights(selection, metrics, *given, workers=0, seconds_left=left)


def plain_metrics(prepared: SimpleNamespace) -> Metrics:
    """Of the ensemble with equal weights, after `b` was made much worse than `a`."""
    folds = {case.case: case.fold for case in prepared.metrics.cases}
    random = np.random.default_rng(1)
    for case in folds:
        scores = read_scores(prepared.out / "crossval" / "b" / "scores", case).astype(np.float32)
        write_scores(prepared.out / "crossval" / "b" / "scores", case, scores + random.normal(0, 14, scores.shape))
    sources = score_sources(prepared.folder, prepared.configurations, CHOSEN)
    targets, folder = prepared.configurations["a"].targets, prepared.folder.crossval(*CHOSEN)
    return summarise_cases(ensemble_cases(prepared.dataset, sources, targets, folds, folder.path), prepared.dataset)


def test_weights_are_fitted_kept_and_used_for_what_follows(run: SimpleNamespace) -> None:  # noqa: F811
    plain = Selection(chosen=CHOSEN, compared=(), reason="the test's")
    equal = plain_metrics(run)
    selection, metrics = weighted(run, plain, equal)
    assert selection.weighting is not None
    assert selection.weighting.kept
    assert selection.weights == selection.weighting.fitted
    assert selection.weights[0] > 0.5 > selection.weights[1]
    assert metrics.mean_dice - equal.mean_dice == pytest.approx(selection.weighting.gain)
    folder = run.folder.crossval(*CHOSEN).weighted.path
    assert run.folder.selected(selection).path == folder
    assert Selection.model_validate_json(selection.model_dump_json()) == selection
    for case in metrics.cases:
        values, _ = read_labels(folder / f"{case.case}.nii.gz")
        own = [
            (read_scores(run.out / "crossval" / name / "scores", case.case).astype(np.float32),
             read_properties(run.out / "prepared" / run.configurations[name].prepared, case.case))
            for name in CHOSEN
        ]  # fmt: skip
        weights, targets = selection.weighting.by_group[case.fold], run.configurations["a"].targets
        np.testing.assert_array_equal(values, export(own, run.labels, weights, targets=targets))
    mended, _ = refined(run, selection, metrics)
    assert mended.weights == selection.weights
    assert mended.calibration is not None
    single = plain.model_copy(update={"chosen": ("a",)})
    assert weighted(run, single, equal) == (single, equal)
    assert not folder.exists(), "what is no longer selected goes"


def test_no_weights_without_time_without_gain_or_without_cases(run: SimpleNamespace) -> None:  # noqa: F811
    plain = Selection(chosen=CHOSEN, compared=(), reason="the test's")
    selection, metrics = weighted(run, plain, run.metrics, left=0.0)
    assert (selection.weights, metrics) == ((), run.metrics)
    assert "would take" in selection.weighting.reason
    alone = summarise(run.metrics.cases[:1], run.labels)
    selection, _ = weighted(run, plain, alone, left=3600.0)
    assert (selection.weights, selection.weighting.gain) == ((), None)
    lost = run.metrics.model_copy(update={"cases": run.metrics.cases[5:]})
    assert "annotated completely" in weighted(run, plain, lost, left=3600.0)[0].weighting.reason
    assert not run.folder.crossval(*CHOSEN).weighted.path.exists()


def test_predictions_and_maps_of_a_bundle_have_its_weights(tmp_path: Path) -> None:
    plans = {"a": configuration("plain", 3), "b": configuration("plain", 2)}
    plans = {name: each.model_copy(update={"inference": InferenceSpec(overlap=0)}) for name, each in plans.items()}
    image, geometry = volume(tmp_path / "images")
    model = api.load(repacked(tmp_path / "weighted", plans, weights=(0.9, 0.1)), device="cpu")
    assert model.combination.weights == (0.9, 0.1)
    scored = model.predict_scores(model.prepare(image, geometry))
    sources = [(scored[name].scores, scored[name].properties) for name in "ab"]
    found = model.decide(scored)
    np.testing.assert_array_equal(found, export(sources, model.bundle.labels, (0.9, 0.1)))
    assert (found != export(sources, model.bundle.labels)).any()
    assert not model.predict_files(tmp_path / "images", tmp_path / "out", probabilities=True)
    probabilities, _ = read_image(tmp_path / "out" / "a.probabilities.nii.gz")
    values = np.array(model.bundle.labels.values)[probabilities.argmax(axis=0)]
    np.testing.assert_array_equal(values, read_labels(tmp_path / "out" / "a.nii.gz")[0])
    folder = tmp_path / "weighted"
    assert api.load(folder, device="cpu", configuration="a").combination.weights is None
    assert api.load(folder, device="cpu", average="logits").combination.weights is None

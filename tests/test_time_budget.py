"""The arithmetic of `--time` over measured seconds."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from test_planning import make_fingerprint
from test_records import configuration

from autounet.imageio import write_image, write_labels
from autounet.ops.resample import coarser_spacing
from autounet.schema.errors import DeadlineError
from autounet.schema.geometry import Geometry
from autounet.schema.options import PlannerOptions, RunOptions
from autounet.schema.plan import ChannelNormalisation, InferenceSpec, PreprocessSpec
from autounet.store.run_folder import RunFolder
from autounet.time_budget import benchmark
from autounet.time_budget.cost_model import LinearTime, NetworkSpeed, Timing, case_seconds
from autounet.time_budget.cost_model import timing_of as timing_by
from autounet.time_budget.expected_error import (
    EASY,
    HARD,
    LEARNING,
    SLICE_STEPS,
    VOLUME_STEPS,
    learning_error,
    learning_factor,
    may_prefer_slices,
    slices_instead,
)
from autounet.time_budget.shape import (
    FEW_STEPS,
    LEAST_STEPS,
    WIDER_STEPS,
    WIDTHS,
    TimeBudget,
    TimedConfiguration,
    _best_grid,
    fit_to_time,
)
from autounet.workflow import make_plan
from autounet.workflow.dataset_stage import KeptLabels, read_data, telling_cases
from autounet.workflow.make_plan import PlanMaker
from autounet.workflow.pipeline import run_pipeline
from autounet.workflow.training_schedule import passes

THICK, THIN = (6.0, 1.5, 1.5), (1.5, 1.5, 1.5)
WHOLE = 64**3
"""voxels of the patch that memory allows"""


def configure(options):
    base = configuration(batch_size=min(9, options.batch_limit or 9))
    width = options.base_features or 32
    network = base.network.model_copy(update={"features": tuple(width * 2**i for i in range(3))})
    edge = 8 * int(round(min(WHOLE, options.patch_limit or WHOLE) ** (1 / 3), 6) // 8)
    mirror = (0, 1, 2) if options.mirror and options.mirror_samples else ()
    inference = InferenceSpec(overlap=options.overlap, mirror_axes=mirror)
    return base.model_copy(update={"network": network, "patch_size": (edge,) * 3, "inference": inference})


def timing_of(scale):
    def measure(configuration):
        width = configuration.network.features[0]
        work = scale * width**2 * math.prod(configuration.patch_size) / WHOLE
        return Timing(step_overhead=0.02 * scale, step_per_sample=1e-4 * work, forward=3e-5 * work)

    return measure


def shape(seconds, scale=1.0, folds=5, cases=20):
    return fit_to_time(TimeBudget(seconds, folds, cases), PlannerOptions(), configure, timing_of(scale))


@given(seconds=st.floats(60, 1e5), scale=st.floats(0.1, 10))
def test_the_promise_is_kept_by_the_numbers_or_refused(seconds, scale):
    try:
        found = shape(seconds, scale)
    except DeadlineError as error:
        assert error.least_seconds > seconds  # noqa: PT017
        return
    assert found.steps >= LEAST_STEPS - 1
    assert 5 * (found.steps * found.step_seconds + found.validation_seconds) <= seconds


@given(seconds=st.floats(300, 1e5), more=st.floats(1, 10))
def test_more_time_never_gives_a_narrower_network(seconds, more):
    assert shape(seconds * more).options.base_features >= shape(seconds).options.base_features


def test_width_then_batch_grow_while_steps_stay_useful():
    generous = shape(1e6)
    assert generous.options.base_features == max(WIDTHS)
    assert generous.options.batch_limit == 9
    tight = shape(600)
    assert tight.options.base_features < max(WIDTHS)
    assert tight.options.batch_limit < 9
    assert shape(3000).steps >= WIDER_STEPS


def test_mirroring_and_overlap_go_before_spacing():
    """Where samples are not mirrored, predictions are not either, and nothing is given up."""
    budget = TimeBudget(400, 5, 2000)
    found = fit_to_time(budget, PlannerOptions(), configure, timing_of(1.0), mirrored_steps=0)
    assert not found.options.mirror
    assert found.options.overlap == 0.25
    assert found.options.spacing_scale == 1.0
    assert any("mirrored" in reason for reason in found.reasons)
    short = fit_to_time(budget, PlannerOptions(), configure, timing_of(1.0))
    assert not any("mirrored" in reason for reason in short.reasons)
    assert short.options.spacing_scale == 1.0


def test_too_little_time_names_the_least():
    with pytest.raises(DeadlineError, match="Give more --time") as caught:
        shape(10, cases=0)
    assert shape(caught.value.least_seconds * 1.01, cases=0).steps >= LEAST_STEPS


def test_a_smaller_patch_wins_steps_where_the_narrowest_network_gets_few():
    slow = shape(800, scale=10)
    assert slow.options.base_features == min(WIDTHS)
    assert slow.options.patch_limit < WHOLE
    assert slow.steps > 0.5 * FEW_STEPS
    assert shape(20_000).options.patch_limit is None


def test_a_preset_keeps_its_network_and_batch():
    preset = PlannerOptions(preset="nnunet")
    found = fit_to_time(TimeBudget(50_000, 5, 20), preset, configure, timing_of(1.0))
    assert found.options == preset


def test_few_steps_are_not_mirrored():
    budget = TimeBudget(1000, 5, 20)
    assert not fit_to_time(budget, PlannerOptions(), configure, timing_of(1.0)).options.mirror_samples
    assert fit_to_time(budget, PlannerOptions(), configure, timing_of(1.0), None, 0).options.mirror_samples
    assert fit_to_time(TimeBudget(1e6, 5, 20), PlannerOptions(), configure, timing_of(1.0)).options.mirror_samples
    preset = fit_to_time(TimeBudget(50_000, 5, 20), PlannerOptions(preset="nnunet"), configure, timing_of(1.0))
    assert preset.options.mirror_samples


def test_few_wanted_steps_allow_a_wider_network():
    few = fit_to_time(TimeBudget(1000, 5, 20, step_limit=100), PlannerOptions(), configure, timing_of(1.0))
    assert few.options.base_features > shape(1000).options.base_features
    assert few.steps == 100


def test_a_wider_network_that_costs_little_is_taken_although_steps_are_few():
    def flat(configuration):
        return Timing(0.0, 0.1 if configuration.network.features[0] < 24 else 1.0, 0.001)

    found = fit_to_time(TimeBudget(1000, 5, 20), PlannerOptions(), configure, flat)
    assert found.steps < WIDER_STEPS
    assert found.options.base_features == 16


def test_what_the_time_decided_is_said():
    assert shape(1e6).limits.width is None
    tight = shape(600).limits
    assert (tight.width, tight.batch, tight.patch) == ("time", "time", None)
    assert shape(800, scale=10).limits.patch == "time"
    preset = fit_to_time(TimeBudget(50_000, 5, 20), PlannerOptions(preset="nnunet"), configure, timing_of(1.0))
    assert preset.limits.width is None


EDGE = 96
"""voxels along each axis of the median image on the target spacing"""


def configure_on_grid(options):
    """The patch shows at most 64^3 voxels of the image, which has fewer on a coarser grid."""
    edge = EDGE / options.spacing_scale
    patch = min(64, 8 * int(edge // 8), configure(options).patch_size[0])
    base = configure(options).model_copy(update={"patch_size": (patch,) * 3, "median_shape": (round(edge),) * 3})
    spacing = (options.spacing_scale,) * 3
    return base.model_copy(update={"preprocess": base.preprocess.model_copy(update={"spacing": spacing})})


def fitted(seconds, lost, learning=LEARNING):
    """`lost`: what a grid of twice the spacing takes from the Dice of labels."""
    budget = TimeBudget(seconds, 1, 4, learning=learning)
    return fit_to_time(
        budget, PlannerOptions(), configure_on_grid, timing_of(1.0), lambda scale: 1 - lost * (scale - 1)
    )


@given(seconds=st.floats(100, 1e6), more=st.floats(1, 10), lost=st.floats(0, 0.3))
def test_more_time_or_finer_labels_never_ask_for_a_coarser_grid(seconds, more, lost):
    scale = fitted(seconds, lost).options.spacing_scale
    assert fitted(seconds * more, lost).options.spacing_scale <= scale
    assert fitted(seconds, lost + 0.2).options.spacing_scale <= scale


def test_a_coarser_grid_is_chosen_where_it_pays_and_said():
    found = fitted(200, 0.02)
    assert found.options.spacing_scale > 1
    assert "labels keep a Dice of 0." in found.reasons[0]
    assert fitted(200, 0.9).options.spacing_scale == 1
    assert fitted(1e6, 0.02).options.spacing_scale == 1
    assert shape(200, folds=1).options.spacing_scale == 1


@given(seconds=st.floats(100, 1e5), lost=st.floats(0, 0.3), learning=st.floats(EASY, HARD))
def test_data_that_are_harder_to_learn_never_ask_for_a_finer_grid(seconds, lost, learning):
    easy, chosen, hard = (fitted(seconds, lost, each) for each in (EASY, learning, HARD))
    scales = [each.options.spacing_scale for each in (easy, chosen, hard)]
    assert scales == sorted(scales)
    possible = {_best_scale(seconds, lost, factor) for factor in (EASY, HARD)}
    assert chosen.grids == (tuple(sorted(possible)) if len(possible) > 1 else ())


def _best_scale(seconds, lost, learning):
    """Before it is measured."""
    budget, options = TimeBudget(seconds, 1, 4, learning=learning), PlannerOptions(base_features=min(WIDTHS))
    first = TimedConfiguration(budget, options, each := configure_on_grid(options), timing_of(1.0)(each))
    return _best_grid(first, lambda scale: 1 - lost * (scale - 1))


@given(
    factor=st.floats(EASY, HARD), steps=st.floats(50, 1e5), coverage=st.floats(0.05, 1), kept=st.floats(0.7, 1),
    width=st.sampled_from([8, 16, 24, 32]),
)  # fmt: skip
def test_a_training_shows_the_factor_that_its_error_came_from(factor, steps, coverage, kept, width):
    unlearnt = learning_error(steps, coverage, width, factor)
    assume(unlearnt < 1)
    error = math.hypot(1 - kept, unlearnt)
    shown = learning_factor(1 - error, kept, steps, coverage, width)
    assert shown == pytest.approx(factor) if unlearnt >= error / 2 else shown >= factor


@given(
    steps=st.floats(0, 1e6), more=st.floats(1, 9), coverage=st.floats(1e-3, 1), width=st.sampled_from([8, 16, 24, 32])
)
def test_less_is_missing_with_more_steps_context_and_features(steps, more, coverage, width):
    error = learning_error(steps, coverage, width)
    assert 0 < learning_error(steps * more, coverage, width) <= error <= 1
    assert learning_error(steps, min(1.0, coverage * more), width) <= error
    assert learning_error(steps, coverage, 2 * width) <= error


TIMES = st.floats(0, 10)


@given(overhead=TIMES, per_sample=TIMES, sample=TIMES, workers=st.integers(0, 8), batch=st.integers(1, 20))
def test_steps_take_longer_with_larger_batches_and_slower_making(overhead, per_sample, sample, workers, batch):
    timing = Timing(overhead, per_sample, 0.0, sample, workers)
    assert timing.step(batch) <= timing.step(batch + 1)
    assert timing.step(batch) >= Timing(overhead, per_sample, 0.0).step(batch)
    assert timing.step(batch) <= Timing(overhead, per_sample, 0.0, sample, 0).step(batch) + 1e-9


@given(per_sample=st.floats(1e-3, 10), sample=TIMES, workers=st.integers(0, 8), seconds=st.floats(0.1, 100))
def test_the_largest_batch_is_the_last_that_fits(per_sample, sample, workers, seconds):
    timing = Timing(0.05, per_sample, 0.0, sample, workers)
    batch = timing.largest_batch(seconds)
    if batch > 0:
        assert timing.step(batch) <= seconds * (1 + 1e-9)
    assert timing.step(max(1, batch + 1)) > seconds * (1 - 1e-9) or batch < 0


def test_making_beside_the_steps_is_hidden_until_it_is_slower():
    speed = NetworkSpeed(step=LinearTime(0.1, 1e-6), forward=LinearTime(0.01, 1e-7))
    base = configure(PlannerOptions())
    beside = timing_by(base, speed, sample=0.5, loader_workers=4)
    assert beside.step(2) == pytest.approx(0.1 + 2 * WHOLE * 1e-6)
    assert timing_by(base, speed, sample=5.0, loader_workers=4).step(2) == pytest.approx(2.5)
    assert timing_by(base, speed, sample=0.5, loader_workers=0).step(2) == pytest.approx(1.1 + 2 * WHOLE * 1e-6)
    assert beside.forward == pytest.approx(0.01 / base.batch_size + WHOLE * 1e-7)


def test_cases_that_need_more_tiles_than_the_median_one_are_counted():
    fingerprint = make_fingerprint((16, 16, 16), cases=4)
    larger = fingerprint.cases[0].model_copy(update={"cropped_shape": (16, 24, 32)})
    mixed = fingerprint.model_copy(update={"cases": (*fingerprint.cases[1:], larger)})
    base = configuration()
    base = base.model_copy(update={"preprocess": base.preprocess.model_copy(update={"spacing": (1.0, 1.0, 1.0)})})
    timing = Timing(0.0, 1.0, forward=10.0)
    one = case_seconds(base, timing, None)
    assert case_seconds(base, timing, fingerprint) == pytest.approx(one)
    # two tiles along one axis and three along the other
    assert case_seconds(base, timing, mixed) == pytest.approx((3 * one + 6 * one) / 4, rel=1e-2)


@pytest.mark.parametrize("seconds", [600, 1e6])
def test_a_width_that_is_given_stays(seconds):
    options = PlannerOptions(base_features=24)
    found = fit_to_time(TimeBudget(seconds, 5, 20), options, configure, timing_of(1.0))
    assert found.options.base_features == 24
    assert found.limits.width is None
    assert "the width is given" in found.reasons[0]


@given(few=st.integers(1, 10_000), many=st.integers(1, 50_000), spacing=st.sampled_from([THICK, THIN]))
def test_thick_slices_are_trained_as_slices_where_that_gives_more_steps(few, many, spacing):
    base = configuration()
    volumes, slices = (
        base.model_copy(
            update={"preprocess": base.preprocess.model_copy(update={"spacing": spacing}), "predicted_steps": steps}
        )
        for steps in (few, many)
    )
    assert may_prefer_slices(volumes, volumes) == (spacing == THICK and few < VOLUME_STEPS)
    assert bool(slices_instead(volumes, volumes, slices)) == (many >= SLICE_STEPS * few)


@pytest.mark.parametrize(
    ("spacing", "given", "chosen"),
    [(THICK, {}, "2d"), (THIN, {}, "3d_fullres"), (THICK, {"configurations": ("3d_fullres",)}, "3d_fullres")],
)
def test_what_is_trained_in_little_time_is_chosen_by_thickness(tmp_path, monkeypatch, spacing, given, chosen):
    rng = np.random.default_rng(0)
    for case in range(4):
        geometry = Geometry(shape=(12, 64, 64), spacing=spacing)
        image = rng.normal(size=(1, 12, 64, 64)).astype(np.float32)
        write_image(tmp_path / f"data/images/c{case}.nii.gz", image, geometry)
        write_labels(tmp_path / f"data/labels/c{case}.nii.gz", (image[0] > 1).astype(np.uint8), geometry)
    for name in ("measure", "measure_fully"):
        monkeypatch.setattr(PlanMaker, name, lambda *_: 2**20)
    seconds = {"step_overhead": 0.01, "forward": 1e-3}
    monkeypatch.setattr(
        PlanMaker,
        "_timing",
        lambda _, each: Timing(step_per_sample=5e-6 * math.prod(each.patch_size), **seconds),
    )
    options = RunOptions(seconds=600.0, device="cpu", workers=0, memory_bytes=2**29, **given)
    plan = run_pipeline(tmp_path / "data", tmp_path / "out", options, until="plan").plan
    assert plan.chosen == (chosen,)
    assert [name for name, each in plan.configurations.items() if each.predicted_steps] == [chosen]
    said = [reason.text for reason in plan.reasons if reason.configuration == "2d" and "instead of" in reason.text]
    assert bool(said) == (chosen == "2d")
    assert run_pipeline(tmp_path / "data", tmp_path / "out", RunOptions(), until="plan").plan == plan


@pytest.mark.parametrize("waits", [True, False])
def test_steps_timed_beside_other_work_are_told(tmp_path, monkeypatch, caplog, waits):
    """A processor that is elsewhere while steps are timed."""
    rng = np.random.default_rng(0)
    for case in range(4):
        geometry = Geometry(shape=(8, 32, 32), kind="nifti", dimension=3)
        image = rng.normal(size=(1, 8, 32, 32)).astype(np.float32)
        write_image(tmp_path / f"data/images/c{case}.nii.gz", image, geometry)
        write_labels(tmp_path / f"data/labels/c{case}.nii.gz", (image[0] > 1).astype(np.uint8), geometry)
    for name in ("measure", "measure_fully"):
        monkeypatch.setattr(PlanMaker, name, lambda *_: 2**20)
    clock = {"wall": 0.0, "processor": 0.0}
    clocks = SimpleNamespace(monotonic=lambda: clock["wall"], process_time=lambda: clock["processor"])
    monkeypatch.setattr(make_plan, "time", clocks)

    def timed(*_):
        clock["wall"] += 1.0
        clock["processor"] += 0.2 if waits else 0.95
        return NetworkTiming()

    class NetworkTiming:
        def times(self, _):
            return Timing(step_overhead=0.01, step_per_sample=1e-3, forward=1e-3)

    monkeypatch.setattr(benchmark, "time_configuration", timed)
    options = RunOptions(seconds=600.0, device="cpu", workers=0, memory_bytes=2**29)
    run_pipeline(tmp_path / "data", tmp_path / "out", options, until="plan")
    said = [record.getMessage() for record in caplog.records if "other work on this machine" in record.getMessage()]
    assert len(said) == waits
    if waits:
        assert "20 % of a core" in said[0]


@given(spacing=st.tuples(*[st.floats(0.1, 10)] * 3), scale=st.floats(1, 4), dimension=st.sampled_from([2, 3]))
def test_no_axis_of_a_coarser_grid_is_finer_than_the_scale_and_thick_ones_stay(spacing, scale, dimension):
    coarse = coarser_spacing(spacing, scale, dimension)
    finest = min(spacing[3 - dimension :])
    for axis, (old, new) in enumerate(zip(spacing, coarse, strict=True)):
        if axis < 3 - dimension or old >= scale * finest:
            assert new == old
        else:
            assert new == pytest.approx(scale * finest)


def test_a_coarser_grid_keeps_blocks_and_loses_plates(tmp_path):
    """A plate along an axis that is as thick as the scale stays, too."""
    geometry = Geometry(shape=(40, 30, 30), spacing=(1.0, 1.0, 4.0))
    for case in range(5, 12):
        labels = np.zeros(geometry.shape, np.uint8)
        labels[4:24, 4:24, 4:24] = 1
        labels[30, 4:24, 4:24] = 2
        labels[4:24, 4:24, 26] = 3
        write_image(tmp_path / f"images/c{case}.nii.gz", labels[None].astype(np.float32), geometry)
        labels *= case < 7  # most cases show nothing
        write_labels(tmp_path / f"labels/c{case}.nii.gz", labels, geometry)
    data = read_data(tmp_path, RunFolder(tmp_path / "out"), RunOptions(), "ras", 0)
    spec = PreprocessSpec(spacing=(1.0, 1.0, 4.0), normalisation=(ChannelNormalisation(scheme="none"),))
    kept = KeptLabels(data, spec)
    assert kept(1.0) == 1
    assert 0.5 < kept(2.0) < 0.9
    assert kept(4.0) < kept(2.0)


@given(shown=st.lists(st.sets(st.integers(0, 6), max_size=4), min_size=1, max_size=12), most=st.integers(1, 5))
def test_cases_are_chosen_for_the_classes_that_they_show(shown, most):
    facts = [SimpleNamespace(identifier=f"c{i}", value_counts=dict.fromkeys(each, 1)) for i, each in enumerate(shown)]
    chosen = [int(name[1:]) for name in telling_cases(facts, most)]
    useful = [each - {0} for each in shown if each - {0}]
    assert len(chosen) == len(set(chosen)) == min(most, len(useful))
    found = set().union(*(shown[index] for index in chosen)) - {0}
    assert all(shown[index] - {0} for index in chosen)
    assert len(found) >= max(map(len, useful), default=0)
    if len(chosen) >= len(set().union(*useful)) or len(chosen) == len(useful):
        assert found == set().union(*useful)  # one case a class is enough for all of them


@given(
    steps=st.integers(1, 10_000),
    cases=st.integers(1, 500),
    patch=st.lists(st.integers(8, 64), min_size=3, max_size=3).map(tuple),
    dims=st.sampled_from([2, 3]),
)
def test_passes_count_how_often_a_voxel_is_seen(steps, cases, patch, dims):
    """Of slices each is a patch of its own; a patch larger than the image shows the image once."""
    shape = (20, 30, 40)
    planned = configuration(dims, batch_size=3, patch_size=patch[-dims:], median_shape=shape)
    seen = passes(planned, steps, cases)
    assert passes(planned, 2 * steps, cases) == pytest.approx(2 * seen)
    assert passes(planned, steps, 2 * cases) == pytest.approx(seen / 2)
    assert 0 < seen <= 3 * steps / cases * (1 if dims == 3 else 1 / shape[0]) * (1 + 1e-9)
    whole = planned.model_copy(update={"patch_size": shape[-dims:]})
    images = cases * (1 if dims == 3 else shape[0])
    assert passes(whole, images, cases) == pytest.approx(3)

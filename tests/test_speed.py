"""Predicting times from smaller inputs, and the length of a run: laws over synthetic seconds."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_records import configuration
from training_cases import configuration as trainable
from training_cases import labels

from autounet.nets import FAMILIES
from autounet.schema.options import PlannerOptions, TrainOptions
from autounet.schema.plan import Plan, Reason
from autounet.time_budget.benchmark import QUICK_STEP, StepTimer, StepTimes, measure_speed
from autounet.time_budget.cost_model import (
    LEAST_BATCH,
    MAX_GROWTH,
    MAX_SLOWDOWN,
    SAMPLE_RATES,
    LinearTime,
    Timing,
    fit,
    next_size,
    probe_sizes,
    sample_seconds,
)
from autounet.time_budget.run_length import (
    FOLD_OVERHEAD_SECONDS,
    LOOP_SHARE,
    RunLength,
    RunWork,
    length_lines,
    run_length,
    total_length,
    with_step_times,
)
from autounet.training.probe import measure_sample_rates


def spec(dims=3, stages=4, family="plain"):
    strides = [(1,) * dims, *[(2,) * dims] * (stages - 1)]
    return FAMILIES[family].propose(dims, 1, 3, strides, [(3,) * dims] * stages, 8)


LENGTHS = st.lists(st.integers(1, 12), min_size=2, max_size=3)


@given(multiples=LENGTHS, batch=st.integers(1, 12), family=st.sampled_from(sorted(FAMILIES)))
def test_probe_sizes_grow_to_the_planned_one_and_are_valid(multiples, batch, family):
    network = spec(len(multiples), 3, family)
    valid_size = FAMILIES[family].valid_size
    patch = valid_size(network, [4 * count for count in multiples])
    sizes = probe_sizes(network, patch, batch)
    assert sizes[-1] == (patch, batch)
    voxels = [size.voxels for size in sizes]
    assert voxels == sorted(set(voxels))
    for size in sizes:
        assert valid_size(network, size.patch) == size.patch
        assert all(length <= whole for length, whole in zip(size.patch, patch, strict=True))
        assert min(batch, LEAST_BATCH) <= size.batch <= batch


@given(
    overhead=st.floats(0, 2), per_voxel=st.floats(1e-9, 1e-4), voxels=st.sets(st.integers(1000, 10**7), min_size=2),
    planned=st.integers(1000, 10**8),
)  # fmt: skip
def test_the_prediction_is_exact_for_a_linear_device(overhead, per_voxel, voxels, planned):
    device = LinearTime(overhead, per_voxel)
    points = [(size, device.seconds(size)) for size in voxels]
    line = fit(points)
    assert line.seconds(max(voxels)) == pytest.approx(device.seconds(max(voxels)))
    if min(voxels) * 2 <= max(voxels):
        assert line.seconds(planned) == pytest.approx(device.seconds(planned), rel=1e-3)


@given(
    points=st.dictionaries(st.integers(1000, 10**7), st.floats(1e-4, 100), min_size=1),
    sizes=st.lists(st.integers(1, 10**8)),
)
def test_noise_never_makes_larger_inputs_quicker(points, sizes):
    line = fit(list(points.items()))
    assert line.overhead >= -1e-9
    seconds = [line.seconds(size) for size in sorted(sizes)]
    assert seconds == sorted(seconds)


def test_nothing_measured_is_refused():
    with pytest.raises(ValueError, match="nothing"):
        fit([])


def test_the_next_size_is_the_largest_that_is_expected_quick():
    sizes = probe_sizes(spec(), (64, 64, 64), 4)
    first = sizes[0].voxels
    assert next_size(sizes, {first: 1e-12 * first}, 0.5) == sizes[-1]
    middle = next_size(sizes, {first: 0.5 / 64**3 * first}, 0.5)
    assert middle.voxels <= 64**3 < sizes[sizes.index(middle) + 1].voxels


def test_no_larger_size_follows_a_slow_step():
    sizes = probe_sizes(spec(), (64, 64, 64), 4)
    assert next_size(sizes, {sizes[0].voxels: 0.2, sizes[2].voxels: 0.6}, 0.5) is None
    assert next_size(sizes, {sizes[0].voxels: 6.0}, 0.5) is None  # as long as it takes
    assert next_size(sizes, {sizes[0].voxels: 0.6}, 0.5) is not None  # overhead or slope?
    assert next_size(sizes, {sizes[0].voxels: 0.6, sizes[1].voxels: 0.59}, 0.5) is not None
    assert next_size(sizes, {sizes[-1].voxels: 0.1}, 0.5) is None


def test_a_slow_first_step_is_not_taken_for_the_slope(monkeypatch):
    """16 features on images of thick slices were predicted to take six times as long as they do."""
    timed, device = [], LinearTime(0.4, 2e-6)
    synthetic(monkeypatch, device, timed)
    planned = trainable((64, 64, 64), 4)
    speed = measure_speed(planned, labels(), TrainOptions(), "cpu")
    assert speed.step.seconds(4 * 64**3) == pytest.approx(device.seconds(4 * 64**3))
    assert len(timed) > 1


def test_a_busy_moment_at_a_small_size_does_not_end_the_probe(monkeypatch):
    """Every step takes at least 0.2 s, as with another program on the cores: the planned one was predicted in hours."""
    planned, timed = trainable((64, 64, 64), 4), []

    class Busy(LinearTime):
        def seconds(self, voxels):
            return 0.2 + super().seconds(voxels)

    synthetic(monkeypatch, Busy(0.0, 1e-6), timed)
    speed = measure_speed(planned, labels(), TrainOptions(), "cpu")
    assert speed.step.seconds(4 * 64**3) < 4 * (0.2 + 1e-6 * 4 * 64**3)


def synthetic(monkeypatch, step, timed):
    def times(self, size, steps):
        timed.append(size)
        return StepTimes(step.seconds(size.voxels), 0.1 * step.seconds(size.voxels) / size.batch)

    monkeypatch.setattr(StepTimer, "times", times)


def test_a_quick_step_is_timed_as_planned_and_a_slow_one_on_less(monkeypatch):
    planned = trainable((32, 32, 32), 4)
    voxels = 4 * 32**3
    for device in (LinearTime(0.01, 1e-7), LinearTime(0.05, 2e-5), LinearTime(0.0, 1e-2)):
        timed = []
        synthetic(monkeypatch, device, timed)
        speed = measure_speed(planned, labels(), TrainOptions(), "cpu")
        # one slow step alone is taken to be all in proportion to its voxels
        near = 0.1 if len(timed) == 1 else 1e-6
        assert speed.step.seconds(voxels) == pytest.approx(device.seconds(voxels), rel=near)
        assert speed.forward.seconds(voxels) == pytest.approx(0.1 * device.seconds(voxels), rel=near)
        if device.seconds(voxels) <= QUICK_STEP:
            assert timed[-1].voxels == voxels
        assert all(device.seconds(size.voxels) <= MAX_SLOWDOWN * QUICK_STEP for size in timed[:-1])
        slow = [size for size in timed if device.seconds(size.voxels) > MAX_GROWTH * QUICK_STEP]
        assert len(slow) <= 1


def test_real_steps_are_timed_and_leave_the_generator_alone():
    import torch

    before = torch.get_rng_state()
    speed = measure_speed(trainable((8, 12, 8), 2), labels(), TrainOptions(), "cpu")
    assert torch.equal(before, torch.get_rng_state())
    assert speed.step.seconds(2 * 8 * 12 * 8) > 0
    assert speed.forward.seconds(2 * 8 * 12 * 8) > 0


def test_a_loss_that_needs_weights_is_timed():
    speed = measure_speed(trainable((8, 12, 8), 2), labels(), TrainOptions(loss="weighted_ce"), "cpu")
    assert speed.step.seconds(2 * 8 * 12 * 8) > 0


def test_sample_rates_are_measured_for_every_kind():
    rates = measure_sample_rates()
    assert set(rates) == set(SAMPLE_RATES)
    assert all(value > 0 for value in rates.values())


@given(scale=st.floats(0.1, 10), kind=st.sampled_from(["light", "full", "none"]), dims=st.sampled_from([2, 3]))
def test_making_takes_longer_on_slower_devices_with_more_classes_and_from_disk(scale, kind, dims):
    planned = configuration(dims)
    rates = {name: value / scale for name, value in SAMPLE_RATES.items()}
    options = TrainOptions(augmentation=kind)
    seconds = sample_seconds(planned, 3, options, rates, read=False)
    assert seconds == pytest.approx(scale * sample_seconds(planned, 3, options, {}, read=False))
    assert (seconds == 0) == (kind == "none")
    assert sample_seconds(planned, 8, options, rates, read=False) >= seconds
    assert sample_seconds(planned, 3, options, rates, read=True) > seconds
    assert sample_seconds(planned, 3, options, rates, read=False, weighted=True) > seconds
    bent = sample_seconds(planned, 3, options.model_copy(update={"elastic": True}), rates, read=False)
    assert (bent > seconds) == (kind != "none")


WORK = RunWork(cases=20, voxels=10**8, workers=4)


def timed(steps=1000, step=2.0, validation=30.0, **changes):
    estimates = {
        "predicted_steps": steps, "predicted_step_seconds": step, "predicted_validation_seconds": validation,
    }  # fmt: skip
    return configuration(**{**estimates, **changes})


def test_the_length_of_a_run_is_the_sum_of_its_parts():
    length = run_length(timed(), WORK, 5)
    assert length.training == pytest.approx(5 * (LOOP_SHARE * 2000 + FOLD_OVERHEAD_SECONDS))
    assert length.validation == 150
    assert length.total == pytest.approx(length.preprocessing + length.training + length.validation + length.closing)
    assert run_length(configuration(), WORK, 5) is None


@given(steps=st.integers(1, 10**6), folds=st.integers(1, 10), more=st.integers(1, 10))
def test_more_steps_and_folds_take_longer(steps, folds, more):
    length = run_length(timed(steps), WORK, folds).total
    assert run_length(timed(steps + more), WORK, folds).total > length
    assert run_length(timed(steps), WORK, folds + more).total > length


def test_configurations_share_what_is_prepared_once():
    one, two = run_length(timed(), WORK, 5), total_length([(timed(), 5), (timed(), 5)], WORK)
    assert two == pytest.approx(2 * (one.training + one.validation) + one.preprocessing + one.closing)
    apart = total_length([(timed(), 5), (timed(prepared="elsewhere"), 5)], WORK)
    assert apart == pytest.approx(two + one.preprocessing)
    assert total_length([(timed(), 5), (configuration(), 5)], WORK) is None
    assert total_length([], WORK) is None


def linear_timing(name, configuration):
    return Timing(0.5, 1e-6 * math.prod(configuration.patch_size), forward=0.25)


def plan(**configurations):
    return Plan(
        configurations=configurations,
        options=PlannerOptions(),
        reasons=(Reason(configuration=None, topic="patch", text="because"),),
        fingerprint="0",
    )


def test_step_times_are_added_where_there_are_none():
    made = with_step_times(
        plan(known=timed(step=9.0), new=configuration(), other=configuration(2)), ("known", "new"), linear_timing,
        250_000, 4.0,
    )  # fmt: skip
    assert made.configurations["known"].predicted_step_seconds == 9.0
    new = made.configurations["new"]
    assert new.predicted_step_seconds == pytest.approx(0.5 + 2 * 16**3 * 1e-6)
    assert new.predicted_steps == 250_000
    assert new.predicted_validation_seconds > 4 * 0.25
    assert new.key == configuration().key
    assert made.configurations["other"].predicted_step_seconds is None


def test_the_length_is_said_for_each_configuration_and_for_all():
    made = plan(a=timed(250_000, 4.8), b=timed(250_000, 0.08), c=configuration())
    lines = length_lines(made, {"a": 5, "b": 1}, WORK)
    assert lines[0].startswith("a: 250,000 steps x 5 folds: about 71 days on this device (4.8 s a step")
    assert "b: 250,000 steps x 1 training: about 5 h" in lines[1]
    assert "80 ms a step" in lines[1]
    assert lines[2].startswith("all of them: about 71 days")
    assert length_lines(made, {"c": 5}, WORK) == ["c: its steps were not timed"]
    most = length_lines(made, {"a": 5, "b": 1}, WORK, to_convergence=True)
    assert most[0].startswith("a: 250,000 steps x 5 folds: at most 71 days on this device")
    assert most[2].startswith("all of them: at most 71 days")
    assert isinstance(run_length(made.configurations["a"], WORK, 5), RunLength)

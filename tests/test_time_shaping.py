"""The arithmetic of `--time` over measured seconds."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_records import configuration

from autounet.planning.time import FEW_STEPS, LEAST_STEPS, WIDER_STEPS, WIDTHS, Frame, Timing, shape_to_time
from autounet.schema.errors import DeadlineError
from autounet.schema.options import PlannerOptions
from autounet.schema.plan import InferenceSpec

WHOLE = 64**3
"""voxels of the patch that memory allows"""


def configure(options):
    base = configuration(batch_size=min(9, options.batch_limit or 9))
    network = base.network.model_copy(update={"features": tuple(options.base_features * 2**i for i in range(3))})
    edge = 8 * int(round(min(WHOLE, options.patch_limit or WHOLE) ** (1 / 3), 6) // 8)
    mirror = (0, 1, 2) if options.mirror else ()
    inference = InferenceSpec(overlap=options.overlap, mirror_axes=mirror)
    return base.model_copy(update={"network": network, "patch_size": (edge,) * 3, "inference": inference})


def timing_of(scale):
    def measure(configuration):
        width = configuration.network.features[0]
        work = scale * width**2 * math.prod(configuration.patch_size) / WHOLE
        return Timing(step_overhead=0.02 * scale, step_per_sample=1e-4 * work, forward=3e-5 * work)

    return measure


def shape(seconds, scale=1.0, folds=5, cases=20):
    return shape_to_time(Frame(seconds, folds, cases), PlannerOptions(), configure, timing_of(scale))


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
    found = shape(400, cases=2000)
    assert not found.options.mirror
    assert found.options.overlap == 0.25
    assert found.options.spacing_scale == 1.0
    assert any("mirrored" in reason for reason in found.reasons)


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
    found = shape_to_time(Frame(50_000, 5, 20), preset, configure, timing_of(1.0))
    assert found.options == preset


def test_few_wanted_steps_allow_a_wider_network():
    few = shape_to_time(Frame(1000, 5, 20, step_limit=100), PlannerOptions(), configure, timing_of(1.0))
    assert few.options.base_features > shape(1000).options.base_features
    assert few.steps == 100


def test_a_wider_network_that_costs_little_is_taken_although_steps_are_few():
    def flat(configuration):
        return Timing(0.0, 0.1 if configuration.network.features[0] < 24 else 1.0, 0.001)

    found = shape_to_time(Frame(1000, 5, 20), PlannerOptions(), configure, flat)
    assert found.steps < WIDER_STEPS
    assert found.options.base_features == 16

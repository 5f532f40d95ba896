"""The arithmetic of `--time` over measured seconds."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_records import configuration

from autounet.planning.time import LEAST_STEPS, WIDER_STEPS, WIDTHS, Timing, shape_to_time
from autounet.schema.errors import DeadlineError
from autounet.schema.options import PlannerOptions
from autounet.schema.plan import InferenceSpec


def configure(options):
    base = configuration(batch_size=min(9, options.batch_limit or 9))
    network = base.network.model_copy(update={"features": tuple(options.base_features * 2**i for i in range(3))})
    mirror = (0, 1, 2) if options.mirror else ()
    return base.model_copy(
        update={"network": network, "inference": InferenceSpec(overlap=options.overlap, mirror_axes=mirror)}
    )


def timing_of(scale):
    def measure(configuration):
        width = configuration.network.features[0]
        return Timing(
            step_overhead=0.02 * scale, step_per_sample=1e-4 * scale * width**2, forward=3e-5 * scale * width**2
        )

    return measure


def shape(seconds, scale=1.0, folds=5, cases=20):
    return shape_to_time(seconds, folds, cases, PlannerOptions(), configure, timing_of(scale))


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

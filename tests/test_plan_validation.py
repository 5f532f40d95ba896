"""A plan edited by hand: sizes that the network cannot take, and trainings that do not fit into the memory."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_planning import LABELS, make_fingerprint, make_plan

from autounet.nets import FAMILIES
from autounet.planning import validate
from autounet.planning.memory import MeasuredMemory
from autounet.schema.errors import PlanError
from autounet.schema.options import PlannerOptions

FINGERPRINT = make_fingerprint()
MADE = make_plan(FINGERPRINT, configurations=("3d_fullres",))


def edited(**changes):
    configuration = MADE.configurations["3d_fullres"].model_copy(update=changes)
    return MADE.model_copy(update={"configurations": {"3d_fullres": configuration}})


def memory(budget):
    """A byte for each voxel of the batch."""
    return MeasuredMemory(budget, lambda spec, patch, batch: math.prod(patch) * batch)


def nearest_sizes(message):
    sizes = message.split("nearest valid sizes are ")[1].split(" and ")
    return [tuple(int(length) for length in size.split(" x ")) for size in sizes]


@given(patch=st.tuples(*[st.integers(1, 200)] * 3))
def test_the_nearest_valid_sizes_are_the_next_below_and_above_along_every_axis(patch):
    network = MADE.configurations["3d_fullres"].network
    valid = all(length % step == 0 for length, step in zip(patch, network.divisor, strict=True))
    if valid:
        validate(edited(patch_size=patch), FINGERPRINT, LABELS)
        return
    with pytest.raises(PlanError, match="divisible") as caught:
        validate(edited(patch_size=patch), FINGERPRINT, LABELS)
    sizes = nearest_sizes(str(caught.value))
    above = tuple(math.ceil(length / step) * step for length, step in zip(patch, network.divisor, strict=True))
    below = tuple(max(step, length // step * step) for length, step in zip(patch, network.divisor, strict=True))
    assert sizes == ([above] if below == above else [below, above])
    for size in sizes:
        validate(edited(patch_size=size), FINGERPRINT, LABELS)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_the_nearest_sizes_are_valid_for_every_family(family):
    planned = MADE.configurations["3d_fullres"].network
    network = FAMILIES[family].propose(3, 1, LABELS.count, planned.strides, planned.kernel_sizes, 8)
    valid = FAMILIES[family].valid_size(network, (100, 100, 100))
    wrong = (valid[0] + 1, valid[1], valid[2] + 1)
    with pytest.raises(PlanError) as caught:
        validate(edited(network=network, patch_size=wrong), FINGERPRINT, LABELS)
    below, above = nearest_sizes(str(caught.value))
    assert below == valid
    assert above == FAMILIES[family].valid_size(network, wrong)


@given(batch=st.integers(1, 40), budget=st.integers(10**4, 10**7))
def test_a_batch_that_does_not_fit_is_refused_with_what_does(batch, budget):
    judge = memory(budget)
    patch, network = MADE.configurations["3d_fullres"].patch_size, MADE.configurations["3d_fullres"].network
    plan = edited(batch_size=batch)
    if batch * math.prod(patch) <= budget:
        assert validate(plan, FINGERPRINT, LABELS, judge) == ()
        return
    with pytest.raises(PlanError, match="does not fit into the memory") as caught:
        validate(plan, FINGERPRINT, LABELS, judge)
    message = str(caught.value)
    largest = budget // math.prod(patch)
    assert (f"batch_size {largest}, the largest that fits" in message) == (largest >= 1)
    if "patch_size" in message:
        shown = message.split("patch_size ")[1].split(" with")[0]
        smaller = tuple(int(length) for length in shown.split(" x "))
        assert FAMILIES["plain"].valid_size(network, smaller) == smaller
        assert batch * math.prod(smaller) <= budget
        assert all(length <= whole for length, whole in zip(smaller, patch, strict=True))
    else:
        assert batch * math.prod(network.divisor) > budget


def test_nothing_fits_is_said():
    with pytest.raises(PlanError, match="fewer features"):
        validate(edited(batch_size=2), FINGERPRINT, LABELS, memory(100))


def test_a_preset_only_warns_since_its_memory_is_nominal():
    preset = MADE.model_copy(update={"options": PlannerOptions(preset="nnunet")})
    warnings = validate(preset, FINGERPRINT, LABELS, memory(1000))
    assert len(warnings) == 1
    assert warnings[0].startswith("3d_fullres: ")
    assert validate(preset, FINGERPRINT, LABELS, memory(10**12)) == ()


def test_a_plan_with_other_mistakes_is_not_asked_for_its_memory():
    with pytest.raises(PlanError) as caught:
        validate(edited(patch_size=(41, 56, 40)), FINGERPRINT, LABELS, memory(1))
    assert "memory" not in str(caught.value)


def renamed(name="3d_fullres", **changes):
    configuration = MADE.configurations["3d_fullres"].model_copy(update=changes)
    return MADE.model_copy(update={"configurations": {name: configuration}})


def respaced(spacing):
    preprocess = MADE.configurations["3d_fullres"].preprocess
    return preprocess.model_copy(update={"spacing": spacing})


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (renamed(preprocess=respaced((math.inf, 1.0, 1.0))), "every spacing must be a number greater than 0"),
        (renamed(median_shape=(36, 50)), "median_shape is .* three lengths"),
        (renamed(median_shape=()), "median_shape is"),
        (renamed("../elsewhere"), "names a folder"),
        (renamed(prepared="a/b"), "prepared is 'a/b'"),
        (renamed(previous_stage="3d_fullres"), "previous_stage is 3d_fullres: it must be another"),
        (renamed(previous_stage="3d_lowres"), "previous_stage is 3d_lowres: it must be another"),
    ],
)
def test_what_a_person_may_get_wrong_is_said(plan, message):
    with pytest.raises(PlanError, match=message):
        validate(plan, FINGERPRINT, LABELS)


def test_configurations_that_share_prepared_cases_share_their_preprocessing():
    first = MADE.configurations["3d_fullres"]
    second = first.model_copy(update={"preprocess": respaced((2.0, 1.0, 1.0))})
    both = MADE.model_copy(update={"configurations": {"one": first, "two": second}})
    with pytest.raises(PlanError, match="one and two share prepared/3d_fullres and differ in preprocess"):
        validate(both, FINGERPRINT, LABELS)


def test_the_digest_of_a_plan_knows_edits():
    assert type(MADE).model_validate(MADE.model_dump(mode="json")).digest() == MADE.digest()
    assert edited(batch_size=1).digest() != MADE.digest()

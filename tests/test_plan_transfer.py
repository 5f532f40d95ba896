"""The network of a trained model in the plan of another data set."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_planning import LABELS, make_fingerprint, synthetic_measure

from autounet.nets import FAMILIES
from autounet.planning import plan, validate
from autounet.planning.plan_transfer import StartingModel, transfer_options
from autounet.schema.dataset import Channel, ChannelKind
from autounet.schema.errors import OptionError, PlanError
from autounet.schema.fingerprint import ChannelFingerprint, Fingerprint
from autounet.schema.options import GIB, PlannerOptions, TrainOptions
from autounet.schema.plan import Plan

CT = ChannelFingerprint(
    name="CT", kind=ChannelKind.ct, mean=40.0, std=20.0, percentile_00_5=-10.0, percentile_99_5=90.0
)  # fmt: skip
MRI = ChannelFingerprint(name="MRI", kind=ChannelKind.mri)


def model_of(fingerprint: Fingerprint, family: str = "plain") -> StartingModel:
    options = PlannerOptions(family=family, memory_bytes=2 * GIB)
    made = plan(fingerprint, LABELS, options, TrainOptions(), None, synthetic_measure)
    channels = tuple(Channel(name=each.name, kind=each.kind) for each in fingerprint.channels)
    return StartingModel(name="trained", channels=channels, configurations=made.configurations)


def planned(fingerprint: Fingerprint, model: StartingModel, **options: object) -> Plan:
    asked = transfer_options(PlannerOptions(**{"memory_bytes": 2 * GIB, **options}), model)  # type: ignore[arg-type]
    return plan(fingerprint, LABELS, asked, TrainOptions(), None, synthetic_measure, model)


MODELS = {family: model_of(make_fingerprint((90, 130, 120), (1.5, 1, 1)), family) for family in ("plain", "residual")}


@settings(max_examples=25)
@given(
    st.sampled_from(sorted(MODELS)),
    st.tuples(st.integers(8, 200), st.integers(20, 300), st.integers(20, 300)),
    st.floats(0.3, 4),
)
def test_the_network_is_the_models_and_its_patch_fits(family: str, shape: tuple[int, int, int], scale: float) -> None:
    model, fingerprint = MODELS[family], make_fingerprint(shape, (1.5 * scale, scale, scale))
    made = planned(fingerprint, model)
    validate(made, fingerprint, LABELS)
    for name, each in made.configurations.items():
        theirs = model.configurations[name]
        assert each.network == theirs.network
        assert FAMILIES[family].valid_size(each.network, each.patch_size) == each.patch_size
        assert all(here <= there for here, there in zip(each.patch_size, theirs.patch_size, strict=True))
        assert math.prod(each.patch_size) > math.prod(each.network.divisor)  # instance norm needs two voxels
        assert each.predicted_memory_bytes <= 2 * GIB
        taken = each.spacing == theirs.spacing
        assert taken == (max(scale, 1 / scale) <= 2)
        assert any(reason.text.startswith(f"the network of the model's {name}") for reason in made.reasons)


def test_less_memory_makes_the_patch_smaller_and_too_little_is_an_error() -> None:
    fingerprint, model = make_fingerprint((90, 130, 120), (1.5, 1, 1)), MODELS["plain"]
    small = planned(fingerprint, model, memory_bytes=GIB // 8).configurations["3d_fullres"]
    theirs = model.configurations["3d_fullres"]
    assert math.prod(small.patch_size) < math.prod(theirs.patch_size)
    assert (small.network, small.limited_by.patch) == (theirs.network, "memory")
    with pytest.raises(PlanError, match=r"no patch fits into .*, or leave out --init"):
        planned(fingerprint, model, memory_bytes=1_000_000)


def test_channels_keep_their_intensities_and_others_are_normalised_by_the_data() -> None:
    model = model_of(make_fingerprint(channels=(CT,)))
    other = CT.model_copy(update={"mean": 100.0})
    made = planned(make_fingerprint(channels=(MRI, other)), model).configurations["3d_fullres"]
    assert made.network.in_channels == 2
    assert [(each.scheme, each.mean) for each in made.preprocess.normalisation] == [("zscore", 0.0), ("ct", 40.0)]
    renamed = planned(make_fingerprint(channels=(MRI,)), model)  # one channel each: by position, another scheme
    assert renamed.configurations["3d_fullres"].preprocess.normalisation[0].scheme == "zscore"
    assert any("normalised otherwise (ct)" in reason.text for reason in renamed.reasons)


def test_configurations_are_those_of_the_model() -> None:
    whole = MODELS["plain"]
    volume = whole.configurations["3d_fullres"]
    custom = whole.model_copy(update={"configurations": {"3d_fullres_bs4": volume}})
    assert list(planned(make_fingerprint(), custom).configurations) == ["3d_fullres"]
    assert custom.source("2d") is None
    with pytest.raises(OptionError, match="the model has no configuration 2d; it has 3d_fullres_bs4"):
        planned(make_fingerprint(), custom, configurations=("2d",))
    with pytest.raises(PlanError, match="3d_fullres: the images are two-dimensional"):
        planned(make_fingerprint((1, 90, 90)), custom)
    two = whole.model_copy(update={"configurations": {"a": volume, "b": volume}})
    with pytest.raises(OptionError, match="no configuration that a plan has; it has a,b"):
        planned(make_fingerprint(), two)


def test_a_cascade_is_taken_over_with_its_coarse_stage() -> None:
    model = model_of(make_fingerprint((300, 400, 400), (1, 1, 1)))
    assert model.names == ("2d", "3d_lowres", "3d_fullres", "3d_cascade_fullres")
    chosen = ("3d_lowres", "3d_cascade_fullres")  # all that a bundle of a selected cascade holds
    part = model.model_copy(update={"configurations": {name: model.configurations[name] for name in chosen}})
    made = planned(make_fingerprint((150, 200, 200), (1, 1, 1)), part).configurations
    assert tuple(made) == chosen
    for name in chosen:
        assert made[name].network == model.configurations[name].network
        assert made[name].spacing == model.configurations[name].spacing

"""Records: strict, frozen, versioned, and the same after a round trip through JSON."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from autounet.schema.dataset import Finding, Splits
from autounet.schema.errors import DataError, RecordError
from autounet.schema.geometry import Geometry
from autounet.schema.labels import LabelClass, Labels
from autounet.schema.options import PlannerOptions, RunOptions
from autounet.schema.plan import ChannelNormalisation, Configuration, NetworkSpec, Plan, PreprocessSpec, Reason
from autounet.schema.record import write_text


def network(dims=3, stages=3):
    ones, twos, threes = (1,) * dims, (2,) * dims, (3,) * dims
    return NetworkSpec(
        dims=dims,
        in_channels=1,
        out_channels=3,
        features=tuple(8 * 2**stage for stage in range(stages)),
        strides=(ones,) + (twos,) * (stages - 1),
        kernel_sizes=(threes,) * stages,
        encoder_blocks=(2,) * stages,
        decoder_blocks=(2,) * (stages - 1),
    )


def configuration(dims=3, **changes):
    spacing = (1.0, 0.5, 0.5) if dims == 3 else (None, 0.5, 0.5)
    values = {
        "preprocess": PreprocessSpec(spacing=spacing, normalisation=(ChannelNormalisation(scheme="zscore"),)),
        "prepared": "somewhere",
        "patch_size": (16,) * dims,
        "batch_size": 2,
        "network": network(dims),
        "median_shape": (16, 16, 16),
        "predicted_memory_bytes": 1,
    }
    return Configuration(**{**values, **changes})


def plan():
    return Plan(
        configurations={"2d": configuration(2), "3d_fullres": configuration(3)},
        options=PlannerOptions(),
        reasons=(Reason(configuration=None, topic="patch", text="because"),),
        fingerprint="0",
    )


def test_a_plan_is_the_same_after_saving_and_loading(tmp_path):
    plan().save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan()


def test_plan_json_shows_the_spacing_of_the_network_axes(tmp_path):
    plan().save(tmp_path / "plan.json")
    written = json.loads((tmp_path / "plan.json").read_text())["configurations"]
    assert written["2d"]["spacing"] == [0.5, 0.5]
    assert written["3d_fullres"]["spacing"] == [1.0, 0.5, 0.5]


def test_the_shown_spacing_cannot_be_edited_alone(tmp_path):
    plan().save(tmp_path / "plan.json")
    content = json.loads((tmp_path / "plan.json").read_text())
    content["configurations"]["2d"]["spacing"] = [2.0, 2.0]
    (tmp_path / "plan.json").write_text(json.dumps(content))
    with pytest.raises(RecordError, match=r"edit preprocess\.spacing"):
        Plan.load(tmp_path / "plan.json")


def test_what_does_not_touch_the_weights_lies_outside_the_key():
    from autounet.schema.plan import InferenceSpec

    base = configuration()
    same = base.model_copy(
        update={"predicted_memory_bytes": 9, "predicted_steps": 5, "inference": InferenceSpec(overlap=0)}
    )
    assert same.key == base.key
    assert base.model_copy(update={"batch_size": 3}).key != base.key


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda content: content.update(surprise=1), "surprise"),
        (lambda content: content.update(format_version=99), "format_version 99"),
        (lambda content: content.pop("reasons"), "reasons"),
        (lambda content: content["configurations"]["3d_fullres"].update(spacing=None), "spacing should be a list"),
    ],
)
def test_a_wrong_record_is_refused_by_field(tmp_path, edit, message):
    plan().save(tmp_path / "plan.json")
    content = json.loads((tmp_path / "plan.json").read_text())
    edit(content)
    (tmp_path / "plan.json").write_text(json.dumps(content))
    with pytest.raises(RecordError, match=message):
        Plan.load(tmp_path / "plan.json")


@pytest.mark.parametrize("text", ["", "{", "[1]", "null"])
def test_what_is_no_record_is_refused_with_its_path(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(RecordError, match=r"x\.json"):
        Plan.load(tmp_path / "x.json")


def test_records_are_frozen():
    with pytest.raises(ValidationError):
        plan().reasons = ()


def test_a_failed_write_leaves_the_old_content_and_no_temporary_file(tmp_path, monkeypatch):
    write_text(tmp_path / "file", "old")
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_text(tmp_path / "file", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "old"


finite = st.floats(-1e6, 1e6, allow_nan=False)


@given(
    shape=st.tuples(*[st.integers(1, 4000)] * 3),
    spacing=st.tuples(*[st.floats(1e-3, 50)] * 3),
    origin=st.tuples(*[finite] * 3),
    direction=st.tuples(*[st.floats(-1, 1)] * 9),
)
def test_geometry_round_trips_exactly(shape, spacing, origin, direction):
    geometry = Geometry(shape=shape, spacing=spacing, origin=origin, direction=direction)
    assert Geometry.model_validate_json(geometry.model_dump_json()) == geometry


@given(st.sets(st.integers(-300, 70000), max_size=8))
def test_labels_round_trip_with_any_integers(values):
    classes = [LabelClass(name=f"label_{value}", value=value) for value in sorted(values - {0})]
    labels = Labels(classes=(LabelClass(name="background", value=0), *classes))
    assert Labels.model_validate_json(labels.model_dump_json()) == labels
    assert labels.count == len(values - {0}) + 1


@pytest.mark.parametrize(
    "content",
    [
        {"classes": [{"name": "a", "value": 1}]},
        {"classes": [{"name": "a", "value": 0}, {"name": "a", "value": 1}]},
        {"classes": [{"name": "a", "value": 0}, {"name": "b", "value": 0}]},
        {"classes": [{"name": "a", "value": 0}], "ignore": 0},
        {"classes": [{"name": "a", "value": 0}], "regions": [{"name": "r", "values": [7]}]},
    ],
)
def test_contradictory_labels_are_refused(content):
    with pytest.raises(ValidationError):
        Labels.model_validate(content)


def test_a_case_in_two_folds_is_refused():
    with pytest.raises(ValidationError, match="two folds"):
        Splits(source="automatic", folds=(("a", "b"), ("b",)))


def test_training_cases_are_those_of_the_other_folds():
    splits = Splits(source="automatic", folds=(("a",), ("b", "c"), ("d",)))
    assert splits.training(1) == ("a", "d")


def test_a_data_error_lists_every_finding():
    findings = [Finding(case=f"c{i}", code="x", message="is empty", remedy="Fill it") for i in range(30)]
    error = DataError.of(findings)
    assert "case c0: is empty. Fill it" in str(error)
    assert "and 10 more" in str(error)
    assert len(error.findings) == 30


def test_options_that_were_not_given_stay_unset():
    assert set(RunOptions().model_dump(exclude_none=True, exclude_defaults=True)) == set()

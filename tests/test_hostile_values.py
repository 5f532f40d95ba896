"""Values that no run has, in plans, bundles and options: refused when they are read, with the field and why."""

from __future__ import annotations

import json
import math
import pickle
from pathlib import Path
from typing import Any

import pytest
from fake_output import configuration
from hypothesis import given
from hypothesis import strategies as st

from autounet.cli.command_options import config_values
from autounet.inference.archive import record_checksum
from autounet.inference.bundle import load_bundle
from autounet.schema.bundle import ModelBundle
from autounet.schema.cluster import read_cluster_options
from autounet.schema.dataset import Channel, Splits
from autounet.schema.errors import AutoUNetError, RecordError, UsageError
from autounet.schema.labels import LabelClass, Labels
from autounet.schema.option_table import RUN_OPTIONS, run_options
from autounet.schema.options import RunOptions, TrainOptions
from autounet.schema.plan import Configuration, InferenceSpec
from autounet.schema.record import Record, read_json
from autounet.schema.run import read_log
from autounet.schema.selection import Selection, TemperatureScaling
from autounet.store.run_folder import RunFolder
from autounet.time_budget.deadline import Clock
from autounet.workflow.plan_stage import PlanFile

SOUND = configuration(3).model_dump(mode="json")


class Stored(Record):
    configuration: Configuration


def edited(path: tuple[str | int, ...], value: Any) -> dict[str, Any]:
    content = json.loads(json.dumps(SOUND))
    content.pop("spacing")
    place: Any = content
    for part in path[:-1]:
        place = place[part]
    place[path[-1]] = value
    return content


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("preprocess", "spacing", 1), -1),
        (("preprocess", "spacing", 1), 0),
        (("preprocess", "spacing", 1), math.inf),
        (("preprocess", "spacing", 0), 1e300),
        (("patch_size", 0), 10**9),
        (("patch_size", 2), 10**30),
        (("network", "encoder_blocks", 0), 10**6),
        (("network", "decoder_blocks", 0), 10**6),
        (("network", "features", 0), 10**9),
        (("network", "strides", 1, 0), 10**9),
        (("network", "kernel_sizes", 0, 0), 10**9 + 1),
        (("network", "in_channels"), 10**9),
        (("network", "out_channels"), 10**9),
        (("batch_size",), 10**9),
        (("inference", "overlap"), 0.9999999),
        (("preprocess", "normalisation", 0, "std"), 0),
        (("preprocess", "normalisation", 0, "mean"), math.nan),
    ],
)
def test_absurd_configurations_are_refused_with_the_field(
    tmp_path: Path, path: tuple[str | int, ...], value: Any
) -> None:
    Stored(configuration=configuration(3)).save(tmp_path / "sound.json")
    Stored.load(tmp_path / "sound.json")
    file = tmp_path / "plan.json"
    file.write_text(json.dumps({"format_version": 1, "configuration": edited(path, value)}))
    with pytest.raises(RecordError, match=rf"{path[0]}|Infinity|NaN") as raised:
        Stored.load(file)
    assert len(str(raised.value)) < 2000


@pytest.mark.parametrize("text", ["[" * 10**5, '{"a":' * 10**5, "[NaN]", "[Infinity]", "[1e999]", "", "\x00", '"'])
def test_what_is_no_json_of_ours_is_told(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(RecordError, match="is not readable JSON"):
        read_json(tmp_path / "a.json", "a.json")


@pytest.mark.parametrize(
    ("option", "text"),
    [
        ("--seed", -1), ("--seed", 2**64), ("--time", "nan"), ("--time", "9" * 400 + "h"), ("--memory", "9" * 400),
        ("--memory", "nan"), ("--metrics", "dice,psnr"), ("--metrics", ""), ("--epochs", 10**15), ("--workers", "-1"),
        ("--workers", "9999999"), ("--iterations", 0),
    ],
)  # fmt: skip
def test_absurd_options_are_errors_of_use(option: str, text: Any) -> None:
    chosen = next(each for each in RUN_OPTIONS if each.name == option)
    with pytest.raises(UsageError, match=option):
        run_options([(chosen, text)])


@pytest.mark.parametrize("stored", [{"seconds": math.nan}, {"metrics": ["psnr"]}, {"seed": -1}, {"seed": 2**64}])
def test_absurd_stored_options_are_refused(tmp_path: Path, stored: dict[str, Any]) -> None:
    (tmp_path / "options.json").write_text(json.dumps({"format_version": 1, **stored}))
    with pytest.raises(AutoUNetError):
        RunOptions.load(tmp_path / "options.json")


@pytest.mark.parametrize(
    "make",
    [
        lambda: Clock(promised_seconds=-1.0, spent_seconds=0.0),
        lambda: Clock(promised_seconds=None, spent_seconds=-5.0),
        lambda: TrainOptions(seed=-1),
        lambda: InferenceSpec(overlap=1.0),
        lambda: LabelClass(name="a", value=10**12),
        lambda: Labels(ignore=2**31),
        lambda: Selection(chosen=("2d",), compared=(), reason="", weights=(0.5, 0.5)),
        lambda: Selection(chosen=("2d", "3d"), compared=(), reason="", weights=(2.0, -1.0)),
        lambda: TemperatureScaling(temperature=1e-300, fitted=1, ece_before=0, ece_after=0, cases=1, voxels=1),
    ],
)
def test_other_records_hold_what_is_possible(make: Any) -> None:
    with pytest.raises(ValueError, match="validation error"):
        make()


@given(st.integers(0, 2**53), st.integers(-1, 4))
def test_every_allowed_seed_is_one_for_torch(seed: int, fold: int) -> None:
    assert 0 <= TrainOptions(seed=seed).seed * 1000 + fold + 1 < 2**63


def forged(folder: Path, **changes: Any) -> Path:
    """A sealed bundle without weights whose configuration has been changed."""
    whole = configuration(3).model_copy(update=changes)
    labels = Labels(classes=tuple(LabelClass(name=str(value), value=value) for value in range(3)))
    bundle = ModelBundle(
        name="x", layout="pairs", image_pattern="*", suffix=".nii.gz", file_kind="nifti",
        channels=(Channel(name="CT"),), labels=labels, configurations={"3d_fullres": whole},
        selection=Selection(chosen=("3d_fullres",), compared=(), reason=""), mean_dice=None, versions={},
        members=({"configuration": "3d_fullres", "fold": 0, "path": "w", "checksum": "0"},),
    )  # fmt: skip
    content = {"format_version": 1, **bundle.model_dump(mode="json")}
    content["checksum"] = record_checksum(content)
    folder.mkdir(exist_ok=True)
    (folder / "bundle.json").write_text(json.dumps(content))
    return folder


def network(**changes: Any) -> dict[str, Any]:
    return {"network": configuration(3).network.model_copy(update=changes)}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"patch_size": (33, 1, 7)}, "patch_size"),
        (network(in_channels=3), "in_channels is for 3, not 1"),
        (network(out_channels=99), "out_channels is for 99"),
        (network(options={"unknown": 1}), "network.options"),
        (network(encoder_blocks=(0, 1, 1)), "every number must be 1 or more|encoder_blocks"),
    ],
)
def test_a_sealed_bundle_that_contradicts_itself_is_refused(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    with pytest.raises(AutoUNetError, match=told):
        load_bundle(forged(tmp_path / "model", **changes))


@pytest.mark.parametrize(
    "left", [b"", b"\0" * 4096, b'{"format_version": 1,\n "configurations"', b'{"format_version": 1']
)
def test_a_plan_that_was_cut_off_is_moved_aside(tmp_path: Path, left: bytes) -> None:
    folder = RunFolder(tmp_path)
    folder.plan.write_bytes(left)
    assert PlanFile(folder).load() is None
    assert (tmp_path / "plan.json.damaged").read_bytes() == left


@pytest.mark.parametrize("mistyped", ['{"format_version": 1,}', '{"format_version": 1, "configuration": {}}'])
def test_a_plan_that_a_person_mistyped_is_an_error(tmp_path: Path, mistyped: str) -> None:
    folder = RunFolder(tmp_path)
    folder.plan.write_text(mistyped)
    with pytest.raises(RecordError, match="--replan"):
        PlanFile(folder).load()
    assert folder.plan.read_text() == mistyped


def test_lines_that_are_no_text_end_a_log(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_bytes(b'\xff{"step": 1}\n')
    assert read_log(tmp_path / "log.jsonl") == []


def test_no_message_is_longer_than_a_page_or_two() -> None:
    for error in (UsageError("x" * 10**6, "Correct it"), RecordError("x" * 10**6)):
        assert len(str(error)) < 11_000
        assert len(str(pickle.loads(pickle.dumps(error)))) < 11_000


def test_toml_nested_without_end_is_told(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text("a = " + "[" * 10**5)
    with pytest.raises(UsageError, match="cannot be read"):
        config_values(file, "run")
    with pytest.raises(UsageError, match="is not readable TOML"):
        read_cluster_options(file)


def test_a_record_that_is_wrong_everywhere_is_told_in_few_words(tmp_path: Path) -> None:
    file = tmp_path / "splits.json"
    file.write_text(json.dumps({"format_version": 1, "source": "x" * 10**5, "folds": [[1] * 1000] * 9}))
    with pytest.raises(RecordError, match="more") as raised:
        Splits.load(file)
    assert len(str(raised.value)) < 8000

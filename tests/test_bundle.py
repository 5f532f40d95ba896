"""A bundle predicts what its folds predict, holds all it needs, and is refused when anything in it was changed."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from autounet.inference.archive import sealed
from autounet.inference.bundle import build_models, load_bundle, load_network, pack
from autounet.inference.sliding_window import predict_scores
from autounet.nets import FAMILIES
from autounet.schema.bundle import ModelBundle
from autounet.schema.dataset import Channel, Dataset
from autounet.schema.errors import ModelError, RecordError
from autounet.schema.labels import LabelClass, Labels
from autounet.schema.options import DataOptions, TrainOptions
from autounet.schema.plan import ChannelNormalisation, Configuration, PreprocessSpec
from autounet.schema.run import RunRecord
from autounet.schema.selection import Selection
from autounet.store.weights import save_weights

LABELS = Labels(classes=(LabelClass(name="background", value=0), LabelClass(name="organ", value=255)))
DATASET = Dataset(
    root="/nowhere",
    name="demo",
    layout="pairs",
    channels=(Channel(name="mri"),),
    labels=LABELS,
    labels_declared=True,
    cases=(),
    image_pattern="images/*.nii.gz",
    file_kind="nifti",
    suffix=".nii.gz",
)


def configuration(dims: int) -> Configuration:
    ones, twos = (1,) * dims, (2,) * dims
    network = FAMILIES["plain"].propose(dims, 1, 2, (ones, twos), ((3,) * dims,) * 2, base_features=4)
    return Configuration(
        preprocess=PreprocessSpec(
            spacing=(1.5 if dims == 3 else None, 0.1, 0.3), normalisation=(ChannelNormalisation(scheme="zscore"),)
        ),
        prepared="p",
        patch_size=(4,) * dims,
        batch_size=2,
        network=network,
        channels_last=True,
        median_shape=(8, 8, 8),
        predicted_memory_bytes=0,
    )


PLANS = {"2d": configuration(2), "3d_fullres": configuration(3)}


Fold = tuple[str, int | None, Path]


def trained(folder: Path, name: str, fold: int | None, plan: Configuration | None = None) -> Fold:
    """A fold with random weights and its record; `plan` is the one it claims to be trained with."""
    torch.manual_seed(0 if fold is None else fold)
    path = folder / name / f"fold_{fold}" / "weights.safetensors"
    save_weights(path, FAMILIES["plain"].build(PLANS[name].network).state_dict())
    RunRecord(
        configuration_name=name,
        configuration=(plan or PLANS[name]).key,
        fold=fold,
        options=TrainOptions(),
        train_cases=(),
        validation_cases=(),
        device="cpu",
        steps=1,
        seconds=1.0,
        curve=(),
        parameters=1,
        peak_memory_bytes=None,
        versions={},
    ).save(path.with_name("record.json"))
    return name, fold, path


def packed(target: Path, folds: list[Fold], *chosen: str) -> ModelBundle:
    weights: dict[str, dict[int | None, Path]] = {name: {} for name in PLANS}
    for name, fold, path in folds:
        weights[name][fold] = path
    selection = Selection(chosen=chosen, compared=(), reason="only one")
    options = DataOptions(channels={"mri": "*.nii.gz"})
    return pack(target, DATASET, options, PLANS, selection, weights, mean_dice=0.5)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    packed(tmp_path / "OUT" / "model", [trained(tmp_path, "3d_fullres", fold) for fold in (0, 1)], "3d_fullres")
    return tmp_path / "OUT" / "model"


def test_a_bundle_predicts_what_its_folds_predict_after_a_move(model: Path, tmp_path: Path) -> None:
    plan, folds = PLANS["3d_fullres"], [trained(tmp_path, "3d_fullres", fold) for fold in (0, 1)]
    image = np.random.default_rng(0).normal(size=(1, 6, 5, 4)).astype(np.float32)
    direct = predict_scores([load_network(plan, path, "cpu") for _, _, path in folds], image, plan, 2, "cpu")
    shutil.move(model, tmp_path / "elsewhere")
    shutil.rmtree(tmp_path / "3d_fullres")
    bundle, folder = load_bundle(tmp_path / "elsewhere")
    models = build_models(bundle, folder, "3d_fullres", None, "cpu")
    np.testing.assert_array_equal(predict_scores(models, image, bundle.configurations["3d_fullres"], 2, "cpu"), direct)
    assert not any(module.training for module in models)
    assert not any(parameter.requires_grad for module in models for parameter in module.parameters())


def test_only_what_was_selected_is_packed(tmp_path: Path) -> None:
    folds = [trained(tmp_path, name, fold) for name in PLANS for fold in (0, None)]
    packed(tmp_path / "model", folds, "2d")
    bundle, folder = load_bundle(tmp_path / "model")
    assert list(bundle.configurations) == ["2d"]
    assert [(member.fold, member.path) for member in bundle.members] == [
        (0, "2d/fold_0.safetensors"),
        (None, "2d/fold_all.safetensors"),
    ]
    assert (bundle.labels, bundle.mean_dice, bundle.channel_patterns) == (LABELS, 0.5, {"mri": "*.nii.gz"})
    assert {"autounet", "torch"} <= set(bundle.versions)
    assert len(build_models(bundle, folder, "2d", [None], "cpu")) == 1


def test_a_run_folder_stands_for_its_model(model: Path) -> None:
    assert load_bundle(model.parent)[1] == model


def test_packing_again_replaces_the_bundle_and_leaves_nothing_else(model: Path, tmp_path: Path) -> None:
    packed(model, [trained(tmp_path, "2d", 0)], "2d")
    assert load_bundle(model)[0].selection.chosen == ("2d",)
    assert [path.name for path in model.parent.iterdir()] == ["model"]
    assert sorted(path.name for path in model.iterdir()) == ["2d", "bundle.json", "model_card.md"]


def test_packing_never_removes_what_is_no_bundle(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("x")
    with pytest.raises(ModelError, match="no model"):
        packed(tmp_path / "thesis", [trained(tmp_path, "2d", 0)], "2d")
    assert (tmp_path / "thesis" / "chapter.txt").read_text() == "x"


def test_a_failed_packing_leaves_the_old_bundle(model: Path, tmp_path: Path) -> None:
    gone = trained(tmp_path, "2d", 0)
    gone[2].unlink()
    with pytest.raises(FileNotFoundError):
        packed(model, [gone], "2d")
    assert load_bundle(model)[0].selection.chosen == ("3d_fullres",)
    assert [path.name for path in model.parent.iterdir()] == ["model"]


def test_mixtures_and_missing_folds_are_refused(tmp_path: Path) -> None:
    other = PLANS["2d"].model_copy(update={"batch_size": 7})
    with pytest.raises(ModelError, match=r"fold 1 of 2d was trained with another version of the plan"):
        packed(tmp_path / "model", [trained(tmp_path, "2d", 0), trained(tmp_path, "2d", 1, plan=other)], "2d")
    with pytest.raises(ModelError, match="no trained fold of 3d_fullres"):
        packed(tmp_path / "model", [trained(tmp_path, "2d", 0)], "2d", "3d_fullres")
    first = trained(tmp_path, "2d", 0)
    with pytest.raises(ModelError, match="given twice"):
        packed(tmp_path / "model", [first, ("2d", 1, first[2])], "2d")
    assert not (tmp_path / "model").exists()


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


@pytest.mark.parametrize("damage", [flip_a_byte, truncate, Path.unlink])
def test_damaged_weights_are_refused_by_name(model: Path, damage: object) -> None:
    damage(model / "3d_fullres" / "fold_1.safetensors")  # type: ignore[operator]
    with pytest.raises(ModelError, match=r"fold_1\.safetensors"):
        load_bundle(model)


@pytest.mark.parametrize("damage", [flip_a_byte, truncate, Path.unlink])
def test_a_damaged_card_is_refused_by_name(model: Path, damage: object) -> None:
    damage(model / "model_card.md")  # type: ignore[operator]
    with pytest.raises(ModelError, match=r"model_card\.md"):
        load_bundle(model)


def test_a_changed_record_is_refused(model: Path) -> None:
    path = model / "bundle.json"
    content = json.loads(path.read_text())
    for change in ({"mean_dice": 0.99}, {"labels": {"classes": [{"name": "background", "value": 0}]}}):
        path.write_text(json.dumps(content | change))
        with pytest.raises(ModelError, match="changed after packing"):
            load_bundle(model)
    path.write_text(json.dumps(content, indent=4, sort_keys=True))
    assert load_bundle(model)[1] == model
    truncate(path)
    with pytest.raises(RecordError, match=r"bundle\.json"):
        load_bundle(model)


@pytest.mark.parametrize(
    ("member", "message"),
    [
        ({"path": "../../3d_fullres/fold_0/weights.safetensors"}, "outside"),
        ({"configuration": "other"}, "does not describe"),
    ],
)
def test_records_that_contradict_themselves_are_refused(model: Path, member: dict[str, str], message: str) -> None:
    """Also when their checksum is right."""
    bundle = load_bundle(model)[0]
    members = (bundle.members[0], bundle.members[1].model_copy(update=member))
    sealed(bundle.model_copy(update={"members": members})).save(model / "bundle.json")
    with pytest.raises(ModelError, match=message):
        load_bundle(model)


def test_what_the_bundle_does_not_hold_is_refused(model: Path, tmp_path: Path) -> None:
    bundle, folder = load_bundle(model)
    with pytest.raises(ModelError, match="it holds 3d_fullres"):
        build_models(bundle, folder, "2d", None, "cpu")
    with pytest.raises(ModelError, match=r"fold 7 .* it has 0, 1"):
        build_models(bundle, folder, "3d_fullres", [0, 7], "cpu")
    with pytest.raises(ModelError, match="is no model"):
        load_bundle(tmp_path)
    with pytest.raises(ModelError, match="does not fit"):
        load_network(PLANS["2d"], folder / bundle.members[0].path, "cpu")


def test_reading_a_bundle_does_not_load_torch(model: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from autounet.inference.bundle import load_bundle;"
        f"load_bundle(Path({str(model)!r})); sys.exit('torch' in sys.modules)"
    )
    root = Path(__file__).parent.parent
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0

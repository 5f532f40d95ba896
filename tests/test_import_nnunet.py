"""A trained nnU-Net becomes a bundle that says and predicts what nnU-Net does; what cannot be repeated is refused by
name, and nothing of a checkpoint is executed."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nnunet_folders import configuration, description, network, plans, tensors, trained, zipped
from typer.testing import CliRunner

from autounet.api import load
from autounet.cli.app import app
from autounet.inference.bundle import build_models, load_bundle
from autounet.inference.export import labels_by_file, labels_for_next_stage
from autounet.interop.import_nnunet import import_model
from autounet.interop.nnunet_network import convert_weights
from autounet.interop.nnunet_records import read_checkpoint
from autounet.ops.masks import normalise
from autounet.ops.orient import network_axes
from autounet.preprocessing import prepare_case
from autounet.schema.errors import ModelError
from autounet.schema.geometry import Geometry
from autounet.schema.labels import overlapping_targets
from autounet.schema.plan import ChannelNormalisation, PreprocessSpec

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set's results with one configuration of two folds."""
    folder = tmp_path_factory.mktemp("nnunet") / "Dataset900_Hand"
    trained(folder)
    return folder


def refused(source: Path, tmp_path: Path, match: str, configurations: list[str] | None = None) -> None:
    with pytest.raises(ModelError, match=match):
        import_model(source, tmp_path / "refused", configurations)
    assert not (tmp_path / "refused").exists()


def test_the_bundle_says_what_nnunet_does(results: Path, tmp_path: Path) -> None:
    import_model(results / "nnUNetTrainer__nnUNetPlans__3d_fullres", tmp_path / "model")
    bundle, _ = load_bundle(tmp_path / "model")
    found = bundle.configurations["3d_fullres"]
    assert found.preprocess.orientation == "as_stored"
    assert found.preprocess.spacing == (2.0, 1.0, 1.5)
    assert found.preprocess.normalisation == (ChannelNormalisation(scheme="zscore"),)
    resampling = found.preprocess.resampling
    assert (resampling.image_order, resampling.score_order, resampling.z_order) == (3, 1, 0)
    assert resampling.separate_z_ratio == 3
    assert (found.inference.overlap, found.inference.weighting) == (0.5, "gaussian")
    assert found.inference.mirror_axes == (0, 1, 2)
    assert found.precision == "fp16", "which is float32 on a CPU and half precision on a GPU, as nnU-Net predicts"
    assert found.network == network()
    assert [label.name for label in bundle.labels.classes] == ["background", "large", "small"]
    assert [member.fold for member in bundle.members] == [0, 1]
    assert bundle.name == "Dataset900_Hand"


@pytest.mark.parametrize("family", ["plain", "residual"])
@pytest.mark.parametrize("dims", [2, 3])
def test_weights_keep_their_values_under_our_names(family: str, dims: int, tmp_path: Path) -> None:
    spec, name = network(family, dims), f"{dims}d"
    folder = trained(tmp_path / "results", name, spec, folds=["all"])
    bundle = import_model(folder, tmp_path / "model")
    (model,) = build_models(bundle, tmp_path / "model", name, [None], "cpu")
    expected = convert_weights(tensors(spec, seed=0), spec, "x")
    assert set(model.state_dict()) == set(expected)
    assert all(torch.equal(tensor, expected[key]) for key, tensor in model.state_dict().items())
    image = np.random.default_rng(0).normal(size=(1, 9, 10, 11)).astype(np.float32)
    assert load(tmp_path / "model", device="cpu").predict(image, spacing=(2, 1, 1.5)).shape == (9, 10, 11)


def test_a_zip_gives_the_same_bundle(results: Path, tmp_path: Path) -> None:
    archive = zipped(results, tmp_path / "exported.zip")
    by_folder, by_zip = (import_model(each, tmp_path / each.stem) for each in (results, archive))
    assert by_zip.members == by_folder.members
    assert by_zip.checksum == by_folder.checksum


def test_the_command_line(results: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["import", str(results), "--out", str(tmp_path / "model")])
    assert done.exit_code == 0, done.output
    assert "3d_fullres, 2 networks" in done.output
    assert load_bundle(tmp_path / "model")[0].members


def test_numbers_of_numpy_1_are_read_too(results: Path, tmp_path: Path) -> None:
    source = next(results.rglob("checkpoint_final.pth"))
    renamed = tmp_path / "checkpoint_final.pth"
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(renamed, "w") as new:
        for entry in old.infolist():
            content = old.read(entry)
            if entry.filename.endswith("data.pkl"):
                assert b"numpy._core.multiarray\nscalar" in content
                content = content.replace(b"numpy._core.multiarray\nscalar", b"numpy.core.multiarray\nscalar")
            new.writestr(entry.filename, content)
    assert read_checkpoint(renamed, "x").mirror_axes == (0, 1, 2)


class Malicious:
    """Runs a command when it is unpickled."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.witness}",)


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        (lambda folder: {"logging": Malicious(folder / "ran")}, f"{os.system.__module__}.system"),
        (lambda folder: {"trainer_name": Path("x")}, "pathlib"),
        (lambda folder: {"_best_ema": np.zeros(3)}, "_reconstruct"),
    ],
)
def test_what_could_run_code_is_refused_by_name(changes: Any, name: str, tmp_path: Path) -> None:
    folder = trained(tmp_path / "results", folds=[0], **changes(tmp_path))
    refused(folder, tmp_path, rf"fold_0/checkpoint_final\.pth would build .*{name}")
    assert not (tmp_path / "ran").exists()


def truncated(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def spoilt(file: Path) -> None:
    content = bytearray(file.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 64] = bytes(byte ^ 255 for byte in content[middle : middle + 64])
    file.write_bytes(content)


def test_damaged_files_are_refused_by_name(results: Path, tmp_path: Path) -> None:
    folder = trained(tmp_path / "results", folds=[0])
    truncated(folder / "fold_0" / "checkpoint_final.pth")
    refused(folder, tmp_path, r"checkpoint_final\.pth cannot be read")
    (folder / "fold_0" / "checkpoint_final.pth").write_bytes(b"")
    refused(folder, tmp_path, r"checkpoint_final\.pth cannot be read")
    torch.save({"network_weights": {}}, folder / "fold_0" / "checkpoint_final.pth")
    refused(folder, tmp_path, r"checkpoint_final\.pth is no checkpoint of nnU-Net v2")
    for damage in (truncated, spoilt):
        archive = zipped(results, tmp_path / "exported.zip")
        damage(archive)
        refused(archive, tmp_path, r"exported\.zip")
    described = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps({**described, "file_ending": ".x" * 300}))
    refused(folder, tmp_path, "file_ending")
    archive = zipped(results, tmp_path / "forged.zip")
    content = archive.read_bytes()
    place = (
        content.rindex(b"PK\5\6") + 16
    )  # where the list of members is said to begin: members then lie before the file
    archive.write_bytes(content[:place] + b"\xff\xff\xff\x7f" + content[place + 4 :])
    refused(archive, tmp_path, r"forged\.zip")
    (folder / "dataset.json").write_text(json.dumps(described))
    (folder / "plans.json").write_text("{")
    refused(folder, tmp_path, r"plans\.json is not readable JSON")
    (folder / "plans.json").write_text(json.dumps({"plans_name": "x"}))
    refused(folder, tmp_path, r"dataset_name: Field required")


def test_what_is_missing_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    refused(tmp_path / "nothing", tmp_path, "does not exist")
    refused(tmp_path, tmp_path, r"holds no plans\.json")
    folder = trained(tmp_path / "results", folds=[0, 2])
    (folder / "fold_0" / "checkpoint_final.pth").rename(folder / "fold_0" / "checkpoint_best.pth")
    with caplog.at_level(logging.WARNING):
        assert [member.fold for member in import_model(folder, tmp_path / "model").members] == [2]
    assert "fold_0" in caplog.text
    (folder / "fold_2" / "checkpoint_final.pth").unlink()
    refused(folder, tmp_path, r"no fold with a checkpoint_final\.pth")
    (folder / "dataset.json").unlink()
    refused(folder, tmp_path, r"dataset\.json is missing")


def changed_network(key: str, value: Any) -> dict[str, Any]:
    theirs = configuration(network())
    theirs["architecture"]["arch_kwargs"][key] = value
    return plans({"3d_fullres": theirs})


WITHOUT_ARGUMENTS = {"network_class_name": "somewhere.PlainConvUNet", "arch_kwargs": "none"}


@pytest.mark.parametrize(
    ("their_plans", "name"),
    [
        (changed_network("norm_op", "torch.nn.modules.batchnorm.BatchNorm3d"), "BatchNorm3d"),
        (changed_network("nonlin_kwargs", {"negative_slope": 0.2}), "0.2"),
        (changed_network("squeeze_excitation", True), "squeeze_excitation"),
        (changed_network("strides", [[1, 1, 1]]), "strides has 1"),
        (changed_network("kernel_sizes", [[-3, 3, 3]] * 2), "greater than or equal to 1"),
        (changed_network("features_per_stage", float("inf")), "wrong one"),
        (
            plans({"3d_fullres": configuration(network(), spacing=[0.0, 1.0, 1.5])}),
            "spacing.0: Input should be greater",
        ),
        (plans({"3d_fullres": configuration(network(), median_image_size_in_voxels=[1e300] * 3)}), "median_image_size"),
        (plans({"3d_fullres": configuration(network(), architecture=WITHOUT_ARGUMENTS)}), "has no arguments"),
        (plans({"3d_fullres": configuration(network(), preprocessor_name="Other")}), "preprocessor Other"),
        (plans({"3d_fullres": configuration(network(), resampling_fn_data="resample_torch")}), "resample_torch"),
        (plans({"3d_fullres": configuration(network(), normalization_schemes=["MyNorm"])}), "MyNorm"),
        (plans({"3d_fullres": configuration(network())}, image_reader_writer="MyIO"), "MyIO"),
        (plans({"3d_fullres": configuration(network())}, label_manager="MyLabels"), "MyLabels"),
        (plans({"3d_fullres": configuration(network(), inherits_from="2d")}), "no configuration '2d'"),
        (plans({"3d_fullres": configuration(network(), inherits_from="3d_fullres")}), "no configuration '3d_fullres'"),
    ],
)
def test_what_we_cannot_repeat_is_refused_by_name(their_plans: dict[str, Any], name: str, tmp_path: Path) -> None:
    refused(trained(tmp_path / "results", their_plans=their_plans, folds=[0]), tmp_path, name)


def test_an_unknown_architecture_is_refused_by_name(tmp_path: Path) -> None:
    theirs = configuration(network())
    theirs["architecture"]["network_class_name"] = "somewhere.MedNeXt"
    folder = trained(tmp_path / "results", their_plans=plans({"3d_fullres": theirs}), folds=[0])
    refused(folder, tmp_path, r"architecture MedNeXt .* PlainConvUNet, ResidualEncoderUNet")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda weights: weights.pop("decoder.seg_layers.0.bias"), r"no tensor decoder\.seg_layers\.0\.bias"),
        (
            lambda weights: weights.update({"decoder.seg_layers.0.bias": torch.zeros(9)}),
            r"shape \(9,\) instead of \(3,\)",
        ),
        (
            lambda weights: weights.update({"encoder.stages.0.0.convs.0.norm.running_mean": torch.zeros(4)}),
            "running_mean",
        ),
    ],
)
def test_other_networks_than_the_plans_tell_are_refused(change: Any, match: str, tmp_path: Path) -> None:
    weights = tensors(network(), 0)
    change(weights)
    refused(trained(tmp_path / "results", folds=[0], network_weights=weights), tmp_path, match)


def test_one_of_several_configurations_has_to_be_chosen(tmp_path: Path) -> None:
    specs = {"2d": network(dims=2), "3d_fullres": network()}
    both = plans({name: configuration(spec) for name, spec in specs.items()})
    for name, spec in specs.items():
        trained(tmp_path / "results", name, spec, both, folds=[0])
    refused(tmp_path / "results", tmp_path, "several configurations: 2d, 3d_fullres. Choose with --configuration")
    refused(tmp_path / "results", tmp_path, "no model of 3d_lowres", ["3d_lowres"])
    bundle = import_model(tmp_path / "results", tmp_path / "model", ["2d", "3d_fullres"])
    assert bundle.selection.chosen == ("2d", "3d_fullres")
    assert bundle.configurations["2d"].preprocess.spacing == (None, 1.0, 1.5)
    assert bundle.configurations["2d"].median_shape == (7, 10, 10)


def test_a_cascade_brings_its_first_stage(tmp_path: Path) -> None:
    specs = {"3d_lowres": network(), "3d_cascade_fullres": network(inputs=3)}
    theirs = {
        "3d_lowres": {"inherits_from": "3d_fullres", "spacing": [4.0, 2.0, 3.0], "next_stage": "3d_cascade_fullres"},
        "3d_fullres": configuration(network()),
        "3d_cascade_fullres": {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"},
    }
    results = tmp_path / "results"
    folders = {name: trained(results, name, spec, plans(theirs), folds=[0]) for name, spec in specs.items()}
    bundle = import_model(folders["3d_cascade_fullres"], tmp_path / "model")
    assert bundle.selection.chosen == ("3d_cascade_fullres",)
    assert set(bundle.configurations) == set(specs)
    second = bundle.configurations["3d_cascade_fullres"]
    assert (second.previous_stage, second.inference.handover) == ("3d_lowres", "file")
    assert bundle.configurations["3d_lowres"].preprocess.spacing == (4.0, 2.0, 3.0)
    image = np.random.default_rng(0).normal(size=(1, 9, 10, 11)).astype(np.float32)
    assert load(tmp_path / "model", device="cpu").predict(image, spacing=(2, 1, 1.5)).shape == (9, 10, 11)
    folders["3d_lowres"].rename(tmp_path / "elsewhere")
    refused(folders["3d_cascade_fullres"], tmp_path, "nnUNetTrainer__nnUNetPlans__3d_lowres, its first, is missing")


def test_a_renamed_folder_and_a_checkpoint_in_the_wrong_one(tmp_path: Path) -> None:
    folder = trained(tmp_path / "results", folds=[0]).rename(tmp_path / "results" / "my model")
    assert list(import_model(folder, tmp_path / "model").configurations) == ["3d_fullres"]
    wrong = folder.rename(tmp_path / "results" / "nnUNetTrainer__nnUNetPlans__2d")
    refused(wrong, tmp_path, "no configuration '2d'")
    (wrong / "plans.json").write_text(
        json.dumps(plans({name: configuration(network()) for name in ("2d", "3d_fullres")}))
    )
    refused(wrong, tmp_path, "holds a checkpoint of 3d_fullres, not of 2d")


def test_plans_of_before_version_2_5(tmp_path: Path) -> None:
    theirs = configuration(network())
    arguments = theirs.pop("architecture")["arch_kwargs"]
    theirs |= {
        "UNet_class_name": "PlainConvUNet",
        "UNet_base_num_features": 4,
        "unet_max_num_features": 6,
        "n_conv_per_stage_encoder": arguments["n_conv_per_stage"],
        "n_conv_per_stage_decoder": arguments["n_conv_per_stage_decoder"],
        "num_pool_per_axis": [1, 1, 1],
        "pool_op_kernel_sizes": arguments["strides"],
        "conv_kernel_sizes": arguments["kernel_sizes"],
    }
    folder = trained(tmp_path / "results", their_plans=plans({"3d_fullres": theirs}), folds=[0])
    assert import_model(folder, tmp_path / "model").configurations["3d_fullres"].network == network()
    del theirs["UNet_base_num_features"]
    (folder / "plans.json").write_text(json.dumps(plans({"3d_fullres": theirs})))
    refused(folder, tmp_path, "UNet_base_num_features")


def test_normalisation_mirroring_and_orientation_are_nnunets(tmp_path: Path) -> None:
    schemes = [
        "CTNormalization",
        "ZScoreNormalization",
        "RescaleTo01Normalization",
        "RGBTo01Normalization",
        "NoNormalization",
    ]
    theirs = configuration(
        network(inputs=5), normalization_schemes=schemes, use_mask_for_norm=[False, True, False, False, False]
    )
    folder = trained(
        tmp_path / "results",
        spec=network(inputs=5),
        their_plans=plans(
            {"3d_fullres": theirs}, image_reader_writer="NibabelIOWithReorient", transpose_forward=[1, 0, 2]
        ),
        dataset=description(channels=("CT", "T1", "a", "b", "c")),
        folds=[0],
        inference_allowed_mirroring_axes=None,
    )
    bundle = import_model(folder, tmp_path / "model")
    found = bundle.configurations["3d_fullres"]
    assert [each.scheme for each in found.preprocess.normalisation] == ["ct", "zscore", "range", "unit", "none"]
    ct, masked, *_ = found.preprocess.normalisation
    assert (ct.mean, ct.std, ct.lower, ct.upper) == (4, 2, 1, 8)
    assert masked.nonzero_only
    assert found.preprocess.transpose == (1, 0, 2)
    assert found.preprocess.orientation == "ras"
    assert found.inference.mirror_axes == ()


def test_the_range_of_a_case_becomes_0_to_1() -> None:
    image = np.stack([np.linspace(-3, 7, 8, dtype=np.float32).reshape(2, 2, 2), np.full((2, 2, 2), 5, np.float32)])
    ramp, constant = normalise(image, [ChannelNormalisation(scheme="range")] * 2)
    np.testing.assert_allclose(ramp.ravel(), np.linspace(0, 1, 8), atol=1e-6)
    np.testing.assert_array_equal(constant, 0)


def test_the_orientation_ras() -> None:
    """Stored so already: nothing moves. LPS, the world of `Geometry`: x and y run the other way."""
    ras, lps = (-1, 0, 0, 0, -1, 0, 0, 0, 1), (1, 0, 0, 0, 1, 0, 0, 0, 1)
    assert network_axes(ras, 3, "ras") == ((0, 1, 2), (False, False, False))
    assert network_axes(lps, 3, "ras") == ((0, 1, 2), (False, True, True))
    assert network_axes(lps, 2, "ras") == ((0, 1, 2), (False, False, False))


REGIONS = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3}


def test_regions_keep_their_outputs_and_the_order_they_are_painted_in(tmp_path: Path) -> None:
    dataset = description(REGIONS, regions_class_order=[1, 2, 3])
    bundle = import_model(trained(tmp_path / "a", dataset=dataset, folds=[0]), tmp_path / "model")
    assert bundle.configurations["3d_fullres"].targets == "regions"
    found = [(target.name, target.members, target.paints) for target in overlapping_targets(bundle.labels)]
    assert found == [("whole", (1, 2, 3), 1), ("core", (2, 3), 2), ("enhancing", (3,), 3)]
    before = {"background": 0, "other": 1, "whole": [2, 3], "core": 3}
    (tmp_path / "a" / "nnUNetTrainer__nnUNetPlans__3d_fullres" / "dataset.json").write_text(
        json.dumps(description(before, regions_class_order=[1, 2, 3]))
    )
    labels = import_model(tmp_path / "a", tmp_path / "model").labels
    found = [(target.name, target.members, target.paints) for target in overlapping_targets(labels)]
    assert found == [("other", (1,), 1), ("whole", (2, 3), 2), ("core", (3,), 3)]
    first = {"background": 0, "enhancing": 3, "whole": [1, 2, 3]}
    dataset = description(first, regions_class_order=[3, 1])
    folder = trained(tmp_path / "b", spec=network(outputs=2), dataset=dataset, folds=[0])
    refused(folder, tmp_path, "regions_class_order cannot be followed .enhancing writes 3, whole writes 1")
    (folder / "dataset.json").write_text(json.dumps(description(first)))
    refused(folder, tmp_path, "2 regions need as many entries of regions_class_order, not None")


def test_labels_that_nnunet_would_not_number_so_are_refused(tmp_path: Path) -> None:
    folder = trained(tmp_path / "results", dataset=description({"background": 0, "a": 1, "b": 5}), folds=[0])
    refused(folder, tmp_path, r"the labels \(0, 1, 5\)")
    (folder / "dataset.json").write_text(json.dumps(description({"background": 0, "a": 1, "b": 2, "ignore": 3})))
    assert import_model(folder, tmp_path / "model").labels.ignore == 3


def test_a_hand_over_by_file_resamples_labels_and_one_by_grid_scores() -> None:
    """On one grid both are the decision itself; between grids only the labels of the file count."""
    rng = np.random.default_rng(0)
    geometry = Geometry(shape=(6, 8, 8), spacing=(2, 1, 1), direction=(-1, 0, 0, 0, 1, 0, 0, 0, 1))
    image = rng.normal(size=(1, 6, 8, 8)).astype(np.float32)
    image[:, :, 0] = 0
    spec = PreprocessSpec(spacing=(2, 1, 1), normalisation=(ChannelNormalisation(scheme="none"),))
    coarse = spec.model_copy(update={"spacing": (2, 2, 2), "transpose": (1, 0, 2)})
    same, low = (prepare_case("a", "", image, None, geometry, each).properties for each in (spec, coarse))
    scores = rng.normal(size=(3, *same.shape)).astype(np.float32)
    np.testing.assert_array_equal(labels_by_file(scores, same, same), labels_for_next_stage(scores, same, same))
    scores = np.zeros((3, *low.shape), np.float32)
    scores[1] = 1
    np.testing.assert_array_equal(labels_by_file(scores, low, same), np.ones(same.shape))


@pytest.mark.slow
@pytest.mark.data
def test_nnunet_itself_predicts_the_same(tmp_path: Path) -> None:
    """Needs AUTOUNET_NNUNET_PYTHON, the interpreter of an environment with nnU-Net 2.8.1, and Task04 beside the
    checkout. Minutes long: nnU-Net trains each model a little first. In the folder AUTOUNET_NNUNET_WORK, where that is
    given, what was trained is kept for the next time."""
    interpreter = os.environ.get("AUTOUNET_NNUNET_PYTHON")
    data = ROOT.parent / "shared" / "data" / "Task04_Hippocampus"
    if not interpreter or not data.is_dir():
        pytest.skip("AUTOUNET_NNUNET_PYTHON names no interpreter with nnU-Net, or Task04 is not there")
    command = [sys.executable, "benchmarks/import_parity.py", "--data", data, "--nnunet", interpreter, "--cases", "3",
               "--work", os.environ.get("AUTOUNET_NNUNET_WORK", tmp_path / "work"), "--results", tmp_path]  # fmt: skip
    done = subprocess.run([str(word) for word in command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr

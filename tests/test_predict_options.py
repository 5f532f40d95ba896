"""`predict --prune` and `predict --gate-maps`: what they change, what they write, what they refuse."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from orientations import direction_of
from torch import Tensor, nn

from autounet import api
from autounet.cli.app import main
from autounet.imageio import read_geometry, read_image, read_labels, write_image, write_labels
from autounet.inference.bundle import load_network, pack
from autounet.inference.export import export
from autounet.inference.sliding_window import predict_scores
from autounet.nets import FAMILIES
from autounet.nets.attention_modules import recorded_gates
from autounet.preprocessing import prepare_case
from autounet.schema.dataset import Channel, Dataset
from autounet.schema.errors import OptionError
from autounet.schema.geometry import Geometry
from autounet.schema.labels import LabelClass, Labels
from autounet.schema.options import DataOptions, TrainOptions
from autounet.schema.plan import ChannelNormalisation, Configuration, InferenceSpec, PreprocessSpec
from autounet.schema.run import RunRecord
from autounet.schema.selection import Selection
from autounet.store.weights import save_weights

LABELS = Labels(classes=tuple(LabelClass(name=f"c{value}", value=value) for value in (0, 3, 9)))
STAGES = 4
TURNED = direction_of((1, 0, 2), (-1.0, 1.0, -1.0))
"""so that stored and network axes differ"""


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def configuration(family: str, dims: int, channels: int = 1) -> Configuration:
    strides = [(1,) * dims, *[(2,) * dims] * (STAGES - 1)]
    network = FAMILIES[family].propose(dims, channels, LABELS.count, strides, [(3,) * dims] * STAGES, 4)
    return Configuration(
        preprocess=PreprocessSpec(
            spacing=(1.0 if dims == 3 else None, 1.0, 1.0),
            normalisation=(ChannelNormalisation(scheme="zscore"),) * channels,
        ),
        prepared="p",
        patch_size=(8,) * dims,
        batch_size=2,
        network=network,
        inference=InferenceSpec(mirror_axes=(0,)),
        median_shape=(8, 8, 8),
        predicted_memory_bytes=0,
    )


def model(folder: Path, configurations: dict[str, Configuration], suffix: str = ".nii.gz", *chosen: str) -> Path:
    """A bundle of two folds each with random weights; all configurations are selected unless some are `chosen`."""
    weights: dict[str, dict[int | None, Path]] = {}
    for name, each in configurations.items():
        for fold in range(2):
            torch.manual_seed(fold)
            path = folder / name / f"fold_{fold}" / "weights.safetensors"
            save_weights(path, FAMILIES[each.network.family].build(each.network).state_dict())
            RunRecord(
                configuration_name=name, configuration=each.key, fold=fold, options=TrainOptions(), train_cases=(),
                validation_cases=(), device="cpu", steps=1, seconds=1.0, curve=(), parameters=1,
                peak_memory_bytes=None, versions={},
            ).save(path.with_name("record.json"))  # fmt: skip
            weights.setdefault(name, {})[fold] = path
    count = len(next(iter(configurations.values())).preprocess.normalisation)
    channels = tuple(Channel(name="mri" if index == 0 else f"mri_{index}") for index in range(count))
    dataset = Dataset(
        root="/nowhere", name="demo", layout="pairs", channels=channels, labels=LABELS,
        labels_declared=True, cases=(), image_pattern=f"images/*{suffix}", file_kind="nifti", suffix=suffix,
    )  # fmt: skip
    selection = Selection(chosen=chosen or tuple(configurations), compared=(), reason="all")
    pack(folder / "model", dataset, DataOptions(), configurations, selection, weights, mean_dice=None)
    return folder / "model"


def networks(folder: Path, name: str, plan: Configuration) -> list[nn.Module]:
    return [load_network(plan, folder / name / f"fold_{fold}" / "weights.safetensors", "cpu") for fold in range(2)]


def volume(folder: Path, shape: tuple[int, int, int] = (9, 12, 10)) -> tuple[np.ndarray, Geometry]:
    """One image in NIfTI, its axes turned; also as an array."""
    image = np.random.default_rng(0).normal(size=(1, *shape)).astype(np.float32) + 5
    geometry = Geometry(shape=shape, spacing=(1.0, 1.0, 1.0), origin=(3.0, -2.0, 7.0), direction=TURNED)
    write_image(folder / "a.nii.gz", image, geometry)
    return image, geometry


class Head(nn.Module):
    """A network in training, of which one output is looked at. Instance norm is the same as in evaluation."""

    def __init__(self, network: nn.Module, output: int) -> None:
        super().__init__()
        self.output = output
        self.inside = [network.train()]  # in a list: it is to stay in training mode

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return self.inside[0](x)[self.output]


@pytest.mark.parametrize("dims", [2, 3])
def test_pruned_predictions_are_those_of_the_shallower_heads(tmp_path: Path, dims: int) -> None:
    """Of both folds, all tiles and views, back in the file's own voxels."""
    plan = configuration("nested", dims)
    folder = model(tmp_path, {"any": plan})
    image, geometry = volume(tmp_path / "images")
    prepared = prepare_case("", "", image, None, geometry, plan.preprocess)
    found = {}
    for level in range(1, STAGES):
        predictor = api.load(folder, device="cpu", prune=level)
        heads = [Head(network, STAGES - 1 - level).eval() for network in networks(tmp_path, "any", plan)]
        scores = predict_scores(heads, prepared.image, plan, LABELS.count, "cpu")
        found[level] = predictor.segment([prepared])
        np.testing.assert_array_equal(found[level], export([(scores, prepared.properties)], LABELS))
    assert (found[1] != found[2]).any()
    whole = api.load(folder, device="cpu").segment([prepared])
    np.testing.assert_array_equal(found[STAGES - 1], whole)
    assert api.load(folder, device="cpu", prune=1).bundle == api.load(folder, device="cpu").bundle


def test_impossible_levels_and_other_families_are_refused(tmp_path: Path) -> None:
    nested = model(tmp_path / "nested", {"2d": configuration("nested", 2)})
    with pytest.raises(OptionError, match=r"--prune 4 does not fit 2d: .*the network has 3 poolings, so give 1 to 3"):
        api.load(nested, device="cpu", prune=4)
    both = {"2d": configuration("nested", 2), "3d_fullres": configuration("plain", 3)}
    mixed = model(tmp_path / "mixed", both)
    with pytest.raises(OptionError, match="--prune is for networks of the family nested, and 3d_fullres is of the fam"):
        api.load(mixed, device="cpu", prune=1)
    assert api.load(mixed, device="cpu", prune=1, configuration="2d").names == ("2d",)


def test_gate_maps_lie_beside_the_segmentation_in_its_geometry(tmp_path: Path) -> None:
    plan = configuration("attention", 3).model_copy(update={"patch_size": (16, 16, 16), "inference": InferenceSpec()})
    folder = model(tmp_path, {"3d_fullres": plan})
    image, geometry = volume(tmp_path / "images", (16, 16, 16))
    predictor = api.load(folder, device="cpu")
    assert predictor.predict_files(tmp_path / "images", tmp_path / "out", gate_maps=True) == []
    names = {path.name for path in (tmp_path / "out").glob("[!.]*")}
    assert names == {"a.nii.gz", "a.gate1.nii.gz", "a.gate2.nii.gz"}
    prepared = prepare_case("", "", image, None, geometry, plan.preprocess)
    for stage in (1, 2):
        found, written = read_image(tmp_path / "out" / f"a.gate{stage}.nii.gz")
        assert written == read_geometry(tmp_path / "images" / "a.nii.gz")
        maps = []
        for network in networks(tmp_path, "3d_fullres", plan):
            with torch.no_grad(), recorded_gates(network) as gates:
                network(torch.from_numpy(prepared.image)[None])
            maps.append(gates[stage][0, 0].numpy().repeat(2**stage, 0).repeat(2**stage, 1).repeat(2**stage, 2))
        same = prepare_case("", "", found, None, geometry, plan.preprocess.model_copy(
            update={"normalisation": (ChannelNormalisation(scheme="none"),)}))  # fmt: skip
        np.testing.assert_allclose(same.image[0], np.mean(maps, 0), atol=1e-5)
    plain = api.load(folder, device="cpu").predict_files(tmp_path / "images", tmp_path / "plain")
    assert plain == []
    segmentations = [read_labels(tmp_path / part / "a.nii.gz")[0] for part in ("out", "plain")]
    np.testing.assert_array_equal(*segmentations)


def test_an_ensemble_names_its_configurations_and_evaluation_passes_over_the_maps(tmp_path: Path) -> None:
    folder = model(tmp_path, {"2d": configuration("attention", 2), "3d_fullres": configuration("attention", 3)})
    volume(tmp_path / "images")
    api.load(folder, device="cpu").predict_files(tmp_path / "images", tmp_path / "out", gate_maps=True)
    maps = {f"a.{name}.gate{stage}.nii.gz" for name in ("2d", "3d_fullres") for stage in (1, 2)}
    assert {path.name for path in (tmp_path / "out").glob("[!.]*")} == {"a.nii.gz", *maps}
    segmentation, geometry = read_labels(tmp_path / "out" / "a.nii.gz")
    write_labels(tmp_path / "references" / "a.nii.gz", segmentation, geometry)
    metrics = api.evaluate(tmp_path / "out", tmp_path / "references")
    assert [case.case for case in metrics.cases] == ["a"]


@pytest.mark.parametrize("family", ["attention", "nested"])
def test_the_second_stage_of_a_cascade_has_what_its_family_has(tmp_path: Path, family: str) -> None:
    """The first stage is of another family, and stays as it is."""
    second = configuration(family, 3)
    network = second.network.model_copy(update={"in_channels": LABELS.count})
    stages = {
        "3d_lowres": configuration("plain", 3),
        "3d_cascade_fullres": second.model_copy(update={"network": network, "previous_stage": "3d_lowres"}),
    }
    folder = model(tmp_path, stages, ".nii.gz", "3d_cascade_fullres")
    image, geometry = volume(tmp_path / "images")
    if family == "attention":
        predictor = api.load(folder, device="cpu")
        assert predictor.predict_files(tmp_path / "images", tmp_path / "out", gate_maps=True) == []
        names = {path.name for path in (tmp_path / "out").glob("[!.]*")}
        assert names == {"a.nii.gz", "a.gate1.nii.gz", "a.gate2.nii.gz"}
        return
    whole, pruned = (api.load(folder, device="cpu", prune=prune) for prune in (None, 1))
    assert whole.configurations["3d_lowres"] == pruned.configurations["3d_lowres"]
    assert (whole.segment(whole.prepare(image, geometry)) != pruned.segment(pruned.prepare(image, geometry))).any()


def test_maps_of_pictures_are_pictures(tmp_path: Path) -> None:
    folder = model(tmp_path, {"2d": configuration("attention", 2)}, ".png")
    geometry = Geometry(shape=(1, 11, 13), kind="png", dimension=2)
    picture = np.random.default_rng(0).integers(0, 255, (1, 1, 11, 13), np.uint8)
    write_image(tmp_path / "images" / "b.png", picture, geometry)
    predictor = api.load(folder, device="cpu")
    assert predictor.predict_files(tmp_path / "images", tmp_path / "out", gate_maps=True) == []
    found, _ = read_image(tmp_path / "out" / "b.gate1.png")
    assert found.shape == (1, 1, 11, 13)
    assert 0 < found.min() <= found.max() < 255


def test_the_command_line_names_the_families(tmp_path: Path, monkeypatch, capsys) -> None:
    folder = model(tmp_path, {"2d": configuration("plain", 2)}, ".png")
    geometry = Geometry(shape=(1, 8, 8), kind="png", dimension=2)
    write_image(tmp_path / "images" / "b.png", np.zeros((1, 1, 8, 8), np.uint8), geometry)
    for option, message, *code in (
        (("--configuration", "2dd"), "--configuration 2dd is unknown. Did you mean 2d? The only one is 2d", 2),
        (("--gate-maps",), "--gate-maps is for networks of the family attention, and 2d is of the family plain"),
        (("--prune", "1"), "--prune is for networks of the family nested, and 2d is of the family plain"),
        (("--out", tmp_path / "images" / "b.png"), "b.png is a file. Give a folder"),
    ):
        arguments = ("predict", folder, tmp_path / "images", "--out", tmp_path / "out", "--device", "cpu", *option)
        monkeypatch.setattr(sys, "argv", ["autounet", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == (code or [1])[0]
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()

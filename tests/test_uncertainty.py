"""Probabilities and uncertainty beside segmentations: what they are the mean of, and in which voxels they lie."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_predict_options import LABELS, STAGES, model, networks, volume

from autounet import api
from autounet.cli.app import main
from autounet.imageio import read_geometry, read_image, read_labels, write_image
from autounet.inference.bundle import load_bundle, pack
from autounet.inference.ensembling import ARGMAX, PROBABILITIES, OrderedRegions, RunningMean, averaged_quantity
from autounet.inference.export import ensemble_scores, export
from autounet.inference.sliding_window import predict_scores
from autounet.nets import FAMILIES
from autounet.prediction.maps import fold_disagreement, probability_maps
from autounet.preprocessing import prepare_case
from autounet.schema.geometry import Geometry
from autounet.schema.labels import Labels, Region, TargetKind, targets_of
from autounet.schema.plan import ChannelNormalisation, Configuration, InferenceSpec, PreprocessSpec
from autounet.schema.selection import PostprocessStep, ProbabilityChannels, TemperatureScaling

REGIONS = LABELS.model_copy(update={"regions": (Region(name="whole", values=(3, 9)),)})
BOTH = {"probabilities": True, "uncertainty": True}
EVERYTHING: list[tuple[Labels, TargetKind]] = [(LABELS, "classes"), (REGIONS, "regions")]


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def plan(targets: TargetKind = "classes", spacing: float = 1.3, **inference: object) -> Configuration:
    labels = REGIONS if targets == "regions" else LABELS
    outputs = len(targets_of(labels, targets))
    strides = [(1, 1, 1), *[(2, 2, 2)] * (STAGES - 1)]
    network = FAMILIES["plain"].propose(3, 1, outputs, strides, [(3, 3, 3)] * STAGES, 4)
    return Configuration(
        preprocess=PreprocessSpec(
            spacing=(spacing, 1.0, 1.0), normalisation=(ChannelNormalisation(scheme="zscore", nonzero_only=True),)
        ),
        prepared="p",
        patch_size=(8, 8, 8),
        batch_size=2,
        network=network,
        targets=targets,
        inference=InferenceSpec(mirror_axes=(0,), average="probabilities", **inference),
        median_shape=(8, 8, 8),
        predicted_memory_bytes=0,
    )


# ---- averages -------------------------------------------------------------------------------------------------


@given(seed=st.integers(0, 99), scale=st.floats(0.01, 60), targets=st.sampled_from(["classes", "regions"]))
@settings(max_examples=40)
def test_logits_of_a_mean_have_it_as_their_probabilities(seed: int, scale: float, targets: TargetKind) -> None:
    """In torch over tensors as in numpy over voxels; one network's own logits are right as they are."""
    random = np.random.default_rng(seed)
    members = (random.normal(0, scale, (4, 3, 20))).astype(np.float32)
    quantity, decision = PROBABILITIES[targets], ARGMAX if targets == "classes" else OrderedRegions((1, 2, 1))
    expected = np.mean([decision.probabilities(member.T) for member in members], axis=0)
    means = RunningMean(), RunningMean(), RunningMean()
    for member in members:
        means[0].add(quantity.from_logits(torch.from_numpy(member[None]))[0])
        means[1].add(quantity.from_logits(member.T))
        means[2].add(quantity.from_logits(member.T), 0.25)
    scores = quantity.to_logits(means[0].result()).numpy().T
    for logits in (scores, *(quantity.to_logits(mean.result()) for mean in means[1:])):
        np.testing.assert_allclose(decision.probabilities(logits), expected, atol=1e-5)
        assert np.isfinite(logits).all()
    single = quantity.to_logits(quantity.from_logits(torch.from_numpy(members[:1]))[0]).numpy().T
    np.testing.assert_array_equal(decision.choose(single), decision.choose(members[0].T))


@pytest.mark.parametrize("targets", ["classes", "regions"])
def test_views_networks_and_tiles_average_probabilities(targets: TargetKind) -> None:
    """In the middle of one tile the mean over both networks and both views is that of their probabilities."""
    chosen = plan(targets)
    outputs = chosen.network.out_channels
    torch.manual_seed(0)
    nets = [FAMILIES["plain"].build(chosen.network).eval() for _ in range(2)]
    image = np.random.default_rng(0).normal(size=(1, 8, 8, 8)).astype(np.float32)
    found = predict_scores(nets, image, chosen, outputs, "cpu")
    quantity = averaged_quantity("probabilities", targets)
    with torch.inference_mode():
        batch = torch.from_numpy(image)[None]
        views = [net(batch) for net in nets] + [net(batch.flip(2)).flip(2) for net in nets]
        expected = quantity.to_logits(torch.stack([quantity.from_logits(view)[0] for view in views]).mean(0))
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-4)
    logits = chosen.model_copy(update={"inference": chosen.inference.model_copy(update={"average": "logits"})})
    assert np.abs(predict_scores(nets, image, logits, outputs, "cpu") - found).max() > 1e-3


@pytest.mark.parametrize(("labels", "targets"), EVERYTHING)
@pytest.mark.parametrize("sources", [1, 2])
@pytest.mark.parametrize("average", ["probabilities", "logits"])
def test_the_highest_probability_is_the_segmentation(labels, targets, sources, average) -> None:
    """At every temperature, on grids of their own, and background beyond the crop."""
    random = np.random.default_rng(3)
    image = random.normal(5, 1, (1, 9, 12, 10)).astype(np.float32)
    image[:, :2], image[:, :, 10:] = 0, 0
    geometry = Geometry(shape=(9, 12, 10), spacing=(1.5, 1.0, 1.0))
    pairs = []
    for index in range(sources):
        properties = prepare_case("a", "", image, None, geometry, plan(spacing=1.0 + index).preprocess).properties
        scores = random.normal(0, 3, (len(targets_of(labels, targets)), *properties.shape)).astype(np.float32)
        pairs.append((scores, properties))
    pooled = ensemble_scores(pairs, labels, targets=targets, average=average)
    values = export(pairs, labels, targets=targets, average=average)
    for temperature in (0.3, 1.0, 4.0):
        probabilities, entropy = probability_maps(pooled, temperature, probabilities=True, entropy=True)
        flat = probabilities.reshape(pooled.channels, -1).T
        if targets == "classes":
            np.testing.assert_allclose(flat.sum(axis=1), 1, atol=1e-5)
            winners = flat.argmax(axis=1)
        else:
            winners = OrderedRegions(tuple(target.paints for target in targets_of(labels, targets))).choose(flat - 0.5)
            winners = pooled.decision.classes[winners]
        np.testing.assert_array_equal(np.array(labels.values)[winners].reshape(values.shape), values)
        assert entropy.min() >= 0
        most = math.log(pooled.channels) if targets == "classes" else pooled.channels * math.log(2)
        assert entropy.max() <= most + 1e-5
        (top, _), (_, right), _ = pooled.box
        assert top > 0
        assert not entropy[:top].any()
        assert not entropy[:, right:].any()


@pytest.mark.parametrize("targets", ["classes", "regions"])
def test_disagreement_is_none_among_equals_and_bounded(targets: TargetKind) -> None:
    chosen, labels = plan(targets), REGIONS if targets == "regions" else LABELS
    torch.manual_seed(1)
    first, second = (FAMILIES["plain"].build(chosen.network).eval() for _ in range(2))
    image = np.random.default_rng(0).normal(size=(1, 8, 9, 10)).astype(np.float32)
    for networks_ in ([first], [first, first]):
        np.testing.assert_allclose(fold_disagreement(networks_, image, chosen, labels, "cpu"), 0, atol=1e-6)
    found = fold_disagreement([first, second], image, chosen, labels, "cpu")
    assert found.shape == image.shape[1:]
    assert found.max() > 1e-4
    count = chosen.network.out_channels if targets == "regions" else 1
    assert 0 <= found.min() <= found.max() <= count * math.log(2), "two networks tell at most one bit apart"


# ---- files ----------------------------------------------------------------------------------------------------


def repacked(folder: Path, configurations: dict[str, Configuration], **changes: object) -> Path:
    """The model of `test_predict_options.model`, with another selection."""
    packed = model(folder, configurations)
    selection = load_bundle(packed)[0].selection.model_copy(update=changes)
    weights = {
        name: {fold: folder / name / f"fold_{fold}" / "weights.safetensors" for fold in range(2)}
        for name in configurations
    }
    from test_bundle import DATASET

    from autounet.schema.options import DataOptions

    dataset = DATASET.model_copy(update={"labels": LABELS})
    pack(packed, dataset, DataOptions(), configurations, selection, weights, mean_dice=None)
    return packed


COLD = TemperatureScaling(temperature=2.5, fitted=2.5, ece_before=0.2, ece_after=0.1, cases=4, voxels=100)


def test_maps_lie_beside_the_segmentation_in_its_geometry(tmp_path: Path) -> None:
    configurations = {"a": plan(), "b": plan(spacing=1.0)}
    folder = repacked(tmp_path, configurations, calibration=COLD)
    image, geometry = volume(tmp_path / "images")
    predictor = api.load(folder, device="cpu")
    assert predictor.predict_files(tmp_path / "images", tmp_path / "out", **BOTH) == []
    names = {path.name for path in (tmp_path / "out").glob("[!.]*")}
    maps = {"a.probabilities.nii.gz", "a.entropy.nii.gz", "a.disagreement.nii.gz"}
    assert names == {"a.nii.gz", "classes.json", *maps}
    told = ProbabilityChannels.load(tmp_path / "out" / "classes.json")
    assert (told.channels, told.temperature) == (("c0", "c3", "c9"), 2.5)
    stored = sitk.ReadImage(str(tmp_path / "out" / "a.probabilities.nii.gz"))
    assert stored.GetPixelID() == sitk.sitkFloat32
    assert stored.GetSize() == (*geometry.shape[::-1], 3), "classes last"
    probabilities, written = read_image(tmp_path / "out" / "a.probabilities.nii.gz")
    assert written == read_geometry(tmp_path / "images" / "a.nii.gz")
    np.testing.assert_allclose(probabilities.sum(axis=0), 1, atol=1e-5)
    values, _ = read_labels(tmp_path / "out" / "a.nii.gz")
    np.testing.assert_array_equal(np.array(LABELS.values)[probabilities.argmax(axis=0)], values)
    entropy, disagreement = (read_image(tmp_path / "out" / f"a.{name}.nii.gz") for name in ("entropy", "disagreement"))
    assert entropy[1] == disagreement[1] == written
    expected = -(probabilities * np.log(probabilities)).sum(axis=0)
    np.testing.assert_allclose(entropy[0][0], expected, atol=1e-4)
    grids = [prepare_case("", "", image, None, geometry, each.preprocess) for each in configurations.values()]
    between = [
        fold_disagreement(networks(tmp_path, name, each), grid.image, each, LABELS, "cpu").max()
        for (name, each), grid in zip(configurations.items(), grids, strict=True)
    ]
    assert 0 < disagreement[0].max() <= np.mean(between) + 1e-6
    api.load(folder, device="cpu").predict_files(tmp_path / "images", tmp_path / "plain")
    np.testing.assert_array_equal(read_labels(tmp_path / "plain" / "a.nii.gz")[0], values)
    alone = api.load(folder, device="cpu", configuration="a")
    assert alone.combination.temperature == 1.0, "fitted to what was selected together"


def test_components_are_removed_as_selected_and_only_then(tmp_path: Path) -> None:
    step = PostprocessStep(name="c3", values=(3,), keep="largest")
    folder = repacked(tmp_path, {"a": plan()}, postprocessing=(step,))
    image, geometry = volume(tmp_path / "images")
    found = {}
    for name, options in (("as selected", {}), ("plain", {"postprocess": False}), ("other", {"configuration": "a"})):
        predictor = api.load(folder, device="cpu", **options)
        predictor.predict_files(tmp_path / "images", tmp_path / name)
        found[name], _ = read_labels(tmp_path / name / "a.nii.gz")
        prepared = predictor.prepare(image, geometry)
        np.testing.assert_array_equal(predictor.segment(prepared), found[name])
    np.testing.assert_array_equal(found["plain"], found["other"])
    assert (found["as selected"] != found["plain"]).any()
    from autounet.ops.masks import apply_steps

    np.testing.assert_array_equal(found["as selected"], apply_steps(found["plain"], geometry.spacing, (step,)))


def test_pictures_have_arrays_and_tiff(tmp_path: Path) -> None:
    from test_predict_options import configuration

    folder = model(tmp_path, {"2d": configuration("plain", 2)}, ".png")
    geometry = Geometry(shape=(1, 11, 13), kind="png", dimension=2)
    write_image(
        tmp_path / "images" / "b.png", np.random.default_rng(0).integers(0, 255, (1, 1, 11, 13), np.uint8), geometry
    )
    assert api.load(folder, device="cpu").predict_files(tmp_path / "images", tmp_path / "out", **BOTH) == []
    probabilities = np.load(tmp_path / "out" / "b.probabilities.npz")["probabilities"]
    assert (probabilities.shape, probabilities.dtype) == ((11, 13, 3), np.float32)
    for name in ("entropy", "disagreement"):
        found, _ = read_image(tmp_path / "out" / f"b.{name}.tif")
        assert found.shape == (1, 1, 11, 13)
        assert found.dtype == np.float32


def test_the_command_line_writes_maps_and_names_averages(tmp_path: Path, monkeypatch, capsys) -> None:
    folder = repacked(tmp_path, {"a": plan("classes")})
    volume(tmp_path / "images")
    common = ("predict", folder, tmp_path / "images", "--out", tmp_path / "out", "--device", "cpu")
    monkeypatch.setattr(sys, "argv", ["autounet", *map(str, common), "--probabilities", "--average", "logits"])
    main_ended(main)
    assert json.loads((tmp_path / "out" / "classes.json").read_text())["channels"] == ["c0", "c3", "c9"]
    monkeypatch.setattr(sys, "argv", ["autounet", *map(str, common), "--average", "votes"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "--average votes is unknown. Choose one of probabilities, logits" in capsys.readouterr().err


def main_ended(run) -> None:
    with pytest.raises(SystemExit) as ended:
        run()
    assert ended.value.code == 0

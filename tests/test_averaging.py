"""`autounet ensemble`: probabilities of several models averaged, their classes matched by name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from orientations import direction_of
from typer.testing import CliRunner

from autounet.cli.app import app
from autounet.imageio import read_image, read_labels, write_labels
from autounet.inference.ensembling import decision_for
from autounet.ops.orient import orient, oriented_geometry
from autounet.prediction.ensemble import ensemble
from autounet.prediction.maps import CHANNELS_FILE, write_probabilities
from autounet.schema.errors import DataError, OptionError
from autounet.schema.geometry import Geometry
from autounet.schema.labels import LabelClass, Labels, Region, TargetKind, targets_of
from autounet.schema.selection import ProbabilityChannels

TURNED = direction_of((1, 0, 2), (-1.0, 1.0, -1.0))
SHAPE = (3, 5, 4)


def labels_of(names: Sequence[str], values: Sequence[int], regions: dict[str, tuple[int, ...]] | None = None) -> Labels:
    pairs = zip(names, values, strict=True)
    made = tuple(Region(name=name, values=members) for name, members in (regions or {}).items())
    return Labels(classes=tuple(LabelClass(name=name, value=value) for name, value in pairs), regions=made)


USUAL = labels_of(("background", "liver", "lesion"), (0, 2, 5))
TURNED_AROUND = labels_of(("background", "lesion", "liver"), (0, 1, 2))
BRATS = labels_of(("background", "oedema", "core"), (0, 1, 2), {"whole": (1, 2), "inside": (2,)})


def predicted(
    folder: Path,
    labels: Labels,
    seed: int,
    targets: TargetKind = "classes",
    cases: Sequence[str] = ("a", "b"),
    shape: tuple[int, int, int] = SHAPE,
    ending: str = ".nii.gz",
) -> dict[str, np.ndarray]:
    """What a model might write; probabilities (C, Z, Y, X) by case."""
    random, found = np.random.default_rng(seed), {}
    flat = ending != ".nii.gz"
    geometry = (
        Geometry(shape=shape, kind="png", dimension=2)
        if flat
        else Geometry(shape=shape, spacing=(2.0, 1.0, 1.5), origin=(3.0, 1.0, -7.0), direction=TURNED)
    )
    names = tuple(target.name for target in targets_of(labels, targets))
    for case in cases:
        values = random.random((len(names), *shape)).astype(np.float32)
        if targets == "classes":
            values /= values.sum(axis=0)
        found[case] = values
        write_labels(folder / f"{case}{ending}", np.zeros(shape, np.int32), geometry)
        write_probabilities(values, folder / f"{case}{ending}", geometry)
    ProbabilityChannels(channels=names, targets=targets, temperature=1.3, labels=labels).save(folder / CHANNELS_FILE)
    return found


@pytest.mark.parametrize(("average", "weights"), [("probabilities", None), ("probabilities", (3, 1)), ("logits", None)])
def test_classes_are_matched_by_name_and_the_first_models_values_written(tmp_path: Path, average, weights) -> None:
    first = predicted(tmp_path / "one", USUAL, 0)
    second = predicted(tmp_path / "two", TURNED_AROUND, 1)
    out = tmp_path / "out"
    assert ensemble([tmp_path / "one", tmp_path / "two"], out, weights, average, probabilities=True) == ["a", "b"]
    share = 0.75 if weights else 0.5
    for case in "ab":
        both = first[case], second[case][[0, 2, 1]]
        if average == "logits":
            mean = np.exp(share * np.log(both[0]) + (1 - share) * np.log(both[1]))
            mean /= mean.sum(axis=0)
        else:
            mean = share * both[0] + (1 - share) * both[1]
        written, geometry = read_labels(out / f"{case}.nii.gz")
        np.testing.assert_array_equal(written, np.array(USUAL.values)[mean.argmax(axis=0)])
        stored, place = read_image(out / f"{case}.probabilities.nii.gz")
        np.testing.assert_allclose(stored, mean, atol=1e-6)
        assert geometry == place == read_labels(tmp_path / "one" / f"{case}.nii.gz")[1]
    assert ProbabilityChannels.load(out / CHANNELS_FILE).channels == ("background", "liver", "lesion")
    again = tmp_path / "again"
    assert ensemble([out, out], again) == ["a", "b"], "what was averaged can be averaged"
    np.testing.assert_array_equal(read_labels(again / "a.nii.gz")[0], read_labels(out / "a.nii.gz")[0])


@pytest.mark.parametrize("average", ["probabilities", "logits"])
def test_regions_are_painted_in_the_first_models_order(tmp_path: Path, average) -> None:
    first, second = (predicted(tmp_path / name, BRATS, seed, "regions") for seed, name in enumerate(("one", "two")))
    ensemble([tmp_path / "one", tmp_path / "two"], tmp_path / "out", None, average, probabilities=True)
    both = first["a"], second["a"]
    if average == "logits":
        odds = sum(np.log(each / (1 - each)) for each in both) / 2
        mean = 1 / (1 + np.exp(-odds))
    else:
        mean = sum(both) / 2
    stored, _ = read_image(tmp_path / "out" / "a.probabilities.nii.gz")
    np.testing.assert_allclose(stored, mean, atol=1e-5)
    expected = np.where(mean[1] > 0.5, 2, np.where(mean[0] > 0.5, 1, 0))
    np.testing.assert_array_equal(read_labels(tmp_path / "out" / "a.nii.gz")[0], expected)
    assert decision_for(BRATS, "regions").classes is not None


def test_pictures_have_their_probabilities_in_arrays(tmp_path: Path) -> None:
    made = [predicted(tmp_path / name, USUAL, seed, shape=(1, 6, 5), ending=".png") for seed, name in enumerate("xy")]
    ensemble([tmp_path / "x", tmp_path / "y"], tmp_path / "out", probabilities=True)
    mean = (made[0]["a"] + made[1]["a"]) / 2
    with np.load(tmp_path / "out" / "a.probabilities.npz") as stored:
        np.testing.assert_allclose(np.moveaxis(stored["probabilities"], -1, 0)[:, None], mean, atol=1e-6)
    written = read_labels(tmp_path / "out" / "a.png")[0]
    np.testing.assert_array_equal(written, np.array(USUAL.values)[mean.argmax(axis=0)])


def refused(tmp_path: Path, message: str, kind: type[Exception] = DataError, **options) -> None:
    with pytest.raises(kind, match=message):
        ensemble([tmp_path / "one", tmp_path / "two"], tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_averaged_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    predicted(tmp_path / "one", USUAL, 0)
    with pytest.raises(OptionError, match="at least two folders"):
        ensemble([tmp_path / "one"], tmp_path / "out")
    (tmp_path / "two").mkdir()
    refused(tmp_path, r"two holds no probabilities \(.* predict --probabilities first")
    predicted(tmp_path / "two", labels_of(("background", "liver", "tumour"), (0, 2, 5)), 1)
    refused(tmp_path, "one has lesion, and .*two has only background, liver, tumour")
    predicted(tmp_path / "two", BRATS, 1, "regions")
    refused(tmp_path, "two holds probabilities of regions, and .*one of classes")
    predicted(tmp_path / "two", USUAL, 1)
    refused(tmp_path, "3 numbers for 2 folders", OptionError, weights=(1, 2, 3))
    refused(tmp_path, "at least 0", OptionError, weights=(1, -1))
    refused(tmp_path, "at least 0", OptionError, weights=(0, 0))
    refused(tmp_path, "at least 0", OptionError, weights=(1, float("nan")))
    with pytest.raises(OptionError, match="is one of the folders"):
        ensemble([tmp_path / "one", tmp_path / "two"], tmp_path / "two")
    (tmp_path / "two" / "b.probabilities.nii.gz").unlink()
    refused(tmp_path, "two has no probabilities of b")
    predicted(tmp_path / "two", USUAL, 1, shape=(4, 5, 4))
    refused(tmp_path, r"differs from the first folder's in shape \(4, 5, 4\) instead of \(3, 5, 4\)")
    told = ProbabilityChannels.load(tmp_path / "one" / CHANNELS_FILE)
    told.model_copy(update={"labels": None}).save(tmp_path / "one" / CHANNELS_FILE)
    refused(tmp_path, "lacks the values of its classes")


def test_probabilities_stored_the_other_way_round_are_averaged_in_the_first_models_voxels(tmp_path: Path) -> None:
    first, second = (predicted(tmp_path / name, USUAL, seed) for seed, name in enumerate(("one", "two")))
    turn = ((2, 0, 1), (True, False, True))
    for case, values in second.items():
        segmentation = tmp_path / "two" / f"{case}.nii.gz"
        geometry = oriented_geometry(read_labels(segmentation)[1], *turn)
        write_labels(segmentation, np.zeros(geometry.shape, np.int32), geometry)
        write_probabilities(np.ascontiguousarray(orient(values, *turn)), segmentation, geometry)
    ensemble([tmp_path / "one", tmp_path / "two"], tmp_path / "out", probabilities=True)
    stored, _ = read_image(tmp_path / "out" / "a.probabilities.nii.gz")
    np.testing.assert_allclose(stored, (first["a"] + second["a"]) / 2, atol=1e-6)
    moved = geometry.model_copy(update={"origin": (5.0, 5.0, 5.0)})
    write_probabilities(np.ascontiguousarray(orient(second["b"], *turn)), segmentation, moved)
    refused_to = r"case b: \S*b\.probabilities\.nii\.gz differs from the first folder's in origin"
    with pytest.raises(DataError, match=refused_to):
        ensemble([tmp_path / "one", tmp_path / "two"], tmp_path / "out")


def test_regions_of_one_name_have_to_be_made_of_the_same(tmp_path: Path) -> None:
    predicted(tmp_path / "one", BRATS, 0, "regions")
    other = labels_of(("background", "oedema", "core"), (0, 1, 2), {"inside": (1, 2), "whole": (1,)})
    predicted(tmp_path / "two", other, 1, "regions")
    refused(tmp_path, "is made of .* and of .*Average models that learnt the same")


def test_the_command_line(tmp_path: Path) -> None:
    predicted(tmp_path / "one", USUAL, 0)
    predicted(tmp_path / "two", TURNED_AROUND, 1)
    given = ["ensemble", str(tmp_path / "one"), str(tmp_path / "two"), "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, [*given, "--weights", "1,0"])
    assert done.exit_code == 0
    assert "2 cases by 2 models" in done.output
    assert not (tmp_path / "out" / CHANNELS_FILE).exists()
    failed = CliRunner().invoke(app, [*given, "--weights", "much,little"])
    assert "--weights: 'much,little' is not a list of numbers" in str(failed.exception)

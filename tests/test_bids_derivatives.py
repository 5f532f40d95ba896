"""`predict --format bids` writes a data set that this program reads as labels, and nothing over others' files."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from nnunet_exports import CLASSES, configuration, packed

from autounet.api import load
from autounet.datasets.inputs import InputCase
from autounet.datasets.scan import scan
from autounet.imageio import read_labels, write_image
from autounet.prediction.bids_derivatives import bids_path, judge_names
from autounet.schema.dataset import Channel
from autounet.schema.errors import OptionError
from autounet.schema.geometry import Geometry
from autounet.schema.options import DataOptions

GEOMETRY = Geometry(shape=(8, 18, 20), spacing=(2.5, 0.75, 1.0), origin=(3.0, -4.0, 5.0))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    own = configuration(inference={"mirror_axes": ()})
    return packed(tmp_path, {"3d_fullres": own}, folds=[0], channels=(Channel(name="T1w"), Channel(name="T2w")))


def test_a_derivative_is_read_back_as_labels(model: Path, tmp_path: Path) -> None:
    raw, out = tmp_path / "raw", tmp_path / "raw" / "derivatives" / "autounet"
    generator = np.random.default_rng(0)
    for subject in ("sub-01_ses-a", "sub-02_ses-a"):
        image = generator.normal(40, 9, (1, *GEOMETRY.shape)).astype(np.float32)
        for kind in ("T1w", "T2w"):
            place = raw / subject.replace("_", "/") / "anat" / f"{subject}_{kind}.nii.gz"
            place.parent.mkdir(parents=True, exist_ok=True)
            write_image(place, image, GEOMETRY)
    bundle = json.loads((model / "bundle.json").read_text())
    assert bundle["layout"] == "nnunet"  # pairs are found by their numbers, so the channels are given as links
    pairs = tmp_path / "pairs"
    pairs.mkdir()
    for subject in ("sub-01_ses-a", "sub-02_ses-a"):
        for number, kind in enumerate(("T1w", "T2w")):
            source = raw / subject.replace("_", "/") / "anat" / f"{subject}_{kind}.nii.gz"
            (pairs / f"{subject}_{number:04d}.nii.gz").symlink_to(source)
    predictor = load(model, device="cpu")
    assert predictor.predict_files(pairs, out, form="bids", force=True) == []
    found = sorted(path.relative_to(out).as_posix() for path in out.rglob("*_dseg.*"))
    stem = "sub-01/ses-a/anat/sub-01_ses-a_dseg"
    assert found[:2] == [f"{stem}.json", f"{stem}.nii.gz"]
    assert len(found) == 4
    description = json.loads((out / "dataset_description.json").read_text())
    assert (description["DatasetType"], description["GeneratedBy"][0]["Name"]) == ("derivative", "autounet")
    values, geometry = read_labels(out / f"{stem}.nii.gz")
    files = sorted(pairs.glob("sub-01*"))
    np.testing.assert_array_equal(values, predictor.predict(files, force=True))
    assert geometry.spacing == GEOMETRY.spacing
    dataset = scan(raw, DataOptions())
    assert (dataset.layout, [case.identifier for case in dataset.cases]) == ("bids", ["sub-01_ses-a", "sub-02_ses-a"])
    assert dataset.labels.classes == CLASSES.classes
    before = (out / f"{stem}.nii.gz").stat().st_mtime_ns
    predictor.predict_files(pairs, out, form="bids", force=True)
    assert (out / f"{stem}.nii.gz").stat().st_mtime_ns == before  # kept: its record names it


def test_nothing_of_others_is_replaced(model: Path, tmp_path: Path) -> None:
    images, out = tmp_path / "images", tmp_path / "out"
    images.mkdir()
    out.mkdir()
    for number in range(2):
        write_image(images / f"a_{number:04d}.nii.gz", np.ones((1, *GEOMETRY.shape), np.float32), GEOMETRY)
    predictor = load(model, device="cpu")
    for name in ("dataset_description.json", "dseg.tsv", "README.md"):
        (out / name).write_text('{"Name": "raw"}')
        with pytest.raises(OptionError, match=re.escape(f"{out / name} would be replaced")):
            predictor.predict_files(images, out, form="bids", force=True)
        (out / name).unlink()
    with pytest.raises(OptionError, match="without maps"):
        predictor.predict_files(images, out, form="bids", uncertainty=True)
    assert list(out.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("sub-01_ses-b_run-2_T1w", "sub-01/ses-b/anat/sub-01_ses-b_run-2_dseg.nii.gz"),
        ("sub-01_ses-b", "sub-01/ses-b/anat/sub-01_ses-b_dseg.nii.gz"),
        ("sub-01_space-MNI_desc-preproc_T1w", "sub-01/anat/sub-01_dseg.nii.gz"),
        ("hippocampus_001", "sub-hippocampus001/anat/sub-hippocampus001_dseg.nii.gz"),
        ("sub-0 1_T1w", "sub-sub01T1w/anat/sub-sub01T1w_dseg.nii.gz"),
    ],
)
def test_names_are_those_of_bids(name: str, place: str, tmp_path: Path) -> None:
    assert bids_path(tmp_path, InputCase(name, (Path("x.nrrd"),))).relative_to(tmp_path).as_posix() == place


def test_cases_without_a_name_of_their_own_are_refused(tmp_path: Path) -> None:
    cases = [InputCase(name, (Path(f"{name}.nii.gz"),)) for name in ("a_1", "a-1", "b", "üß")]
    judged = judge_names(cases, tmp_path)
    errors = [each.error and each.error.message for each in judged]
    assert errors[:3] == ["several cases would be sub-a1/anat/sub-a1_dseg.nii.gz"] * 2 + [None]
    assert errors[3] == "BIDS has no name for it"


def test_pictures_and_objects_are_refused(tmp_path: Path) -> None:
    own = configuration(2, inference={"mirror_axes": ()})
    model = packed(tmp_path, {"2d": own}, folds=[0], file_kind="png", suffix=".png", image_pattern="*_0000.png")
    images = tmp_path / "images"
    images.mkdir()
    flat = Geometry(shape=(1, 20, 24), kind="png", dimension=2)
    for number in range(2):
        write_image(images / f"a_{number:04d}.png", np.full((1, *flat.shape), 7, np.uint8), flat)
    (failure,) = load(model, device="cpu").predict_files(images, tmp_path / "out", form="bids", force=True)
    assert "is for volumes" in failure

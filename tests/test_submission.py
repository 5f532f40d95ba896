"""A submission holds every case, in its image's geometry, under the template's names; else nothing is written."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from orientations import direction_of
from test_predict_options import LABELS, configuration, model

from autounet import api
from autounet.cli.app import main
from autounet.datasets import InputCase
from autounet.imageio import read_geometry, read_labels, stored_type, write_image
from autounet.prediction import submission as module
from autounet.prediction.submission import TASKS, Submission, submit, submitted_names, template_for
from autounet.schema.errors import DataError, OptionError
from autounet.schema.geometry import Geometry, geometry_differences
from autounet.schema.names import case_problem

SHAPE = (6, 8, 7)


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Two volumes whose axes are turned, below a folder named as a task is."""
    folder = tmp_path / "Task04_Hippocampus" / "imagesTs"
    for seed, name in enumerate(("hippocampus_002", "hippocampus_005")):
        geometry = Geometry(
            shape=SHAPE,
            spacing=(1.5, 0.8, 0.7),
            origin=(3.25, -2.0, 7.1),
            direction=direction_of((1, 0, 2), (-1, 1, -1)),
        )
        image = np.random.default_rng(seed).normal(5, 1, (1, *SHAPE)).astype(np.float32)
        write_image(folder / f"{name}.nii.gz", image, geometry)
    return folder


@pytest.fixture
def predictor(tmp_path: Path):
    return api.load(model(tmp_path / "trained", {"3d_fullres": configuration("plain", 3)}), device="cpu")


TEMPLATES = {
    "files": "{}.nii.gz",
    "decathlon": "Task04_Hippocampus/{}.nii.gz",
    "grand-challenge": "{}.mha",
    "grand-challenge:hippocampus-segmentation": "images/hippocampus-segmentation/{}.mha",
    "results/{case}_pred{ext}": "results/{}_pred.nii.gz",
}


@pytest.mark.parametrize("template", TEMPLATES)
def test_the_zip_holds_what_predict_writes(predictor, images: Path, tmp_path: Path, template: str) -> None:
    out = tmp_path / "sub" / "mine.zip"
    told = submit(predictor, images, out, template)
    assert told == Submission.load(tmp_path / "sub" / "mine.manifest.json")
    assert told.sha256 == hashlib.sha256(out.read_bytes()).hexdigest()
    assert {path.name for path in out.parent.iterdir()} == {"mine.zip", "mine.manifest.json"}
    predictor.predict_files(images, tmp_path / "predicted")
    with ZipFile(out) as archive:
        assert archive.namelist() == [
            TEMPLATES[template].format(name) for name in ("hippocampus_002", "hippocampus_005")
        ]
        archive.extractall(tmp_path / "unpacked")
    for file in told.files:
        path = tmp_path / "unpacked" / file.name
        assert (file.sha256, file.bytes) == (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_size)
        values, geometry = read_labels(path)
        np.testing.assert_array_equal(values, read_labels(tmp_path / "predicted" / f"{file.case}.nii.gz")[0])
        assert set(file.values) == set(np.unique(values)) <= set(LABELS.values)
        assert np.issubdtype(stored_type(path), np.integer)
        assert not geometry_differences(geometry, read_geometry(images / f"{file.case}.nii.gz"))
    before = out.read_bytes()
    submit(predictor, images, out, template)
    assert out.read_bytes() == before


def test_a_bad_image_leaves_nothing_half(predictor, images: Path, tmp_path: Path) -> None:
    broken = images / "hippocampus_009.nii.gz"
    broken.write_bytes((images / "hippocampus_002.nii.gz").read_bytes()[:200])
    out = tmp_path / "sub" / "mine.zip"
    with pytest.raises(DataError, match=r"nothing was written(.|\n)*hippocampus_009"):
        submit(predictor, images, out)
    assert list(out.parent.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda values, geometry: (values[:, :, ::-1].copy(), geometry), None),
        (lambda values, geometry: (values * 0 + 5, geometry), "the value 5, which the model does not declare"),
        (lambda values, geometry: (values, geometry.model_copy(update={"origin": (0.0, 0.0, 0.0)})), "origin "),
        (lambda values, geometry: (values, geometry.model_copy(update={"spacing": (1.5, 0.8, 0.8)})), "spacing "),
    ],
)
def test_what_is_written_wrong_is_found(predictor, images, tmp_path, monkeypatch, change, message) -> None:
    """A writer that errs, since prediction does not: values and geometry are those that are read back."""
    original = module.write_labels
    monkeypatch.setattr(module, "write_labels", lambda path, *told: original(path, *change(*told)))
    if message is None:
        submit(predictor, images, tmp_path / "a.zip", "grand-challenge")
        return
    with pytest.raises(DataError, match=message) as failed:
        submit(predictor, images, tmp_path / "a.zip", "grand-challenge")
    assert "hippocampus_002" in str(failed.value)
    assert "hippocampus_005" in str(failed.value)
    assert not (tmp_path / "a.zip").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("imaginary", "is unknown"),
        ("files:x", "is unknown"),
        ("decathlon", "neither the path"),
        ("decathlon:Task11_Knee", "Task11_Knee is unknown"),
        ("grand-challenge:Two Words", "a slug is"),
        ("{name}.nii.gz", "with {case}"),
        ("../{case}.nii.gz", "a path inside the zip"),
        ("/{case}.nii.gz", "a path inside the zip"),
        ("{case", "expected .*a path inside the zip"),
    ],
)
def test_templates_that_cannot_be(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        template_for(text, tmp_path, "demo")


def test_names_that_cannot_be(tmp_path: Path) -> None:
    cases = [InputCase(name, (Path(f"{name}.png"),)) for name in ("a", "b")]
    for text in ("{case}.pdf", "{case}.jpg", "{case}.mhd", "{case}"):
        with pytest.raises(OptionError, match="no format that segmentations"):
            submitted_names(template_for(text, tmp_path, "demo"), cases)
    alike = [InputCase(name, (Path(f"{name}.png"),)) for name in ("ab", "ac")]
    with pytest.raises(OptionError, match=r"a\.png to more than one case"):
        submitted_names(template_for("{case:.1}{ext}", tmp_path, "demo"), alike)


def test_the_task_is_read_from_the_path_or_the_model(tmp_path: Path) -> None:
    assert template_for("decathlon", tmp_path / TASKS[2] / "imagesTs", "demo").pattern.startswith("Task03_Liver/")
    assert template_for("decathlon", tmp_path, TASKS[8]).pattern == "Task09_Spleen/{case}.nii.gz"


NAMES = st.from_regex(r"[A-Za-z0-9_.-]{1,12}", fullmatch=True).filter(lambda name: not case_problem(name))


@given(cases=st.lists(NAMES, unique=True, min_size=1, max_size=6))
def test_every_case_has_a_name_of_its_own(cases: list[str]) -> None:
    inputs = [InputCase(case, (Path(f"{case}.nii.gz"),)) for case in cases]
    for text in ("files", "grand-challenge", "x/{case}_seg.nrrd"):
        names = submitted_names(template_for(text, Path("/data"), "demo"), inputs)
        assert sorted(names) == sorted(cases)
        assert len(set(names.values())) == len(cases)


def test_the_command_line(predictor, images: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    arguments = ("submit", tmp_path / "trained", images, "--device", "cpu", "--template", "decathlon", "--out")
    monkeypatch.setattr(sys, "argv", ["autounet", *map(str, arguments), str(tmp_path / "s.zip")])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    assert "2 cases, sha256" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["autounet", *map(str, arguments), str(tmp_path / "s.tar")])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "Give a name that ends in .zip" in capsys.readouterr().err

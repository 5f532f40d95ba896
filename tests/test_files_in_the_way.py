"""Files of the user's are never replaced, and what AutoUNet wrote among them is never taken for theirs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from test_averaging import USUAL, predicted
from test_command_line import volumes
from test_faults import images
from test_predict_options import configuration, model

from autounet import api
from autounet.api import Model
from autounet.datasets import scan
from autounet.imageio import write_labels
from autounet.prediction.ensemble import ensemble
from autounet.prediction.predictor import Predictor
from autounet.schema.dataset import Finding
from autounet.schema.errors import DataError, OptionError
from autounet.schema.geometry import Geometry
from autounet.schema.options import DataOptions, RunOptions
from autounet.schema.run import is_result
from autounet.workflow.dataset_stage import check_data
from autounet.workflow.pipeline import run_pipeline


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = model(tmp_path_factory.mktemp("model"), {"3d_fullres": configuration("plain", 3)})
    return api.load(folder, device="cpu", mirror=False)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("[!.]*") if path.is_file()}


@pytest.mark.parametrize("name", ["c01.nii", "c01.probabilities.nii.gz", "c00.entropy.nii", "classes.json"])
def test_a_file_that_autounet_did_not_write_is_kept(predictor: Model, tmp_path: Path, name: str) -> None:
    """Also beside finished predictions, and nothing is predicted before it is told."""
    source, out = images(tmp_path / "in", 2), tmp_path / "out"
    assert predictor.predict_files(source, out) == []
    (out / "c01.nii").unlink()
    (out / ".predicted" / "c01.json").unlink()
    (out / name).write_text("drawn by hand")
    before = contents(out)
    maps = {"probabilities": True, "uncertainty": True}
    with pytest.raises(
        OptionError, match=rf"\S*out/{name} would be replaced, and AutoUNet did not write it.*--overwrite"
    ):
        predictor.predict_files(source, out, **maps)
    assert contents(out) == before
    assert predictor.predict_files(source, out, overwrite=True, **maps) == []
    assert predictor.predict_files(source, out, **maps) == []


def test_what_an_ended_command_left_is_autounets(
    predictor: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ended between the maps and their segmentation, which is written last; and maps of a command before the last."""
    source, out = images(tmp_path / "in", 2), tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr("autounet.prediction.folder.write_prediction", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            predictor.predict_files(source, out, probabilities=True)
    left = [*contents(out)]
    assert any(name.startswith("c00.prob") for name in left), left
    assert "c00.nii" not in left
    assert predictor.predict_files(source, out, probabilities=True) == []
    assert predictor.predict_files(source, out) == []
    assert all(is_result(out / name) for name in contents(out) if name != "classes.json")
    assert predictor.predict_files(source, out, probabilities=True) == []


@pytest.mark.parametrize("numbered", [True, False])
def test_results_among_the_images_are_not_predicted(
    predictor: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, numbered: bool
) -> None:
    source = images(tmp_path / "in", 2)
    out = source if numbered else source / "deeper" / "out"
    if numbered:
        for path in list(source.iterdir()):
            path.rename(path.with_name(f"{path.stem}_0000.nii"))
    else:
        for path in list(source.iterdir()):
            path.rename((source / "deeper").mkdir(exist_ok=True) or source / "deeper" / path.name)
    done: list[str] = []
    for _ in range(2):
        assert predictor.predict_files(source, out, done.append, uncertainty=True) == []
    assert done == ["c00", "c01"]
    monkeypatch.setattr(Predictor, "predict_scores", lambda *_, **__: 1 / 0)
    assert predictor.predict_files(source, out, uncertainty=True) == []


def test_results_alone_are_images_where_they_are_asked_for(predictor: Model, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    assert predictor.predict_files(images(tmp_path / "in", 1), first) == []
    assert predictor.predict_files(first, second) == []
    assert [*contents(second)] == ["c00.nii"]


def test_images_below_others_are_told_at_any_depth(
    predictor: Model, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images(tmp_path / "in", 1)
    images(tmp_path / "in" / "a" / "b", 2)
    with caplog.at_level("WARNING", "autounet"):
        assert predictor.predict_files(tmp_path / "in", tmp_path / "out") == []
    assert "holds images of its own, so those in its folders are not predicted: a" in caplog.text


def test_an_ensemble_replaces_only_its_own(tmp_path: Path) -> None:
    folders = [tmp_path / "one", tmp_path / "two"]
    for seed, folder in enumerate(folders):
        predicted(folder, USUAL, seed)
    out = tmp_path / "out"
    write_labels(out / "b.nii.gz", np.ones((3, 5, 4), np.int32), Geometry(shape=(3, 5, 4)))
    before = contents(out)
    with pytest.raises(OptionError, match=r"out/b\.nii\.gz would be replaced, and AutoUNet did not write it"):
        ensemble(folders, out)
    assert contents(out) == before
    (out / "b.nii.gz").unlink()
    for _ in range(2):
        assert ensemble(folders, out, probabilities=True) == ["a", "b"]
    (out / "classes.json").write_text("{}")
    with pytest.raises(OptionError, match=r"out/classes\.json would be replaced"):
        ensemble(folders, out, probabilities=True)
    assert ensemble(folders, out) == ["a", "b"]


def by_case(root: Path) -> Path:
    """A folder for each case with image and label."""
    source = volumes(root.with_name("source"))
    for number in range(3):
        (root / f"c{number}").mkdir(parents=True)
        for kind in ("image", "label"):
            (source / f"{kind}s" / f"c{number}.nii.gz").rename(root / f"c{number}" / f"{kind}.nii.gz")
    return root


@pytest.mark.parametrize(
    ("make", "place", "told"),
    [
        (volumes, "labels", "holds files of the data set, such as labels/c0.nii.gz"),
        (volumes, "images/new", "lies in a folder with files of the data set, such as images/c0.nii.gz"),
        (by_case, "c1", "holds files of the data set, such as c1/image.nii.gz"),
    ],
)
def test_an_output_folder_is_none_of_the_data(
    tmp_path: Path, make: Callable[[Path], Path], place: str, told: str
) -> None:
    data = make(tmp_path / "data")
    before = sorted(data.rglob("*"))
    with pytest.raises(OptionError, match=rf"{told}. Give another, for example \S*data/autounet"):
        run_pipeline(data, data / place, RunOptions(workers=0), "fingerprint")
    assert sorted(data.rglob("*")) == before


@pytest.mark.parametrize("make", [volumes, by_case])
def test_an_output_folder_in_the_data_folder_is_not_read(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    """Whatever a run has written there."""
    data = make(tmp_path / "data")
    dataset = scan(data, DataOptions())
    for _ in range(2):
        found = run_pipeline(data, data / "autounet", RunOptions(workers=0), "fingerprint").data.dataset
        assert found.cases == dataset.cases
        for number in range(3):
            path = data / "autounet" / "crossval" / f"c{number}.nii.gz"
            write_labels(path, np.ones((3, 5, 4), np.int32), Geometry(shape=(3, 5, 4)))
    assert scan(data, DataOptions()) == dataset


def test_images_are_no_labels(tmp_path: Path) -> None:
    data = volumes(tmp_path / "data")
    same = DataOptions(channels={"image": "labels/*"}, label="labels/*.nii.gz")
    with pytest.raises(DataError, match=r"the same files are given as images and as labels.* labels/c0\.nii\.gz"):
        scan(data, same)
    rows = [f"c{number},images/c{number}.nii.gz,labels/c{number}.nii.gz" for number in range(3)]
    rows[1] = rows[1].replace("labels", "labels/../images")
    (data / "cases.csv").write_text("\n".join(["case,image,label", *rows]))
    findings: list[Finding] = []
    assert [case.identifier for case in scan(data, DataOptions(), findings).cases] == ["c0", "c2"]
    assert [(each.case, each.severity.value) for each in findings] == [("c1", "fatal")]
    assert "is given as its image and as its label" in findings[0].message


def test_images_in_other_formats_are_told(predictor: Model, tmp_path: Path) -> None:
    """Pairs once, nothing hidden, and no other file."""
    data = volumes(tmp_path / "data")
    for name in ("c7.WEBP", "s1.svs", "../labels/c9.img", "../labels/c9.hdr", "._a.czi", "note.txt"):
        (data / "images" / name).write_bytes(b"x")
    (finding,) = check_data(data, DataOptions()).findings[-1:]
    assert (finding.code, finding.severity.value) == ("unread-format", "warning")
    shown = "c7.WEBP (WebP), s1.svs (Aperio SVS), c9.img (Analyze, or a NIfTI pair)"
    assert finding.message == f"3 images are in formats that are not read: {shown}"
    assert "ImageMagick. Export" in finding.remedy
    (failure,) = predictor.predict_files(data / "images", tmp_path / "out")
    assert failure.startswith("case c7.WEBP: 2 images are in formats that are not read: c7.WEBP (WebP), s1.svs")
    assert len(contents(tmp_path / "out")) == 3
    for path in (data / "images").glob("c?.nii.gz"):
        path.unlink()
    told = r"holds no images that can be read: 2 images are .* c7\.WEBP"
    with pytest.raises(DataError, match=told):
        predictor.predict_files(data / "images", tmp_path / "out")
    with pytest.raises(DataError, match=told):
        scan(data / "images", DataOptions())

"""`autounet check --fix` repairs what can be repaired into a new folder, and changes nothing in the old one."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import broken_contents
import broken_sets as sets
import numpy as np
import pytest
import SimpleITK as sitk
from broken_gallery import GALLERY, Broken
from broken_sets import NONE
from laboratory_files import hdf5, ngff
from PIL import Image

from autounet.cli.app import main
from autounet.datasets import read_reference, scan
from autounet.imageio import read_geometry, read_image, read_labels
from autounet.schema.errors import DataError, OptionError
from autounet.schema.options import DataOptions
from autounet.workflow import dataset_stage as reading
from autounet.workflow.dataset_stage import check_data, fix_data


@pytest.fixture(autouse=True)
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Starting processes would take longer than all that they would do here."""
    monkeypatch.setattr(reading, "available_cores", lambda: 1)


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("broken", [broken for broken in GALLERY if broken.fixed], ids=lambda broken: broken.name)
def test_what_can_be_repaired_is_repaired(tmp_path: Path, broken: Broken) -> None:
    data, new = tmp_path / "data", tmp_path / "new"
    options = broken.make(data) or NONE
    before = contents(data)
    found = fix_data(data, options, new)
    (repair,) = found.repairs
    assert repair.case == broken.case
    assert broken.fixed in str(repair)
    assert found.result.findings == (), [str(finding) for finding in found.result.findings]
    assert len(found.result.cases) == (5 if repair.dropped else 6)
    assert check_data(new, NONE) == found.result
    assert contents(data) == before


def test_a_label_flipped_by_its_header_comes_back_voxel_by_voxel(tmp_path: Path) -> None:
    sets.label_of_another_direction(tmp_path / "data")
    fix_data(tmp_path / "data", NONE, tmp_path / "new")
    values, geometry = read_labels(sets.label_file(tmp_path / "new"))
    np.testing.assert_array_equal(values, sets.drawn())
    assert geometry == read_geometry(sets.image_file(tmp_path / "new"))


def test_sound_files_are_copied_byte_by_byte(tmp_path: Path) -> None:
    data = sets.volumes(tmp_path / "data")
    found = fix_data(data, NONE, tmp_path / "new")
    assert found.repairs == ()
    for file in data.glob("*Tr/*"):
        assert (tmp_path / "new" / file.relative_to(data)).read_bytes() == file.read_bytes()


def test_all_that_options_said_is_kept(tmp_path: Path) -> None:
    data = sets.pictures(tmp_path / "data", ending=".jpg")
    options = DataOptions(
        label="masks/*", classes={"disc": 255}, regions={"all": (255,)}, kinds={"image": "photo"}, group=r"c(\d)"
    )
    found = fix_data(data, options, tmp_path / "new").result
    before, after = scan(data, options), scan(tmp_path / "new", NONE)
    assert found.findings == ()
    assert [case.group for case in after.cases] == [case.group for case in before.cases] == list("012345")
    assert after.channels == before.channels
    assert after.labels == before.labels
    assert sorted(path.suffix for path in (tmp_path / "new" / "imagesTr").iterdir()) == [".jpg"] * 6


def test_groups_folds_and_annotated_classes_of_a_table_are_kept(tmp_path: Path) -> None:
    data = sets.pictures(tmp_path / "data")
    rows = [f"c{index},images/c{index}.png,masks/c{index}.png,g{index // 2},{index // 2 % 2},255" for index in range(6)]
    (data / "all.csv").write_text("\n".join(["case,image,label,group,fold,annotated", rows[0][:-3], *rows[1:]]))
    (data / "dataset.json").write_text('{"annotated": {"c0": []}}')
    before = scan(data, NONE)
    assert [case.annotated for case in before.cases] == [(), *[(255,)] * 5]
    found = fix_data(data, NONE, tmp_path / "new").result
    assert [(each.case, each.code) for each in found.findings] == [("c0", "unlisted-class")]
    after = scan(tmp_path / "new", NONE)
    for name in ("group", "fold"):
        assert [getattr(case, name) for case in after.cases] == [getattr(case, name) for case in before.cases]
    assert [case.annotated for case in after.cases] == [(0,), *[(255,)] * 5]  # the background alone is none, too
    assert after.cases[3].group == "g1"


def test_lists_of_cases_are_for_a_person_to_correct(tmp_path: Path) -> None:
    data = sets.pictures(tmp_path / "data")
    (data / "cases.csv").write_text("case,annotated,fold\nc0,bone,1\nc9,,1\n")
    with pytest.raises(DataError) as caught:
        fix_data(data, NONE, tmp_path / "new")
    codes = [(each.case, each.code) for each in caught.value.findings]
    folds = [(f"c{case}", "splits") for case in range(1, 6)]
    assert codes == [("c9", "unknown-case"), *folds, ("c0", "unknown-annotation")]
    assert not (tmp_path / "new").exists()


def test_time_points_become_files_of_their_own(tmp_path: Path) -> None:
    moving = np.stack([sets.pixels(index, sets.SHAPE) for index in range(3)])
    drawn = np.stack([sets.drawn()] * 3).astype(np.float32)
    for index in range(2):
        for part, array in (("images", moving + index), ("labels", drawn)):
            path = tmp_path / "data" / part / f"p{index}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            sitk.WriteImage(sitk.GetImageFromArray(array, isVector=False), str(path))
    found = fix_data(tmp_path / "data", DataOptions(frames="time"), tmp_path / "new").result
    assert [finding.code for finding in found.findings] == ["too-few-cases"]
    after = scan(tmp_path / "new", NONE)
    assert [case.identifier for case in after.cases] == ["p0_t0", "p0_t1", "p0_t2", "p1_t0", "p1_t1", "p1_t2"]
    assert {case.group for case in after.cases} == {"p0", "p1"}
    image, _ = read_image(tmp_path / "new" / after.cases[4].images[0])
    np.testing.assert_array_equal(image[0], moving[1] + 1)


def test_colours_become_values(tmp_path: Path) -> None:
    data = sets.pictures(tmp_path / "data")
    for index in range(6):
        colours = np.zeros((24, 20, 3), np.uint8)
        colours[3:8, 2:6] = (200, 30, 0)
        Image.fromarray(colours).save(data / "masks" / f"c{index}.png")
    (data / "palette.json").write_text(json.dumps({"background": [0, 0, 0], "rust": [200, 30, 0]}))
    found = fix_data(data, NONE, tmp_path / "new").result
    assert found.findings == ()
    assert [(label.name, label.value) for label in found.labels.classes] == [("background", 0), ("rust", 1)]
    assert read_labels(tmp_path / "new" / "labelsTr" / "c0.png")[0].max() == 1


def test_the_sound_one_of_two_equal_cases_is_kept(tmp_path: Path) -> None:
    broken_contents.same_image_twice(tmp_path / "data")
    sets.halve(sets.label_file(tmp_path / "data", "c1"))
    repairs = {
        repair.case: str(repair.dropped) for repair in fix_data(tmp_path / "data", NONE, tmp_path / "new").repairs
    }
    assert list(repairs) == ["c1"]
    assert "identical to that of c2" in repairs["c1"]


def test_a_set_that_is_mostly_broken_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    data = sets.volumes(tmp_path / "data")
    for index in range(4):
        sets.halve(sets.image_file(data, f"c{index}"))
    with pytest.raises(DataError, match=r"4 of 6 cases cannot be repaired, and nothing was written:\ncase c0: "):
        fix_data(data, NONE, tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_repairs_go_into_a_new_folder_only(tmp_path: Path) -> None:
    data = sets.volumes(tmp_path / "data")
    for folder, message in ((data, "exists"), (data / "new", "lies in the data folder")):
        with pytest.raises(OptionError, match=message):
            fix_data(data, NONE, folder)


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    broken_contents.nan_voxels(tmp_path / "data")
    assert command(monkeypatch, "check", tmp_path / "data") == 1
    assert "fatal: case c2: imagesTr/c2_0000.nii.gz holds 3 NaN voxels" in capsys.readouterr().out
    assert command(monkeypatch, "check", tmp_path / "data", "--fix", "--out", tmp_path / "new") == 0
    printed = capsys.readouterr().out
    assert "case c2: 3 voxels of imagesTr/c2_0000.nii.gz were replaced" in printed
    assert "no problems found" in printed
    assert command(monkeypatch, "check", tmp_path / "data", "--fix", "--json", "--out", tmp_path / "newer") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["repairs"][0]["case"] == "c2"
    assert told["result"]["findings"] == []
    assert command(monkeypatch, "check", tmp_path / "data", "--fix") == 2
    assert "--fix and --out go together" in capsys.readouterr().err


def command(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> object:
    monkeypatch.setattr(sys, "argv", ["autounet", *map(str, arguments)])
    try:
        main()
    except SystemExit as end:
        return end.code
    return 0


@pytest.mark.parametrize("stored", ["as it is", "flipped", "without a place"])
def test_labels_of_an_image_with_two_transforms_keep_their_voxels(tmp_path: Path, stored: str) -> None:
    """A registration moved the sform of the images, by which the labels were written."""
    import nibabel as nib

    data = sets.volumes(tmp_path / "data")
    for case in [path.name[:-7] for path in (data / "labelsTr").iterdir()]:
        image = nib.load(sets.image_file(data, case))
        moved = image.affine.copy()
        moved[:3, 3] += (3, 2, 2.5)
        image.set_qform(image.affine, 1)
        image.set_sform(moved, 2)
        label, affine = np.asarray(nib.load(sets.label_file(data, case)).dataobj), moved.copy()
        if stored == "flipped":
            label, affine[:3, 3] = label[::-1], moved[:3, 3] + moved[:3, 0] * (len(label) - 1)
            affine[:3, 0] *= -1
        made = nib.Nifti1Image(label, affine)
        made.header.set_zooms(image.header.get_zooms())
        if stored == "without a place":
            made.set_sform(None, 0)
        nib.save(nib.Nifti1Image(np.asarray(image.dataobj), None, image.header), sets.image_file(data, case))
        nib.save(made, sets.label_file(data, case))
    assert bool(check_data(data, NONE).findings) == (stored != "as it is")
    found = fix_data(data, NONE, tmp_path / "new")
    assert found.result.findings == ()
    for path in (tmp_path / "new" / "labelsTr").iterdir():
        np.testing.assert_array_equal(read_labels(path)[0], sets.drawn())


@pytest.mark.parametrize("form", ["OME-Zarr", "HDF5", "LabelMe"])
def test_sets_of_laboratories_are_written_as_files_of_their_own(tmp_path: Path, form: str) -> None:
    data, size = tmp_path / "data", (24, 30)
    data.mkdir()
    for case in range(5):
        rng = np.random.default_rng(case)
        pixels, values = rng.integers(0, 60_000, size).astype(np.uint16), np.zeros(size, np.uint8)
        values[5:15, 8 : 18 + case] = 1
        if form == "OME-Zarr":
            ngff(data / f"c{case}.ome.zarr", np.stack([pixels] * 3), "cyx", names=["A", "B", "C"], labels={"x": values})
        elif form == "HDF5":
            hdf5(data / f"c{case}.h5", {"raw": pixels, "label": values})
        else:
            Image.fromarray((pixels // 256).astype(np.uint8)).save(data / f"c{case}.png")
            points = [[8, 5], [18 + case, 5], [18 + case, 15], [8, 15]]
            content = {"shapes": [{"label": "x", "points": points}], "imagePath": f"c{case}.png"}
            (data / f"c{case}.json").write_text(json.dumps(content))
    found = fix_data(data, NONE, tmp_path / "new")
    assert found.result.findings == (), [str(finding) for finding in found.result.findings]
    before, after = scan(data, NONE), scan(tmp_path / "new", NONE)
    assert after.channels == before.channels
    assert [case.identifier for case in after.cases] == [f"c{case}" for case in range(5)]
    for case in before.cases:
        new = after.case(case.identifier)
        assert (read_reference(after, new)[0] == read_reference(before, case)[0]).all()
        assert (read_image(tmp_path / "new" / new.images[0])[0] == read_image(data / case.images[0])[0]).all()


@pytest.mark.parametrize(("coloured", "form"), [(True, ".png"), (False, ".png"), (True, ".tif"), (True, "alpha")])
def test_grey_pictures_become_rgb_where_some_are_coloured(tmp_path: Path, coloured: bool, form: str) -> None:
    """Coloured ones are not left out; grey ones that are stored as RGB become grey as the others."""
    ending = form if form.startswith(".") else ".png"
    data, (case, other) = sets.pictures(tmp_path / "data", ending), ("c1", "c2")
    picture = Image.open(data / "images" / f"{case}{ending}").convert("RGBA" if form == "alpha" else "RGB")
    pixels = np.asarray(picture).copy()
    pixels[..., 2] //= 2 if coloured else 1
    Image.fromarray(pixels).save(data / "images" / f"{case}{ending}")
    options = DataOptions(label="masks/*", classes={"disc": 255})
    (mixed,) = (each for each in check_data(data, options).findings if each.code == "grey-and-coloured")
    assert f"check --fix --out NEW stores all {'in colours' if coloured else 'as grey pictures'}" in mixed.remedy
    found = fix_data(data, options, tmp_path / "new")
    assert {finding.code for finding in found.result.findings} <= {"opaque-alpha"}
    assert len(found.repairs) == (5 if coloured else 1)
    assert not any(repair.dropped for repair in found.repairs)
    after = scan(tmp_path / "new", NONE)
    assert [each.name for each in after.channels] == (["red", "green", "blue"] if coloured else ["image"])
    for name in (case, other):
        (image,) = after.case(name).images
        before, now = read_image(data / "images" / f"{name}{ending}")[0], read_image(tmp_path / "new" / image)[0]
        assert np.array_equal(now, np.broadcast_to(before, now.shape) if coloured else before[:1])

"""Folders per case, BIDS, tables, descriptions in the folder, and the fourth axis: detected, or asked about."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from typer.testing import CliRunner

from autounet.cli.app import app
from autounet.datasets import complete_labels, examine, find_inputs, load_case, load_input, make_splits, scan
from autounet.datasets.synthetic import make_demo_dataset
from autounet.imageio import write_image, write_labels
from autounet.schema.bundle import ModelBundle
from autounet.schema.dataset import Channel, Dataset, Finding
from autounet.schema.errors import DataError, OptionError
from autounet.schema.geometry import Geometry
from autounet.schema.options import DataOptions
from autounet.workflow.dataset_stage import check_data

NONE = DataOptions()
SHAPE = (3, 4, 5)


def image(path: Path, value: float = 0.0) -> None:
    voxels = np.random.default_rng(0).normal(size=(1, *SHAPE)).astype(np.float32) + value
    write_image(path, voxels, Geometry(shape=SHAPE))


def label(path: Path, values: int = 3) -> None:
    write_labels(path, np.arange(60).reshape(SHAPE) % values, Geometry(shape=SHAPE))


def bundle_of(dataset: Dataset) -> ModelBundle:
    names = ("layout", "channels", "channel_patterns", "image_pattern", "suffix", "time_points")
    return ModelBundle.model_construct(**{name: getattr(dataset, name) for name in names})


def names(channels: Sequence[Channel]) -> list[str]:
    return [channel.name for channel in channels]


# one folder per case


def brats(root: Path, cases: int = 3) -> None:
    """The same names in every folder, and a brain mask beside the label."""
    for index in range(cases):
        folder = root / f"pat{index}_1"
        image(folder / "Flair_norm.nii.gz", 1)
        image(folder / "T1c_norm.nii.gz", 2)
        label(folder / "OTMultiClass.nii.gz", 5)
        label(folder / "brainmask.nii.gz", 2)
        (folder / "License.txt").write_text("CC")


def named_by_case(root: Path, cases: int = 3) -> None:
    for index in range(cases):
        case = f"Study_{index:03d}"
        for channel in ("flair", "t1ce"):
            image(root / case / f"{case}_{channel}.nii.gz")
        label(root / case / f"{case}_seg.nii.gz")


def test_a_second_mask_is_asked_about(tmp_path: Path) -> None:
    brats(tmp_path)
    with pytest.raises(DataError) as caught:
        scan(tmp_path, NONE)
    text = str(caught.value)
    assert "candidates: */OTMultiClass.nii.gz (values 0, 1, 2, 3, 4), */brainmask.nii.gz (values 0, 1)" in text
    assert "--label '*/OTMultiClass.nii.gz' or --label '*/brainmask.nii.gz'" in text
    assert "--channel 'Flair=*/Flair_norm.nii.gz' --channel 'T1c=*/T1c_norm.nii.gz'" in text
    with pytest.raises(DataError, match=r"not clear which files are the images; candidates: \*/brainmask"):
        scan(tmp_path, DataOptions(label="*/OT*"))
    with pytest.raises(DataError, match=r"several files of each can be the label"):
        scan(tmp_path, DataOptions(channels={"FLAIR": "*/Flair*"}))
    options = DataOptions(channels={"FLAIR": "*/Flair*", "T1c": "*/T1c*"}, label="*/OT*")
    dataset = scan(tmp_path, options)
    assert (dataset.layout, names(dataset.channels)) == ("cases", ["FLAIR", "T1c"])
    assert [case.identifier for case in dataset.cases] == ["pat0_1", "pat1_1", "pat2_1"]
    assert dataset.cases[2].images == ("pat2_1/Flair_norm.nii.gz", "pat2_1/T1c_norm.nii.gz")
    facts = examine(dataset, workers=1)
    assert load_case(complete_labels(dataset, facts), "pat0_1").image.shape == (2, *SHAPE)


@pytest.mark.parametrize("cases", [1, 2, 5])
def test_a_single_reading_is_taken(tmp_path: Path, cases: int) -> None:
    named_by_case(tmp_path, cases)
    dataset = scan(tmp_path, NONE)
    assert dataset.layout == "cases"
    assert names(dataset.channels) == ["flair", "t1ce"]
    assert [case.identifier for case in dataset.cases] == [f"Study_{index:03d}" for index in range(cases)]
    assert dataset.cases[0].label == "Study_000/Study_000_seg.nii.gz"


def test_nested_folders_and_missing_files(tmp_path: Path) -> None:
    for case in ("p1", "p2", "p3"):
        image(tmp_path / case / "MR" / "T2" / "volume.nii.gz")
        image(tmp_path / case / "MR" / "ADC" / "volume.nii.gz")
        label(tmp_path / case / "ground_truth.nii.gz")
    dataset = scan(tmp_path, NONE)
    assert dataset.cases[0].images == ("p1/MR/ADC/volume.nii.gz", "p1/MR/T2/volume.nii.gz")
    (tmp_path / "p2" / "MR" / "T2" / "volume.nii.gz").unlink()
    (tmp_path / "p3" / "ground_truth.nii.gz").unlink()
    with pytest.raises(DataError) as caught:
        scan(tmp_path, NONE)
    assert [(finding.case, finding.code) for finding in caught.value.findings] == [
        ("p2", "missing-channel"), ("p3", "missing-label")
    ]  # fmt: skip


def test_inputs_in_folders_of_cases(tmp_path: Path) -> None:
    named_by_case(tmp_path / "train")
    named_by_case(tmp_path / "new", 2)
    for path in (tmp_path / "new").rglob("*_seg.nii.gz"):
        path.unlink()
    bundle = bundle_of(scan(tmp_path / "train", NONE))
    found = find_inputs(tmp_path / "new", bundle)
    assert [(case.identifier, len(case.images)) for case in found] == [("Study_000", 2), ("Study_001", 2)]
    (single,) = find_inputs(tmp_path / "new" / "Study_001", bundle)
    assert single == found[1]
    (tmp_path / "new" / "Study_000" / "Study_000_flair.nii.gz").unlink()
    image(tmp_path / "new" / "Study_001" / "Study_009_flair.nii.gz")
    image(tmp_path / "new" / "Study_002" / "Study_002_adc.nii.gz")
    image(tmp_path / "new" / "stray.nii.gz")
    told = {case.identifier: case.error and case.error.message for case in find_inputs(tmp_path / "new", bundle)}
    assert told == {
        "Study_000": "it has no file for channel flair",
        "Study_001": "channel flair is there more than once: Study_001_flair.nii.gz, Study_009_flair.nii.gz",
        "Study_002": f"it has no file for channel {', '.join(names(bundle.channels))}",
        "stray.nii.gz": "it lies beside the folders of the cases",
    }


def test_folders_of_kinds_are_no_folders_of_cases(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        image(tmp_path / "images" / f"{name}.nii.gz")
        label(tmp_path / "labels" / f"{name}.nii.gz")
    assert scan(tmp_path, NONE).layout == "pairs"
    assert scan(tmp_path, DataOptions(channels={"x": "images/*"}, label="labels/*")).layout == "pairs"
    for part in ("training", "test"):
        image(tmp_path / "split" / part / "images" / "a.nii.gz")
        label(tmp_path / "split" / part / "labels" / "a.nii.gz")
    with pytest.raises(
        DataError, match=r"its folders do: test, training\. Give the folder with the training data: .*/training"
    ):
        scan(tmp_path / "split", NONE)


# BIDS


def bids(root: Path, subjects: int = 3, sessions: Sequence[str] = ("",)) -> None:
    (root / "derivatives" / "manual").mkdir(parents=True)
    (root / "dataset_description.json").write_text('{"Name": "study", "BIDSVersion": "1.8.0"}')
    (root / "participants.tsv").write_text("participant_id\tage\nsub-00\t40\n")
    for index in range(subjects):
        for session in sessions:
            place = Path(f"sub-{index:02d}", *([session] if session else []), "anat")
            stem = f"sub-{index:02d}" + (f"_{session}" if session else "")
            image(root / place / f"{stem}_T1w.nii.gz")
            image(root / place / f"{stem}_FLAIR.nii.gz")
            label(root / "derivatives" / "manual" / place / f"{stem}_desc-lesion_mask.nii.gz", 2)


def test_bids_with_derivatives(tmp_path: Path) -> None:
    bids(tmp_path, sessions=("ses-a", "ses-b"))
    dataset = scan(tmp_path, NONE)
    assert (dataset.layout, names(dataset.channels)) == ("bids", ["FLAIR", "T1w"])
    assert [case.identifier for case in dataset.cases[:2]] == ["sub-00_ses-a", "sub-00_ses-b"]
    assert [case.group for case in dataset.cases[:3]] == ["sub-00", "sub-00", "sub-01"]
    assert dataset.cases[0].label == ("derivatives/manual/sub-00/ses-a/anat/sub-00_ses-a_desc-lesion_mask.nii.gz")
    assert dataset.labels.classes[1].name == "lesion"
    found = find_inputs(tmp_path, bundle_of(dataset))
    assert (len(found), found[5].identifier, len(found[5].images)) == (6, "sub-02_ses-b", 2)
    splits = make_splits(dataset, [], NONE)
    assert all(len({name[:6] for name in fold}) * 2 == len(fold) for fold in splits.folds)


def test_bids_with_several_masks_and_gaps(tmp_path: Path) -> None:
    bids(tmp_path)
    for index in range(3):
        label(tmp_path / f"derivatives/prep/sub-0{index}/anat/sub-0{index}_desc-brain_mask.nii.gz", 2)
    with pytest.raises(DataError, match=r"candidates: .*manual: desc-lesion_mask \(3 files\).*prep: desc-brain_mask"):
        scan(tmp_path, NONE)
    options = DataOptions(label="derivatives/manual/sub-*/anat/*_desc-lesion_mask.nii.gz")
    assert len(scan(tmp_path, options).cases) == 3
    (tmp_path / "sub-01" / "anat" / "sub-01_FLAIR.nii.gz").unlink()
    (tmp_path / "derivatives/manual/sub-02/anat/sub-02_desc-lesion_mask.nii.gz").unlink()
    with pytest.raises(DataError) as caught:
        scan(tmp_path, options)
    assert "case sub-01: it has no file for channel FLAIR" in str(caught.value)
    assert "case sub-02: " in str(caught.value)


def test_bids_names_of_classes(tmp_path: Path) -> None:
    bids(tmp_path)
    for path in list(tmp_path.rglob("*_mask.nii.gz")):
        label(path.with_name(path.name.replace("desc-lesion_mask", "dseg")))
        path.unlink()
    (tmp_path / "derivatives" / "manual" / "dseg.tsv").write_text("index\tname\n0\tBackground\n1\tGM\n2\tWM\n")
    labels = scan(tmp_path, NONE).labels
    assert [(each.name, each.value) for each in labels.classes] == [("Background", 0), ("GM", 1), ("WM", 2)]


# tables


def rows_of(root: Path, cases: int = 4) -> list[dict[str, str]]:
    rows = []
    for index in range(cases):
        for channel in ("t1", "t2"):
            image(root / "scans" / f"{index}_{channel}.nii.gz")
        label(root / "truth" / f"{index}.nii.gz")
        rows.append(
            {
                "case": f"c{index}", "T1": f"scans/{index}_t1.nii.gz", "T2": f"scans/{index}_t2.nii.gz", "age": "40",
                "label": f"truth/{index}.nii.gz", "group": f"g{index // 2}", "fold": str(index // 2),
                "annotated": "one;2" if index == 0 else "",
            }
        )  # fmt: skip
    return rows


def write_table(path: Path, rows: Sequence[Mapping[str, str]], delimiter: str = ",") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".json":
        path.write_text(json.dumps(rows))
        return path
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.mark.parametrize(("name", "delimiter"), [("a.csv", ","), ("a.csv", ";"), ("a.tsv", "\t"), ("a.json", "")])
def test_a_table_says_everything(tmp_path: Path, name: str, delimiter: str) -> None:
    table = write_table(tmp_path / name, rows_of(tmp_path), delimiter)
    options = DataOptions(classes={"one": 1, "two": 2})
    for data in (tmp_path, table):
        dataset = scan(data, options)
        assert (dataset.layout, names(dataset.channels)) == ("table", ["T1", "T2"])
        assert dataset.cases[3].images == ("scans/3_t1.nii.gz", "scans/3_t2.nii.gz")
        assert [case.group for case in dataset.cases] == ["g0", "g0", "g1", "g1"]
        assert [case.annotated for case in dataset.cases] == [(1, 2), None, None, None]
        splits = make_splits(dataset, [], options)
        assert (splits.source, splits.folds) == ("table", (("c0", "c1"), ("c2", "c3")))
        assert load_case(dataset, "c2").image.shape == (2, *SHAPE)
    assert [case.identifier for case in find_inputs(table, bundle_of(dataset))] == ["c0", "c1", "c2", "c3"]


def test_a_table_of_groups_beside_another_layout(tmp_path: Path) -> None:
    make_demo_dataset(tmp_path, cases=4)
    rows = [{"case": f"demo_00{index}", "group": f"g{index % 2}", "fold": "ab"[index % 2]} for index in range(4)]
    write_table(tmp_path / "cases.csv", rows)
    dataset = scan(tmp_path, NONE)
    assert dataset.layout == "nnunet"
    assert [case.group for case in dataset.cases] == ["g0", "g1", "g0", "g1"]
    assert make_splits(dataset, [], NONE).folds == (("demo_000", "demo_002"), ("demo_001", "demo_003"))
    write_table(tmp_path / "cases.csv", rows[:3])
    with pytest.raises(DataError, match=r"case demo_003: cases\.csv gives it no fold"):
        scan(tmp_path, NONE)
    write_table(tmp_path / "cases.csv", [{"case": "demo_9", "group": "x"}, {"case": "demo_001", "group": "y"}])
    with pytest.raises(DataError, match=r"case demo_9: cases\.csv lists it, but there is no such case"):
        scan(tmp_path, NONE)
    (tmp_path / "labelsTr" / "demo_001.nii.gz").unlink()
    findings: list[Finding] = []
    scan(tmp_path, NONE, findings)
    assert [(each.code, each.case) for each in findings] == [("missing-label", "demo_001"), ("unknown-case", "demo_9")]


def test_annotated_classes_of_a_description(tmp_path: Path) -> None:
    """In any layout; names, values and regions. What is wrong with the lists is told together."""
    make_demo_dataset(tmp_path, cases=3)
    file = tmp_path / "dataset.json"
    content = json.loads(file.read_text())
    lists: dict[str, list] = {"demo_000": ["kidney", 0], "demo_001": []}
    file.write_text(json.dumps({**content, "annotated": lists}))
    assert content["labels"] == {"background": 0, "liver": 1, "kidney": 2}
    assert [case.annotated for case in scan(tmp_path, NONE).cases] == [(2, 0), (), None]
    regions = DataOptions(regions={"both": (1, 2)})
    file.write_text(json.dumps({**content, "annotated": {"demo_002": ["both"]}}))
    assert scan(tmp_path, regions).cases[2].annotated == (1, 2)
    write_table(tmp_path / "cases.csv", [{"case": "demo_000", "annotated": "1"}, {"case": "demo_001", "annotated": ""}])
    lists |= {"demo_002": ["middle", 7], "demo_8": [1]}
    file.write_text(json.dumps({**content, "annotated": lists}))
    found = [each for each in check_data(tmp_path, NONE).findings if each.severity == "fatal"]
    assert {(each.code, each.case) for each in found} == {
        ("unknown-annotation", name) for name in ("demo_000", "demo_002", "demo_8")
    }
    told = "\n".join(map(str, found))
    assert "case demo_000: its annotated classes are listed in dataset.json and in cases.csv. Keep one" in told
    assert "case demo_002: dataset.json lists 'middle' among its annotated classes, which is not a class (back" in told
    assert "case demo_002: its annotated classes contain the value 7, which no class has (0, 1, 2). Correct" in told
    assert "case demo_8: dataset.json lists its annotated classes, and there is no such case (cases: demo_0" in told
    file.write_text(json.dumps({**content, "annotated": {"demo_002": "liver"}}))
    with pytest.raises(DataError, match="annotated of case demo_002 is 'liver'"):
        scan(tmp_path, NONE)


def test_mistakes_in_tables_are_told(tmp_path: Path) -> None:
    rows = rows_of(tmp_path)
    (tmp_path / rows[1]["T2"]).unlink()
    rows[2]["label"] = "truth/9.nii.gz"
    table = write_table(tmp_path / "a.csv", rows)
    with pytest.raises(DataError) as caught:
        scan(table, NONE)
    assert "case c1: the table names scans/1_t2.nii.gz, which does not exist, for channel T2" in str(caught.value)
    assert "case c2: the table names truth/9.nii.gz, which does not exist, as its label" in str(caught.value)
    whole = rows_of(tmp_path)
    write_table(table, [*whole, whole[0]])
    with pytest.raises(DataError, match="lists c0 more than once"):
        scan(table, NONE)
    write_table(table, [{**row, "annotated": "three"} for row in whole])
    with pytest.raises(DataError, match=r"case c3: a\.csv lists 'three' among its annotated classes, which is no"):
        scan(table, NONE)
    whole = [{**row, "annotated": ""} for row in whole]
    write_table(table, [{**row, "fold": "0"} for row in whole])
    with pytest.raises(DataError, match="every case into fold 0"):
        make_splits(scan(table, NONE), [], NONE)
    write_table(table, [{**row, "fold": row["case"]} for row in whole])
    with pytest.raises(DataError, match="group g0 into folds c0 and c1"):
        make_splits(scan(table, NONE), [], NONE)
    write_table(tmp_path / "b.csv", whole)
    with pytest.raises(DataError, match=r"candidates: a\.csv, b\.csv"):
        scan(tmp_path, NONE)
    (tmp_path / "c.csv").write_text("x,y\n1,2\n")
    with pytest.raises(DataError, match=r"c\.csv is not a table of cases"):
        scan(tmp_path / "c.csv", NONE)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "latin-1"])
@pytest.mark.parametrize("name", ["cases.csv", "folds.tsv", "list.json"])
def test_tables_in_every_encoding(tmp_path: Path, encoding: str, name: str) -> None:
    """What is no Unicode is told, and no folds are lost."""
    rows = [{**row, "group": "Zürich", "annotated": ""} for row in rows_of(tmp_path)]
    table = write_table(tmp_path / name, rows, "\t" if name.endswith("tsv") else ",")
    table.write_bytes(table.read_text(encoding="utf-8").replace("\\u00fc", "ü").encode(encoding))
    if encoding == "latin-1":
        for place in (tmp_path, table):
            with pytest.raises(
                DataError, match=rf"{name} lists cases and is no text in UTF-8 or UTF-16. Save it as UTF-8"
            ):
                scan(place, NONE)
    else:
        assert {case.group for case in scan(tmp_path, NONE).cases} == {"Zürich"}


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "latin-1"])
@pytest.mark.parametrize("file", ["dataset.json", "list.json"])
def test_data_lists_in_every_encoding(tmp_path: Path, encoding: str, file: str) -> None:
    place = data_list(tmp_path, ["im/c0.nii.gz", "im/c1.nii.gz"], file, author="Zoë")
    place.write_bytes(place.read_text().replace("\\u00eb", "ë").encode(encoding))
    if encoding == "latin-1":
        with pytest.raises(DataError, match=rf"{file} is no text in UTF-8 or UTF-16"):
            scan(tmp_path, NONE)
    else:
        assert scan(tmp_path, NONE).fold_source == file


def test_a_broken_table_in_no_unicode_is_no_more_than_a_warning(tmp_path: Path) -> None:
    data_list(tmp_path, ["c0.nii.gz", "c1.nii.gz"])
    (tmp_path / "export.json").write_bytes('{"case": "Zoë"'.encode("latin-1"))
    findings: list[Finding] = []
    scan(tmp_path, NONE, findings)
    assert [(each.severity.value, each.message.partition(" is")[0]) for each in findings] == [
        ("warning", "export.json")
    ]


# options in the folder


def test_a_description_says_what_options_say(tmp_path: Path) -> None:
    brats(tmp_path)
    described = {
        "channels": {"FLAIR": "*/Flair*", "T1c": "*/T1c*"}, "kinds": {"T1c": "other"}, "label": "*/OT*", "ignore": 4,
        "labels": {"background": 0, "edema": 2}, "regions": {"core": [1, 3]}, "group": r"pat(\d)",
    }  # fmt: skip
    (tmp_path / "dataset.json").write_text(json.dumps(described))
    dataset = scan(tmp_path, NONE)
    assert names(dataset.channels) == ["FLAIR", "T1c"]
    assert dataset.channels[1].kind == "other"
    assert dataset.labels.ignore == 4
    assert dataset.labels.regions[0].values == (1, 3)
    assert dataset.cases[1].group == "1"
    assert dataset.channel_patterns == described["channels"]
    options = DataOptions(channels={"only": "*/T1c*"}, ignore=3, regions={"core": (1, 2)})
    other = scan(tmp_path, options)
    assert (names(other.channels), other.labels.ignore, other.labels.regions[0].values) == (["only"], 3, (1, 2))
    (tmp_path / "dataset.json").write_text(json.dumps({**described, "frames": "rows"}))
    with pytest.raises(DataError, match=r"dataset\.json: --frames rows is unknown"):
        scan(tmp_path, NONE)


# the fourth axis


def four_axes(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(sitk.JoinSeries([sitk.GetImageFromArray(part) for part in array]), str(path))


def cine(root: Path, frames: int = 3, label_frames: int | None = None, cases: int = 2) -> np.ndarray:
    rng = np.random.default_rng(0)
    voxels = rng.normal(size=(frames, *SHAPE)).astype(np.float32)
    for index in range(cases):
        four_axes(root / "images" / f"p{index}.nii.gz", voxels)
        if label_frames:
            labels = (np.arange(label_frames * 60).reshape(label_frames, *SHAPE) % 7 == 0).astype(np.uint8)
            four_axes(root / "labels" / f"p{index}.nii.gz", labels)
        else:
            label(root / "labels" / f"p{index}.nii.gz")
    return voxels


def test_named_channels_are_channels(tmp_path: Path) -> None:
    voxels = cine(tmp_path)
    (tmp_path / "dataset.json").write_text(json.dumps({"channel_names": ["T1", "T2", "PD"]}))
    dataset = scan(tmp_path, NONE)
    assert (names(dataset.channels), dataset.time_points) == (["T1", "T2", "PD"], False)
    (found,) = find_inputs(tmp_path / "images" / "p0.nii.gz", bundle_of(dataset))
    np.testing.assert_array_equal(load_input(found, dataset.channels)[0], voxels)


def test_labels_with_time_points_make_cases_of_them(tmp_path: Path) -> None:
    voxels = cine(tmp_path, frames=3, label_frames=3)
    dataset = scan(tmp_path, DataOptions(classes={"heart": 1}))
    assert dataset.time_points
    assert [case.identifier for case in dataset.cases] == ["p0_t0", "p0_t1", "p0_t2", "p1_t0", "p1_t1", "p1_t2"]
    assert [case.group for case in dataset.cases] == ["p0"] * 3 + ["p1"] * 3
    case = load_case(dataset, "p1_t2")
    np.testing.assert_array_equal(case.image[0], voxels[2])
    assert case.labels.shape == SHAPE
    facts = examine(dataset, workers=1)
    assert not any(fact.findings for fact in facts)
    assert len({fact.content_hash for fact in facts[:3]}) == 3
    found = find_inputs(tmp_path / "images", bundle_of(dataset))
    assert [each.identifier for each in found] == [case.identifier for case in dataset.cases]
    np.testing.assert_array_equal(load_input(found[4], dataset.channels)[0][0], voxels[1])


def test_an_unclear_fourth_axis_is_asked_about(tmp_path: Path) -> None:
    cine(tmp_path / "a")
    with pytest.raises(DataError, match=r"3 entries along a fourth axis; its label has none, .*--frames channels"):
        scan(tmp_path / "a", NONE)
    assert len(scan(tmp_path / "a", DataOptions(frames="channels")).channels) == 3
    with pytest.raises(DataError, match=r"different numbers of time points .*labels/p0\.nii\.gz 1"):
        scan(tmp_path / "a", DataOptions(frames="time"))
    cine(tmp_path / "b", frames=3, label_frames=3)
    (tmp_path / "b" / "dataset.json").write_text(json.dumps({"channel_names": ["T1", "T2", "PD"]}))
    with pytest.raises(DataError, match="its label has 3 too, and 3 channels are named"):
        scan(tmp_path / "b", NONE)
    (tmp_path / "b" / "dataset.json").write_text(json.dumps({"channel_names": ["cine"]}))
    assert len(scan(tmp_path / "b", NONE).cases) == 6


def test_the_command_line_says_what_was_understood(tmp_path: Path) -> None:
    cine(tmp_path)
    runner = CliRunner()
    refused = runner.invoke(app, ["check", str(tmp_path)])
    assert refused.exit_code == 1
    assert "--frames channels" in refused.output
    done = runner.invoke(app, ["check", str(tmp_path), "--frames", "channels", "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert (told["layout"], told["cases"], len(told["channels"])) == ("pairs", ["p0", "p1"], 3)


def test_time_needs_a_fourth_axis(tmp_path: Path) -> None:
    make_demo_dataset(tmp_path, cases=2)
    with pytest.raises(DataError, match="has no fourth axis"):
        scan(tmp_path, DataOptions(frames="time"))


# data lists of MONAI and Auto3DSeg


def data_list(root: Path, images: Sequence[object], file: str = "dataset.json", **others: object) -> Path:
    """A list of cases c0, c1, ... with the given images, alternately in folds 0 and 1; every file is made."""
    entries = []
    for index, names_ in enumerate(images):
        for name in names_ if isinstance(names_, list) else [names_]:
            image(root / str(name), index)
        label(root / f"lb/c{index}.nii.gz")
        entries.append({"image": names_, "label": f"lb/c{index}.nii.gz", "fold": index % 2})
    (root / file).write_text(json.dumps({"training": entries, **others}))
    return root / file


@pytest.mark.parametrize("file", ["dataset.json", "datalist_0.json"])
@pytest.mark.parametrize("as_file", [False, True])
def test_the_folds_of_a_data_list_are_used(tmp_path: Path, file: str, as_file: bool) -> None:
    place = data_list(tmp_path, [f"im/c{index}.nii.gz" for index in range(5)], file)
    found = scan(place if as_file else tmp_path, NONE)
    assert (found.layout, found.fold_source, len(found.cases)) == ("msd", file, 5)
    splits = make_splits(found, examine(found, 1), NONE)
    assert (splits.source, splits.folds) == (file, (("c0", "c2", "c4"), ("c1", "c3")))
    place.write_text(place.read_text().replace('"fold": 1', '"fold": 1.0'))  # as pandas writes whole numbers
    assert make_splits(scan(place, NONE), [], NONE).folds == splits.folds
    other = make_splits(found, [], DataOptions(splits="nnunet"))
    assert other.source == "nnunet"


@pytest.mark.parametrize(
    ("images", "cases", "channels", "patterns"),
    [
        ("im/c{}_t1.nii.gz im/c{}_t1ce.nii.gz", ["c0", "c1"], ["t1", "t1ce"], ["*_t1.nii.gz", "*_t1ce.nii.gz"]),
        ("im/c_{}_T1w.nii.gz im/c_{}_T2w.nii.gz", ["c_0", "c_1"], ["T1w", "T2w"], ["*_T1w.nii.gz", "*_T2w.nii.gz"]),
        ("c{}/t1.nii.gz c{}/flair.nii.gz", ["c0", "c1"], ["t1", "flair"], ["*/t1.nii.gz", "*/flair.nii.gz"]),
        ("t1/c{}.nii.gz t2/c{}.nii.gz", ["c0", "c1"], ["t1", "t2"], ["t1/*.nii.gz", "t2/*.nii.gz"]),
        ("c{}/ct.nii.gz", ["c0", "c1"], ["image"], []),
        ("im/c{}_0000.nii.gz im/c{}_0001.nii.gz", ["c0", "c1"], ["0000", "0001"], ["*_0000.nii.gz", "*_0001.nii.gz"]),
        ("im/a{}.nii.gz other/b{}.nii.gz", ["a0", "a1"], ["channel_0", "channel_1"], []),
    ],
)  # fmt: skip
def test_lists_of_files_are_the_channels(
    tmp_path: Path, images: str, cases: list[str], channels: list[str], patterns: list[str]
) -> None:
    data_list(tmp_path, [images.format(*[index] * 2).split() for index in range(2)])
    found = scan(tmp_path, NONE)
    assert [case.identifier for case in found.cases] == cases
    assert names(found.channels) == channels
    assert list(found.channel_patterns.values()) == patterns
    facts = examine(found, 1)
    assert load_case(complete_labels(found, facts), cases[1]).image.shape == (len(channels), *SHAPE)
    assert not [each for fact in facts for each in fact.findings]
    if patterns and not patterns[0].startswith("t1/"):  # a folder in the pattern is that of the training data
        folder = tmp_path if images.startswith("c") else tmp_path / "im"
        assert [len(each.images) for each in find_inputs(folder, bundle_of(found))] == [2, 2]


def test_paths_of_a_data_list_may_be_absolute_and_lie_elsewhere(tmp_path: Path) -> None:
    place = data_list(tmp_path / "lists", [str(tmp_path / f"c{index}.nii.gz") for index in range(3)])
    assert [case.images for case in scan(place, NONE).cases] == [(f"../c{index}.nii.gz",) for index in range(3)]
    (tmp_path / "c1.nii.gz").unlink()
    with pytest.raises(DataError, match=r"case c1: dataset.json lists ../c1.nii.gz, which does not exist"):
        scan(place, NONE)


def test_what_a_data_list_holds_besides_is_said(tmp_path: Path) -> None:
    entry = {"image": "im/v.nii.gz", "label": "lb/v.nii.gz"}
    data_list(
        tmp_path, ["c0.nii.gz", "c1.nii.gz"], validation=[entry], testing=[entry], test=["im/a.nii.gz"], numTest=1
    )
    (tmp_path / "second.json").write_text(json.dumps({"training": [entry]}))
    findings: list[Finding] = []
    scan(tmp_path, NONE, findings)
    assert [each.message for each in findings] == [
        "dataset.json lists 1 cases under validation, which are neither trained on nor validated",
        "dataset.json lists 1 cases under testing, which are neither trained on nor validated",
        "second.json lists cases, too, and dataset.json is used",
    ]
    content = json.loads((tmp_path / "dataset.json").read_text())
    content["training"][0] |= {"box": [1, 2]}
    (tmp_path / "dataset.json").write_text(json.dumps({"training": content["training"]}))
    scan(tmp_path, NONE, findings)
    assert "box of the entries of dataset.json is not used" in [each.message for each in findings]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fold": None}, "case c1: dataset.json gives it no fold"),
        ({"fold": 0}, "dataset.json puts every case into fold 0"),
        ({"fold": [0]}, "its fold is no whole number"),
        ({"fold": 0.5}, "its fold is no whole number"),
        ({"label": None}, "case c1: dataset.json gives it no label. Add its label to the entry"),
        ({"label": ["a.nii.gz", "b.nii.gz"]}, "Join labels into one file"),
        ({"image": []}, "a path or a list of paths"),
        ({"image": ["c1.nii.gz", "c0.nii.gz"]}, "lists 2 files as its image, and 1 for most cases"),
    ],
)
def test_entries_that_do_not_fit(tmp_path: Path, change: dict[str, object], message: str) -> None:
    data_list(tmp_path, ["c0.nii.gz", "c1.nii.gz", "c2.nii.gz"])
    content = json.loads((tmp_path / "dataset.json").read_text())
    content["training"][1] |= change
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=message):
        make_splits(scan(tmp_path, NONE), [], NONE)


# the background


def nnunet_set(root: Path, labels: object) -> Path:
    for index in range(2):
        image(root / f"imagesTr/c{index}_0000.nii.gz", index)
        label(root / f"labelsTr/c{index}.nii.gz", 2)
    text = labels if isinstance(labels, str) else json.dumps(labels)
    (root / "dataset.json").write_text(
        f'{{"channel_names": {{"0": "MRI"}}, "file_ending": ".nii.gz", "labels": {text}}}'
    )
    return root


@pytest.mark.parametrize(
    ("labels", "shown"),
    [
        ({"background": 255, "outer": 0, "inner": 1}, "gives background the value 255"),
        ({"background": 0, "Background ": 1}, "gives Background  the value 1"),
        ({"0": "outer", "1": "BACKGROUND"}, "gives BACKGROUND the value 1"),
        ({"background": [0, 2], "inner": 1}, "gives background the value 0, 2"),
        ('{"background": 0, "background": 255, "a": 1}', "'background' is there twice"),
    ],
)
def test_a_background_other_than_0_is_refused(tmp_path: Path, labels: object, shown: str) -> None:
    with pytest.raises(DataError, match=shown):
        scan(nnunet_set(tmp_path, labels), NONE)


def test_a_structure_that_is_0_is_reported_and_never_counted(tmp_path: Path) -> None:
    """As with --class membrane=0; words for nothing are the background."""
    for given, options, reported in (
        ({"membrane": 0, "cell": 1}, NONE, ["membrane", "cell"]),
        ({"0": "unlabelled", "1": "cell"}, NONE, ["cell"]),
        ({"cell": 1}, NONE, ["cell"]),
        ({"background": 0, "cell": 1}, DataOptions(classes={"membrane": 0}), ["membrane", "cell"]),
        ({"background": 255, "a": 0}, DataOptions(classes={"membrane": 0, "cell": 255}), ["membrane", "cell"]),
    ):
        found = scan(nnunet_set(tmp_path, given), options).labels
        assert [each.name for each in found.reported] == reported
        assert [each.value for each in found.foreground] == [found.classes[1].value]
    with pytest.raises(OptionError, match="--class gives background the value 1"):
        scan(nnunet_set(tmp_path, {"cell": 1}), DataOptions(classes={"background": 1}))


def test_the_entries_of_labels_are_counted_for_the_presets(tmp_path: Path) -> None:
    assert scan(nnunet_set(tmp_path, {"cell": 1}), NONE).labels.entries == 1
    found = scan(nnunet_set(tmp_path, {"background": 0, "cell": 1, "ignore": 2}), NONE)
    assert complete_labels(found, examine(found, 1)).labels.entries == 3
    assert scan(tmp_path, DataOptions(classes={"nucleus": 1})).labels.entries is None

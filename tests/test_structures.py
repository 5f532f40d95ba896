"""Labels of one mask for each structure: recognised, named by hand, missing, overlapping; and from them to a model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from quick_runs import narrow, no_trials, one_probe  # noqa: F401 - used by every test here
from typer.testing import CliRunner

from autounet import api
from autounet.cli.app import app
from autounet.datasets import load_case, scan
from autounet.datasets.checks.examine import examine
from autounet.datasets.checks.set_checks import check_dataset
from autounet.datasets.layouts.structure_masks import structures_of
from autounet.datasets.structures import combination_codes, overlap_findings
from autounet.imageio import StructureMap, read_labels, structure_values, write_image, write_labels
from autounet.imageio.structures import NamedMask, join_masks
from autounet.schema.dataset import Dataset
from autounet.schema.errors import AutoUNetError, DataError
from autounet.schema.geometry import Geometry
from autounet.schema.labels import LabelCode
from autounet.schema.options import DataOptions, RunOptions
from autounet.workflow.pipeline import run_pipeline

PLAIN = DataOptions()
GEOMETRY = Geometry(shape=(8, 20, 18), spacing=(3.0, 1.0, 1.0))
BOXES = {"liver": np.s_[2:7, 3:15, 2:9], "spleen": np.s_[1:5, 4:10, 11:16], "kidney_left": np.s_[3:6, 12:18, 11:15]}


def drawn(box: tuple[slice, ...]) -> np.ndarray:
    mask = np.zeros(GEOMETRY.shape, np.uint8)
    mask[box] = 1
    return mask


MASKS = {name: drawn(box) for name, box in BOXES.items()}


def organs(
    root: Path,
    cases: int = 5,
    masks: Mapping[str, np.ndarray] = MASKS,
    name: str = "{case}/segmentations/{structure}.nii.gz",
    image: str = "{case}/ct.nii.gz",
    lacking: Mapping[str, tuple[int, ...]] = {},
) -> Path:
    """Cases s0, s1, ... of the same masks on different noise; `lacking` are the cases without a structure."""
    for index in range(cases):
        rng = np.random.default_rng(index)
        voxels = rng.normal(0, 10, (1, *GEOMETRY.shape)).astype(np.float32)
        voxels += 100 * sum(masks.values())
        path = root / image.format(case=f"s{index}")
        path.parent.mkdir(parents=True, exist_ok=True)
        write_image(path, voxels, GEOMETRY)
        for structure, mask in masks.items():
            if index not in lacking.get(structure, ()):
                path = root / name.format(case=f"s{index}", structure=structure)
                path.parent.mkdir(parents=True, exist_ok=True)
                write_labels(path, mask, GEOMETRY)
    return root


def classes(dataset: Dataset) -> dict[str, int]:
    return {each.name: each.value for each in dataset.labels.classes}


def codes_of(root: Path) -> list[str]:
    findings = []
    dataset = scan(root, DataOptions(), findings)
    return sorted({each.code for each in [*findings, *check_dataset(dataset, examine(dataset, workers=1))]})


@pytest.mark.parametrize(
    "name",
    [
        "{case}/segmentations/{structure}.nii.gz",
        "{case}/masks/{case}_{structure}.nii.gz",
        "{case}/labels/mask_{structure}.nrrd",
        "{case}/rois/{structure}_seg.nii",
        "{case}/anything/{structure}.nii.gz",
        "{case}/derived/organs/{structure}.mha",
    ],
)
def test_folders_of_masks_are_recognised(tmp_path: Path, name: str) -> None:
    dataset = scan(organs(tmp_path, name=name), DataOptions())
    assert (dataset.layout, len(dataset.cases), dataset.channel_patterns) == ("cases", 5, {"ct": "*/ct.nii.gz"})
    assert classes(dataset) == {"background": 0, "kidney_left": 1, "liver": 2, "spleen": 3}
    assert dataset.labels_declared
    expected = 2 * MASKS["liver"] + 3 * MASKS["spleen"] + MASKS["kidney_left"]
    np.testing.assert_array_equal(load_case(dataset, "s2").labels, expected)
    assert "missing-structures" not in codes_of(tmp_path)


def test_one_mask_or_a_file_of_several_classes_is_no_set_of_structures(tmp_path: Path) -> None:
    one = scan(organs(tmp_path / "one", masks={"liver": MASKS["liver"]}), DataOptions())
    assert one.cases[0].label == "s0/segmentations/liver.nii.gz"
    assert not one.cases[0].label_parts
    organs(tmp_path / "two", masks={"first": MASKS["liver"], "second": MASKS["liver"] + MASKS["spleen"] * 2})
    with pytest.raises(DataError, match="several files of each can be the label"):
        scan(tmp_path / "two", DataOptions())


def test_masks_beside_a_label_are_asked_about(tmp_path: Path) -> None:
    organs(tmp_path)
    for index in range(5):
        write_labels(tmp_path / f"s{index}" / "seg.nii.gz", MASKS["liver"] * 2 + MASKS["spleen"], GEOMETRY)
    with pytest.raises(DataError, match=r"candidates: \*/seg.nii.gz \(values 0, 1, 2\), \*/segmentations/\*") as error:
        scan(tmp_path, DataOptions())
    assert "--label '*/segmentations/*'" in error.value.remedy
    channels = {"ct": "*/ct.nii.gz"}
    masks = scan(tmp_path, DataOptions(label="*/segmentations/*", channels=channels))
    assert set(classes(masks)) == {"background", *MASKS}
    assert not scan(tmp_path, DataOptions(label="seg.nii.gz", channels=channels)).cases[0].label_parts


@pytest.mark.parametrize(
    ("name", "image", "pattern"),
    [
        ("{case}/segmentations/{structure}.nii.gz", "{case}/ct.nii.gz", "*/segmentations/{structure}.nii.gz"),
        ("{case}/{structure}.nii.gz", "{case}/ct.nii.gz", "*/{structure}.nii.gz"),
        ("{case}/{structure}.nii.gz", "{case}/ct.nii.gz", "{structure}.nii.gz"),
        ("masks/{structure}/{case}.nii.gz", "images/{case}.nii.gz", "masks/{structure}/*"),
        ("masks/{case}/{structure}.nii.gz", "images/{case}.nii.gz", "masks/*/{structure}.nii.gz"),
        ("masks/{case}_{structure}.nii.gz", "images/{case}.nii.gz", "masks/*_{structure}.nii.gz"),
    ],
)
def test_patterns_name_structures(tmp_path: Path, name: str, image: str, pattern: str) -> None:
    organs(tmp_path, name=name, image=image, lacking={"spleen": (1,)})
    given_classes = {each: pattern.format(structure=each) for each in ("spleen", "liver")}
    given_classes["left kidney"] = pattern.format(structure="kidney_left")
    dataset = scan(tmp_path, DataOptions(classes=given_classes))
    assert classes(dataset) == {"background": 0, "spleen": 1, "liver": 2, "left kidney": 3}
    expected = 2 * MASKS["liver"] + MASKS["spleen"] + 3 * MASKS["kidney_left"]
    np.testing.assert_array_equal(load_case(dataset, "s3").labels, expected)
    assert {case.identifier: case.annotated for case in dataset.cases if case.annotated} == {"s1": (2, 3)}


def test_a_pattern_without_a_slash_is_one_of_names_in_every_folder(tmp_path: Path) -> None:
    organs(tmp_path, masks={"liver": MASKS["liver"]}, name="{case}/a/b/OTMultiClass_{case}.nii.gz")
    dataset = scan(tmp_path, DataOptions(label="OTMultiClass*", channels={"CT": "ct*"}))
    assert dataset.cases[4].label == "s4/a/b/OTMultiClass_s4.nii.gz"
    for absent in ("OTSingleClass*", "./OTMultiClass*"):
        with pytest.raises(AutoUNetError):
            scan(tmp_path, DataOptions(label=absent))


def test_a_missing_mask_is_not_annotated_or_absent(tmp_path: Path) -> None:
    organs(tmp_path, lacking={"spleen": (0, 3), "liver": (3,)})
    findings = []
    dataset = scan(tmp_path, DataOptions(), findings)
    assert {case.identifier: case.annotated for case in dataset.cases if case.annotated} == {"s0": (1, 2), "s3": (1,)}
    told = [each for each in findings if each.code == "missing-structures"]
    assert len(told) == 1
    assert "spleen (in 2 cases, such as s0)" in told[0].message
    assert "liver (in s3)" in told[0].message
    assert "--missing-structures absent" in told[0].remedy
    assert not any(each.code == "unlisted-class" for each in check_dataset(dataset, examine(dataset, workers=1)))
    absent = scan(tmp_path, DataOptions(missing_structures="absent"), findings)
    assert not any(case.annotated for case in absent.cases)
    (tmp_path / "dataset.json").write_text(json.dumps({"missing_structures": "absent", "annotated": {"s1": ["liver"]}}))
    described = scan(tmp_path, DataOptions())
    assert {case.identifier: case.annotated for case in described.cases if case.annotated} == {"s1": (2,)}


def test_overlaps_are_told_and_made_regions_when_asked(tmp_path: Path) -> None:
    tumour = drawn(np.s_[3:5, 5:8, 4:7])
    organs(tmp_path, masks={"liver": MASKS["liver"], "tumour": tumour})
    dataset = scan(tmp_path, DataOptions())
    facts = examine(dataset, workers=1)
    (told,) = overlap_findings(facts)
    assert f"liver and tumour ({5 * tumour.sum()} voxels in 5 cases, such as s0)" in told.message
    assert "--overlaps regions" in told.remedy
    expected = np.where(tumour, 2, MASKS["liver"])
    np.testing.assert_array_equal(load_case(dataset, "s1").labels, expected)  # the smaller one has the voxel
    findings = []
    dataset = scan(tmp_path, DataOptions(overlaps="regions"), findings)
    values = classes(dataset)
    assert set(values) == {"background", "liver alone", "liver + tumour"}
    both = values["liver + tumour"]
    assert {each.name: set(each.values) for each in dataset.labels.regions} == {
        "liver": {values["liver alone"], both},
        "tumour": {both},
    }
    assert [each.code for each in findings] == ["overlapping-structures"]
    assert not overlap_findings(examine(dataset, workers=1))
    dense = load_case(dataset, "s1").labels
    np.testing.assert_array_equal(dense == dataset.labels.values.index(both), tumour.astype(bool))
    np.testing.assert_array_equal(dense > 0, MASKS["liver"].astype(bool))


def test_what_is_no_mask_is_told(tmp_path: Path) -> None:
    organs(tmp_path)
    write_labels(tmp_path / "s4/segmentations/spleen.nii.gz", MASKS["spleen"] + MASKS["liver"] * 2, GEOMETRY)
    moved = GEOMETRY.model_copy(update={"origin": (0.0, 0.0, 7.0)})
    write_labels(tmp_path / "s3/segmentations/spleen.nii.gz", MASKS["spleen"], moved)
    cut = GEOMETRY.model_copy(update={"shape": (7, 20, 18)})
    write_labels(tmp_path / "s2/segmentations/spleen.nii.gz", MASKS["spleen"][1:], cut)
    facts = examine(scan(tmp_path, DataOptions()), workers=1)
    messages = {fact.identifier: fact.findings[0].message for fact in facts if fact.findings}
    assert set(messages) == {"s2", "s3", "s4"}
    assert "s4/segmentations/spleen.nii.gz is to be the mask of one structure, and holds the values" in messages["s4"]
    assert "is not aligned with kidney_left.nii.gz: origin" in messages["s3"]
    assert "has shape (7, 20, 18), but kidney_left.nii.gz" in messages["s2"]


def test_renaming_and_other_masks_change_the_facts(tmp_path: Path) -> None:
    organs(tmp_path, cases=2)
    before = examine(scan(tmp_path, DataOptions()), workers=1)
    known = {fact.identifier: fact for fact in before}
    again: list[object] = []
    examine(scan(tmp_path, DataOptions()), workers=1, known=known, on_done=again.append)
    assert again == [None, None]
    write_labels(tmp_path / "s1/segmentations/spleen.nii.gz", drawn(np.s_[:2, :2, :2]), GEOMETRY)
    changed: list[object] = []
    examine(scan(tmp_path, DataOptions()), workers=1, known=known, on_done=changed.append)
    assert [each is None for each in changed].count(True) == 1


masks = st.lists(st.lists(st.booleans(), min_size=12, max_size=12), min_size=1, max_size=4)


@given(masks)
@settings(max_examples=60)
def test_a_map_holds_every_mask(given_masks: list[list[bool]]) -> None:
    """The sets of the map are those in each voxel; classes and regions made of them give the masks again."""
    shape = Geometry(shape=(1, 3, 4))
    named = [NamedMask(str(index), np.reshape(mask, (1, 3, 4))) for index, mask in enumerate(given_masks)]
    found = join_masks(named, shape)
    for name, mask in named:
        np.testing.assert_array_equal(np.array([name in each for each in found.sets])[found.indices], mask)
    occurring = list(found.voxels)
    labels, codes = combination_codes(
        [name for name, _ in named], [each for each in occurring if len(each) > 1], occurring, {}
    )
    values = structure_values(Path("x"), found, codes, strict=True).values
    for name, mask in named:
        own = labels.regions.get(name) or (labels.classes[name],)
        np.testing.assert_array_equal(np.isin(values, own), mask)


def test_the_smaller_structure_has_a_shared_voxel() -> None:
    sets = [frozenset(), frozenset({"a"}), frozenset({"a", "b"}), frozenset({"b"})]
    found = StructureMap(np.array([[[1, 1, 2, 3, 0, 3, 3]]], np.int32), sets, Geometry(shape=(1, 1, 7)))
    codes = [LabelCode(value=5, segments=("a",)), LabelCode(value=6, segments=("b",))]
    values, shared = structure_values(Path("x"), found, codes, strict=False)
    assert values.tolist() == [[[5, 5, 5, 6, 0, 6, 6]]]
    assert shared == {frozenset({"a", "b"}): 1}
    with pytest.raises(DataError, match="segments that overlap a and b"):
        structure_values(Path("x"), found, codes, strict=True)
    with pytest.raises(DataError, match="a and b, which the data set does not know \\(a\\)"):
        structure_values(Path("x"), found, codes[:1], strict=False)


def test_names_are_what_tells_the_files_apart() -> None:
    def names(*files: str, case: str = "s1") -> list[str] | None:
        found = structures_of({case: [Path(case) / "m" / f"{file}.nii.gz" for file in files]})
        return list(found[case]) if found else None

    assert names("kidney_left", "kidney_right") == ["kidney_left", "kidney_right"]
    assert names("s1_kidney", "s1-liver") == ["kidney", "liver"]
    assert names("mask_kidney", "mask_liver") == ["kidney", "liver"]
    assert names("kidney_seg", "liver_seg") == ["kidney", "liver"]
    assert names("seg", "liver_seg") == ["liver_seg", "seg"]
    assert names("a b", "a_b") is None


def from_check_to_prediction(data: Path, new: Path, out: Path, options: DataOptions = PLAIN) -> list[Path]:
    """What `check` says nothing fatal of is trained in 4 steps, and predicted; the segmentations."""
    words = [word for name, pattern in options.classes.items() for word in ("--class", f"{name}={pattern}")]
    words += ["--label", options.label] if options.label else []
    checked = CliRunner().invoke(app, ["check", str(data), *words])
    assert checked.exit_code == 0, checked.output
    given_options = RunOptions(
        device="cpu", workers=0, memory_bytes=700 * 2**20, iterations=4, folds="0", configurations=("3d_fullres",),
        data=options,
    )  # fmt: skip
    run_pipeline(data, out, given_options, until="select")
    api.load(out / "model", device="cpu").predict_files(new, out / "predicted")
    return sorted((out / "predicted").rglob("*.nii.gz"))


def test_from_masks_to_predictions(tmp_path: Path) -> None:
    organs(tmp_path / "data", lacking={"spleen": (1,)})
    found = from_check_to_prediction(tmp_path / "data", tmp_path / "data", tmp_path / "out")
    assert [path.name for path in found] == [f"s{index}.nii.gz" for index in range(5)]
    assert set(np.unique(read_labels(found[0])[0])) <= {0, 1, 2, 3}
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert set(metrics["per_class"]) == set(MASKS)


def test_repairs_write_one_label_file(tmp_path: Path) -> None:
    organs(tmp_path / "data")
    done = CliRunner().invoke(app, ["check", str(tmp_path / "data"), "--fix", "--out", str(tmp_path / "fixed")])
    assert done.exit_code == 0, done.output
    dataset = scan(tmp_path / "fixed", DataOptions())
    assert classes(dataset) == {"background": 0, "kidney_left": 1, "liver": 2, "spleen": 3}
    assert dataset.cases[0].label == "labelsTr/s0.nii.gz"

"""Layouts are detected, ambiguities and gaps are told, cases are loaded, inputs are found."""

from __future__ import annotations

import json
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from autounet.datasets import find_inputs, load_case, load_input, scan
from autounet.datasets.labels import left_right_pairs
from autounet.datasets.synthetic import make_demo_dataset
from autounet.imageio import is_image, stem, write_image, write_labels
from autounet.ops.masks import decode, encode
from autounet.schema.bundle import ModelBundle
from autounet.schema.dataset import Case, Channel, ChannelKind, Dataset, Finding
from autounet.schema.errors import DataError, OptionError
from autounet.schema.geometry import Geometry
from autounet.schema.labels import LabelClass, Labels
from autounet.schema.options import DataOptions

REAL = Path(__file__).parents[2] / "shared" / "data"
NONE = DataOptions()


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_demo_dataset(tmp_path_factory.mktemp("demo"), cases=3, test_cases=1)


def volume(path: Path, value: float = 1.0, shape: tuple[int, int, int] = (2, 3, 4)) -> None:
    write_image(path, np.full((1, *shape), value, np.float32), Geometry(shape=shape))


def mask(path: Path, shape: tuple[int, int, int] = (2, 3, 4), value: int = 1) -> None:
    write_labels(path, np.full(shape, value), Geometry(shape=shape))


def picture(path: Path, colour: bool = False, value: int = 7) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((5, 6, 3) if colour else (5, 6), value, np.uint8)).save(path)


def picture_pairs(root: Path, images: str, labels: str, count: int = 3, colour: bool = False) -> None:
    for index in range(count):
        picture(root / images / f"{index}.png", colour)
        picture(root / labels / f"{index}.png", value=255)


@pytest.mark.parametrize("layout", ["nnunet", "msd"])
def test_demo_in_both_layouts(tmp_path: Path, layout: str) -> None:
    dataset = scan(make_demo_dataset(tmp_path, cases=2, layout=layout), NONE)
    assert dataset.layout == layout
    assert [case.identifier for case in dataset.cases] == ["demo_000", "demo_001"]
    assert dataset.channels == (Channel(name="MRI", kind=ChannelKind.mri),)
    assert dataset.labels.values == (0, 1, 2)
    assert dataset.labels_declared
    case = load_case(dataset, "demo_001")
    assert case.image.dtype == np.float32
    assert case.image.shape == (1, *case.geometry.shape)
    assert case.labels.dtype == np.int16
    assert set(np.unique(case.labels)) == {0, 1, 2}
    assert Dataset.model_validate_json(dataset.model_dump_json()) == dataset


def test_demo_is_reproducible(tmp_path: Path, demo: Path) -> None:
    again = make_demo_dataset(tmp_path, cases=2)
    name = "imagesTr/demo_001_0000.nii.gz"
    np.testing.assert_array_equal(
        load_case(scan(again, NONE), "demo_001").image, load_case(scan(demo, NONE), "demo_001").image
    )
    assert (demo / name).is_file()


def test_pairs_of_pictures(tmp_path: Path) -> None:
    picture_pairs(tmp_path, "image", "label")
    dataset = scan(tmp_path, DataOptions(classes={"membrane": 0, "cell": 255}, kinds={"image": "photo"}))
    assert dataset.layout == "pairs"
    assert dataset.channels == (Channel(name="image", kind=ChannelKind.photo),)
    assert dataset.labels.background_named
    assert [(label.name, label.value) for label in dataset.labels.classes] == [("membrane", 0), ("cell", 255)]
    assert load_case(dataset, "0").labels.max() == 1


def test_colour_pictures_have_three_channels(tmp_path: Path) -> None:
    picture_pairs(tmp_path, "images", "masks", colour=True)
    dataset = scan(tmp_path, NONE)
    assert [channel.name for channel in dataset.channels] == ["red", "green", "blue"]
    assert {channel.kind for channel in dataset.channels} == {ChannelKind.photo}


def test_ambiguous_labels_list_the_candidates(tmp_path: Path) -> None:
    picture_pairs(tmp_path, "images", "1st_manual")
    picture_pairs(tmp_path, "images", "mask")
    with pytest.raises(DataError, match=r"candidates: 1st_manual, mask.*--label '1st_manual/\*'"):
        scan(tmp_path, NONE)
    assert scan(tmp_path, DataOptions(label="1st_manual/*")).cases[0].label == "1st_manual/0.png"
    assert scan(tmp_path, DataOptions(label="mask")).cases[0].label == "mask/0.png"
    with pytest.raises(OptionError, match=r"names no image file.*mask/ \(3 images\)"):
        scan(tmp_path, DataOptions(label="nowhere/*"))


def test_held_out_folders_do_not_confuse(tmp_path: Path) -> None:
    picture_pairs(tmp_path, "imagesTr", "labelsTr")
    picture_pairs(tmp_path, "imagesTs", "labelsTs", count=2)
    dataset = scan(tmp_path, NONE)
    assert dataset.layout == "pairs"
    assert dataset.cases[0].images == ("imagesTr/0.png",)


@pytest.mark.parametrize("labels", ["segments", "masks", "Annotations", "gt", "tumour"])
def test_any_single_folder_can_hold_the_labels(tmp_path: Path, labels: str) -> None:
    picture_pairs(tmp_path, "imgs", labels)
    assert scan(tmp_path, NONE).cases[2].label == f"{labels}/2.png"


def test_channels_by_number_in_pairs(tmp_path: Path) -> None:
    for name in ("a", "b"):
        volume(tmp_path / "img" / f"{name}_0000.nii.gz")
        volume(tmp_path / "img" / f"{name}_0001.nii.gz")
        mask(tmp_path / "seg" / f"{name}.nii.gz")
    dataset = scan(tmp_path, NONE)
    assert [case.identifier for case in dataset.cases] == ["a", "b"]
    assert len(dataset.channels) == 2
    assert dataset.image_pattern == "img/*_0000.nii.gz"


def test_numbered_slices_are_no_channels(tmp_path: Path) -> None:
    for index in range(3):
        picture(tmp_path / "images" / f"slice_{index:04d}.png")
        picture(tmp_path / "labels" / f"slice_{index:04d}.png")
    assert len(scan(tmp_path, NONE).cases) == 3


def test_channel_patterns_and_folder_per_case(tmp_path: Path) -> None:
    for name in ("pat_1", "pat_2"):
        volume(tmp_path / name / "flair.nii.gz")
        volume(tmp_path / name / "t1c.nii.gz")
        mask(tmp_path / name / "truth.nii.gz")
    options = DataOptions(
        channels={"FLAIR": "*/flair*", "CT": "*/t1c*"}, label="*/truth*", kinds={"CT": "other"}, classes={"tumour": 1}
    )
    dataset = scan(tmp_path, options)
    assert [case.identifier for case in dataset.cases] == ["pat_1", "pat_2"]
    assert [channel.kind for channel in dataset.channels] == [ChannelKind.mri, ChannelKind.other]
    assert load_case(dataset, "pat_1").image.shape[0] == 2
    (tmp_path / "pat_2" / "t1c.nii.gz").unlink()
    with pytest.raises(DataError, match="case pat_2: it has no file for channel CT"):
        scan(tmp_path, options)


def test_label_option_overrides_declared_layouts(tmp_path: Path) -> None:
    make_demo_dataset(tmp_path, cases=2)
    (tmp_path / "labelsTr").rename(tmp_path / "scribbles")
    dataset = scan(tmp_path, DataOptions(label="scribbles/*", ignore=2))
    assert dataset.cases[1].label == "scribbles/demo_001.nii.gz"
    assert dataset.labels.ignore == 2
    assert load_case(dataset, "demo_000").labels.min() == -1


def test_nnunet_regions_ignore_and_missing_background(tmp_path: Path) -> None:
    make_demo_dataset(tmp_path, cases=1)
    labels = {"whole": [1, 2, 3], "core": [2, 3], "edge": 3, "ignore": 9}
    description = {"channel_names": {"0": "CT (HU)"}, "labels": labels, "file_ending": ".nii.gz"}
    (tmp_path / "dataset.json").write_text(json.dumps(description))
    dataset = scan(tmp_path, NONE)
    assert dataset.channels[0].kind == ChannelKind.ct
    assert [(c.name, c.value) for c in dataset.labels.classes] == [
        ("background", 0), ("label_1", 1), ("label_2", 2), ("edge", 3)
    ]  # fmt: skip
    assert [region.name for region in dataset.labels.regions] == ["whole", "core"]
    assert dataset.labels.ignore == 9


def test_groups(demo: Path) -> None:
    assert {case.group for case in scan(demo, DataOptions(group=r"(demo)_")).cases} == {"demo"}
    with pytest.raises(OptionError, match="captures nothing in 'demo_000'"):
        scan(demo, DataOptions(group=r"patient(\d+)"))


def test_left_and_right() -> None:
    names = ["LeftParotid", "RightParotid", "eye_l", "eye_r", "cleft", "L kidney", "R kidney"]
    expected = (("LeftParotid", "RightParotid"), ("eye_l", "eye_r"), ("L kidney", "R kidney"))
    assert left_right_pairs(names) == expected


# ---- gaps and mistakes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["nnunet", "msd"])
def test_missing_files_are_all_named(tmp_path: Path, layout: str) -> None:
    make_demo_dataset(tmp_path, cases=4, layout=layout)
    (tmp_path / "labelsTr" / "demo_001.nii.gz").unlink()
    (tmp_path / "labelsTr" / "demo_002.nii.gz").unlink()
    with pytest.raises(DataError) as caught:
        scan(tmp_path, NONE)
    assert [(finding.case, finding.code) for finding in caught.value.findings] == [
        ("demo_001", "missing-label"),
        ("demo_002", "missing-label"),
    ]
    assert "case demo_002: " in str(caught.value)


def test_missing_label_and_image_in_pairs(tmp_path: Path) -> None:
    picture_pairs(tmp_path, "images", "labels", count=4)
    (tmp_path / "labels" / "2.png").unlink()
    (tmp_path / "images" / "3.png").unlink()
    with pytest.raises(DataError) as caught:
        scan(tmp_path, NONE)
    assert {(finding.case, finding.code) for finding in caught.value.findings} == {
        ("2", "missing-label"),
        ("3", "missing-image"),
    }


def test_missing_channel(tmp_path: Path) -> None:
    make_demo_dataset(tmp_path, cases=2)
    volume(tmp_path / "imagesTr" / "demo_001_0001.nii.gz")
    with pytest.raises(DataError, match=r"case demo_001: demo_001_0001\.nii\.gz ends in the number of no channel"):
        scan(tmp_path, NONE)


def test_channel_count_must_match_names(tmp_path: Path) -> None:
    make_demo_dataset(tmp_path, cases=1)
    description = json.loads((tmp_path / "dataset.json").read_text())
    description["channel_names"] = {"0": "T1", "1": "T2"}
    (tmp_path / "dataset.json").write_text(json.dumps(description))
    with pytest.raises(DataError, match=r"has 1 channel, but 2 are named \(T1, T2\)"):
        scan(tmp_path, NONE)


def test_empty_and_wrong_folders(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is empty"):
        scan(tmp_path, NONE)
    with pytest.raises(DataError, match="does not exist"):
        scan(tmp_path / "nowhere", NONE)
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(DataError, match="is a file"):
        scan(tmp_path / "notes.txt", NONE)
    with pytest.raises(DataError, match="holds no images"):
        scan(tmp_path, NONE)
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    with pytest.raises(DataError, match="holds no images"):
        scan(tmp_path, NONE)
    picture(tmp_path / "training" / "images" / "0.png")
    with pytest.raises(
        DataError, match=r"its folders do: training\. Give the folder with the training data: .*training$"
    ):
        scan(tmp_path, NONE)
    picture(tmp_path / "bonn" / "images" / "1.png")
    with pytest.raises(DataError, match=r"its folders do: bonn, training\. Give one of them, or a table of the cases"):
        scan(tmp_path, NONE)
    with pytest.raises(DataError, match=r"no folder of .* can hold the labels"):
        scan(tmp_path / "training", NONE)
    picture(tmp_path / "flat" / "0.png")
    with pytest.raises(DataError, match="1 image files and no folders"):
        scan(tmp_path / "flat", NONE)


@pytest.mark.parametrize("content", ["{", "[1]", '{"labels": {"a": "b"}, "training": []}', '{"training": [3]}'])
def test_bad_descriptions(tmp_path: Path, content: str) -> None:
    (tmp_path / "dataset.json").write_text(content)
    with pytest.raises(DataError, match=r"dataset\.json"):
        scan(tmp_path, NONE)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (DataOptions(kinds={"T9": "ct"}), "--kind names the unknown channel T9. The channels are MRI"),
        (DataOptions(classes={"a": 1, "b": 1}), "gives the value 1 two names"),
        (DataOptions(regions={"a": (1,), "liver": (2,)}), "same name"),
        (DataOptions(label="/etc/*"), "relative to"),
    ],
)
def test_options_that_do_not_fit(demo: Path, options: DataOptions, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        scan(demo, options)


def test_load_case_names_the_case(tmp_path: Path) -> None:
    make_demo_dataset(tmp_path, cases=2)
    mask(tmp_path / "labelsTr" / "demo_001.nii.gz")
    dataset = scan(tmp_path, NONE)
    with pytest.raises(DataError, match=r"case demo_001: the image has shape .* and the label \(2, 3, 4\)"):
        load_case(dataset, "demo_001")


# ---- label values --------------------------------------------------------------------------------------------


@given(
    values=st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=8, unique=True),
    ignore=st.booleans(),
    seed=st.integers(0, 100),
)
def test_decode_inverts_encode(values: list[int], ignore: bool, seed: int) -> None:
    values = [value for value in values if value]
    last = values.pop() if ignore and values else None
    classes = tuple(LabelClass(name=f"c{value}", value=value) for value in [0, *values])
    labels = Labels(classes=classes, ignore=last)
    known = [0, *values, *([last] if last is not None else [])]
    array = np.random.default_rng(seed).choice(np.array(known, np.int32), (2, 3, 4))
    dense = encode(array, labels)
    assert dense.dtype == np.int16
    assert dense.min() >= -1
    assert dense.max() < labels.count
    np.testing.assert_array_equal(decode(dense, labels), array)


@pytest.mark.parametrize("value", [-3, 1, 7, 2**30])
def test_encode_refuses_other_values(value: int) -> None:
    labels = Labels(classes=(LabelClass(name="b", value=0), LabelClass(name="x", value=5)))
    with pytest.raises(ValueError, match=f"label value {value} is no class"):
        encode(np.array([[[0, 5, value]]]), labels)


# ---- inputs for prediction -----------------------------------------------------------------------------------


def bundle_of(dataset: Dataset, **changes: object) -> ModelBundle:
    """A bundle as far as finding inputs needs one."""
    values = {name: getattr(dataset, name) for name in ("name", "layout", "image_pattern", "suffix", "file_kind")}
    return ModelBundle.model_construct(
        **{**values, "channels": dataset.channels, "channel_patterns": {}, "labels": dataset.labels, **changes}
    )


def test_inputs_from_folder_file_and_data_set(demo: Path) -> None:
    bundle = bundle_of(scan(demo, NONE))
    assert [case.identifier for case in find_inputs(demo, bundle)] == ["demo_003"]
    assert len(find_inputs(demo / "imagesTr", bundle)) == 3
    (single,) = find_inputs(demo / "imagesTs" / "demo_003_0000.nii.gz", bundle)
    assert single.identifier == "demo_003"
    image, geometry = load_input(single, bundle.channels)
    assert image.shape == (1, *geometry.shape)


def test_inputs_of_pictures(tmp_path: Path) -> None:
    picture_pairs(tmp_path / "train", "images", "masks", colour=True)
    picture_pairs(tmp_path / "test", "images", "masks", colour=True)
    bundle = bundle_of(scan(tmp_path / "train", NONE))
    cases = find_inputs(tmp_path / "test", bundle)
    assert [case.identifier for case in cases] == ["0", "1", "2"]
    picture(tmp_path / "grey" / "a.png")
    (grey,) = find_inputs(tmp_path / "grey", bundle)
    assert load_input(grey, bundle.channels)[0].shape[0] == 3  # where `judge_headers` has let it pass
    with pytest.raises(DataError, match=r"case a: .* 1 channel, expected 2 channels"):
        load_input(grey, bundle.channels[:2])


def test_inputs_with_several_channels(tmp_path: Path) -> None:
    for name in ("a", "b"):
        for channel in range(2):
            volume(tmp_path / f"{name}_{channel:04d}.nii.gz", value=channel)
    channels = (Channel(name="T1"), Channel(name="T2"))
    bundle = ModelBundle.model_construct(
        channels=channels,
        layout="nnunet",
        suffix=".nii.gz",
        image_pattern="imagesTr/*_0000.nii.gz",
        channel_patterns={},
    )
    cases = find_inputs(tmp_path, bundle)
    assert [(case.identifier, len(case.images)) for case in cases] == [("a", 2), ("b", 2)]
    assert load_input(cases[0], channels)[0][:, 0, 0, 0].tolist() == [0, 1]
    assert find_inputs(tmp_path / "b_0000.nii.gz", bundle)[0].images == cases[1].images
    by_pattern = bundle.model_copy(update={"channel_patterns": {"T1": "*_0000.nii.gz", "T2": "*_0001.nii.gz"}})
    assert [case.images for case in find_inputs(tmp_path, by_pattern)] == [case.images for case in cases]
    (tmp_path / "b_0001.nii.gz").unlink()
    assert problems(tmp_path, bundle) == {"a": None, "b": "it has no file for channel 0001 (T2)"}
    assert problems(tmp_path, by_pattern) == {"a": None, "b": "it has no file for channel T2"}
    volume(tmp_path / "b_0002.nii.gz")
    beyond = "b_0002.nii.gz ends in the number of no channel: channels are numbered 0000 (T1) to 0001 (T2)"
    assert problems(tmp_path, bundle)["b"] == f"it has no file for channel 0001 (T2); {beyond}"
    (tmp_path / "b_0000.nii.gz").unlink()
    assert problems(tmp_path, bundle)["b"] == f"it has no file for channel 0000 (T1), 0001 (T2); {beyond}"
    with pytest.raises(DataError, match=r"^case b: it has no file .*\. Correct the numbers; where 0002 is part of"):
        load_input(find_inputs(tmp_path, bundle)[1], channels)


def problems(path: Path, bundle: ModelBundle) -> dict[str, str | None]:
    """By case, why it cannot be predicted."""
    return {case.identifier: case.error and case.error.message for case in find_inputs(path, bundle)}


def numbered_model(channels: int) -> ModelBundle:
    """Trained on files that end in the numbers of their channels."""
    return ModelBundle.model_construct(
        channels=tuple(Channel(name=f"T{index}") for index in range(channels)), layout="nnunet", suffix=".nii.gz",
        image_pattern="imagesTr/*_0000.nii.gz", channel_patterns={}, channel_combinations=(), time_points=False,
    )  # fmt: skip


ENDINGS = (".nii.gz", ".nii", ".NII.GZ", ".nrrd")


@given(
    st.integers(1, 3),
    st.dictionaries(
        st.sampled_from(["a", "b_0000", "case 7", "x.y"]),
        st.sets(st.tuples(st.sampled_from([0, 1, 2, 3, 101]), st.sampled_from(ENDINGS)), min_size=1, max_size=5),
        min_size=1,
    ),
    st.booleans(),
)
def test_a_case_is_the_files_numbered_from_0_each_once(channels: int, drawn, stray: bool) -> None:
    """Whatever else is in the folder: all other cases are told, and nothing is left out."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for case, files in drawn.items():
            for number, ending in files:
                (folder / f"{case}_{number:04d}{ending}").touch()
        if stray:
            for each in ("readme.txt", "Thumbs.db", ".DS_Store", "._a_0000.nii.gz", "desktop.ini", "mask.nii.gz"):
                (folder / each).touch()
        cases = find_inputs(folder, numbered_model(channels))
        images = [image for case in cases for image in case.images]
        assert sorted(images) == sorted(path for path in folder.iterdir() if is_image(path))
        for case in cases:
            if case.identifier == "mask":
                continue
            numbers = sorted(number for number, _ in drawn[case.identifier])
            assert (case.error is None) == (numbers == list(range(channels)))
            assert all(image.name.startswith(f"{case.identifier}_") for image in case.images)
            if case.error is None:
                assert [int(stem(image)[-4:]) for image in case.images] == numbers


@pytest.mark.parametrize(
    ("files", "pattern", "channels", "cases"),
    [
        ("amos_0101 amos_0102", "images/*", 1, {"amos_0101": 1, "amos_0102": 1}),
        ("a_0000 b_0000 mask", "images/*", 1, {"a": 1, "b": 1, "mask": 1}),
        ("s_0000 s_0001 s_0002", "images/*", 1, {"s_0000": 1, "s_0001": 1, "s_0002": 1}),
        ("a_0000 a_0001 b", "images/*", 2, {"a": 2, "b": -1}),
        ("a_0000 a_0001 a", "imagesTr/*_0000", 2, {"a": 2, "a.nii.gz": -1}),
        ("a_0000 a_0001 patient_0101 patient_0102", "imagesTr/*_0000", 2, {"a": 2, "patient": -2}),
        ("amos_0101 c_0000", "imagesTr/*_0000", 1, {"amos": -1, "c": 1}),
        ("amos_0101 c_0000 d", "imagesTr/*_0000", 1, {"amos": -1, "c": 1, "d": 1}),
    ],
)
def test_numbers_that_are_channels_and_numbers_that_are_names(tmp_path: Path, files, pattern, channels, cases) -> None:
    """-1: told, not predicted; else the number of files."""
    model = numbered_model(channels).model_copy(update={"image_pattern": f"{pattern}.nii.gz"})
    for name in files.split():
        volume(tmp_path / f"{name}.nii.gz")
    found = find_inputs(tmp_path, model)
    assert {case.identifier: len(case.images) * (-1 if case.error else 1) for case in found} == cases
    for case in found:  # and a single file is what it is in its folder
        for image in case.images if "_" in case.images[0].name else ():
            (single,) = find_inputs(image, model)
            assert (single.identifier, single.error is None) == (case.identifier, case.error is None)


def test_photographs_that_are_numbered_are_no_channels(tmp_path: Path) -> None:
    """Each holds all three colours, under a name of its own."""
    for number in range(3):
        picture(tmp_path / f"img_{number:04d}.png", colour=True)
    model = numbered_model(3).model_copy(update={"image_pattern": "images/*.png", "suffix": ".png"})
    assert list(problems(tmp_path, model).values()) == [None] * 3
    told = problems(tmp_path, model.model_copy(update={"image_pattern": "imagesTr/*_0000.png"}))
    assert "img_0001.png, img_0002.png end in the number of no channel: the only" in told["img"]


def test_a_channel_that_holds_nothing_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_image(
        tmp_path / "a_0000.nii.gz", np.arange(24, dtype=np.float32).reshape(1, 2, 3, 4), Geometry(shape=(2, 3, 4))
    )
    volume(tmp_path / "a_0001.nii.gz", value=0)
    load_input(find_inputs(tmp_path, numbered_model(2))[0], numbered_model(2).channels)
    assert caplog.messages == ["case a: channel T1 has the value 0 in every voxel. Check that the file is complete"]
    volume(tmp_path / "a_0000.nii.gz", value=7)
    load_input(find_inputs(tmp_path, numbered_model(2))[0], numbered_model(2).channels)
    assert caplog.messages[1].startswith("case a: the image has the value 7 in every voxel")


@pytest.mark.parametrize("layout", ["nnunet", "pairs"])
def test_training_channels_go_by_their_numbers(tmp_path: Path, layout: str) -> None:
    """Every bad case is told at once, the stray file is left out, and no files of two patients are joined."""
    names = [
        "a_0000",
        "a_0001",
        "b_0001",
        "b_0002",
        "c_0000",
        "patient_0101",
        "patient_0102",
        "ok_0000",
        "ok_0001",
        "mask",
    ]
    for name in names:
        volume(tmp_path / "imagesTr" / f"{name}.nii.gz")
    volume(tmp_path / "imagesTr" / "a_0000.NII")
    (tmp_path / "imagesTr" / "Thumbs.db").write_bytes(b"x")
    for case in {name.rsplit("_", 1)[0] for name in names} - {"mask"}:
        mask(tmp_path / "labelsTr" / f"{case}.nii.gz")
    if layout == "nnunet":
        content = {
            "channel_names": {"0": "T1", "1": "T2"},
            "labels": {"background": 0, "x": 1},
            "file_ending": ".nii.gz",
        }
        (tmp_path / "dataset.json").write_text(json.dumps(content))
    findings: list[Finding] = []
    found = scan(tmp_path, NONE, findings)
    assert found.layout == layout
    told = {each.case: each.message for each in findings if each.severity == "fatal"}
    t1, t2 = ("0000 (T1)", "0001 (T2)") if layout == "nnunet" else ("0000", "0001")
    known = f"channels are numbered {t1} to {t2}"
    expected = {
        "b": f"it has no file for channel {t1}; b_0002.nii.gz ends in the number of no channel: {known}",
        "c": f"it has no file for channel {t2}",
        "patient": f"it has no file for channel {t1}, {t2}; patient_0101.nii.gz, patient_0102.nii.gz end in the number "
        f"of no channel: {known}",
    }
    if layout == "pairs":  # with no file_ending to tell which of them is meant
        expected["a"] = "channel 0000 is there twice: a_0000.NII, a_0000.nii.gz"
    assert told == expected
    assert [case.identifier for case in found.cases] == (["a", "ok"] if layout == "nnunet" else ["ok"])
    assert [each.case for each in findings if each.severity == "warning"] == (
        ["mask", "a"] if layout == "nnunet" else ["mask"]
    )


def test_training_channels_by_patterns_are_never_of_two_patients(tmp_path: Path) -> None:
    for name in ["p1_t1", "p1_t2", "p2_t1", "p3_t2", "p4_t1", "p4_t2"]:
        volume(tmp_path / "images" / f"{name}.nii.gz")
    volume(tmp_path / "images" / "p4_t1.nii")
    for case in ("p1", "p2", "p3", "p4"):
        mask(tmp_path / "labels" / f"{case}.nii.gz")
    options = DataOptions(channels={"T1": "images/*_t1*", "T2": "images/*_t2*"}, label="labels/*")
    findings: list[Finding] = []
    found = scan(tmp_path, options, findings)
    assert [[Path(image).name for image in case.images] for case in found.cases] == [["p1_t1.nii.gz", "p1_t2.nii.gz"]]
    assert {each.case: each.message for each in findings} == {
        "p2_t1": "it has no file for channel T2",
        "p3_t2": "it has no file for channel T1",
        "p4_t1": "channel T1 is there more than once: p4_t1.nii, p4_t1.nii.gz",
    }


def test_files_of_other_programs_are_passed_over(tmp_path: Path) -> None:
    picture_pairs(tmp_path, "images", "masks")
    for folder in (tmp_path, tmp_path / "images", tmp_path / "masks"):
        for name, content in {
            "0.json": '{"shapes": ["é"], "spacing": null}'.encode("latin-1"),
            "1.json": '{"spacing": 1'.encode("utf-16"),
            "2.json": b"[" * 100_000,
            "viewer.csv": "case;Fläche\n1;2\n1;3;4\n".encode(),
            "volumes.csv": "case,volume,case\nx,1,y".encode("utf-16"),
            "long.csv": b"case," + b"x" * 200_000,
            "desktop.ini": b"\xff\xfe\x00",
            "Thumbs.db": b"\xd0\xcf\x11\xe0",
            ".DS_Store": b"\x00\x00\x00\x01Bud1",
            "._0.png": b"Mac OS X",
        }.items():
            (folder / name).write_bytes(content)
    findings: list[Finding] = []
    dataset = scan(tmp_path, NONE, findings)
    assert ([case.identifier for case in dataset.cases], findings) == (["0", "1", "2"], [])
    cases = find_inputs(tmp_path / "images", bundle_of(dataset))
    assert load_input(cases[0], dataset.channels)[1].spacing == (1.0, 1.0, 1.0)
    assert [case.identifier for case in cases if case.error is None] == ["0", "1", "2"]


def test_a_link_keeps_its_name_and_its_neighbours(tmp_path: Path) -> None:
    for number, key in enumerate(("MD5E-s1--00aa", "MD5E-s1--11bb")):
        volume(tmp_path / "store" / f"{key}.nii.gz", value=number)
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / f"case7_{number:04d}.nii.gz").symlink_to(f"../store/{key}.nii.gz")
    (case,) = find_inputs(tmp_path / "in" / "case7_0000.nii.gz", numbered_model(2))
    assert (case.identifier, len(case.images)) == ("case7", 2)
    assert load_input(case, numbered_model(2).channels)[0][:, 0, 0, 0].tolist() == [0, 1]
    (tmp_path / "in" / "lost_0000.nii.gz").symlink_to("../store/gone.nii.gz")
    (tmp_path / "in" / "lost_0001.nii.gz").symlink_to("../store/MD5E-s1--00aa.nii.gz")
    lost = find_inputs(tmp_path / "in", numbered_model(2))[1]
    with pytest.raises(DataError, match=r"case lost: .*lost_0000\.nii\.gz is a link to a file that is not there"):
        load_input(lost, numbered_model(2).channels)
    (tmp_path / "linked").symlink_to(tmp_path / "in")
    assert [case.identifier for case in find_inputs(tmp_path / "linked", numbered_model(2))] == ["case7", "lost"]


def test_inputs_by_pattern_in_a_folder_of_their_own(tmp_path: Path) -> None:
    for name in ("a_t1", "a_t2", "a_seg"):
        volume(tmp_path / f"{name}.nii.gz")
    bundle = ModelBundle.model_construct(
        layout="pairs",
        channels=(Channel(name="T1"),),
        suffix=".nii.gz",
        image_pattern="",
        channel_patterns={"T1": "data/*_t1.nii.gz"},
    )
    assert [case.identifier for case in find_inputs(tmp_path, bundle)] == ["a_t1"]
    patterns = {"T1": "data/*_t1.nii.gz", "T2": "data/*_t2.nii.gz"}
    both = numbered_model(2).model_copy(
        update={"layout": "pairs", "channel_patterns": patterns, "channels": (Channel(name="T1"), Channel(name="T2"))}
    )
    (case,) = find_inputs(tmp_path, both)
    assert [path.name for path in case.images] == ["a_t1.nii.gz", "a_t2.nii.gz"]
    (tmp_path / "a_t2.nii.gz").rename(tmp_path / "b_t2.nii.gz")  # of another patient
    assert problems(tmp_path, both) == {
        "a_t1": "it has no file for channel T2", "b_t2": "it has no file for channel T1"
    }  # fmt: skip
    volume(tmp_path / "c_t1.nrrd")
    volume(tmp_path / "c_t2.nrrd")
    volume(tmp_path / "b_t1.nii.gz")
    volume(tmp_path / "b_t1.nii")
    assert problems(tmp_path, both) == {
        "a_t1": "it has no file for channel T2",
        "b_t1": "channel T1 is there more than once: b_t1.nii, b_t1.nii.gz",
        "c_t1": None,
    }


def test_inputs_of_mixed_endings_are_all_found(tmp_path: Path) -> None:
    bundle = ModelBundle.model_construct(
        layout="pairs",
        channels=(Channel(name="image"),),
        suffix=".nii",
        image_pattern="images/*.nii",
        channel_patterns={},
    )
    for name in ("a.nii", "b.nii.gz", "c.NII.GZ", "d.nrrd"):
        (tmp_path / name).write_bytes(b"")
    assert problems(tmp_path, bundle) == dict.fromkeys("abcd")
    for name in ("c.png", "d.nii"):
        (tmp_path / name).write_bytes(b"")
    assert problems(tmp_path, bundle) == {
        **dict.fromkeys("abc"),
        "c.png": "it is left out: c.NII.GZ has the same name and is of the model's kind",
        "d": "there are 2 images of this name: d.nii, d.nrrd",
    }
    photographs = bundle.model_copy(update={"suffix": ".jpg"})
    for name in ("a.jpg", "b.png"):
        (tmp_path / "photos").mkdir(exist_ok=True)
        (tmp_path / "photos" / name).write_bytes(b"")
    assert [case.identifier for case in find_inputs(tmp_path / "photos", photographs)] == ["a", "b"]


def test_inputs_that_are_not_there(tmp_path: Path, demo: Path) -> None:
    bundle = bundle_of(scan(demo, NONE))
    with pytest.raises(DataError, match="does not exist"):
        find_inputs(tmp_path / "x", bundle)
    with pytest.raises(DataError, match="holds no images"):
        find_inputs(tmp_path, bundle)
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(DataError, match="is not an image"):
        find_inputs(tmp_path / "a.txt", bundle)
    volume(tmp_path / "a.nii.gz", value=np.nan)
    with pytest.raises(DataError, match="case a: 24 voxels are NaN or infinite"):
        load_input(find_inputs(tmp_path, bundle)[0], bundle.channels)


# ---- real data -----------------------------------------------------------------------------------------------


@pytest.mark.data
@pytest.mark.skipif(not REAL.is_dir(), reason="public data sets are not beside the checkout")
@pytest.mark.parametrize(
    ("folder", "options", "layout", "cases", "channels"),
    [
        ("Task04_Hippocampus", NONE, "msd", 260, 1),
        ("Dataset027_ACDC", DataOptions(group="(patient.*)_"), "nnunet", 200, 1),
        ("Dataset027_ACDC", DataOptions(label="scribblesTr/*", ignore=4), "nnunet", 200, 1),
        ("Dataset100_OpenKBP5", NONE, "nnunet", 80, 1),
        ("DRIVE/training", DataOptions(label="1st_manual/*"), "pairs", 20, 3),
        ("ISBI2012_membrane", DataOptions(classes={"membrane": 0, "cell": 255}), "pairs", 30, 1),
        (
            "BraTS2015_sample",
            DataOptions(channels={"FLAIR": "*/Flair*", "T1c": "*/T1c*"}, label="*/OT*"),
            "cases",
            4,
            2,
        ),
    ],
)
def test_public_data_sets(folder: str, options: DataOptions, layout: str, cases: int, channels: int) -> None:
    dataset = scan(REAL / folder, options)
    assert (dataset.layout, len(dataset.cases), len(dataset.channels)) == (layout, cases, channels)


def test_cases_are_found_by_name_in_several_data_sets_at_once(demo: Path) -> None:
    """As several runs in threads of one program ask for them."""
    found = scan(demo, NONE)
    sets = [
        found.model_copy(
            update={"cases": tuple(Case(identifier=f"{letter}{number}", images=("i.nii",)) for number in range(50))}
        )
        for letter in "abcd"
    ]

    def ask(data: Dataset) -> bool:
        return all(data.case(case.identifier) is case for _ in range(200) for case in data.cases)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(ask, sets))
    with pytest.raises(KeyError):
        sets[0].case("b1")

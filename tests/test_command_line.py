"""What a user sees: odd but legitimate data work, every mistake is one clear message, and nothing of theirs is lost."""

import json
import sys

import numpy as np
import pytest
from PIL import Image

from autounet.cli.app import main
from autounet.crossval.validate import segmentation_name
from autounet.datasets import InputCase
from autounet.datasets.synthetic import make_demo_dataset
from autounet.imageio import write_image, write_labels
from autounet.prediction.output_files import require_new
from autounet.schema.dataset import Case
from autounet.schema.errors import OptionError
from autounet.schema.geometry import Geometry

SHAPE = (3, 12, 14)


@pytest.fixture
def autounet(monkeypatch, capsys):
    """Runs a command in this process; gives its exit code and all that it printed."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["autounet", *map(str, arguments)])
        try:
            main()
            code = 0
        except SystemExit as end:
            code = end.code
        printed = capsys.readouterr()
        return code, printed.out + printed.err

    return run


def volumes(folder, endings=(".nii.gz",) * 3, images="images"):
    """Loose pairs with one bright box each."""
    rng = np.random.default_rng(0)
    for index, ending in enumerate(endings):
        label = np.zeros(SHAPE, np.uint8)
        label[1, 3:9, 4:10] = 1
        geometry = Geometry(shape=SHAPE)
        image = (100 * label + rng.normal(0, 5, SHAPE)).astype(np.float32)
        write_image(folder / images / f"c{index}{ending}", image[None], geometry)
        write_labels(folder / "labels" / f"c{index}.nii.gz", label, geometry)
    return folder


def described(folder, layout, **changes):
    """The demonstration data with changes in dataset.json; None takes an entry out."""
    make_demo_dataset(folder, cases=2, layout=layout)
    file = folder / "dataset.json"
    content = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({name: value for name, value in content.items() if value is not None}))
    return folder


@pytest.mark.parametrize(
    ("layout", "changes", "message"),
    [
        ("msd", {"labels": []}, "labels is [], not an object"),
        ("nnunet", {"labels": "liver"}, "labels is 'liver', not an object"),
        ("msd", {"labels": {"0": "background", "1": "a", "2": "a"}}, "two labels are called 'a'"),
        ("msd", {"modality": {"a": "CT"}}, "Number them from 0"),
        (
            "nnunet",
            {"dataset": {"a": {"images": [], "label": "x.nii.gz"}}},
            "without a list `images` or without `label`",
        ),
        ("nnunet", {"dataset": []}, "without a list `images` or without `label`"),
    ],
)
def test_a_wrong_dataset_json_is_one_message(autounet, tmp_path, layout, changes, message):
    code, printed = autounet("check", described(tmp_path, layout, **changes))
    assert code == 1
    assert message in printed


def test_channel_files_with_other_numbers_are_not_taken_for_the_missing_ones(autounet, tmp_path):
    make_demo_dataset(tmp_path, cases=3)
    for case, number in (("000", "0001"), ("001", "0001"), ("002", "0002")):
        image = tmp_path / "imagesTr" / f"demo_{case}_0000.nii.gz"
        image.with_name(f"demo_{case}_{number}.nii.gz").write_bytes(image.read_bytes())
    content = json.loads((tmp_path / "dataset.json").read_text())
    (tmp_path / "dataset.json").write_text(json.dumps({**content, "channel_names": {"0": "T1", "1": "T2"}}))
    code, printed = autounet("check", tmp_path)
    assert code == 1
    assert (
        "case demo_002: it has no file for channel 0001 (T2); demo_002_0002.nii.gz ends in the number of no" in printed
    )


def test_endings_in_capitals_are_the_same(autounet, tmp_path):
    make_demo_dataset(tmp_path, cases=2)
    for file in [*tmp_path.glob("*Tr/*")]:
        file.rename(file.with_name(file.name.replace(".nii.gz", ".NII.GZ")))
    assert autounet("check", tmp_path)[0] == 0


def test_when_no_image_can_be_read_each_is_named(autounet, tmp_path):
    volumes(tmp_path, (".mha", ".mha"))
    for image in (tmp_path / "images").iterdir():
        image.write_bytes(b"not an image" * 20)
    code, printed = autounet("check", tmp_path, "--json")
    findings = json.loads(printed[printed.index("{") : printed.rindex("}") + 1])["findings"]
    assert code == 1
    assert [(finding["case"], finding["code"]) for finding in findings] == [
        ("c0", "unreadable-file"),
        ("c1", "unreadable-file"),
    ]
    assert "Success" not in printed


def test_labels_spoilt_by_jpeg_are_refused(autounet, tmp_path):
    rng = np.random.default_rng(0)
    for part in ("images", "labels"):
        (tmp_path / part).mkdir()
    for index in range(2):
        Image.fromarray(rng.integers(0, 255, (24, 24), np.uint8)).save(tmp_path / f"images/{index}.png")
        mask = np.zeros((24, 24), np.uint8)
        mask[5:13, 6:15] = 255
        Image.fromarray(mask).save(tmp_path / f"labels/{index}.jpg")
    code, printed = autounet("check", tmp_path)
    assert code == 1
    assert "case 0: labels/0.jpg is a JPEG file" in printed


@pytest.mark.parametrize(("ending", "value"), [(".png", -1), (".jpg", 70_000), (".bmp", 256)])
def test_values_that_no_segmentation_could_hold_are_told_before_training(autounet, tmp_path, ending, value):
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for index in range(2):
        Image.fromarray(rng.integers(0, 255, (24, 24), np.uint8)).save(tmp_path / f"images/{index}{ending}")
        label = np.zeros((1, 24, 24), np.int32)
        label[0, 5:13, 6:15] = value
        write_labels(tmp_path / f"labels/{index}.tif", label, Geometry(shape=label.shape, kind="tiff", dimension=2))
    code, printed = autounet("check", tmp_path)
    assert code == 1
    assert f"label value {value} does not fit" in printed
    assert autounet("check", tmp_path, "--ignore", value)[1].count("does not fit") == 0


def test_thumbnails_are_neither_images_nor_labels(autounet, tmp_path):
    volumes(tmp_path)
    (tmp_path / "images").rename(tmp_path / "data")
    for image in (tmp_path / "data").iterdir():
        (tmp_path / "thumbnails").mkdir(exist_ok=True)
        (tmp_path / "thumbnails" / image.name).write_bytes(image.read_bytes())
    assert autounet("check", tmp_path)[0] == 0


def test_contradicting_label_options_are_explained(autounet, tmp_path):
    code, printed = autounet("check", volumes(tmp_path), "--ignore", 0)
    assert code == 2
    assert "Error: --ignore 0: 0 is the background. Give the value of voxels that nobody annotated" in printed
    code, printed = autounet("check", tmp_path, "--class", "a=1", "--region", "a=1,2")
    assert code == 1
    assert "Error: labels: two classes or regions have the same name. Correct" in printed


@pytest.mark.parametrize("layout", ["msd", "pairs"])
def test_the_data_folder_is_never_the_output_folder(autounet, tmp_path, layout):
    make_demo_dataset(tmp_path, cases=2, layout="msd")
    if layout == "pairs":
        (tmp_path / "dataset.json").unlink()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    code, printed = autounet("fingerprint", tmp_path, "--out", tmp_path / "imagesTr" / "..")
    assert code == 1
    assert "is the data folder itself" in printed
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_foreign_dataset_json_is_not_overwritten(autounet, tmp_path):
    volumes(tmp_path / "data")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "dataset.json").write_text('{"name": "precious"}')
    code, printed = autounet("fingerprint", tmp_path / "data", "--out", tmp_path / "other")
    assert code == 1
    assert "not AutoUNet's" in printed
    assert "precious" in (tmp_path / "other" / "dataset.json").read_text()


@pytest.mark.parametrize("out", ["out", "out/below/it"])
def test_an_output_folder_that_is_a_file_is_named(autounet, tmp_path, out):
    (tmp_path / "out").write_text("")
    data = volumes(tmp_path / "data")
    labels = data / "labels"
    for command, given in (
        (("fingerprint", data), tmp_path / out),
        (("ensemble", labels, labels), tmp_path / out),
        (("evaluate", labels, labels), tmp_path / "out" / "metrics.json"),
    ):
        code, printed = autounet(*command, "--out", given)
        assert (code, f"{tmp_path / 'out'} is a file. Give a folder" in printed) == (1, True), command


def test_damaged_options_say_what_to_do_and_damaged_splits_are_told(autounet, tmp_path, caplog):
    data, out = volumes(tmp_path / "data"), tmp_path / "out"
    assert autounet("fingerprint", data, "--out", out, "--workers", 0)[0] == 0
    splits = (out / "splits.json").read_text()
    (out / "splits.json").write_text("garbage")
    assert autounet("fingerprint", data, "--out", out)[0] == 0
    assert "the cases are split anew" in caplog.text
    assert (out / "splits.json").read_text() == splits
    (out / "options.json").write_text('{"x"')
    code, printed = autounet("fingerprint", data, "--out", out)
    assert code == 1
    assert "delete it and give all options again" in printed


def test_splits_are_found_from_everywhere_and_a_missing_file_is_named(autounet, tmp_path, monkeypatch):
    data, out = volumes(tmp_path / "data"), tmp_path / "out"
    (tmp_path / "folds.json").write_text(json.dumps({"folds": [["c0"], ["c1", "c2"]]}))
    monkeypatch.chdir(tmp_path)
    assert autounet("fingerprint", data, "--out", out, "--splits", "folds.json", "--workers", 0)[0] == 0
    monkeypatch.chdir("/")
    assert autounet("fingerprint", data, "--out", out)[0] == 0
    code, printed = autounet("fingerprint", data, "--out", out, "--splits", "nnunett")
    assert code == 2
    assert "there is no such file. Did you mean nnunet? Give nnunet, or a JSON file" in printed
    code, printed = autounet("plan", data, "--out", out, "--splits", "nnunet", "--folds", "0,5")
    assert (code, (out / "device.json").exists()) == (1, False), printed


def test_predictions_never_replace_the_images(tmp_path):
    image = tmp_path / "in" / "a.nii.gz"
    case = InputCase("a", (image,))
    require_new({case: [tmp_path / "out" / "a.nii.gz"]})
    with pytest.raises(OptionError, match=r"case a: .*, an image to be predicted. Give another --out"):
        require_new({case: [tmp_path / "a.dcm", tmp_path / "in" / ".." / "in" / "a.nii.gz"]})


def test_segmentations_have_the_ending_of_their_own_image():
    names = ("a.nii", "b.nii.gz", "c.JPG", "d.tif")
    cases = [Case(identifier=name[0], images=(f"images/{name}",)) for name in names]
    assert [segmentation_name(case) for case in cases] == ["a.nii", "b.nii.gz", "c.png", "d.tif"]


def fail_with(error):
    def fail(*_, **__):
        raise error

    return fail


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        MemoryError("Unable to allocate 4.00 TiB for an array with shape (1099511627776,)"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory: you tried"),
    ],
)
def test_memory_that_runs_out_is_no_traceback(autounet, tmp_path, monkeypatch, error):
    monkeypatch.setattr("autounet.workflow.dataset_stage.check_data", fail_with(error))
    code, printed = autounet("check", tmp_path)
    assert code == 1
    assert "Error: memory ran out" in printed
    assert str(error) in printed
    assert "smaller --memory or fewer --workers" in printed


@pytest.mark.parametrize("error", [RuntimeError("mat1 and mat2 shapes cannot be multiplied"), KeyError("a mistake")])
def test_a_mistake_of_the_program_keeps_its_traceback(autounet, tmp_path, monkeypatch, error):
    monkeypatch.setattr("autounet.workflow.dataset_stage.check_data", fail_with(error))
    with pytest.raises(type(error)):
        autounet("check", tmp_path)

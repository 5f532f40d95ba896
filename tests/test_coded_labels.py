"""Label files without values: colours by a palette, and 3D Slicer's segments by their names."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from autounet.datasets import load_case, scan
from autounet.datasets.checks.case_checks import count_components, count_values
from autounet.datasets.checks.examine import examine
from autounet.datasets.labels import complete_labels, label_findings
from autounet.imageio import read_labels, write_image, write_labels
from autounet.schema.dataset import CaseFacts
from autounet.schema.errors import DataError, OptionError
from autounet.schema.geometry import Geometry
from autounet.schema.labels import LabelCode
from autounet.schema.options import DataOptions

PALETTE = {"background": [0, 0, 0], "sky": [0, 0, 255], "tree": [0, 128, 0], "ignore": [255, 255, 255]}
COLOURS = np.array(list(PALETTE.values()), np.uint8)


def pictures(root: Path, palette: object = PALETTE, count: int = 3) -> np.ndarray:
    """images/ and masks/ of `count` pictures, masks coloured; returns the indices of the colours, the same in all."""
    indices = np.random.default_rng(0).integers(0, 4, (6, 7))
    for index in range(count):
        for folder, pixels in (("images", indices * 40 + index), ("masks", COLOURS[indices])):
            (root / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.astype(np.uint8)).save(root / folder / f"{index}.png")
    if palette is not None:
        (root / "palette.json").write_text(json.dumps(palette))
    return indices


def test_colours_become_classes(tmp_path: Path) -> None:
    indices = pictures(tmp_path)
    dataset = scan(tmp_path, DataOptions())
    assert {label.name: label.value for label in dataset.labels.classes} == {"background": 0, "sky": 1, "tree": 2}
    assert dataset.labels.ignore == 255
    assert dataset.labels_declared
    np.testing.assert_array_equal(load_case(dataset, "1").labels[0], np.array([0, 1, 2, -1])[indices])
    facts = examine(dataset, workers=1)
    assert not any(fact.findings for fact in facts)
    assert complete_labels(dataset, facts).labels == dataset.labels


def test_values_may_be_given(tmp_path: Path) -> None:
    pictures(tmp_path)
    labels = scan(tmp_path, DataOptions(classes={"tree": 7}, ignore=9)).labels
    assert {label.name: label.value for label in labels.classes} == {"background": 0, "sky": 1, "tree": 7}
    assert labels.ignore == 9
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "sky": 5, "tree": 2, "ignore": 3}}))
    labels = scan(tmp_path, DataOptions()).labels
    assert {label.name: label.value for label in labels.classes} == {"background": 0, "sky": 5, "tree": 2}
    assert labels.ignore == 3


def test_palettes_from_other_places(tmp_path: Path) -> None:
    pictures(tmp_path, palette=None)
    with pytest.raises(OptionError, match=r"--palette .*: there is no such file"):
        scan(tmp_path, DataOptions(palette=str(tmp_path / "nowhere.json")))
    other = tmp_path / "colours.json"
    other.write_text(json.dumps(PALETTE))
    expected = scan(tmp_path, DataOptions(palette=str(other))).labels
    for entry in (PALETTE, "colours.json"):
        (tmp_path / "dataset.json").write_text(json.dumps({"palette": entry}))
        assert scan(tmp_path, DataOptions()).labels == expected


@pytest.mark.parametrize("entry", [[0, 0], [0, 0, 256], "red", [0.5, 0, 0], [True, 0, 0], {}])
def test_bad_palettes_are_told(tmp_path: Path, entry: object) -> None:
    pictures(tmp_path, palette={"sky": entry})
    with pytest.raises(DataError, match="the palette gives class 'sky'"):
        scan(tmp_path, DataOptions())
    (tmp_path / "palette.json").write_text(json.dumps({"sky": [1, 2, 3], "sea": [1, 2, 3]}))
    with pytest.raises(DataError, match=r"the colour \[1, 2, 3\] to two classes"):
        scan(tmp_path, DataOptions())
    (tmp_path / "palette.json").write_text("{")
    with pytest.raises(DataError, match=r"palette\.json is not readable JSON"):
        scan(tmp_path, DataOptions())


def test_colours_that_nobody_maps_are_listed_with_their_counts(tmp_path: Path) -> None:
    indices = pictures(tmp_path, palette=None)
    sky = int((indices == 1).sum())
    with pytest.raises(DataError, match=rf"Its colours: .*\[0, 0, 255\] \({sky} pixels\).*palette\.json"):
        read_labels(tmp_path / "masks" / "0.png")
    (tmp_path / "palette.json").write_text(json.dumps({"background": [0, 0, 0], "tree": [0, 128, 0]}))
    facts = examine(scan(tmp_path, DataOptions()), workers=1)
    assert len(facts) == 3
    told = str(facts[0].findings[0])
    assert f"[0, 0, 255] ({sky} pixels)" in told
    assert "[0, 128, 0]" not in told


def test_grey_pictures_and_palette_indices(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 3, (6, 7)).astype(np.uint8)
    Image.fromarray(np.stack([values * 100] * 3, -1)).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(read_labels(tmp_path / "grey.png")[0][0], values * 100)
    codes = [LabelCode(value=value, colour=(value * 100,) * 3) for value in range(3)]
    np.testing.assert_array_equal(read_labels(tmp_path / "grey.png", codes)[0][0], values)
    indexed = Image.fromarray(values)
    indexed.putpalette([9, 9, 9, 128, 0, 0, 0, 128, 0])
    indexed.save(tmp_path / "indexed.png")
    np.testing.assert_array_equal(read_labels(tmp_path / "indexed.png")[0][0], values)
    swapped = {(9, 9, 9): 0, (128, 0, 0): 2, (0, 128, 0): 1}
    codes = [LabelCode(value=value, colour=colour) for colour, value in swapped.items()]
    np.testing.assert_array_equal(read_labels(tmp_path / "indexed.png", codes)[0][0], np.array([0, 2, 1])[values])


@settings(max_examples=30, deadline=None)
@given(
    colours=st.lists(st.tuples(*[st.integers(0, 255)] * 3), min_size=1, max_size=6, unique=True),
    seed=st.integers(0, 100),
)
def test_decoding_inverts_colouring(
    tmp_path_factory: pytest.TempPathFactory, colours: list[tuple[int, int, int]], seed: int
) -> None:
    path = tmp_path_factory.mktemp("colours") / "a.png"
    indices = np.random.default_rng(seed).integers(0, len(colours), (5, 6))
    Image.fromarray(np.array(colours, np.uint8)[indices]).save(path)
    codes = [LabelCode(value=index * 3, colour=colour) for index, colour in enumerate(colours)]
    np.testing.assert_array_equal(read_labels(path, codes)[0][0], indices * 3)


# 3D Slicer


def segmentation(path: Path, layers: Sequence[np.ndarray], segments: Sequence[tuple[str, int, int]]) -> None:
    """Write as 3D Slicer does: layers (Z, Y, X) uint8, segments of (name, layer, value)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    z, y, x = layers[0].shape
    lines = ["NRRD0004", "type: unsigned char", f"dimension: {3 if len(layers) == 1 else 4}"]
    lines += ["space: left-posterior-superior"]
    if len(layers) == 1:
        lines += [f"sizes: {x} {y} {z}", "space directions: (1,0,0) (0,1,0) (0,0,1)", "kinds: domain domain domain"]
    else:
        lines += [f"sizes: {len(layers)} {x} {y} {z}", "space directions: none (1,0,0) (0,1,0) (0,0,1)"]
        lines += ["kinds: list domain domain domain"]
    lines += ["encoding: raw", "space origin: (0,0,0)"]
    for index, (name, layer, value) in enumerate(segments):
        prefix = f"Segment{index}_"
        lines += [f"{prefix}ID:=Segment_{index}", f"{prefix}LabelValue:={value}", f"{prefix}Layer:={layer}"]
        lines += [f"{prefix}Name:={name}"]
    data = np.moveaxis(np.stack(layers), 0, -1).astype(np.uint8).tobytes()
    path.write_bytes("\n".join(lines).encode() + b"\n\n" + data)


SHAPE = (2, 3, 4)


def slicer_case(root: Path, name: str, layers: Sequence[np.ndarray], segments: Sequence[tuple[str, int, int]]) -> None:
    image = np.random.default_rng(0).normal(size=(1, *SHAPE)).astype(np.float32)
    write_image(root / "images" / f"{name}.nrrd", image, Geometry(shape=SHAPE, kind="nrrd"))
    segmentation(root / "labels" / f"{name}.seg.nrrd", layers, segments)


def random_layer(seed: int, values: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, values, SHAPE)


def test_segments_are_classes_by_name(tmp_path: Path) -> None:
    layer = random_layer(0, 3)
    slicer_case(tmp_path, "a", [layer], [("liver", 0, 1), ("tumour", 0, 2)])
    slicer_case(tmp_path, "b", [layer], [("liver", 0, 1), ("tumour", 0, 2)])
    dataset = scan(tmp_path, DataOptions())
    assert [(label.name, label.value) for label in dataset.labels.classes] == [
        ("background", 0), ("liver", 1), ("tumour", 2)
    ]  # fmt: skip
    np.testing.assert_array_equal(load_case(dataset, "a").labels, layer)
    np.testing.assert_array_equal(read_labels(tmp_path / "labels" / "a.seg.nrrd")[0], layer)


def test_names_count_where_values_differ(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    layer = random_layer(0, 3)
    slicer_case(tmp_path, "a", [layer], [("liver", 0, 1), ("tumour", 0, 2)])
    slicer_case(tmp_path, "b", [layer], [("tumour", 0, 1), ("liver", 0, 2)])
    dataset = scan(tmp_path, DataOptions())
    assert "the segments' values differ" in caplog.text
    np.testing.assert_array_equal(load_case(dataset, "a").labels, layer)
    np.testing.assert_array_equal(load_case(dataset, "b").labels, np.array([0, 2, 1])[layer])
    given_ = scan(tmp_path, DataOptions(classes={"tumour": 5}))
    assert read_labels(tmp_path / "labels" / "b.seg.nrrd", given_.labels.codes)[0].max() == 5


def test_layers_that_overlap_become_regions(tmp_path: Path) -> None:
    first, second = random_layer(1, 3), random_layer(2, 2)
    segments = [("whole", 0, 1), ("vessel", 0, 2), ("core", 1, 1)]
    slicer_case(tmp_path, "a", [first, second], segments)
    slicer_case(tmp_path, "b", [first, second], segments)
    labels = scan(tmp_path, DataOptions()).labels
    assert {region.name for region in labels.regions} == {"whole", "vessel", "core"}
    values, _ = read_labels(tmp_path / "labels" / "a.seg.nrrd", labels.codes)
    found = {region.name: np.isin(values, region.values) for region in labels.regions}
    np.testing.assert_array_equal(found["whole"], first == 1)
    np.testing.assert_array_equal(found["vessel"], first == 2)
    np.testing.assert_array_equal(found["core"], second == 1)
    assert {"core + whole", "core + vessel"} <= {label.name for label in labels.classes}
    with pytest.raises(DataError, match="segments in 2 layers"):
        read_labels(tmp_path / "labels" / "a.seg.nrrd")


def test_layers_that_do_not_overlap_are_plain_classes(tmp_path: Path) -> None:
    first = random_layer(1, 2)
    slicer_case(tmp_path, "a", [first, 1 - first], [("in", 0, 1), ("out", 1, 1)])
    dataset = scan(tmp_path, DataOptions())
    assert not dataset.labels.regions
    np.testing.assert_array_equal(load_case(dataset, "a").labels, np.where(first, 1, 2))


def test_segments_that_do_not_fit_are_told(tmp_path: Path) -> None:
    layer = random_layer(0, 3)
    slicer_case(tmp_path, "a", [layer], [("liver", 0, 1), ("tumour", 0, 2)])
    codes = [LabelCode(value=1, segments=("liver",))]
    with pytest.raises(DataError, match=r"has the segment tumour, which the data set does not know \(liver\)"):
        read_labels(tmp_path / "labels" / "a.seg.nrrd", codes)
    slicer_case(tmp_path, "a", [layer], [("liver", 0, 1)])
    with pytest.raises(DataError, match="holds the value 2, which no segment has"):
        read_labels(tmp_path / "labels" / "a.seg.nrrd", codes)
    slicer_case(tmp_path, "a", [layer], [("liver", 3, 1)])
    with pytest.raises(DataError, match="segment 'liver' lies in layer 3 of 1"):
        scan(tmp_path, DataOptions())


# masks that number objects


def balls(rng: np.random.Generator, shape: tuple[int, int, int], count: int, radius: float = 3.5) -> np.ndarray:
    """(Z, Y, X) with balls of about a radius at random places, numbered as drawn; later ones cover earlier ones."""
    values = np.zeros(shape, np.int32)
    grid = np.indices(shape)
    for number in range(1, count + 1):
        centre = rng.uniform(0, shape)
        centre = [0 if length == 1 else middle for middle, length in zip(centre, shape, strict=True)]
        distance = sum((axis - middle) ** 2 for axis, middle in zip(grid, centre, strict=True))
        values[distance <= (radius * rng.uniform(0.7, 1.3)) ** 2] = number
    return values


def rows_first(values: np.ndarray) -> np.ndarray:
    """Numbered in the order of their first voxels, as scipy and scikit-image do."""
    found, first = np.unique(values[values > 0], return_index=True)
    table = np.zeros(values.max() + 1, np.int32)
    table[found[np.argsort(first)]] = np.arange(1, len(found) + 1)
    return table[values]


def structures(sizes: Sequence[int], places: Sequence[Sequence[float]], missing: Sequence[int], shift: Sequence[int]):
    """(1, 64, 64) with a square for each class, but for those missing."""
    values = np.zeros((1, 64, 64), np.int32)
    for number, (size, (y, x)) in enumerate(zip(sizes, places, strict=True), start=1):
        if number not in missing:
            top, left = int(y) + shift[0], int(x) + shift[1]
            values[0, max(0, top) : max(0, top + size), max(0, left) : max(0, left + size)] = number
    return values


def arrays_of(kind: str) -> list[np.ndarray]:
    rng = np.random.default_rng(3)
    counts = rng.integers(8, 16, 8)
    flat = [balls(rng, (1, 96, 96), count) for count in counts]
    grid = [(8 * (index // 3) + 4, 20 * (index % 3) + 4) for index in range(8)]
    shifts = rng.integers(-2, 3, (8, 2))
    same, mixed = [5] * 8, [2, 3, 4, 6, 7, 3, 5, 6]
    last = [range(8 - index % 3 + 1, 9) for index in range(8)]
    if kind == "as drawn":
        return flat
    if kind == "rows first":
        return [rows_first(each) for each in flat]
    if kind == "three files":
        return flat[:3]
    if kind == "counted on":
        return [np.where(each > 0, each + 20 * index, 0) for index, each in enumerate(flat)]
    if kind == "tiles of a large mask":
        large = balls(rng, (1, 300, 300), 300)
        return [large[:, y : y + 100, x : x + 100] for y in (0, 100, 200) for x in (0, 100, 200)]
    if kind == "volumes":
        return [rows_first(balls(rng, (24, 32, 32), count)) for count in counts]
    if kind == "some missing":
        return [structures(mixed, grid, rng.integers(1, 9, 2), shift) for shift in shifts]
    if kind == "alike, the last missing":
        return [structures(same, grid, gone, shift) for gone, shift in zip(last, shifts, strict=True)]
    if kind == "places at random":
        return [structures([2, 3, 5, 7, 9], rng.uniform(0, 54, (5, 2)), [rng.integers(1, 6)], (0, 0)) for _ in range(8)]
    if kind == "vertebrae in a window":
        sizes, places = [3, 3, 3, 4, 4, 4, 5, 5, 5, 5, 6, 6], [(6 * index, 20) for index in range(12)]
        return [structures(sizes, places, (), (-12 * (index % 3), shift[1])) for index, shift in enumerate(shifts)]
    if kind == "two sets of organs":
        halves = [(1, 2, 3, 4), (5, 6, 7, 8)]
        return [structures(mixed, grid, halves[index % 2], shift) for index, shift in enumerate(shifts)]
    assert kind == "all in every case"
    return [structures(same, rng.uniform(0, 54, (8, 2)), (), (0, 0)) for _ in range(1)] * 4


OBJECTS = ("as drawn", "rows first", "three files", "counted on", "tiles of a large mask", "volumes")
CLASSES = (
    "some missing", "alike, the last missing", "places at random", "vertebrae in a window", "two sets of organs",
    "all in every case",
)  # fmt: skip


def facts_of(index: int, values: np.ndarray) -> CaseFacts:
    counts = count_values(values)
    kind = "nifti" if len(values) > 1 else "png"
    return CaseFacts(
        identifier=str(index), content_hash="", geometry=Geometry(shape=values.shape, kind=kind),
        nonzero_box=((0, 1),) * 3, value_counts=counts, components=count_components(values, counts, None), samples=(),
    )  # fmt: skip


@pytest.mark.parametrize("kind", [*OBJECTS, *CLASSES])
def test_numbered_objects_are_told_from_classes(tmp_path: Path, kind: str) -> None:
    pictures(tmp_path, None)
    for file in (tmp_path / "masks").iterdir():
        Image.fromarray(np.zeros((6, 7), np.uint8)).save(file)
    dataset = scan(tmp_path, DataOptions())
    facts = [facts_of(index, values) for index, values in enumerate(arrays_of(kind))]
    codes = {finding.code: finding for finding in label_findings(dataset, facts)}
    assert ("objects" in codes) == (kind in OBJECTS)
    if kind in OBJECTS:
        assert codes["objects"].severity == "fatal"
        assert "--objects NAME" in codes["objects"].remedy
        assert "--join NAME" in codes["objects"].remedy
        assert "too-many-values" not in codes
        named = {f"class {value}": value for fact in facts for value in fact.value_counts if value}
        known = dataset.model_copy(update={"labels": scan(tmp_path, DataOptions(classes=named)).labels})
        (found,) = (each for each in label_findings(known, facts) if each.code == "objects")
        assert found.severity == "warning"  # a person says that they are classes


@pytest.mark.parametrize("ending", [".png", ".tif", ".nii.gz"])
@pytest.mark.parametrize("ignore", [None, 40_000])
def test_objects_are_joined_into_one_class(tmp_path: Path, ending: str, ignore: int | None) -> None:
    for index in range(3):
        values = np.arange(42).reshape(1, 6, 7) * (index + 1)
        values[0, 5, 5:] = [40_000, 41_000]
        write_image(tmp_path / f"images/{index}{ending}", values[None].astype(np.uint16), Geometry(shape=(1, 6, 7)))
        write_labels(tmp_path / f"masks/{index}{ending}", values, Geometry(shape=(1, 6, 7)))
    dataset = scan(tmp_path, DataOptions(join="cell", ignore=ignore))
    facts = examine(dataset, workers=1)
    complete = complete_labels(dataset, facts).labels
    assert [(each.name, each.value) for each in complete.classes] == [("background", 0), ("cell", 1)]
    assert facts[0].value_counts == ({0: 1, 1: 41} if ignore is None else {0: 1, 1: 40, ignore: 1})
    expected = np.ones((1, 6, 7))
    expected[0, 0, 0], expected[0, 5, 5] = 0, 1 if ignore is None else -1
    np.testing.assert_array_equal(load_case(dataset, "2").labels, expected)
    for options in (DataOptions(join="a", classes={"b": 2}), DataOptions(join="a", regions={"b": (1,)})):
        with pytest.raises(OptionError, match="--join makes one class of all values"):
            scan(tmp_path, options)
    with pytest.raises(DataError, match="the background has to be 0"):
        scan(tmp_path, DataOptions(join="background"))

"""Label pictures in colours without a palette: a few flat ones become classes, more are told once for the set."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from autounet.datasets import load_case, scan
from autounet.datasets.colour_masks import MOST_COLOURS, find_palette, palette_of
from autounet.schema.dataset import Finding
from autounet.schema.errors import DataError
from autounet.schema.options import DataOptions, RunOptions
from autounet.store.run_folder import RunFolder
from autounet.workflow.dataset_stage import check_data, read_data

BLACK, RED, ORANGE, ODD = (0, 0, 0), (255, 0, 0), (255, 165, 0), (10, 200, 30)
BLOCKS = np.array([[0, 0, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1], [2, 2, 2, 3, 3, 3], [2, 2, 2, 3, 3, 3]])


def pictures(root: Path, masks: list[np.ndarray]) -> list[Path]:
    """images/ and masks/ with these (Y, X, 3) or (Y, X) masks; returns the paths of the masks."""
    for index, mask in enumerate(masks):
        image = np.random.default_rng(index).integers(0, 255, mask.shape[:2])
        for folder, pixels in (("images", image), ("masks", mask)):
            (root / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.astype(np.uint8)).save(root / folder / f"{index}.png")
    return sorted((root / "masks").iterdir())


def coloured(*colours: tuple[int, int, int]) -> np.ndarray:
    return np.array(colours, np.uint8)[BLOCKS]


def test_a_few_flat_colours_become_classes_named_by_colour(tmp_path: Path) -> None:
    masks = [coloured(BLACK, RED, ORANGE, ODD), coloured(BLACK, RED, RED, BLACK), coloured(BLACK, ODD, ODD, ODD)]
    pictures(tmp_path, masks)
    findings: list[Finding] = []
    dataset = scan(tmp_path, DataOptions(), findings)
    assert {each.name: each.value for each in dataset.labels.classes} == {
        "background": 0, "colour_0ac81e": 1, "red": 2, "orange": 3,
    }  # fmt: skip
    labels = load_case(dataset, "0").labels
    assert labels is not None
    np.testing.assert_array_equal(labels[0], np.array([0, 2, 3, 1])[BLOCKS])
    (told,) = findings
    assert told.code == "colours-found"
    assert told.case is None
    assert "the 3 label pictures hold 4 flat colours" in told.message
    assert "red [255, 0, 0] (30.6 %)" in told.message
    result = check_data(tmp_path, DataOptions())
    assert [each.code for each in result.findings if each.severity == "fatal"] == []
    assert [each.code for each in result.findings].count("colours-found") == 1


def test_the_palette_is_written_and_gives_the_same_classes(tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    pictures(data, [coloured(BLACK, RED, ORANGE, ODD)] * 3)
    out.mkdir()
    found = read_data(data, RunFolder(out), RunOptions(), "ras", workers=1).dataset.labels
    colours = {"background": BLACK, "colour_0ac81e": ODD, "red": RED, "orange": ORANGE}
    assert json.loads((out / "palette.json").read_text()) == {name: list(each) for name, each in colours.items()}
    assert scan(data, DataOptions(palette=str(out / "palette.json"))).labels == found
    renamed = {"background": [0, 0, 0], "leaf": [10, 200, 30], "fruit": [[255, 0, 0], [255, 165, 0]]}
    (tmp_path / "mine.json").write_text(json.dumps(renamed))
    own = scan(data, DataOptions(palette=str(tmp_path / "mine.json"))).labels
    assert palette_of(own) == renamed


def test_more_colours_are_one_finding_for_the_set(tmp_path: Path) -> None:
    """Photographs taken for labels, and flat colours after JPEG."""
    flat = np.kron(coloured(BLACK, RED, ORANGE, ODD), np.ones((8, 8, 1), np.uint8))
    shifts = np.random.default_rng(0).integers(0, 60, (5, *flat.shape))
    paths = pictures(tmp_path, [np.clip(flat + shift, 0, 255) for shift in shifts])
    with pytest.raises(DataError, match=r"\d+ colours in the first 1 of 5; 0.png alone holds \d+") as error:
        find_palette(paths)
    (finding,) = error.value.findings
    assert finding.case is None
    assert "--palette FILE" in finding.remedy
    (told,) = check_data(tmp_path, DataOptions()).findings
    assert (told.code, told.message) == ("colours", finding.message)


def test_smoothed_edges_are_told_by_their_single_pixels(tmp_path: Path) -> None:
    mask = np.zeros((12, 12, 3), np.uint8)
    mask[:6] = RED
    for place in range(6):
        mask[2 * place, 2 * place] = (128 + place, 0, 0)
    with pytest.raises(DataError, match="8 colours, of which 6 only in single pixels, as on smoothed edges"):
        find_palette(pictures(tmp_path, [mask]))


@settings(max_examples=40)
@given(count=st.integers(2, MOST_COLOURS + 4), seed=st.integers(0, 99))
def test_the_limit_is_the_limit(tmp_path_factory: pytest.TempPathFactory, count: int, seed: int) -> None:
    packed = np.random.default_rng(seed).choice(1 << 24, count, replace=False)
    colours = np.stack([packed >> 16, packed >> 8 & 255, packed & 255], -1).astype(np.uint8)
    if (colours == colours[:, :1]).all():
        return
    mask = np.kron(colours[None], np.ones((3, 3, 1), np.uint8))
    paths = pictures(tmp_path_factory.mktemp("limit"), [mask, mask[:, ::-1]])
    if count > MOST_COLOURS:
        with pytest.raises(DataError):
            find_palette(paths)
        return
    found = find_palette(paths)
    assert found is not None
    assert sorted(map(tuple, found.colours.values())) == sorted(map(tuple, colours.tolist()))
    assert next(iter(found.colours)) == "background", "without black a colour that all files have"


def test_values_are_no_colours(tmp_path: Path) -> None:
    """Grey RGB, indices with a palette of colours, plain values, and files of both sorts stay as they were."""
    grey = np.repeat((BLOCKS * 50)[..., None], 3, -1)
    assert find_palette(pictures(tmp_path / "grey", [grey])) is None
    assert find_palette(pictures(tmp_path / "plain", [BLOCKS, BLOCKS])) is None
    assert find_palette(pictures(tmp_path / "mixed", [BLOCKS, coloured(BLACK, RED, ORANGE, ODD)])) is None
    indexed = Image.fromarray(BLOCKS.astype(np.uint8))
    indexed.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0, 9, 9, 200])
    (tmp_path / "indexed").mkdir()
    indexed.save(tmp_path / "indexed" / "a.png")
    assert find_palette([tmp_path / "indexed" / "a.png"]) is None


def test_an_empty_mask_that_was_saved_as_grey_is_background(tmp_path: Path) -> None:
    paths = pictures(tmp_path, [np.zeros(BLOCKS.shape, np.uint8), coloured(BLACK, RED, ORANGE, ODD)])
    found = find_palette(paths)
    assert found is not None
    assert list(found.colours) == ["background", "colour_0ac81e", "red", "orange"]


def test_a_damaged_file_is_told_when_it_is_read(tmp_path: Path) -> None:
    paths = pictures(tmp_path, [coloured(BLACK, RED, ORANGE, ODD)] * 3)
    paths[1].write_bytes(paths[1].read_bytes()[:50])
    found = find_palette(paths)
    assert found is not None
    assert len(found.colours) == 4

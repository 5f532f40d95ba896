"""Grey pictures among coloured ones, and grey ones that are stored in colours: in training and in prediction."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from broken_sets import pictures
from PIL import Image
from test_mismatch import GREY, known_of
from test_predict_options import configuration, model

from autounet import api
from autounet.datasets import load_case, scan
from autounet.datasets.grey_pictures import COLOURS
from autounet.imageio import read_labels
from autounet.inference.archive import sealed
from autounet.inference.bundle import load_bundle
from autounet.inference.card import card_text
from autounet.inference.summaries import summarise_data
from autounet.schema.dataset import CaseFacts, Channel, ChannelFacts, ChannelKind
from autounet.schema.fingerprint import CaseFingerprint, ChannelFingerprint, Fingerprint
from autounet.schema.geometry import Geometry
from autounet.schema.labels import LabelClass, Labels
from autounet.schema.options import DataOptions
from autounet.workflow.dataset_stage import check_data

NONE = DataOptions(classes={"disc": 255})


def resaved(path: Path, form: str) -> None:
    """The same grey values in another kind of picture."""
    grey = Image.open(path).convert("L")
    if form == "grey palette":
        made = Image.fromarray(np.asarray(grey))
        made.putpalette([value for value in range(256) for _ in range(3)])
    else:
        made = grey.convert(form)
    made.save(path)


@pytest.mark.parametrize("form", ["L", "LA", "grey palette", "RGB", "RGBA"])
def test_grey_pictures_of_any_kind_are_read_among_coloured_ones(tmp_path: Path, form: str) -> None:
    data = pictures(tmp_path / "data", colour=True)
    for index in (0, 3):
        resaved(data / f"images/c{index}.png", form)
    dataset = scan(data, NONE)
    assert [channel.name for channel in dataset.channels] == list(COLOURS)
    found = check_data(data, NONE)
    assert not [each for each in found.findings if each.severity == "fatal"]
    told = [each.message for each in found.findings if each.code == "grey-and-coloured"]
    assert [each.split(" are")[0] for each in told] == ([] if form.startswith("RGB") else ["2 of 6 pictures"])
    image, grey = load_case(dataset, "c3").image, np.asarray(Image.open(data / "images/c3.png").convert("L"))
    np.testing.assert_array_equal(image, np.broadcast_to(grey, image.shape))


@pytest.mark.parametrize("form", ["RGB", "RGBA"])
def test_grey_pictures_in_colours_are_read_among_grey_ones(tmp_path: Path, form: str) -> None:
    data = pictures(tmp_path / "data")
    for index in (0, 1, 2, 4):  # also where most are
        resaved(data / f"images/c{index}.png", form)
    dataset = scan(data, NONE)
    assert [channel.name for channel in dataset.channels] == ["image"]
    (told,) = (each for each in check_data(data, NONE).findings if each.code == "grey-and-coloured")
    assert told.message.startswith("4 of 6 pictures are stored in colours and hold none")
    assert load_case(dataset, "c0").image.shape[0] == load_case(dataset, "c5").image.shape[0] == 1


def test_channels_that_are_no_colours_are_not_made_up(tmp_path: Path) -> None:
    data = pictures(tmp_path / "data", colour=True)
    resaved(data / "images/c0.png", "L")
    found = check_data(data, DataOptions(classes={"disc": 255}, kinds={"image": "other"})).findings
    assert [(each.code, each.case) for each in found if each.severity == "fatal"] == [("channel-mismatch", "c0")]


def test_a_bundle_knows_whether_grey_pictures_were_seen() -> None:
    fingerprint = Fingerprint(
        dimension=2, orientation="ras",
        channels=tuple(ChannelFingerprint(name=name, kind=ChannelKind.photo) for name in COLOURS),
        cases=(CaseFingerprint(identifier="a", content_hash="", shape=(1, 5, 6), cropped_shape=(1, 5, 6),
                               spacing=(1, 1, 1), voxels=(9, 1)),),
    )  # fmt: skip
    red, other = ChannelFacts(minimum=0, maximum=200), ChannelFacts(minimum=0, maximum=150)

    def summary(*channels: ChannelFacts) -> bool:
        facts = CaseFacts(
            identifier="a", content_hash="", geometry=Geometry(shape=(1, 5, 6)), nonzero_box=((0, 1), (0, 5), (0, 6)),
            value_counts={}, samples=(), channels=channels,
        )  # fmt: skip
        labels = Labels(classes=(LabelClass(name="background", value=0), LabelClass(name="cell", value=1)))
        return summarise_data(fingerprint, labels, [facts]).grey_pictures

    assert summary(red, red, red)
    assert not summary(red, red, other)
    assert not summary(ChannelFacts(), ChannelFacts(), ChannelFacts())


# ---- prediction ------------------------------------------------------------------------------------------------------


def of_pictures(folder: Path, channels: int, **summary: object) -> Path:
    """A model of pictures."""
    made = model(folder, {"2d": configuration("plain", 2, channels=channels)}, ".png")
    bundle = load_bundle(made)[0]
    names = COLOURS if channels == 3 else ("image",)
    kinds = tuple(Channel(name=name, kind=ChannelKind.photo) for name in names)
    card = known_of(bundle, GREY, 2).card
    assert card.data is not None
    data = card.data.model_copy(update={"channels": (GREY,) * channels, **summary})
    changes = {"channels": kinds, "file_kind": "png", "card": card.model_copy(update={"data": data})}
    bundle = bundle.model_copy(update=changes)
    (made / "model_card.md").write_text(card_text(bundle), encoding="utf-8")
    sealed(bundle).save(made / "bundle.json")
    return made


def grey_values() -> np.ndarray:
    return np.random.default_rng(0).integers(20, 220, (24, 20), np.uint8)


@pytest.mark.parametrize("ending", [".png", ".tif", ".bmp"])
def test_a_grey_model_takes_grey_pictures_in_colours(
    tmp_path: Path, ending: str, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "new").mkdir()
    Image.fromarray(grey_values()).save(tmp_path / "plain.png")
    for index in range(3):
        Image.fromarray(grey_values()).convert("RGB").save(tmp_path / f"new/a{index}{ending}")
    predictor = api.load(of_pictures(tmp_path / "model", 1), device="cpu", folds=[0], mirror=False)
    with caplog.at_level(logging.WARNING):
        assert list(predictor.predict_files(tmp_path / "new", tmp_path / "out")) == []
    told = [each.getMessage() for each in caplog.records if "holds none" in each.getMessage()]
    assert len(told) == 1
    assert "as of 2 more" in told[0]
    expected = predictor.predict(tmp_path / "plain.png")
    np.testing.assert_array_equal(read_labels(next((tmp_path / "out").glob("a0.*")))[0], expected)


def test_a_grey_model_refuses_colours(tmp_path: Path) -> None:
    pixels = np.repeat(grey_values()[..., None], 3, axis=2)
    pixels[3, 4, 2] += 1
    Image.fromarray(pixels).save(tmp_path / "a.png")
    predictor = api.load(of_pictures(tmp_path / "model", 1), device="cpu", folds=[0], mirror=False)
    (failure,) = predictor.predict_files(tmp_path / "a.png", tmp_path / "out", force=True)
    assert "a.png has 3 channels, expected 1 (image): it is in colours" in failure


def test_a_model_of_colours_says_what_helps_with_a_grey_picture(tmp_path: Path) -> None:
    Image.fromarray(grey_values()).save(tmp_path / "a.png")
    predictor = api.load(of_pictures(tmp_path / "model", 3), device="cpu", folds=[0], mirror=False)
    (failure,) = predictor.predict_files(tmp_path / "a.png", tmp_path / "out")
    assert "a.png has 1 channel, expected 3 (red, green, blue): it is grey" in failure
    assert "give --force" in failure
    assert list(predictor.predict_files(tmp_path / "a.png", tmp_path / "out", force=True)) == []


def test_a_model_that_has_seen_both_takes_both(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Image.fromarray(grey_values()).save(tmp_path / "a.png")
    made = of_pictures(tmp_path / "model", 3, grey_pictures=True)
    predictor = api.load(made, device="cpu", folds=[0], mirror=False)
    assert list(predictor.predict_files(tmp_path / "a.png", tmp_path / "out")) == []
    assert not [each for each in caplog.records if each.levelno >= logging.WARNING]

"""Images that are unlike a model's training: which are refused, which are told, and which are honest variations."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import numpy as np
import pytest
from dicom_series import write_series
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from orientations import ALL_48, direction_of
from test_predict_options import configuration, model

from autounet import api
from autounet.cli.app import main
from autounet.datasets.inputs import InputCase
from autounet.imageio import read_labels, stem, write_image
from autounet.inference.archive import sealed
from autounet.inference.bundle import load_bundle
from autounet.inference.card import card_text
from autounet.inference.summaries import summarise_data
from autounet.ops.orient import canonical_axes
from autounet.prediction.mismatch import Mismatch, geometry_mismatches, header_mismatches, intensity_mismatches
from autounet.schema.bundle import ChannelSummary, DataSummary, ModelBundle, ModelCard
from autounet.schema.dataset import CaseFacts, Channel, ChannelFacts, ChannelKind
from autounet.schema.errors import DataError
from autounet.schema.fingerprint import CaseFingerprint, ChannelFingerprint, Fingerprint
from autounet.schema.geometry import Geometry
from autounet.schema.labels import LabelClass, Labels

FINEST, COARSEST = (1.0, 0.6, 0.7), (5.0, 0.9, 0.9)
CT = ChannelSummary(
    name="CT", kind="ct", median=50, percentile_00_5=-150, percentile_99_5=400, minimum=(-1100, -900),
    maximum=(900, 3071),
)  # fmt: skip
MRI = ChannelSummary(name="T1", kind="mri", median=300, percentile_00_5=20, percentile_99_5=900, minimum=(0, 0),
                     maximum=(700, 4000))  # fmt: skip
GREY = ChannelSummary(name="grey", kind="photo", median=90, percentile_00_5=5, percentile_99_5=250, minimum=(0, 10),
                      maximum=(120, 255))  # fmt: skip


def summary(channel: ChannelSummary, dimension: int = 3) -> DataSummary:
    volume = dimension == 3
    return DataSummary(
        cases=9, dimension=dimension, shape=(40 if volume else 1, 64, 64), smallest=(20 if volume else 1, 50, 50),
        largest=(80 if volume else 1, 90, 90), spacing=(2.5, 0.8, 0.8) if volume else (1, 1, 1),
        finest=FINEST if volume else (1, 1, 1), coarsest=COARSEST if volume else (1, 1, 1), channels=(channel,),
        classes=(),
    )  # fmt: skip


def known_of(bundle: ModelBundle, channel: ChannelSummary, dimension: int = 3, **fields: object) -> ModelBundle:
    """The bundle as if it had been trained on such images."""
    own = (Channel(name=channel.name, kind=ChannelKind(channel.kind)),)
    card = ModelCard(data=summary(channel, dimension))
    return bundle.model_copy(update={"channels": own, "card": card, **fields})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a model of volumes of CT."""
    folder = model(tmp_path_factory.mktemp("volumes"), {"3d_fullres": configuration("plain", 3)})
    bundle = known_of(load_bundle(folder)[0], CT)
    (folder / "model_card.md").write_text(card_text(bundle), encoding="utf-8")
    sealed(bundle).save(folder / "bundle.json")
    return folder


@pytest.fixture(scope="module")
def plain(folder: Path) -> ModelBundle:
    return load_bundle(folder)[0]


@pytest.fixture(scope="module")
def slices(tmp_path_factory: pytest.TempPathFactory) -> ModelBundle:
    return load_bundle(model(tmp_path_factory.mktemp("slices"), {"2d": configuration("plain", 2)}, ".png"))[0]


def image(
    path: Path, shape: tuple[int, ...], spacing: tuple[float, ...], low: float = -1000, high: float = 1500
) -> Path:
    values = np.random.default_rng(0).uniform(low, high, (1, *shape)).round().astype(np.float32)
    values.flat[:2] = low, high
    path.parent.mkdir(parents=True, exist_ok=True)
    write_image(path, values, Geometry(shape=shape, spacing=spacing))  # type: ignore[arg-type]
    return path


def headers(bundle: ModelBundle, path: Path) -> dict[str, Mismatch]:
    return {each.topic: each for each in header_mismatches(bundle, InputCase(stem(path), (path,)))}


def judged(bundle: ModelBundle, values: np.ndarray) -> Mismatch | None:
    found = intensity_mismatches(bundle, values.astype(np.float32)[None])
    assert len(found) < 2
    return found[0] if found else None


between = st.floats(0, 1)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    way=st.sampled_from(ALL_48), share=st.tuples(between, between, between), axis=st.integers(0, 2), up=st.booleans()
)
def test_spacing_is_judged_along_the_patients_axes(
    plain: ModelBundle, way: tuple[tuple[int, ...], tuple[float, ...]], share: tuple[float, ...], axis: int, up: bool
) -> None:
    """Of another scanner it is within a factor of 2 of what was trained on, whichever way the file is stored."""
    axes, _ = canonical_axes(direction_of(*way))
    patient = [
        low / 1.99 * (high * 1.99 / (low / 1.99)) ** part
        for low, high, part in zip(FINEST, COARSEST, share, strict=True)
    ]
    direction = direction_of(*way)

    def stored(spacing: list[float]) -> Geometry:
        own = [0.0, 0.0, 0.0]
        for oriented, place in enumerate(axes):
            own[place] = spacing[oriented]
        return Geometry(shape=(30, 50, 50), spacing=tuple(own), direction=direction)  # type: ignore[arg-type]

    assert not list(geometry_mismatches(plain, stored(patient)))
    for factor, refuses in ((2.1, False), (7.9, False), (8.1, True), (1000.0, True)):
        patient[axis] = COARSEST[axis] * factor if up else FINEST[axis] / factor
        (found,) = geometry_mismatches(plain, stored(patient))
        assert (found.topic, found.refuses) == ("spacing", refuses)
        assert f"{patient[axis]:.5g}" in found.message
        assert found.message.endswith("in training it was 1 to 5 x 0.6 to 0.9 x 0.7 to 0.9 mm")


def test_dimensions(plain: ModelBundle, slices: ModelBundle, tmp_path: Path) -> None:
    volumes = known_of(plain, CT)
    flat, thick = Geometry(shape=(1, 60, 60)), Geometry(shape=(40, 60, 60), spacing=(2.5, 0.8, 0.8))
    (found,) = geometry_mismatches(volumes, flat)
    assert found.refuses
    assert (
        found.message
        == "it is 2-D (1 x 60 x 60), and the model was trained on volumes of 20 to 80 x 50 to 90 x 50 to 90 voxels"
    )
    assert not list(geometry_mismatches(volumes, thick))
    unknown = volumes.model_copy(update={"card": ModelCard()})
    assert [each.refuses for each in geometry_mismatches(unknown, flat)] == [True], "its networks are of volumes"
    pictures = known_of(slices, GREY, 2, file_kind="png")
    (found,) = geometry_mismatches(pictures, thick)
    assert found.refuses
    assert "it is a volume (40 x 60 x 60), and the model was trained on 2-D images" in found.message
    stack = Geometry(shape=(40, 60, 60), kind="tiff")
    assert [each.refuses for each in geometry_mismatches(pictures, stack)] == [False], "pages are predicted one by one"
    assert not list(geometry_mismatches(pictures, Geometry(shape=(1, 600, 20), kind="png", dimension=2)))
    by_slice = known_of(slices, MRI, 3)
    assert not list(geometry_mismatches(by_slice, flat)), "one slice of what is segmented slice by slice"


def test_kinds(plain: ModelBundle, tmp_path: Path) -> None:
    bundle = known_of(plain, CT)
    picture = tmp_path / "a.png"
    colours = np.arange(3 * 64, dtype=np.uint8).reshape(3, 1, 8, 8)
    write_image(picture, colours, Geometry(shape=(1, 8, 8), kind="png", dimension=2))
    found = headers(bundle, picture)
    assert set(found) == {"dimension", "channels", "kind"}
    assert "a.png has 3 channels, expected 1 (CT)" in found["channels"].message
    assert not found["channels"].can_be_forced
    write_image(picture, np.zeros((1, 1, 8, 8), np.uint8), Geometry(shape=(1, 8, 8), kind="png", dimension=2))
    kind = headers(bundle, picture)["kind"]
    assert kind.refuses
    assert kind.message == "it is a PNG picture, and the model was trained on CT stored as .nii.gz"
    assert not headers(known_of(plain, MRI), picture)["kind"].refuses, "only told: slices of MRI are exported so"


def test_the_modality_of_a_series(plain: ModelBundle, tmp_path: Path) -> None:
    write_series(tmp_path / "scan", np.random.default_rng(0).integers(-900, 900, (20, 16, 18)).astype(np.int16))
    ct, mri = known_of(plain, CT), known_of(plain, MRI)
    assert "kind" not in headers(mri, tmp_path / "scan")
    found = headers(ct, tmp_path / "scan")["kind"]
    assert found.refuses
    assert found.message == "its DICOM modality is MR, and that of the model's channel CT is CT"


def uniform(low: float, high: float, shape: tuple[int, int, int] = (20, 20, 20)) -> np.ndarray:
    values = np.random.default_rng(1).uniform(low, high, shape)
    values.flat[:2] = low, high
    return values.round(2)


@pytest.mark.parametrize(
    ("name", "values", "refuses"),
    [
        ("whole body", uniform(-1024, 2000), None),
        ("metal", np.where(uniform(0, 1) > 0.999, 30000, uniform(-1024, 1500)), None),
        ("soft tissue cut out", uniform(-130, 220), None),
        ("background set to 0", np.where(uniform(0, 1) > 0.5, 0, uniform(-150, 300)), None),
        ("padded with -2048", np.where(uniform(0, 1) > 0.5, -2048, uniform(-1000, 900)), None),
        ("8 bits", uniform(0, 255), True),
        ("scaled", uniform(0, 1), True),
        ("scaled to -1..1", uniform(-1, 1), True),
        ("offset of 1024", uniform(0, 3000), True),
        ("MRI", uniform(0, 900), True),
        ("other units", uniform(-60000, 60000), True),
        ("empty", np.zeros((4, 4, 4)), None),
        ("constant", np.full((4, 4, 4), 7.0), None),
    ],
)
def test_hounsfield_units_are_comparable(
    plain: ModelBundle, name: str, values: np.ndarray, refuses: bool | None
) -> None:
    found = judged(known_of(plain, CT), values)
    assert (None if found is None else found.refuses) is refuses, name
    if found is not None:
        assert found.message.startswith(f"its CT values are {values.min():.5g} to {values.max():.5g}, and in training")
        assert "-1100 to 3071" in found.message or "-150 to 400" in found.message


def test_a_model_of_shifted_hounsfield_units_takes_those(plain: ModelBundle) -> None:
    shifted = CT.model_copy(update={"minimum": (0, 24), "maximum": (2500, 4095), "percentile_00_5": 874.0,
                                    "percentile_99_5": 1424.0})  # fmt: skip
    bundle = known_of(plain, shifted)
    assert judged(bundle, uniform(0, 3000)) is None
    assert judged(bundle, uniform(-1000, 2000)) is not None


def test_what_older_bundles_know_is_used(plain: ModelBundle) -> None:
    older = known_of(plain, CT.model_copy(update={"minimum": None, "maximum": None}))
    assert judged(older, uniform(-1024, 2000)) is None
    assert judged(older, uniform(0, 1)) is not None
    assert judged(older, uniform(500, 3000)) is not None, "nothing of what it segments"
    for other in (MRI, GREY):
        bundle = known_of(plain, other.model_copy(update={"minimum": None, "maximum": None}))
        assert judged(bundle, uniform(-1000, 60000)) is None


@pytest.mark.parametrize(
    ("channel", "values", "refuses"),
    [
        (MRI, uniform(0, 12), None),
        (MRI, uniform(0, 30000), None),
        (MRI, uniform(-3, 4), None),
        (MRI, uniform(-1000, 1200), True),
        (GREY, uniform(0, 255), None),
        (GREY, uniform(30, 60), None),
        (GREY, uniform(0, 20), None),
        (GREY, uniform(0, 14), False),
        (GREY, uniform(0, 1), True),
        (GREY, uniform(0, 65535), True),
        (GREY, uniform(-1000, 1000), True),
    ],
)
def test_other_kinds(plain: ModelBundle, channel: ChannelSummary, values: np.ndarray, refuses: bool | None) -> None:
    """MRI is judged by what cannot be MRI, pictures by their bits, with room for dark ones."""
    found = judged(known_of(plain, channel), values)
    assert (None if found is None else found.refuses) is refuses


def test_of_kind_other_it_is_only_told(plain: ModelBundle) -> None:
    bundle = known_of(plain, MRI.model_copy(update={"kind": "other"}))
    assert judged(bundle, uniform(0, 65535)) is None
    found = judged(bundle, uniform(-1000, 1200))
    assert found is not None
    assert not found.refuses


def test_channels_that_an_image_lacks_are_not_judged(plain: ModelBundle) -> None:
    bundle = known_of(plain, CT)
    assert intensity_mismatches(bundle, uniform(0, 255)[None], present=(False,)) == []


def test_a_folder_is_judged_before_its_first_image_is_predicted(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    source = tmp_path / "in"
    image(source / "a.nii.gz", (6, 9, 8), (2.5, 0.8, 0.8))
    image(source / "b.nii.gz", (6, 9, 8), (0.0025, 0.0008, 0.0008))
    image(source / "c.nii.gz", (6, 9, 8), (2.5, 0.8, 0.8), 0, 255)
    image(source / "d.nii.gz", (6, 9, 8), (2.5, 2.5, 0.8))
    image(source / "e.nii.gz", (6, 9, 8), (2.5, 0.8, 3.0))
    image(source / "f.nii.gz", (6, 9, 8), (2.5, 0.8, 0.8), 0, 0)
    predictor = api.load(folder, device="cpu", folds=[0], mirror=False)
    done = []
    with caplog.at_level(logging.WARNING):
        first, second = predictor.predict_files(
            source, tmp_path / "out", lambda name: done.append((name, list(caplog.messages)))
        )
    assert first.startswith("case b: its spacing (z, y, x) is 0.0025 x 0.0008 x 0.0008 mm, and in training it was 1 to")
    assert second.startswith("case c: its CT values are 0 to 255, and in training they were -1100 to 3071")
    assert all("give --force (from Python force=True)" in each for each in (first, second))
    assert sorted(path.name[0] for path in (tmp_path / "out").glob("*.nii.gz")) == ["a", "d", "e", "f"]
    told = done[0][1]
    assert "1 of 6 images do not fit the model and will not be predicted" in told
    assert [each for each in told if "spacing" in each and each.endswith("(as of 1 more)")], "once for both"
    assert any("case f: the image has the value 0 in every voxel" in each for each in caplog.messages)
    with pytest.raises(DataError, match="spacing"):
        predictor.predict(source / "b.nii.gz")
    with pytest.raises(DataError, match="CT values are 0 to 255"):
        predictor.predict(source / "c.nii.gz")
    with pytest.raises(DataError, match="case array: it is 2-D"):
        predictor.predict(uniform(-900, 900, (1, 9, 8)), spacing=(2.5, 0.8, 0.8))
    words = ["autounet", "predict", str(folder), str(source / "c.nii.gz"), "--out", str(tmp_path / "cli")]
    words += ["--folds", "0", "--no-mirror", "--device", "cpu"]
    for argv, code in ((words, 1), ([*words, "--force"], 0)):
        monkeypatch.setattr(sys, "argv", argv)
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == code
        assert ("not predicted: case c: its CT values are 0 to 255" in capsys.readouterr().err) == bool(code)
    written = read_labels(tmp_path / "cli" / "c.nii.gz")[0]
    np.testing.assert_array_equal(predictor.predict(source / "c.nii.gz", force=True), written)


def test_what_networks_cannot_take_stays_an_error(folder: Path, tmp_path: Path) -> None:
    colours = Geometry(shape=(1, 9, 8), kind="png", dimension=2)
    write_image(tmp_path / "a.png", np.random.default_rng(0).integers(0, 255, (3, 1, 9, 8), np.uint8), colours)
    predictor = api.load(folder, device="cpu", folds=[0], mirror=False)
    for force in (False, True):
        (failure,) = predictor.predict_files(tmp_path / "a.png", tmp_path / "out", force=force)
        assert "a.png has 3 channels, expected 1 (CT)" in failure
        assert "--force" not in failure


def test_a_bundle_keeps_the_extremes_of_its_images() -> None:
    labels = Labels(classes=(LabelClass(name="background", value=0), LabelClass(name="liver", value=1)))
    case = {"content_hash": "", "shape": (4, 5, 6), "cropped_shape": (4, 5, 6), "spacing": (1, 1, 1), "voxels": (9, 1)}
    fingerprint = Fingerprint(
        dimension=3, orientation="ras", channels=(ChannelFingerprint(name="CT", kind=ChannelKind.ct),),
        cases=tuple(CaseFingerprint(identifier=name, **case) for name in "ab"),  # type: ignore[arg-type]
    )  # fmt: skip
    facts = [
        CaseFacts(
            identifier=name, content_hash="", geometry=Geometry(shape=(4, 5, 6)), nonzero_box=((0, 4), (0, 5), (0, 6)),
            value_counts={}, samples=(), channels=(ChannelFacts(minimum=low, maximum=high),),
        )
        for name, low, high in (("a", -1000.0, 800.0), ("b", -900.0, None))
    ]  # fmt: skip
    (channel,) = summarise_data(fingerprint, labels, facts).channels
    assert (channel.minimum, channel.maximum) == ((-1000.0, -900.0), (800.0, 800.0))
    (channel,) = summarise_data(fingerprint, labels).channels
    assert (channel.minimum, channel.maximum) == (None, None)

"""`autounet.load(...).predict(...)`: an array, its file and its channel files give the same; so do threads."""

from __future__ import annotations

import inspect
import subprocess
import sys
import threading
import typing
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from orientations import ALL_48, direction_of
from test_predict_options import LABELS, TURNED, configuration, model

import autounet
from autounet.api import Model
from autounet.imageio import read_image, read_labels, write_image, write_labels
from autounet.inference.archive import sealed
from autounet.inference.bundle import export_bundle, load_bundle
from autounet.inference.card import card_text
from autounet.prediction.predictor import Predictor
from autounet.schema.dataset import Channel
from autounet.schema.errors import AutoUNetError, DataError, ModelError, OptionError
from autounet.schema.geometry import Geometry
from autounet.schema.plan import ChannelNormalisation, Configuration


def two_channels(plan: Configuration) -> Configuration:
    preprocess = plan.preprocess.model_copy(update={"normalisation": (ChannelNormalisation(scheme="zscore"),) * 2})
    network = plan.network.model_copy(update={"in_channels": 2})
    return plan.model_copy(update={"preprocess": preprocess, "network": network})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two configurations, of which one resamples; both mirror."""
    coarse = configuration("plain", 3)
    spec = coarse.preprocess.model_copy(update={"spacing": (1.5, 1.0, 1.3)})
    plans = {"2d": configuration("plain", 2), "3d_fullres": coarse.model_copy(update={"preprocess": spec})}
    return model(tmp_path_factory.mktemp("model"), plans)


@pytest.fixture(scope="module")
def predictor(folder: Path) -> Model:
    return autounet.load(folder, device="cpu")


def pair_model(folder: Path) -> Path:
    """Of two channels, of which the second may be missing."""
    plain = model(folder, {"3d_fullres": two_channels(configuration("plain", 3))})
    bundle = load_bundle(plain)[0]
    channels = tuple(Channel(name=name) for name in ("t1", "t2"))
    known = {"channels": channels, "channel_combinations": ((True, False), (True, True))}
    sealed(bundle.model_copy(update=known)).save(plain / "bundle.json")
    (plain / "model_card.md").write_text(card_text(bundle.model_copy(update=known)), encoding="utf-8")
    return plain


def volume(path: Path, direction: tuple[float, ...], spacing: tuple[float, float, float] = (2.0, 1.0, 0.8)) -> Path:
    shape = (6, 12, 9)
    image = np.random.default_rng(len(str(path))).normal(size=(1, *shape)).astype(np.float32) + 5
    geometry = Geometry(shape=shape, spacing=spacing, origin=(3.0, -2.0, 7.0), direction=direction)  # type: ignore[arg-type]
    write_image(path, image, geometry)
    return path


@settings(max_examples=5, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(way=st.sampled_from(ALL_48), ending=st.sampled_from([".nii.gz", ".mha", ".nrrd"]))
def test_an_array_gives_what_its_file_gives_in_any_orientation(
    predictor: Model, tmp_path: Path, way: tuple[tuple[int, ...], tuple[float, ...]], ending: str
) -> None:
    path = volume(tmp_path / f"a{ending}", direction_of(*way))
    from_path = predictor.predict(path)
    array, geometry = read_image(path)
    assert (from_path.shape, from_path.dtype) == (geometry.shape, np.int32)
    np.testing.assert_array_equal(predictor.predict(array, geometry=geometry), from_path)
    by_itk = sitk.ReadImage(str(path))
    voxels = sitk.GetArrayFromImage(by_itk)
    found = predictor.predict(voxels, by_itk.GetSpacing()[::-1], direction=by_itk.GetDirection())
    np.testing.assert_array_equal(found, from_path)


def test_it_is_what_the_command_writes_also_of_an_oblique_file_and_from_one_file(
    folder: Path, predictor: Model, tmp_path: Path
) -> None:
    cosine, sine = np.cos(0.3), np.sin(0.3)
    turn = np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]]) @ np.reshape(TURNED, (3, 3))
    path = volume(tmp_path / "images" / "a.nii.gz", tuple(turn.ravel().tolist()))
    assert not predictor.predict_files(path, tmp_path / "out")
    written, _ = read_labels(tmp_path / "out" / "a.nii.gz")
    assert set(np.unique(written)) <= set(LABELS.values)
    assert len(np.unique(written)) > 1
    np.testing.assert_array_equal(predictor.predict(str(path)), written)
    array, geometry = read_image(path)
    assert (predictor.predict(array, geometry.spacing) != written).any(), "the direction matters"
    export_bundle(folder, tmp_path / "m.autounet")
    alone = autounet.load(tmp_path / "m.autounet", device="cpu")
    np.testing.assert_array_equal(alone.predict(array, geometry.spacing, direction=turn), written)


def test_pictures_need_no_spacing(tmp_path: Path) -> None:
    predictor = autounet.load(model(tmp_path, {"2d": configuration("plain", 2)}, ".png"), device="cpu")
    geometry = Geometry(shape=(1, 11, 13), kind="png", dimension=2)
    picture = np.random.default_rng(0).integers(0, 255, (1, 1, 11, 13), np.uint8)
    write_image(tmp_path / "b.png", picture, geometry)
    whole = predictor.predict(tmp_path / "b.png")
    for array in (picture, picture[0], picture[0, 0]):
        np.testing.assert_array_equal(predictor.predict(array), whole)


def test_the_files_of_one_case_come_in_the_order_of_the_channels(tmp_path: Path) -> None:
    predictor = autounet.load(pair_model(tmp_path), device="cpu")
    first, second = volume(tmp_path / "x.nii.gz", TURNED), volume(tmp_path / "other.nii.gz", TURNED)
    whole = predictor.predict([first, str(second)])
    arrays = [read_image(path)[0] for path in (first, second)]
    geometry = read_image(first)[1]
    np.testing.assert_array_equal(predictor.predict(np.concatenate(arrays), geometry=geometry), whole)
    assert (predictor.predict([second, first]) != whole).any()
    lacking = predictor.predict([first, None])
    filled = np.concatenate([arrays[0], np.zeros_like(arrays[1])])
    np.testing.assert_array_equal(predictor.predict(filled, geometry=geometry, present=(True, False)), lacking)
    with pytest.raises(DataError, match="no file for channel t1"):
        predictor.predict([None, second])
    with pytest.raises(DataError, match="3 files for the channels t1, t2"):
        predictor.predict([first, None, None])
    with pytest.raises(DataError, match="1 channel, expected 2"):
        predictor.predict(first)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image": np.zeros((2, 4, 4, 4))}, "needs 1 channels: mri"),
        ({"image": np.full((4, 4, 4), np.nan)}, "64 voxels that are NaN"),
        ({"image": np.zeros((4, 4, 4)), "spacing": (1, 0, 1)}, "three lengths in mm above 0"),
        ({"image": np.zeros((4, 4, 4)), "spacing": (1,)}, "three lengths in mm above 0"),
        ({"image": np.zeros((4, 4, 4)), "direction": np.ones(9)}, "at right angles"),
        ({"image": np.zeros((4, 4, 4)), "geometry": Geometry(shape=(4, 4, 5))}, "its geometry"),
        (
            {"image": np.zeros((4, 4, 4)), "geometry": Geometry(shape=(4, 4, 4)), "spacing": (1, 1, 1)},
            "Give geometry alone",
        ),
        ({"image": "nowhere.nii.gz"}, "does not exist"),
        ({"image": ["nowhere.nii.gz"]}, "does not exist"),
        ({"image": []}, "no file was given"),
        ({"image": "nowhere.nii.gz", "spacing": (1, 1, 1)}, "belong to arrays"),
    ],
)
def test_what_does_not_fit_is_told(predictor: Model, arguments: dict[str, typing.Any], message: str) -> None:
    with pytest.raises(AutoUNetError, match=message) as raised:
        predictor.predict(**arguments)
    assert isinstance(raised.value, DataError | OptionError)


def test_a_folder_of_several_images_is_for_predict_files(predictor: Model, tmp_path: Path) -> None:
    for name in "ab":
        volume(tmp_path / f"{name}.nii.gz", TURNED)
    with pytest.raises(DataError, match="is 2 cases"):
        predictor.predict(tmp_path)


def test_several_threads_use_one_model_at_once(predictor: Model, tmp_path: Path) -> None:
    paths = [volume(tmp_path / ("v" * (index + 1) + ".nii.gz"), TURNED) for index in range(4)]
    alone = [predictor.predict(path) for path in paths]
    found: dict[int, np.ndarray] = {}
    start = threading.Barrier(8)

    def work(index: int) -> None:
        start.wait()
        found[index] = predictor.predict(paths[index % 4])

    threads = [threading.Thread(target=work, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index in range(8):
        np.testing.assert_array_equal(found[index], alone[index % 4])


def test_a_script_without_a_main_guard_loads_and_predicts_in_a_thread_and_starts_no_process(
    folder: Path, tmp_path: Path
) -> None:
    path = volume(tmp_path / "a.nii.gz", TURNED)
    script = tmp_path / "script.py"
    script.write_text(
        "import os, sys, threading, multiprocessing.process as processes\n"
        "import autounet\n"
        "def refuse(*arguments):\n    raise SystemExit('a process was started')\n"
        "processes.BaseProcess.start = refuse\n"
        "os.fork = refuse\n"
        "found = []\n"
        "def serve():\n"
        f"    model = autounet.load({str(folder)!r}, device='cpu')\n"
        f"    found.append(model.predict({str(path)!r}))\n"
        f"    found.append(model.predict_files({str(path)!r}, {str(tmp_path / 'out')!r}))\n"
        f"    found.append(autounet.evaluate({str(tmp_path / 'out')!r}, {str(tmp_path / 'out')!r}).mean_dice)\n"
        "thread = threading.Thread(target=serve)\n"
        "thread.start()\n"
        "thread.join()\n"
        "assert found[1:] == [[], 1.0], found[1:]\n"
        "sys.stdout.write(str(found[0].shape))\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "(6, 12, 9)"), done.stderr


def test_a_script_without_a_main_guard_evaluates_with_several_processes(tmp_path: Path) -> None:
    for case in "ab":
        write_labels(tmp_path / "labels" / f"{case}.nii.gz", np.ones((2, 3, 4), np.int32), Geometry(shape=(2, 3, 4)))
    script = tmp_path / "script.py"
    script.write_text(
        "import sys, autounet, autounet.label_evaluation\n"
        "autounet.label_evaluation.WORTH_PROCESSES = 0\n"
        "sys.stdout.write('started ')\n"
        f"sys.stdout.write(str(autounet.evaluate({str(tmp_path / 'labels')!r}, {str(tmp_path / 'labels')!r},"
        " workers=2).mean_dice))\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "started 1.0"), done.stderr


def test_a_spacing_in_another_unit_is_named_where_memory_does_not_suffice(
    folder: Path, tmp_path: Path, monkeypatch
) -> None:
    image, geometry = read_image(volume(tmp_path / "in" / "b.nii.gz", TURNED))
    write_image(tmp_path / "in" / "b.nii.gz", image, geometry.model_copy(update={"spacing": (1e6, 1e6, 1e6)}))
    loaded = autounet.load(folder, device="cpu")
    (failure,) = loaded.predict_files(tmp_path / "in", tmp_path / "out")
    assert failure.startswith("case b: its spacing of 1e+06 x 1e+06 x 1e+06 mm makes ")
    assert "Correct the spacing in the header" in failure
    write_image(tmp_path / "in" / "b.nii.gz", image, geometry.model_copy(update={"spacing": (9.0, 9.0, 9.0)}))

    def full(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(loaded, "predict_scores", full)
    (failure,) = loaded.predict_files(tmp_path / "in", tmp_path / "out")
    assert failure.startswith("case b: memory ran out; its spacing of 9 x 9 x 9 mm makes ")


def test_the_interface_is_typed() -> None:
    """Every parameter has a type, none is hidden, and the package says that it is typed."""
    for function in (autounet.load, autounet.evaluate, Predictor.predict, Model.predict_files, Predictor.__init__):
        parameters = [each for each in inspect.signature(function).parameters.values() if each.name != "self"]
        assert all(each.annotation not in (inspect.Parameter.empty, "Any") for each in parameters), function
        assert all(each.kind not in (each.VAR_KEYWORD, each.VAR_POSITIONAL) for each in parameters), function
    loaded, built = (inspect.signature(each).parameters for each in (autounet.load, Predictor.__init__))
    assert [name for name in built if name != "self"] == list(loaded)
    assert {name: built[name].default for name in loaded} == {name: each.default for name, each in loaded.items()}
    assert (Path(autounet.__file__).parent / "py.typed").is_file()


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is no model"):
        autounet.load(tmp_path)

"""Images larger than the memory, predicted some rows at a time: the same voxels as of the whole, in the same files."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from laboratory_files import hdf5, ngff
from test_predict_options import LABELS, configuration, model

from autounet.datasets import chunked_input, find_inputs
from autounet.datasets.chunked_input import ChunkedInput
from autounet.imageio import (
    ChunkedImage,
    LabelRows,
    label_rows,
    opened_image,
    read_full_header,
    read_geometry,
    read_image,
    read_labels,
    write_image,
    write_label_rows,
    write_labels,
)
from autounet.imageio.axes import AxisPlaces
from autounet.imageio.image_format import ImageHeader
from autounet.inference.score_rows import score_rows
from autounet.inference.sliding_window import predict_scores
from autounet.nets import FAMILIES
from autounet.ops.masks import apply_steps, filled_mask
from autounet.ops.resample import Rows, resample_image, rows_needed
from autounet.ops.rows import RowBuffer, RowComponents
from autounet.prediction import by_rows
from autounet.prediction.by_rows import ByRows, apply_step, predict_by_rows
from autounet.prediction.folder import OutputOptions, predict_folder
from autounet.prediction.predictor import Predictor
from autounet.preprocessing import case_properties, measure_image, prepare_case, prepared_rows
from autounet.schema.errors import DataError
from autounet.schema.geometry import Geometry
from autounet.schema.labels import Region, labels_of_objects, targets_of
from autounet.schema.plan import ChannelNormalisation, Configuration, PreprocessSpec
from autounet.schema.selection import PostprocessStep

AXES = st.integers(0, 2)
SHAPES = st.tuples(st.integers(1, 12), st.integers(2, 9), st.integers(2, 9))


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """So that images of a few voxels are several; one thread."""
    monkeypatch.setattr(chunked_input, "PIECE_BYTES", 4 * 3 * 12 * 10)
    monkeypatch.setattr(label_rows, "READ_BYTES", 3 * 12 * 10)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def plan(dims: int, channels: int = 1, scheme: str = "zscore", nonzero_only: bool = False, **spec) -> Configuration:
    base = configuration("plain", dims)
    own = ChannelNormalisation(scheme=scheme, nonzero_only=nonzero_only)
    network = base.network.model_copy(update={"in_channels": channels})
    preprocess = base.preprocess.model_copy(update={"normalisation": (own,) * channels, **spec})
    return base.model_copy(update={"network": network, "preprocess": preprocess})


def image(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """(C, Z, Y, X) with a border of zeros, and holes."""
    rng = np.random.default_rng(seed)
    values = np.cumsum(rng.integers(-30, 31, shape), axis=-1) + 400 + rng.integers(0, 300, shape)
    values *= rng.random((1, *shape[1:])) > 0.2
    values[..., :1] = values[..., -2:, :] = 0
    if shape[1] > 3:
        values[:, -2:] = values[:, :1] = 0
    return values.astype(np.uint16)


CASES = {
    "3-D": ({"a": plan(3)}, (1, 21, 12, 10), 0),
    "3-D resampled": ({"a": plan(3, spacing=(1.6, 0.7, 1.3))}, (1, 21, 12, 10), 0),
    "3-D along y": ({"a": plan(3, spacing=(1.6, 0.7, 1.3))}, (1, 9, 25, 10), 1),
    "thick slices": ({"a": plan(3, spacing=(1.4, 0.8, 0.9))}, (1, 21, 12, 10), 0),
    "thick slices along y": ({"a": plan(3, spacing=(1.4, 0.8, 0.9))}, (1, 9, 25, 10), 1),
    "turned axes": ({"a": plan(3, orientation="ras", transpose=(2, 0, 1), spacing=(1.0, 1.3, 0.8))}, (1, 9, 25, 10), 1),
    "two channels": ({"a": plan(3, 2, nonzero_only=True, spacing=(1.5, 1.0, 1.0))}, (2, 21, 12, 10), 0),
    "range": ({"a": plan(3, scheme="range")}, (1, 21, 12, 10), 0),
    "slices": ({"a": plan(2, spacing=(None, 1.3, 0.8))}, (1, 6, 12, 10), 0),
    "slices along y": ({"a": plan(2, spacing=(None, 1.3, 0.8))}, (1, 3, 30, 10), 1),
    "picture": ({"a": plan(2, scheme="unit", spacing=(None, 1.0, 1.0))}, (1, 1, 40, 10), 1),
    "ensemble": ({"a": plan(3), "b": plan(3, spacing=(1.7, 1.1, 1.0)), "c": plan(2)}, (1, 21, 12, 10), 0),
}


@pytest.mark.parametrize("name", CASES)
def test_rows_have_the_voxels_of_the_whole(name: str, tmp_path: Path) -> None:
    configurations, shape, axis = CASES[name]
    values = image(shape)
    scale = {"z": 4.0 if name.startswith("thick") else 1.2, "y": 1.0, "x": 1.0}
    if name in ("range", "picture"):
        array, axes = (values[0], "zyx") if name == "range" else (values[0, 0], "yx")
        path = hdf5(tmp_path / "images" / "x.h5", {"raw": array}, axes, chunks=True, compression="gzip")
    else:
        path = ngff(tmp_path / "images" / "x.ome.zarr", values, "czyx", "0.5", scale, "millimeter", levels=1)
    predictor = Predictor(model(tmp_path, configurations), "cpu")
    (case,) = find_inputs(path, predictor.bundle)
    whole = predictor.predict(path, force=True)
    out = tmp_path / ("x.h5" if path.suffix == ".h5" else "x.tif")
    predict_by_rows(predictor, case, ByRows(axis, "is forced"), out, force=True)
    labels, geometry = read_labels(out)
    assert len(np.unique(whole)) > 1
    np.testing.assert_array_equal(labels, whole)
    assert geometry.spacing == pytest.approx(read_geometry(path).spacing)
    assert [each.name for each in out.parent.iterdir() if each.name.startswith(".")] == []


def test_rows_of_regions_have_the_voxels_of_the_whole(tmp_path: Path, monkeypatch) -> None:
    regions = (Region(name="both", values=(3, 9)), Region(name="inner", values=(9,)))
    labels = LABELS.model_copy(update={"regions": regions})
    monkeypatch.setattr("test_predict_options.LABELS", labels)
    own = plan(3, spacing=(1.3, 0.9, 1.0))
    network = own.network.model_copy(update={"out_channels": len(targets_of(labels, "regions"))})
    own = own.model_copy(update={"targets": "regions", "network": network})
    path = ngff(tmp_path / "x.ome.zarr", image((1, 21, 12, 10)), "czyx", "0.4", {"z": 1.2}, "millimeter", levels=1)
    predictor = Predictor(model(tmp_path, {"a": own}), "cpu")
    predictor.steps = (PostprocessStep(name="both", values=(3, 9), keep="minimum", minimum=3.0),)
    for head in (each for network in predictor.models["a"] for each in network.parameters() if each.shape == (2,)):
        head.data += 0.3  # so that both regions are somewhere
    (case,) = find_inputs(path, predictor.bundle)
    predict_by_rows(predictor, case, ByRows(0, ""), tmp_path / "x.tif", force=True)
    whole = predictor.predict(path, force=True)
    assert len(np.unique(whole)) > 1
    np.testing.assert_array_equal(read_labels(tmp_path / "x.tif")[0], whole)


# ---- the parts --------------------------------------------------------------------------------------------------


def pieces(array: np.ndarray, axis: int, length: int) -> list[np.ndarray]:
    return np.split(array, range(length, array.shape[axis], length), axis)


@given(st.integers(1, 30), st.integers(1, 7), st.data())
def test_a_buffer_gives_rows_in_order(size: int, length: int, data) -> None:
    array = np.arange(3 * size).reshape(3, size)
    buffer, start = RowBuffer(iter(pieces(array, 1, length)), 1), 0
    for _ in range(4):
        start = data.draw(st.integers(start, size - 1))
        stop = data.draw(st.integers(start + 1, size))
        np.testing.assert_array_equal(buffer.take(start, stop), array[:, start:stop])
    with pytest.raises(ValueError, match="there are"):
        buffer.take(start, size + 1)


@given(SHAPES, SHAPES, AXES, st.sampled_from([None, 0, 1, 2]), st.sampled_from([0, 1, 3]), st.data())
@settings(max_examples=60)
def test_rows_are_resampled_as_in_the_whole(old, new, axis, own, order, data) -> None:
    image = np.random.default_rng(0).normal(size=(2, *old)).astype(np.float32)
    start = data.draw(st.integers(0, new[axis] - 1))
    stop = data.draw(st.integers(start + 1, new[axis]))
    first, last = rows_needed(old[axis], new[axis], 1 if axis == own else order, start, stop)
    across = tuple(1 + each for each in range(3) if each != own)
    limits = np.stack([image.min(across, keepdims=True), image.max(across, keepdims=True)])
    part = Rows(axis, old[axis], first, start, stop)
    found = resample_image(
        image.take(range(first, last), 1 + axis), new, order, own, 1, part, None if axis == own else limits
    )
    np.testing.assert_array_equal(found, resample_image(image, new, order, own, 1).take(range(start, stop), 1 + axis))


@given(SHAPES, AXES, st.integers(1, 4), st.integers(0, 2**32 - 1))
@settings(max_examples=60)
def test_components_of_pieces_are_those_of_the_whole(shape, axis, length, seed) -> None:
    mask = np.random.default_rng(seed).random(shape) > 0.6
    found = RowComponents(axis, 6)
    parts = pieces(~mask, axis, length)
    for part in parts:
        found.add(part)
    sizes, at_border = found.finish()
    assert sizes.sum() == (~mask).sum()
    holes = np.concatenate([found.chosen(*each, ~at_border) for each in enumerate(parts)], axis)
    np.testing.assert_array_equal(mask | holes, filled_mask(mask[None]))


@given(
    st.tuples(st.integers(1, 9), st.integers(2, 9), st.integers(2, 9)),
    st.integers(0, 2**32 - 1),
    st.sampled_from([None, 6.0]),
)
@settings(max_examples=40, deadline=None)
def test_labels_in_a_file_are_postprocessed_and_written_as_in_memory(shape, seed, minimum) -> None:
    values = np.random.default_rng(seed).choice([0, 0, 0, 3, 9], shape)
    if minimum is None:  # which of equals is the largest is another question
        values[:, :, : 1 + shape[2] // 2] = 3
    geometry = Geometry(shape=shape, spacing=(2.0, 1.0, 1.0), kind="tiff", dimension=2 if shape[0] == 1 else 3)
    geometry = geometry.model_copy(update={"spacing": (1.0, 1.0, 1.0)}) if shape[0] == 1 else geometry
    step = PostprocessStep(name="a", values=(3, 9), keep="minimum" if minimum else "largest", minimum=minimum)
    with TemporaryDirectory() as place:
        folder = Path(place)
        labels = LabelRows(folder / "raw", shape, np.dtype(np.uint16), 9)
        assert all((piece == 9).all() for _, piece in labels.pieces())
        labels.write(1, 0, values)
        apply_step(labels, geometry.spacing, step)
        expected = apply_steps(values, geometry.spacing, [step])
        for ending in (".tif", ".h5"):
            write_label_rows(folder / f"a{ending}", labels, geometry)
            write_labels(folder / f"b{ending}", expected, geometry)
            (found, own), (wanted, other) = (read_labels(folder / f"{name}{ending}") for name in "ab")
            np.testing.assert_array_equal(found, wanted)
            assert own == other


def in_memory(values: np.ndarray, geometry: Geometry, present: tuple[bool, ...] | None) -> ChunkedInput:
    """An opened case whose file is an array."""
    own = values if present is None else values[list(present)]
    header = ImageHeader(geometry, len(own), 1)
    part = ChunkedImage(Path("x"), header, own.shape, own.dtype, (4, 4, 4), own, AxisPlaces(0, 1, 2, 3, 1), None)
    return ChunkedInput("x", geometry, len(values), present, (part,))


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("present", [None, (True, False)])
@pytest.mark.parametrize("nonzero_only", [False, True])
@pytest.mark.parametrize("scheme", ["ct", "zscore", "range", "none"])
def test_rows_are_prepared_as_in_the_whole(scheme: str, nonzero_only: bool, present, axis: int) -> None:
    values = image((2, 13, 12, 10)).astype(np.float32)
    values[1] *= 1e30
    if present:
        values[1] = 0
    own = ChannelNormalisation(scheme=scheme, mean=300, std=90, lower=100, upper=600, nonzero_only=nonzero_only)
    spec = PreprocessSpec(orientation="ras", spacing=(1.5, 0.8, 1.0), normalisation=(own, own))
    geometry = Geometry(shape=(13, 12, 10))
    whole = prepare_case("x", "", values, None, geometry, spec, present)
    case = in_memory(values, geometry, present)
    figures = measure_image(case, axis, nonzero_only)
    properties = case_properties("x", "", figures.box, geometry, spec, present)
    assert properties == whole.properties
    found = np.concatenate(list(prepared_rows(case, figures, properties)), 1 + axis)
    np.testing.assert_allclose(found, whole.image, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("family", ["plain", "unet3d"])
def test_rows_have_the_scores_of_the_whole(family: str, axis: int) -> None:
    plan = configuration("plain", 3)
    if family == "unet3d":
        strides = [(1,) * 3, (2,) * 3]
        network = FAMILIES[family].propose(3, 1, 3, strides, [(3,) * 3] * 2, 4)
        plan = plan.model_copy(update={"network": network, "patch_size": (28, 28, 28)})
    shape = [9, 9, 9]
    shape[axis] = 60 if family == "unet3d" else 21
    torch.manual_seed(0)
    networks = [FAMILIES[family].build(plan.network).eval()]
    array = np.random.default_rng(0).normal(size=(1, *shape)).astype(np.float32)
    buffer = RowBuffer(iter(pieces(array, 1 + axis, 4)), 1 + axis)
    found = np.concatenate(list(score_rows(networks, buffer, shape, axis, plan, 3, "cpu")), 1 + axis)
    np.testing.assert_allclose(found, predict_scores(networks, array, plan, 3, "cpu"), rtol=1e-4, atol=1e-5)


def test_a_time_point_of_a_file_is_read_by_rows(tmp_path: Path) -> None:
    values = image((3, 5, 6, 7))
    path = hdf5(tmp_path / "x.h5", {"raw": values}, "tzyx")
    assert read_full_header(path).frames == 3
    with opened_image(path, frame=1) as opened:
        np.testing.assert_array_equal(opened.rows(1, 2, 5), read_image(path, frame=1)[0][:, :, 2:5])


# ---- the command ------------------------------------------------------------------------------------------------


def test_the_way_is_chosen_by_the_memory(tmp_path: Path, monkeypatch, caplog) -> None:
    caplog.set_level("INFO")
    values = image((1, 21, 12, 10))
    ngff(tmp_path / "images" / "x.ome.zarr", values, "czyx", "0.4", {"z": 1.2}, "millimeter", levels=1)
    predictor = Predictor(model(tmp_path, {"a": plan(3)}, ".ome.zarr"), "cpu")
    outcome = predict_folder(predictor, tmp_path / "images", tmp_path / "whole", OutputOptions(), force=True)
    assert (outcome.predicted, "some rows" in caplog.text) == (1, False)
    sizes = by_rows.Sizes(reading=300_000, whole=500_000, by_rows={0: 200_000, 1: 100_000})
    monkeypatch.setattr(by_rows, "case_sizes", lambda *_: sizes)
    monkeypatch.setattr(by_rows, "available_memory", lambda: 250_000)
    outcome = predict_folder(predictor, tmp_path / "images", tmp_path / "rows", OutputOptions(), force=True)
    assert outcome.predicted == 1
    assert "case x: predicted some rows at a time, as it would take 488 KB of memory as a whole" in caplog.text
    whole, rows = (tmp_path / name / "x.tif" for name in ("whole", "rows"))
    assert whole.read_bytes() == rows.read_bytes()
    write_image(tmp_path / "images" / "y.nii.gz", values.astype(np.float32), Geometry(shape=(21, 12, 10)))
    for outputs, free, words in (
        (OutputOptions(probabilities=True), 250_000, "maps of probabilities, .* Leave these options out"),
        (OutputOptions(), 90_000, "row by row it would take 98 KB"),
    ):
        monkeypatch.setattr(by_rows, "available_memory", lambda free=free: free)
        with caplog.at_level("INFO"):
            outcome = predict_folder(predictor, tmp_path / "images", tmp_path / f"{free}", outputs, force=True)
        assert outcome.predicted == 1
        assert re.search(words, outcome.failures[0])
    monkeypatch.setattr(by_rows, "available_memory", lambda: 400_000)
    outputs = OutputOptions(probabilities=True)  # it can be read, so that it is tried
    assert predict_folder(predictor, tmp_path / "images", tmp_path / "tried", outputs, force=True).predicted == 2


def test_steps_that_need_the_whole_image_are_named(tmp_path: Path) -> None:
    first = plan(3)
    second = first.model_copy(update={"previous_stage": "a"})
    predictor = Predictor(model(tmp_path, {"a": first}), "cpu")
    assert by_rows.rows_problem(predictor, False, None) is None
    assert "--format bids" in by_rows.rows_problem(predictor, False, "bids")[0]
    predictor.configurations = {"a": first, "b": second}
    assert "cascade" in by_rows.rows_problem(predictor, False, None)[0]
    predictor.bundle = predictor.bundle.model_copy(update={"labels": labels_of_objects("nucleus")})
    assert "objects" in by_rows.rows_problem(predictor, False, None)[0]


def test_rows_of_what_cannot_be_predicted_are_refused(tmp_path: Path) -> None:
    values = image((1, 21, 12, 10)).astype(np.float32)
    values[0, 7, 3, 3] = np.nan
    path = ngff(tmp_path / "x.ome.zarr", values, "czyx", "0.4", {"z": 1.2}, "millimeter", levels=1)
    predictor = Predictor(model(tmp_path, {"a": plan(3)}), "cpu")
    (case,) = find_inputs(path, predictor.bundle)
    with pytest.raises(DataError, match="1 voxels are NaN or infinite"):
        predict_by_rows(predictor, case, ByRows(0, ""), tmp_path / "x.tif")
    assert not (tmp_path / "x.tif").exists()

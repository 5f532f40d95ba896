"""Prepared cases and scores come back as they went in; incomplete ones count as absent."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autounet.schema.errors import ModelError, RecordError
from autounet.schema.geometry import CaseProperties, Geometry
from autounet.schema.plan import ChannelNormalisation, PreprocessSpec
from autounet.store import (
    forget_damaged,
    is_prepared,
    open_prepared,
    open_stage_labels,
    read_properties,
    read_scored,
    read_scores,
    scores_file,
    write_prepared,
    write_scores,
    write_stage_labels,
)
from autounet.store.weights import load_weights, save_weights


def properties_of(shape, key="k1") -> CaseProperties:
    spec = PreprocessSpec(spacing=(1, 1, 1), normalisation=(ChannelNormalisation(scheme="none"),))
    return CaseProperties(
        identifier="case.1",
        key=key,
        spec=spec,
        geometry=Geometry(shape=shape),
        axes=(0, 1, 2),
        flips=(False, False, False),
        network_shape=shape,
        network_spacing=(1, 1, 1),
        box=tuple((0, size) for size in shape),
        shape=shape,
    )


@settings(max_examples=15, deadline=None)
@given(
    st.tuples(st.integers(1, 3), *(st.integers(1, 20),) * 3),
    st.dictionaries(st.integers(1, 300), st.integers(0, 30), max_size=4),
    st.sampled_from([np.int8, np.int16, None]),
)
def test_round_trip(tmp_path_factory, shape, counts, label_type):
    folder = tmp_path_factory.mktemp("prepared")
    generator = np.random.default_rng(0)
    image = generator.random(shape, dtype=np.float32)
    labels = None if label_type is None else generator.integers(-1, 5, shape[1:]).astype(label_type)
    locations = {label: generator.integers(0, 9, (count, 3)).astype(np.int32) for label, count in counts.items()}
    properties = properties_of(shape[1:])

    write_prepared(folder, properties, image, labels, locations)
    stored = open_prepared(folder, "case.1")

    assert stored.properties == properties
    np.testing.assert_array_equal(stored.image[...], image)
    np.testing.assert_array_equal(stored.image[:, 0], image[:, 0])
    if labels is None:
        assert stored.labels is None
    else:
        assert stored.labels.dtype == label_type
        np.testing.assert_array_equal(stored.labels[...], labels)
    assert stored.locations.keys() == locations.keys()
    for label, voxels in locations.items():
        np.testing.assert_array_equal(stored.locations[label], voxels)
    assert is_prepared(folder, "case.1", "k1")
    assert not is_prepared(folder, "case.1", "k2")
    assert not is_prepared(folder, "case.2", "k1")
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_chunks_are_slabs_of_single_slices(tmp_path):
    image = np.zeros((2, 64, 96, 96), np.float32)
    write_prepared(tmp_path, properties_of(image.shape[1:]), image, None, {})
    stored = open_prepared(tmp_path, "case.1").image.array
    assert stored.chunks == (1, 28, 96, 96)
    assert stored.blocks == (1, 1, 96, 96)


def test_writing_again_replaces_everything(tmp_path):
    image = np.zeros((1, 2, 3, 4), np.float32)
    write_prepared(tmp_path, properties_of((2, 3, 4)), image, np.zeros((2, 3, 4), np.int8), {})
    write_prepared(tmp_path, properties_of((2, 3, 4), "k2"), image + 1, None, {})
    stored = open_prepared(tmp_path, "case.1")
    assert stored.labels is None
    assert stored.image[...].min() == 1
    assert is_prepared(tmp_path, "case.1", "k2")


def test_an_interrupted_write_leaves_no_case(tmp_path, monkeypatch):
    image = np.zeros((1, 2, 3, 4), np.float32)
    write_prepared(tmp_path, properties_of((2, 3, 4)), image, None, {})

    def full(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="no space"):
        write_prepared(tmp_path, properties_of((2, 3, 4)), image, None, {})
    assert not is_prepared(tmp_path, "case.1", "k1")
    with pytest.raises(RecordError, match=r"does not exist.*Give the same command again"):
        open_prepared(tmp_path, "case.1")


@pytest.mark.parametrize("damage", [b"", b"not a frame", None])
def test_a_damaged_array_is_named(tmp_path, damage):
    write_prepared(tmp_path, properties_of((2, 3, 4)), np.zeros((1, 2, 3, 4), np.float32), None, {})
    path = tmp_path / "case.1.image.b2nd"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] if damage is None else damage)
    with pytest.raises(RecordError, match=r"case\.1\.image\.b2nd is damaged.*Give the same command again"):
        open_prepared(tmp_path, "case.1")
    assert read_properties(tmp_path, "case.1") == properties_of((2, 3, 4))


def digest_of(path):
    return hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest() if path.exists() else None


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(["image", "labels", "locations"]), st.integers(0), st.sampled_from(["flip", "cut", "gone"]))
def test_every_flipped_bit_of_a_prepared_case_is_noticed(tmp_path_factory, ending, place, how):
    folder = tmp_path_factory.mktemp("prepared")
    image = np.random.default_rng(0).random((1, 2, 3, 4), np.float32)
    write_prepared(folder, properties_of((2, 3, 4)), image, np.ones((2, 3, 4), np.int8), {1: np.ones((5, 3), np.int32)})
    assert not forget_damaged(folder, "case.1", digest_of)
    path = folder / f"case.1.{ending}.b2nd"
    content = bytearray(path.read_bytes())
    content[place // 8 % len(content)] ^= 1 << place % 8
    path.write_bytes(content if how == "flip" else content[:-1])
    if how == "gone":
        path.unlink()
    assert forget_damaged(folder, "case.1", digest_of)
    assert not is_prepared(folder, "case.1", "k1")


@pytest.mark.parametrize("change", [("1.0", "2.0"), ("case.1", "case.2"), ('"shape": [', '"shape": [[')])
def test_a_changed_record_of_a_prepared_case_is_not_used(tmp_path, change):
    write_prepared(tmp_path, properties_of((2, 3, 4)), np.zeros((1, 2, 3, 4), np.float32), None, {})
    path = tmp_path / "case.1.json"
    path.write_text(path.read_text().replace(*change, 1))
    assert not is_prepared(tmp_path, "case.1", "k1")
    with pytest.raises(RecordError, match="Give the same command again"):
        open_prepared(tmp_path, "case.1")


def lazy(folder):
    import blosc2

    operand = blosc2.asarray(np.zeros((1, 2, 3, 4), np.float32), urlpath=str(folder / "operand.b2nd"))
    (operand + 1).save(str(folder / "hostile.b2nd"))


def user_function(folder):
    import blosc2

    operand = blosc2.asarray(np.zeros((1, 2, 3, 4), np.float32), urlpath=str(folder / "operand.b2nd"))
    blosc2.lazyudf(written_by_somebody, (operand,), np.float32).save(urlpath=str(folder / "hostile.b2nd"))


def written_by_somebody(inputs, output, offset):
    output[...] = inputs[0] + 1


def another_shape(folder):
    import blosc2

    blosc2.zeros((10**6, 10**6), np.float32, urlpath=str(folder / "hostile.b2nd"))


def text(folder):
    import blosc2

    blosc2.asarray(np.array(["a", "b"]), urlpath=str(folder / "hostile.b2nd"))


@pytest.mark.parametrize("make", [lazy, user_function, another_shape, text])
def test_only_plain_numbers_of_the_written_shape_are_read(tmp_path, make):
    write_prepared(tmp_path, properties_of((2, 3, 4)), np.zeros((1, 2, 3, 4), np.float32), None, {})
    make(tmp_path)
    (tmp_path / "hostile.b2nd").replace(tmp_path / "case.1.image.b2nd")
    with pytest.raises(RecordError, match="is damaged"):
        open_prepared(tmp_path, "case.1")
    (tmp_path / "case.1.image.b2nd").replace(scores_file(tmp_path, "c"))
    with pytest.raises(RecordError, match="is damaged"):  # of scores no shape is known; these are terabytes
        read_scores(tmp_path, "c")


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_weights_that_are_not_finite_are_refused(tmp_path, value):
    path = tmp_path / "weights.safetensors"
    save_weights(path, {"first": torch.zeros(3), "second": torch.tensor([1.0, value])})
    with pytest.raises(ModelError, match="not finite, in second"):
        load_weights(path)


def test_too_many_open_files_are_no_damage(tmp_path):
    resource = pytest.importorskip("resource")
    write_prepared(tmp_path, properties_of((2, 3, 4)), np.zeros((1, 2, 3, 4), np.float32), None, {})
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, limits[1]))
    try:
        with pytest.raises(RecordError, match=r"case\.1\.\S+ cannot be opened.*ulimit -n"):
            _ = [open_prepared(tmp_path, "case.1") for _ in range(256)]
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
        with pytest.raises(RecordError, match=r"json cannot be opened.*ulimit -n"):
            read_properties(tmp_path, "case.1")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert open_prepared(tmp_path, "case.1").image.shape == (1, 2, 3, 4)


def test_weights_on_a_full_disk_are_an_error_of_the_system(tmp_path, monkeypatch):
    from safetensors import SafetensorError

    def full(*_):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(OSError, match=r"weights\.safetensors cannot be written: .*No space left"):
        save_weights(tmp_path / "weights.safetensors", {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("ending", ["image", "locations"])
def test_a_case_whose_array_is_gone_is_not_prepared(tmp_path, ending):
    write_prepared(tmp_path, properties_of((2, 3, 4)), np.zeros((1, 2, 3, 4), np.float32), None, {})
    (tmp_path / f"case.1.{ending}.b2nd").unlink()
    assert not is_prepared(tmp_path, "case.1", "k1")


def test_damaged_json_counts_as_absent(tmp_path):
    for text in ("", "[]", '{"key": "other"}'):
        (tmp_path / "case.1.json").write_text(text)
        assert not is_prepared(tmp_path, "case.1", "k1")


def test_scores_are_kept_in_half_precision_and_never_infinite(tmp_path):
    scores = np.random.default_rng(0).normal(size=(3, 4, 5, 6)).astype(np.float32) * 10
    scores[0, 0, 0, :2] = (1e6, -1e6)
    write_scores(tmp_path / "scores", "a", scores)
    back = read_scores(tmp_path / "scores", "a")
    assert back.dtype == np.float16
    assert np.isfinite(back).all()
    np.testing.assert_allclose(back[1:], scores[1:], rtol=1e-3)
    with pytest.raises(RecordError, match="does not exist"):
        read_scores(tmp_path / "scores", "b")


def test_scores_and_labels_of_another_size_than_their_case_are_no_results(tmp_path):
    """A header may promise more than any memory holds, in a file of a few bytes."""
    write_prepared(tmp_path, properties_of((4, 5, 6)), np.zeros((1, 4, 5, 6), np.float32), None, {})
    for shape in ((4, 5, 6), (4, 5, 7), (4, 5)):
        write_scores(tmp_path / "scores", "case.1", np.zeros((3, *shape), np.float32))
        write_stage_labels(tmp_path / "scores", "case.1", np.zeros(shape, np.int8))
        if shape == (4, 5, 6):
            scores, properties = read_scored(tmp_path / "scores", tmp_path, "case.1")
            assert (scores.shape[1:], scores.dtype) == (properties.shape, np.float32)
            assert open_stage_labels(tmp_path / "scores", "case.1", shape).shape == shape
            continue
        with pytest.raises(RecordError, match="does not hold the array"):
            read_scored(tmp_path / "scores", tmp_path, "case.1")
        with pytest.raises(RecordError, match="does not hold the array"):
            open_stage_labels(tmp_path / "scores", "case.1", (4, 5, 6))

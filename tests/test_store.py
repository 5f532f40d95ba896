"""Prepared cases and scores come back as they went in; incomplete ones count as absent."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autounet.schema.errors import RecordError
from autounet.schema.geometry import CaseProperties, Geometry
from autounet.schema.plan import ChannelNormalisation, PreprocessSpec
from autounet.store import is_prepared, open_prepared, read_properties, read_scores, write_prepared, write_scores
from autounet.store.weights import save_weights


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
    stored = open_prepared(tmp_path, "case.1").image
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
    with pytest.raises(RecordError, match=f"does not exist.*Delete the folder {tmp_path}, and the next run"):
        open_prepared(tmp_path, "case.1")


@pytest.mark.parametrize("damage", [b"", b"not a frame", None])
def test_a_damaged_array_is_named(tmp_path, damage):
    write_prepared(tmp_path, properties_of((2, 3, 4)), np.zeros((1, 2, 3, 4), np.float32), None, {})
    path = tmp_path / "case.1.image.b2nd"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] if damage is None else damage)
    with pytest.raises(RecordError, match=rf"case\.1\.image\.b2nd is damaged.*Delete the folder {tmp_path}"):
        open_prepared(tmp_path, "case.1")
    assert read_properties(tmp_path, "case.1") == properties_of((2, 3, 4))


def test_too_many_open_files_are_no_damage(tmp_path):
    resource = pytest.importorskip("resource")
    write_prepared(tmp_path, properties_of((2, 3, 4)), np.zeros((1, 2, 3, 4), np.float32), None, {})
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, limits[1]))
    try:
        with pytest.raises(RecordError, match=r"b2nd cannot be opened.*ulimit -n"):
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

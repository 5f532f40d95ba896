"""Preparing a case and its inverse: geometry, shape and label values come back exactly."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from orientations import ALL_48, direction_of
from skimage.transform import resize

from autounet.inference.export import export
from autounet.ops.masks import encode
from autounet.preprocessing import prepare_case
from autounet.schema.geometry import Geometry
from autounet.schema.labels import LabelClass, Labels
from autounet.schema.plan import ChannelNormalisation, PreprocessSpec
from autounet.schema.stage_inputs import PreparedCaseInputs

LABELS = Labels(classes=tuple(LabelClass(name=f"c{value}", value=value) for value in (0, 255, 7, 1000)))
NONE = (ChannelNormalisation(scheme="none"),)
spacing_values = st.floats(0.4, 5).map(lambda value: round(value, 2))


def one_hot(labels: np.ndarray, classes: int) -> np.ndarray:
    """(K, *S) float32 logits that are sure of dense labels."""
    return (labels[None] == np.arange(classes).reshape(-1, 1, 1, 1)).astype(np.float32) * 8


@st.composite
def cases(draw):
    """An image with a zero margin, its dense labels inside, any orientation, and a spec."""
    shape = draw(st.tuples(*(st.integers(2, 12),) * 3))
    generator = np.random.default_rng(draw(st.integers(0, 99)))
    image = generator.random((1, *shape), dtype=np.float32) + 1
    labels = generator.integers(0, LABELS.count, shape).astype(np.int16)
    for axis, size in enumerate(shape):
        first = draw(st.integers(0, size // 3))
        margin = tuple(slice(0, first) if index == axis else slice(None) for index in range(3))
        image[(0, *margin)], labels[margin] = 0, 0
    dimension = draw(st.sampled_from([2, 3]))
    spacing = draw(st.tuples(*(spacing_values,) * 3))
    geometry = Geometry(
        shape=shape, spacing=spacing, direction=direction_of(*draw(st.sampled_from(ALL_48))), dimension=dimension
    )
    spec = PreprocessSpec(
        orientation=draw(st.sampled_from(["canonical", "as_stored", "ras"])),
        transpose=tuple(draw(st.permutations(range(3)))),
        spacing=(draw(st.none() | spacing_values), draw(spacing_values), draw(spacing_values)),
        normalisation=NONE,
    )
    return image, labels, geometry, spec


def same_grid(spec: PreprocessSpec) -> PreprocessSpec:
    return spec.model_copy(update={"spacing": (1.0, 1.0, 1.0)})


@settings(max_examples=60, deadline=None)
@given(cases())
def test_without_resampling_the_inverse_is_exact(case):
    image, labels, geometry, spec = case
    geometry = geometry.model_copy(update={"spacing": (1.0, 1.0, 1.0)})
    prepared = prepare_case("a", "k", image, labels, geometry, same_grid(spec))
    back = export([(one_hot(prepared.labels, LABELS.count), prepared.properties)], LABELS)
    np.testing.assert_array_equal(encode(back, LABELS), labels)
    assert back.dtype == np.int32


@settings(max_examples=60, deadline=None)
@given(cases())
def test_with_resampling_shape_crop_and_values_come_back(case):
    image, labels, geometry, spec = case
    prepared = prepare_case("a", "k", image, labels, geometry, spec)
    assert prepared.image.shape == (1, *prepared.properties.shape)
    assert prepared.labels.shape == prepared.properties.shape
    back = export([(one_hot(prepared.labels, LABELS.count), prepared.properties)], LABELS)
    assert back.shape == geometry.shape
    assert set(np.unique(back)) <= set(LABELS.values)
    outside = image[0] == 0
    first = np.argwhere(~outside).min(axis=0)
    assert (back[: first[0]] == 0).all()
    assert (back[:, : first[1]] == 0).all()


@settings(max_examples=40, deadline=None)
@given(cases(), st.integers(0, 99))
def test_export_is_the_argmax_of_logits_interpolated_everywhere(case, seed):
    image, _, geometry, spec = case
    rules = spec.resampling.model_copy(update={"separate_z_ratio": 100.0})
    spec = spec.model_copy(update={"resampling": rules})
    properties = prepare_case("a", "k", image, None, geometry, spec).properties
    scores = np.random.default_rng(seed).normal(size=(LABELS.count, *properties.shape)).astype(np.float32)
    full = interpolated(scores, properties)
    back = encode(export([(scores, properties)], LABELS), LABELS)
    chosen = stored_crop(back, properties)
    reached = np.take_along_axis(full, chosen[None].astype(int), axis=0)[0]
    assert (reached >= full.max(axis=0) - 1e-5).all()


def interpolated(scores: np.ndarray, properties) -> np.ndarray:
    """(K, *cropped shape) linear interpolation by skimage."""
    return np.stack(
        [
            resize(channel.astype(float), properties.cropped_shape, 1, mode="edge", anti_aliasing=False)
            for channel in scores
        ]
    )


def stored_crop(stored: np.ndarray, properties) -> np.ndarray:
    """The crop of a stored array in network axis order, written independently of ops.orient."""
    moved = np.moveaxis(stored, properties.axes, (0, 1, 2))
    for axis, flip in enumerate(properties.flips):
        moved = np.flip(moved, axis) if flip else moved
    return moved[tuple(slice(*side) for side in properties.box)]


def test_slices_far_apart_go_back_by_nearest():
    geometry = Geometry(shape=(3, 8, 8), spacing=(6, 1, 1))
    spec = PreprocessSpec(spacing=(3, 2, 2), normalisation=NONE)
    properties = prepare_case("a", "k", np.ones((1, 3, 8, 8), np.float32), None, geometry, spec).properties
    assert properties.shape == (6, 4, 4)
    scores = np.zeros((2, 6, 4, 4), np.float32)
    scores[1] = np.array([-1, -1, -9, 1, 9, 9], np.float32).reshape(6, 1, 1)
    labels = Labels(classes=(LabelClass(name="background", value=0), LabelClass(name="a", value=5)))
    back = export([(scores, properties)], labels)
    assert [np.unique(plane).tolist() for plane in back] == [[0], [5], [5]]


def ensemble_case():
    generator = np.random.default_rng(4)
    image = generator.random((1, 9, 10, 11), dtype=np.float32) + 1
    image[:, :2] = 0
    geometry = Geometry(shape=(9, 10, 11), spacing=(2, 1, 1), direction=direction_of((0, 2, 1), (1, -1, 1)))
    specs = (
        PreprocessSpec(spacing=(1.5, 1.5, 1.5), normalisation=NONE),
        PreprocessSpec(spacing=(None, 0.8, 1.7), transpose=(2, 0, 1), orientation="as_stored", normalisation=NONE),
    )
    sources = []
    for spec in specs:
        properties = prepare_case("a", "k", image, None, geometry, spec).properties
        sources.append((generator.normal(size=(4, *properties.shape)).astype(np.float32), properties))
    return sources


def probabilities(scores, properties):
    powers = np.exp(interpolated(scores, properties))
    return powers / powers.sum(axis=0)


@pytest.mark.parametrize("weights", [None, (3.0, 1.0)])
def test_sources_on_different_grids_are_averaged_as_probabilities(weights):
    sources = ensemble_case()
    back = encode(export(sources, LABELS, weights), LABELS)
    total = 0.0
    for (scores, properties), share in zip(sources, weights or (1.0, 1.0), strict=True):
        own = probabilities(scores, properties)
        for axis, flip in enumerate(properties.flips):
            own = np.flip(own, axis + 1) if flip else own
        total = total + share * np.moveaxis(own, (1, 2, 3), tuple(axis + 1 for axis in properties.axes))
    inside = back[2:] if (back[:2] == 0).all() else back
    reached = np.take_along_axis(total, inside[None].astype(int), axis=0)[0]
    assert (reached >= total.max(axis=0) - 1e-5).all()


def test_half_precision_scores_are_accepted():
    scores, properties = ensemble_case()[0]
    half = export([(scores.astype(np.float16), properties)], LABELS)
    exact = export([(scores.astype(np.float16).astype(np.float32), properties)], LABELS)
    np.testing.assert_array_equal(half, exact)


def test_wrong_sources_are_refused():
    (scores, properties), _ = ensemble_case()
    with pytest.raises(ValueError, match="no scores"):
        export([], LABELS)
    with pytest.raises(ValueError, match="3 channels for 4 targets"):
        export([(scores[:3], properties)], LABELS)
    with pytest.raises(ValueError, match="scores of shape"):
        export([(scores[:, 1:], properties)], LABELS)
    other = properties.model_copy(update={"identifier": "b"})
    with pytest.raises(ValueError, match="different cases"):
        export([(scores, properties), (scores, other)], LABELS)
    with pytest.raises(ValueError, match="2 weights"):
        export([(scores, properties)], LABELS, weights=(1, 2))


@settings(max_examples=25, deadline=None)
@given(cases())
def test_locations_are_voxels_of_their_class_and_reproducible(case):
    prepared = prepare_case("a", "k", *case)
    assert set(prepared.locations) == set(np.unique(prepared.labels[prepared.labels > 0]).tolist())
    for label, voxels in prepared.locations.items():
        assert voxels.dtype == np.int32
        assert (prepared.labels[tuple(voxels.T)] == label).all()
        assert len(voxels) == np.count_nonzero(prepared.labels == label)


def test_many_locations_are_sampled_by_the_case_name():
    labels = np.ones((30, 30, 30), np.int16)
    geometry = Geometry(shape=labels.shape)
    spec = PreprocessSpec(spacing=(1, 1, 1), normalisation=NONE)
    image = np.ones((1, *labels.shape), np.float32)
    first, again, other = (
        prepare_case(name, "k", image, labels, geometry, spec).locations[1] for name in ("a", "a", "b")
    )
    assert len(first) == len(np.unique(first, axis=0)) == 10_000
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("value", [0, -1])
def test_a_case_without_foreground_is_prepared(value):
    shape = (3, 4, 5)
    labels, image = np.full(shape, value, np.int16), np.ones((1, *shape), np.float32)
    spec = PreprocessSpec(spacing=(1, 1, 1), normalisation=NONE)
    prepared = prepare_case("empty", "", image, labels, Geometry(shape=shape), spec)
    assert prepared.locations == {}
    assert np.array_equal(prepared.labels, labels)


def test_ignored_voxels_stay_ignored_and_inputs_are_not_changed():
    labels = np.full((4, 4, 4), -1, np.int16)
    labels[:2] = 1
    image = np.random.default_rng(0).random((1, 4, 4, 4), dtype=np.float32)
    before = image.copy()
    spec = PreprocessSpec(spacing=(0.5, 0.5, 0.5), normalisation=(ChannelNormalisation(scheme="zscore"),))
    prepared = prepare_case("a", "k", image, labels, Geometry(shape=(4, 4, 4)), spec)
    assert prepared.labels.dtype == np.int8
    assert set(np.unique(prepared.labels)) == {-1, 1}
    np.testing.assert_array_equal(image, before)
    assert prepared.image.flags.c_contiguous


def test_mismatched_arrays_are_refused():
    spec = PreprocessSpec(spacing=(1, 1, 1), normalisation=NONE)
    with pytest.raises(ValueError, match="do not fit"):
        prepare_case("a", "k", np.ones((1, 2, 3, 4), np.float32), None, Geometry(shape=(2, 3, 5)), spec)


def test_the_key_follows_spec_and_content():
    spec = PreprocessSpec(spacing=(1, 1, 1), normalisation=NONE)
    other = spec.model_copy(update={"spacing": (1.0, 1.0, 2.0)})

    def key(preprocess, content):
        return PreparedCaseInputs(preprocess=preprocess, content=content, values=(0, 1), ignore=None).key

    assert key(spec, "x") == key(spec.model_copy(), "x")
    assert len({key(spec, "x"), key(other, "x"), key(spec, "y")}) == 3

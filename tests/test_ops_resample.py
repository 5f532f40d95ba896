"""Resampling: skimage's `resize` as oracle, laws, and nnU-Net's rules for anisotropic spacing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.transform import resize

from autounet.ops.resample import apply_taps, resample_image, resample_labels, resampled_shape, separate_axis, taps

sizes = st.tuples(*(st.integers(1, 24),) * 3)
spacings = st.tuples(*(st.floats(0.3, 6),) * 3)


def skimage(channel: np.ndarray, shape, order: int) -> np.ndarray:
    return resize(channel.astype(float), shape, order, mode="edge", anti_aliasing=False)


@settings(max_examples=60, deadline=None)
@given(sizes, sizes, st.sampled_from([0, 1, 3]), st.integers(0, 99))
def test_equals_skimage(old, new, order, seed):
    image = np.random.default_rng(seed).random((1, *old), dtype=np.float32)
    np.testing.assert_allclose(resample_image(image, new, order)[0], skimage(image[0], new, order), atol=1e-5)


@pytest.mark.parametrize(
    ("old", "new"), [((3, 170, 4), (3, 301, 4)), ((2, 3, 300), (2, 5, 97)), ((140, 3, 3), (63, 3, 3))]
)
def test_long_axes_equal_skimage_across_the_blocks(old, new):
    image = np.random.default_rng(1).normal(size=(1, *old)).astype(np.float32)
    np.testing.assert_allclose(resample_image(image, new)[0], skimage(image[0], new, 3), atol=1e-5)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_separate_axis_goes_slice_by_slice_then_nearest(axis):
    image = np.random.default_rng(2).random((2, 6, 7, 8), dtype=np.float32)
    shape = tuple(size + 5 for size in image.shape[1:])
    plane = tuple(size for index, size in enumerate(shape) if index != axis)
    slices = [skimage(image[0].take(index, axis), plane, 3) for index in range(image.shape[1 + axis])]
    expected = skimage(np.stack(slices, axis), shape, 0)
    np.testing.assert_allclose(resample_image(image, shape, 3, axis)[0], expected, atol=1e-5)


def test_same_shape_changes_nothing_and_values_stay_in_range():
    image = np.random.default_rng(3).random((1, 5, 6, 7), dtype=np.float32)
    np.testing.assert_array_equal(resample_image(image, (5, 6, 7)), image)
    larger = resample_image(image, (11, 13, 17))
    assert larger.min() >= image.min()
    assert larger.max() <= image.max()


def test_other_orders_are_refused():
    with pytest.raises(ValueError, match="order 2"):
        resample_image(np.zeros((1, 2, 2, 2), np.float32), (3, 3, 3), order=2)


@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([0, 1]))
def test_flipped_taps_are_the_map_of_the_flipped_axis(old, new, order):
    line = np.random.default_rng(old * 41 + new).random(old).astype(np.float32)
    along = taps(old, new, order)
    forward = apply_taps(line, 0, along)
    np.testing.assert_allclose(apply_taps(line[::-1], 0, along.flipped(old))[::-1], forward, atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(sizes, sizes, st.integers(2, 5), st.integers(0, 99))
def test_labels_take_the_class_with_most_weight(old, new, classes, seed):
    labels = np.random.default_rng(seed).integers(-1, classes, old).astype(np.int8)
    result = resample_labels(labels, new)
    assert result.dtype == np.int8
    assert result.shape == new
    shares = np.stack([skimage(labels == label, new, 1) for label in range(-1, classes)])
    chosen = np.take_along_axis(shares, result[None].astype(int) + 1, axis=0)[0]
    assert (chosen >= shares.max(axis=0) - 1e-5).all()


@pytest.mark.parametrize("lowest", [-1, 0])
def test_the_largest_class_of_int8(lowest):
    labels = np.full((4, 4, 4), lowest, np.int8)
    labels[1:3, 1:3, 1:3] = 127
    result = resample_labels(labels, (8, 8, 8))
    np.testing.assert_array_equal(result, resample_labels(labels.astype(np.int16), (8, 8, 8)))
    assert set(np.unique(result)) == {lowest, 127}


def test_equal_labels_give_the_larger_one_as_in_nnunet():
    labels = np.array([[[0, 1, 1, 2]]], np.int16)
    np.testing.assert_array_equal(resample_labels(labels, (1, 1, 2)), [[[1, 2]]])


def test_labels_across_slices_are_never_mixed():
    labels = np.zeros((3, 4, 4), np.int8)
    labels[1] = 1
    result = resample_labels(labels, (6, 8, 8), axis=0)
    assert [np.unique(plane).tolist() for plane in result] == [[0], [0], [1], [1], [0], [0]]


@given(spacings, spacings)
def test_separate_axis_follows_the_rule(current, new):
    axis = separate_axis(current, new)
    deciding = current if max(current) / min(current) > 3 else new
    if max(deciding) / min(deciding) <= 3 or sum(value == max(deciding) for value in deciding) > 1:
        assert axis is None
    else:
        assert deciding[axis] == max(deciding)


@pytest.mark.parametrize(
    ("current", "new", "axis"),
    [
        ((5, 1, 1), (1, 1, 1), 0),
        ((1, 1, 1), (1, 4, 1), 1),
        ((3, 1, 1), (3, 1, 1), None),
        ((0.24, 1.25, 1.25), (5, 1, 1), None),
        ((1, 1, 8), (9, 1, 1), 2),
    ],
)
def test_separate_axis_examples(current, new, axis):
    assert separate_axis(current, new) == axis


@given(sizes, spacings, spacings)
def test_resampled_shape_is_never_empty_and_covers_the_extent(shape, spacing, target):
    new = resampled_shape(shape, spacing, target)
    for size, old, wanted, found in zip(shape, spacing, target, new, strict=True):
        assert found >= 1
        assert found == 1 or abs(found - size * old / wanted) <= 0.5 + 1e-9
    assert resampled_shape(shape, spacing, spacing) == shape

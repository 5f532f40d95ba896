"""Crop box, masks, normalisation schemes, mirroring."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.ndimage import binary_fill_holes

from autounet.ops.masks import crop, filled_mask, nonzero_box, normalise
from autounet.ops.tiles import mirror_combinations, tensor_axes
from autounet.schema.plan import ChannelNormalisation

sparse_images = arrays(
    np.float32,
    st.tuples(st.integers(1, 2), *(st.integers(1, 6),) * 3),
    elements=st.sampled_from([0.0, 0.0, 0.0, 1.0]),
)


@given(sparse_images)
def test_the_box_holds_every_nonzero_voxel_and_is_the_smallest(image):
    box = nonzero_box(image)
    inside = crop(image, box)
    assert np.count_nonzero(inside) == np.count_nonzero(image)
    if image.any():
        for axis in (1, 2, 3):
            assert inside.take(0, axis).any()
            assert inside.take(-1, axis).any()
    else:
        assert inside.shape == image.shape


@given(sparse_images)
def test_filled_mask_equals_scipy(image):
    np.testing.assert_array_equal(filled_mask(image), binary_fill_holes((image != 0).any(axis=0)))


def test_a_hole_is_filled():
    image = np.ones((1, 5, 5, 5), np.float32)
    image[0, 2, 2, 2] = 0
    image[0, 0, 0, 0] = 0
    mask = filled_mask(image)
    assert mask[2, 2, 2]
    assert not mask[0, 0, 0]


@settings(max_examples=25)
@given(arrays(np.float32, (1, 3, 4, 5), elements=st.floats(-1000, 1000, width=32)))
def test_zscore_has_mean_0_and_std_1_or_is_constant(image):
    before = image.copy()
    result = normalise(image, [ChannelNormalisation(scheme="zscore")])
    np.testing.assert_array_equal(image, before)
    assert result.dtype == np.float32
    if image.std() > 1e-2:
        assert abs(result.mean()) < 1e-3
        assert abs(result.std() - 1) < 1e-3
    assert np.isfinite(result).all()


@settings(max_examples=25)
@given(
    arrays(np.float32, (1, 3, 4, 5), elements=st.floats(width=32, allow_nan=False, allow_infinity=False)),
    st.sampled_from(["zscore", "range"]),
    st.booleans(),
)
@example(np.where(np.arange(60).reshape(1, 3, 4, 5) == 7, np.float32(1e20), np.float32(3)), "zscore", False)
@example(np.where(np.arange(60).reshape(1, 3, 4, 5) < 20, *np.float32([-3.4e38, 3.4e38])), "range", False)
def test_finite_intensities_stay_finite_and_keep_their_order(image, scheme, nonzero_only):
    result = normalise(image, [ChannelNormalisation(scheme=scheme, nonzero_only=nonzero_only)])
    assert np.isfinite(result).all()
    inside = filled_mask(image) if nonzero_only else np.ones(image.shape[1:], bool)
    order = np.argsort(image[0][inside], kind="stable")
    assert (np.diff(result[0][inside][order]) >= 0).all()


@pytest.mark.parametrize("value", [1e20, -3e38])
def test_one_enormous_voxel_stands_out_and_the_others_stay_finite(value):
    image = np.random.default_rng(0).normal(100, 10, (1, 8, 9, 10)).astype(np.float32)
    image[0, 4, 4, 4] = value
    result = normalise(image, [ChannelNormalisation(scheme="zscore")])
    assert abs(result[0, 4, 4, 4]) > 20  # the square root of the number of voxels
    assert abs(result.std() - 1) < 1e-3


def test_zscore_of_nonzero_leaves_the_outside_alone():
    image = np.zeros((1, 4, 6, 6), np.float32)
    image[0, 1:3, 1:5, 1:5] = np.random.default_rng(0).random((2, 4, 4)) + 5
    result = normalise(image, [ChannelNormalisation(scheme="zscore", nonzero_only=True)])
    assert (result[image == 0] == 0).all()
    assert abs(result[image != 0].mean()) < 1e-5
    assert abs(result[image != 0].std() - 1) < 1e-5


def test_ct_unit_and_none_by_channel():
    image = np.array([-2000, 0, 500, 3000], np.float32).reshape(1, 1, 1, 4).repeat(3, axis=0)
    ct = ChannelNormalisation(scheme="ct", mean=100, std=50, lower=-100, upper=600)
    unit = ChannelNormalisation(scheme="unit", lower=0, upper=255)
    result = normalise(image, [ct, unit, ChannelNormalisation(scheme="none")])
    np.testing.assert_allclose(result[0].ravel(), [-4, -2, 8, 10])
    np.testing.assert_allclose(result[1].ravel(), np.array([-2000, 0, 500, 3000]) / 255, rtol=1e-6)
    np.testing.assert_array_equal(result[2], image[2])


def test_channels_and_schemes_must_agree():
    with pytest.raises(ValueError, match="2 channels"):
        normalise(np.zeros((2, 1, 1, 1), np.float32), [ChannelNormalisation(scheme="none")])


@given(st.sets(st.integers(0, 2)))
def test_mirror_combinations_are_all_subsets(axes):
    subsets = mirror_combinations(tuple(axes))
    assert len(set(subsets)) == len(subsets) == 2 ** len(axes)
    assert subsets[0] == ()
    assert all(set(subset) <= axes for subset in subsets)


def test_spatial_axes_are_the_last_ones_of_a_tensor():
    assert tensor_axes((0, 2), 3) == (-3, -1)
    with pytest.raises(ValueError, match="mirror axes"):
        tensor_axes((2,), 2)

"""Orientation: all 48 axis-aligned orientations, oblique ones, and SimpleITK as oracle."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given
from hypothesis import strategies as st
from orientations import ALL_48, direction_of

from autounet.ops.orient import canonical_axes, network_axes, orient, permute, unorient, unpermute
from autounet.schema.geometry import IDENTITY


@pytest.mark.parametrize(("axes", "signs"), ALL_48)
def test_every_orientation_equals_simpleitk_and_is_undone_exactly(axes, signs):
    array = np.arange(2 * 3 * 4, dtype=np.int32).reshape(2, 3, 4)
    direction = direction_of(axes, signs)
    image = sitk.GetImageFromArray(array)
    image.SetDirection(direction)
    expected = sitk.GetArrayFromImage(sitk.DICOMOrient(image, "LPS"))

    found = canonical_axes(direction)
    oriented = orient(array, *found)

    np.testing.assert_array_equal(oriented, expected)
    np.testing.assert_array_equal(unorient(oriented, *found), array)
    assert oriented.shape == permute(array.shape, found[0])


def test_channels_stay_in_front():
    image = np.random.default_rng(0).random((2, 3, 4, 5))
    axes, flips = (2, 0, 1), (True, False, True)
    np.testing.assert_array_equal(orient(image, axes, flips)[1], orient(image[1], axes, flips))
    np.testing.assert_array_equal(unorient(orient(image, axes, flips), axes, flips), image)


def test_photographs_and_oblique_images():
    assert canonical_axes(direction_of((2, 1, 0), (-1, 1, 1)), dimension=2) == ((0, 1, 2), (False, False, False))
    c, s = np.cos(0.6), np.sin(0.6)
    assert canonical_axes((c, -s, 0, s, c, 0, 0, 0, 1)) == ((0, 1, 2), (False, False, False))
    half = np.sqrt(0.5)
    assert canonical_axes((half, -half, 0, half, half, 0, 0, 0, 1))[0] == (0, 1, 2)


@given(st.sampled_from(ALL_48), st.permutations(range(3)), st.sampled_from(["canonical", "as_stored"]))
def test_transposition_comes_after_orientation(stored, transpose, orientation):
    direction = direction_of(*stored)
    array = np.arange(24).reshape(2, 3, 4)
    first = orient(array, *canonical_axes(direction)) if orientation == "canonical" else array
    joined = network_axes(direction, 3, orientation, transpose)
    np.testing.assert_array_equal(orient(array, *joined), first.transpose(transpose))
    assert unpermute(permute((2, 3, 4), joined[0]), joined[0]) == (2, 3, 4)


def test_identity():
    assert network_axes(IDENTITY, 3, "canonical") == ((0, 1, 2), (False, False, False))

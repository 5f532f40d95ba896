"""Maps on the prepared grid go back to the file's voxels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_preprocessing import NONE, cases, same_grid

from autounet.preprocessing import prepare_case, restore_map
from autounet.schema.geometry import Geometry
from autounet.schema.plan import PreprocessSpec


@settings(max_examples=60)
@given(cases())
def test_without_resampling_the_image_itself_comes_back(case):
    image, _, geometry, spec = case
    geometry = geometry.model_copy(update={"spacing": (1.0, 1.0, 1.0)})
    prepared = prepare_case("a", "k", image, None, geometry, same_grid(spec))
    back = restore_map(prepared.image[0], prepared.properties)
    assert back.dtype == np.float32
    np.testing.assert_array_equal(back, image[0])  # what was cropped away is 0 in both


@settings(max_examples=60)
@given(cases(), st.floats(-2, 2))
def test_with_resampling_a_constant_stays_constant_and_the_outside_is_empty(case, value):
    image, _, geometry, spec = case
    properties = prepare_case("a", "k", image, None, geometry, spec).properties
    back = restore_map(np.full(properties.shape, value, np.float32), properties)
    inside = image[0] != 0
    np.testing.assert_allclose(back[inside], np.float32(value), rtol=1e-6)
    assert not back[~inside].any()


@settings(max_examples=40)
@given(cases(), st.integers(0, 99))
def test_values_never_leave_their_range(case, seed):
    image, _, geometry, spec = case
    properties = prepare_case("a", "k", image, None, geometry, spec).properties
    values = np.random.default_rng(seed).random(properties.shape, dtype=np.float32)
    back = restore_map(values, properties)[image[0] != 0]
    assert back.min() >= values.min() - 1e-6
    assert back.max() <= values.max() + 1e-6


def test_values_of_another_grid_are_refused():
    spec = PreprocessSpec(spacing=(1.0, 1.0, 1.0), normalisation=NONE)
    image = np.ones((1, 2, 3, 4), np.float32)
    properties = prepare_case("a", "k", image, None, Geometry(shape=(2, 3, 4)), spec).properties
    with pytest.raises(ValueError, match="for a prepared case of"):
        restore_map(np.zeros((1, 2, 3), np.float32), properties)

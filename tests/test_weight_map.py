"""The weight map of the 2015 U-Net against its definition, computed object by object."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from scipy.ndimage import distance_transform_edt

from autounet.ops.surfaces import balance_weights, border_weight, objects, two_nearest

label_maps = array_shapes(min_dims=2, max_dims=3, min_side=1, max_side=9).flatmap(
    lambda shape: arrays(np.int16, shape, elements=st.sampled_from([0, 0, 0, 0, -1, 1, 1, 2]))
)


@settings(max_examples=60, deadline=None)
@given(labels=label_maps, steps=st.lists(st.floats(0.5, 4), min_size=3, max_size=3), unit=st.booleans())
def test_the_map_is_its_definition(labels, steps, unit):
    spacing = None if unit else steps[: labels.ndim]
    numbers = objects(labels)
    away = [distance_transform_edt(numbers != n, sampling=spacing) for n in range(1, int(numbers.max()) + 1)]
    missing = [np.full(labels.shape, np.inf)] * max(0, 2 - len(away))
    first, second = np.sort(np.stack(away + missing), axis=0)[:2]
    ours = two_nearest(numbers, spacing)
    np.testing.assert_allclose(ours[0], first, rtol=1e-6)
    np.testing.assert_allclose(ours[1], second, rtol=1e-6)
    balance = np.array([1.0, 2.0, 3.0])
    expected = balance[np.maximum(labels, 0)] + np.where(labels == 0, 10 * np.exp(-((first + second) ** 2) / 50), 0)
    weight = border_weight(labels, spacing, balance)
    assert weight.dtype == np.float32
    np.testing.assert_allclose(weight, np.where(labels < 0, 0, expected), rtol=1e-5)


def test_objects_touch_at_faces_and_are_of_one_class():
    labels = np.array([[1, 0, 2], [0, 1, 2], [-1, 1, 1]])
    numbers = objects(labels)
    assert numbers.max() == 3
    assert numbers[0, 0] != numbers[1, 1] == numbers[2, 2] != numbers[1, 2] == numbers[0, 2]
    assert not numbers[labels <= 0].any()


def test_a_narrow_gap_weighs_most():
    """Two squares, 2 pixels of background between them: there d1 + d2 = 3; far away the second term is gone."""
    labels = np.zeros((40, 80), int)
    labels[5:15, 5:15] = labels[5:15, 17:27] = 1
    weight = border_weight(labels, balance=np.ones(2))
    assert weight[10, 15] == weight[10, 16] == pytest.approx(1 + 10 * np.exp(-9 / 50))
    assert weight.max() == weight[10, 15]
    assert weight[10, 10] == 1
    assert weight[30, 70] == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("labels", [np.zeros((4, 5), int), np.eye(1, 20, 3, dtype=int), np.full((3, 3, 3), -1)])
def test_fewer_than_two_objects_leave_the_balance(labels):
    weight = border_weight(labels)
    np.testing.assert_allclose(weight, balance_weights(np.bincount(labels[labels >= 0].ravel()))[labels]
                               if (labels >= 0).all() else 0)  # fmt: skip


@given(counts=st.lists(st.integers(0, 10**6), min_size=1, max_size=6))
def test_balanced_classes_weigh_equal(counts):
    weights = balance_weights(counts)
    sums = [n * w for n, w in zip(counts, weights, strict=True) if n]
    np.testing.assert_allclose(sums, sum(counts) / max(1, len(sums)))
    assert all(w == 1 for n, w in zip(counts, weights, strict=True) if not n)


def test_other_dimensions_are_refused():
    with pytest.raises(ValueError, match="1 axes"):
        border_weight(np.zeros(3, int))

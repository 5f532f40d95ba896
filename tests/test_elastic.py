"""Elastic deformation: the field passes through its nodes; nothing beyond the box that is read is asked for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autounet.schema.options import RunOptions
from autounet.training.transforms import DEVIATION, bend_by, displacement, draw_bend
from autounet.workflow.defaults import SHORT_STEPS, train_options

SIZES = st.one_of(st.tuples(*[st.integers(3, 40)] * 2), st.tuples(*[st.integers(3, 14)] * 3))


@given(SIZES, st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_the_field_passes_through_its_nodes(size, seed):
    size = tuple(length | 1 for length in size)  # so that a voxel lies on the middle node
    nodes = draw_bend(np.random.default_rng(seed), size).nodes
    field = displacement(nodes, size)
    at = np.ix_(*[(0, length // 2, length - 1) for length in size])
    assert field.shape == (len(size), *size)
    for direction, values in enumerate(field.numpy()):
        np.testing.assert_allclose(values[at], nodes[direction], atol=1e-4)


@given(SIZES)
@settings(max_examples=20, deadline=None)
def test_without_displacement_all_stays_as_it_is(size):
    source = torch.rand(2, *size)
    found = bend_by(np.zeros((len(size), *[3] * len(size))), size).apply(source)
    torch.testing.assert_close(found, source, atol=1e-5, rtol=0)


@given(SIZES, st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_every_voxel_comes_from_inside_the_box_that_is_read(size, seed):
    bend = bend_by(draw_bend(np.random.default_rng(seed), size).nodes * 3, size)
    source = torch.ones(1, *bend.source_size)
    torch.testing.assert_close(bend.apply(source), torch.ones(1, *size), atol=1e-4, rtol=0)
    assert all((have - want) % 2 == 0 for have, want in zip(bend.source_size, size, strict=True))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_an_even_displacement_is_a_shift(axis):
    size, nodes = (9, 11, 7), np.zeros((3, 3, 3, 3))
    nodes[axis] = 2
    source = torch.arange(13 * 15 * 11, dtype=torch.float32).view(1, 13, 15, 11)
    moved = [slice(2, -2)] * 3
    moved[axis] = slice(4, None)
    bend = bend_by(nodes, size)
    around = source[(slice(None), *[slice(None) if other == axis else slice(2, -2) for other in range(3)])]
    torch.testing.assert_close(bend.apply(around), source[(slice(None), *moved)], atol=1e-3, rtol=0)


def test_displacements_have_the_published_deviation():
    nodes = np.concatenate([draw_bend(np.random.default_rng(seed), (572, 286)).nodes for seed in range(300)], axis=1)
    np.testing.assert_allclose(nodes.std(axis=(1, 2)), [10, 5], rtol=0.05)
    assert pytest.approx(10) == DEVIATION * 572


@pytest.mark.parametrize("steps", [100, 250_000])
def test_the_first_unet_is_bent_and_weighs_borders_unless_a_loss_is_given(steps):
    published = train_options(RunOptions(family="original"), steps, 2)
    assert (published.loss, published.elastic) == ("weighted_ce", True)
    assert train_options(RunOptions(family="original", loss="dice_ce"), steps, 2).loss == "dice_ce"
    for other in (train_options(RunOptions(), steps, 2), train_options(RunOptions(family="original"), steps, 3)):
        assert (other.loss, other.elastic) == ("log_dice_ce" if steps < SHORT_STEPS else "dice_ce", False)

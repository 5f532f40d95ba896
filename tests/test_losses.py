"""Losses: laws, one contract for all, and the written-out gradient against automatic differentiation."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_cases import classes
from torch.nn import functional

from autounet.losses import build_loss
from autounet.losses.deep_supervision import level_weights, nearest
from autounet.losses.dice_ce import DiceCrossEntropy
from autounet.schema.errors import OptionError


def reference(
    logits: torch.Tensor, labels: torch.Tensor, weight: torch.Tensor | None, batch_dice: bool
) -> torch.Tensor:
    """The formulas of the module, term by term, for automatic differentiation."""
    known = (labels >= 0).to(logits.dtype)
    mask = known if weight is None else known * weight
    target = labels.clamp(min=0).long()
    log_probability = logits.log_softmax(1)
    ce = (functional.nll_loss(log_probability, target, reduction="none") * mask).sum() / mask.sum()
    one_hot = functional.one_hot(target, logits.shape[1]).movedim(-1, 1) * mask[:, None]
    probability = log_probability.exp() * mask[:, None]
    axes = tuple(range(2, logits.ndim))
    overlap = (probability * one_hot / mask[:, None].clamp(min=1e-30)).sum(axes)
    sizes = probability.sum(axes) + one_hot.sum(axes)
    if batch_dice:
        overlap, sizes = overlap.sum(0), sizes.sum(0)
    dice = (2 * overlap + 1e-5) / (sizes + 1e-5)
    return ce - dice[..., 1:].mean()


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    dims=st.sampled_from([2, 3]),
    count=st.integers(2, 5),
    batch_dice=st.booleans(),
    ignored=st.booleans(),
    weighted=st.booleans(),
)
def test_value_and_gradient_are_those_of_the_formula(seed, dims, count, batch_dice, ignored, weighted):
    generator = torch.Generator().manual_seed(seed)
    shape = (2, *(4, 3, 5)[:dims])
    logits = torch.randn(shape[0], count, *shape[1:], generator=generator, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(-1 if ignored else 0, count, shape, generator=generator).short()
    labels[(0,) * (dims + 1)] = 0
    weight = torch.rand(shape, generator=generator, dtype=torch.float64) + 0.1 if weighted else None
    ours = DiceCrossEntropy(batch_dice)(logits, labels, weight)
    expected = reference(logits, labels, weight, batch_dice)
    torch.testing.assert_close(ours, expected)
    (gradient,) = torch.autograd.grad(3 * ours, logits)
    (expected_gradient,) = torch.autograd.grad(3 * expected, logits)
    torch.testing.assert_close(gradient, expected_gradient)


def test_gradient_keeps_type_and_memory_order():
    logits = torch.randn(2, 3, 4, 4, 4).to(torch.bfloat16, memory_format=torch.channels_last_3d).requires_grad_()
    loss = DiceCrossEntropy(False)(logits, torch.randint(0, 3, (2, 4, 4, 4)))
    loss.backward()
    assert loss.dtype == torch.float32
    assert logits.grad.dtype == torch.bfloat16
    assert logits.grad.is_contiguous(memory_format=torch.channels_last_3d)


def test_small_gradients_survive_half_precision():
    """GradScaler multiplies by 65536, the first factor, which half precision does not even hold."""
    logits = torch.randn(1, 3, 48, 48, 48, dtype=torch.float16, requires_grad=True)
    labels = torch.randint(0, 3, (1, 48, 48, 48))
    (65536 * DiceCrossEntropy(False)(logits, labels)).backward()
    exact = logits.detach().float().requires_grad_()
    (65536 * DiceCrossEntropy(False)(exact, labels)).backward()
    assert logits.grad.dtype == torch.float16
    torch.testing.assert_close(logits.grad.float(), exact.grad, rtol=2e-3, atol=1e-7)


def test_perfect_prediction_reaches_minus_one():
    labels = torch.arange(3).repeat(2, 8)
    logits = 40 * functional.one_hot(labels, 3).movedim(-1, 1).float()
    assert DiceCrossEntropy(True)(logits, labels).item() == pytest.approx(-1, abs=1e-5)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_ignored_voxels_change_nothing(seed):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(-1, 3, (2, 5, 6), generator=generator)
    labels[0, 0, 0] = 1
    logits = torch.randn(2, 3, 5, 6, generator=generator)
    changed = torch.where(labels[:, None] < 0, torch.randn(2, 3, 5, 6, generator=generator), logits)
    loss = DiceCrossEntropy(False)
    torch.testing.assert_close(loss(logits, labels), loss(changed, labels))


def test_a_batch_without_any_label_is_finite():
    logits = torch.randn(1, 3, 4, 4, requires_grad=True)
    value = DiceCrossEntropy(False)(logits, torch.full((1, 4, 4), -1))
    value.backward()
    assert torch.isfinite(value)
    assert not logits.grad.any()


@given(levels=st.integers(1, 7))
def test_level_weights_sum_to_one(levels):
    weights = level_weights(levels)
    assert len(weights) == levels
    assert sum(weights) == pytest.approx(1)
    assert (weights[-1] == 0) == (levels > 1)
    assert all(a > b for a, b in itertools.pairwise(weights))


@settings(max_examples=30, deadline=None)
@given(old=st.tuples(st.integers(1, 20), st.integers(1, 20)), new=st.tuples(st.integers(1, 20), st.integers(1, 20)))
def test_nearest_is_torchs_nearest_exact(old, new):
    array = torch.arange(2.0 * np.prod(old)).reshape(2, *old)
    expected = functional.interpolate(array[:, None], new, mode="nearest-exact")[:, 0]
    # both take the voxel under the centre; on exact ties torch's rounding decides, so compare where there is none
    ties = [any(((i + 0.5) * o / n) % 1 == 0 for i in range(n)) for o, n in zip(old, new, strict=True)]
    if not any(ties):
        torch.testing.assert_close(nearest(array, new), expected)
    assert nearest(array, new).shape == expected.shape


def test_refusals():
    with pytest.raises(OptionError, match=r"--loss unknown is unknown. Choose one of dice_ce"):
        build_loss("unknown", classes(2), False, 1)
    with pytest.raises(OptionError, match="at least one class"):
        build_loss("dice_ce", classes(1), False, 1)

"""Losses beside MONAI's, or where MONAI has none beside their formula written out."""

from __future__ import annotations

import math

import pytest
import torch
from loss_cases import classes, random_batch, random_outputs, tumour
from monai.losses import DiceCELoss, DiceFocalLoss, DiceLoss, FocalLoss, TverskyLoss
from torch.nn import functional

from autounet.losses import Batch, build_loss
from autounet.losses.terms import Focal, VoxelLoss
from autounet.losses.voxels import Exclusive
from autounet.schema.labels import overlapping_targets

SHAPES = [(2, 6, 4), (2, 6, 4, 5)]
TVERSKY = {"alpha": 0.3, "beta": 0.7}
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=["2d", "3d"])
each_kind = pytest.mark.parametrize("overlapping", [False, True], ids=["exclusive", "regions"])
each_sum = pytest.mark.parametrize("batch_dice", [False, True])


def setting(shape, overlapping, count=None):
    """Logits, batch, and the target as MONAI wants it: (B, 1, *P) indices or (B, C, *P) masks."""
    batch = random_batch(1, shape, False, False, False)
    if not overlapping:
        return *random_outputs(2, shape, 4), batch, batch.labels[:, None].long()
    targets = overlapping_targets(tumour())[:count]
    masks = [torch.isin(batch.labels, torch.tensor(target.members)) for target in targets]
    return *random_outputs(2, shape, len(targets)), batch, torch.stack(masks, 1).double()


def monai_arguments(overlapping):
    if overlapping:
        return {"sigmoid": True}
    return {"softmax": True, "to_onehot_y": True, "include_background": False}


def same(ours, theirs, logits):
    """Values and gradients."""
    theirs = theirs.to(ours.dtype)  # some of MONAI's compute in float32 whatever they are given
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    gradients = [torch.autograd.grad(value, logits, retain_graph=True)[0] for value in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-7)


def ours(name, logits, batch, overlapping=False, batch_dice=False):
    return build_loss(name, tumour(), batch_dice, 1, overlapping=overlapping)([logits], batch)


@each_shape
@each_kind
@each_sum
def test_dice(shape, overlapping, batch_dice):
    logits, batch, target = setting(shape, overlapping)
    theirs = DiceLoss(**monai_arguments(overlapping), batch=batch_dice)(logits, target)
    same(ours("dice", logits, batch, overlapping, batch_dice) + 1, theirs, logits)


@each_shape
@each_kind
@each_sum
def test_tversky(shape, overlapping, batch_dice):
    logits, batch, target = setting(shape, overlapping)
    theirs = TverskyLoss(**monai_arguments(overlapping), **TVERSKY, batch=batch_dice)(logits, target)
    same(ours("tversky", logits, batch, overlapping, batch_dice), theirs, logits)


@each_shape
@each_kind
@each_sum
def test_focal_tversky(shape, overlapping, batch_dice):
    logits, batch, target = setting(shape, overlapping)
    errors = TverskyLoss(**monai_arguments(overlapping), **TVERSKY, batch=batch_dice, reduction="none")(logits, target)
    same(ours("focal_tversky", logits, batch, overlapping, batch_dice), (errors**0.75).mean(), logits)


@each_shape
@each_sum
def test_dice_ce(shape, batch_dice):
    logits, batch, target = setting(shape, False)
    theirs = DiceCELoss(**monai_arguments(False), batch=batch_dice)
    same(ours("dice_ce", logits, batch, False, batch_dice) + 1, theirs(logits, target), logits)
    only = DiceCELoss(**monai_arguments(False), lambda_dice=0.0)
    same(ours("ce", logits, batch), only(logits, target), logits)


@each_shape
@each_sum
def test_dice_and_binary_cross_entropy(shape, batch_dice):
    """MONAI's has a binary cross-entropy for a single channel only."""
    batch = random_batch(3, shape, False, False, False, classes=2)
    (logits,) = random_outputs(4, shape, 1)
    target = batch.labels[:, None].double()
    value = build_loss("dice_ce", classes(2), batch_dice, 1, overlapping=True)([logits], batch)
    same(value + 1, DiceCELoss(sigmoid=True, batch=batch_dice)(logits, target), logits)


@each_shape
def test_focal(shape):
    """MONAI's softmax form divides by the number of classes too."""
    logits, batch, target = setting(shape, False)
    theirs = FocalLoss(use_softmax=True, to_onehot_y=True, gamma=2.0)
    same(ours("focal", logits, batch), 4 * theirs(logits, target), logits)
    logits, batch, target = setting(shape, True)
    same(ours("focal", logits, batch, True), FocalLoss(gamma=2.0)(logits, target), logits)
    same(ours("dice_focal", logits, batch, True) + 1, DiceFocalLoss(sigmoid=True, gamma=2.0)(logits, target), logits)


def test_focal_without_focus_is_cross_entropy():
    logits, batch, _ = setting((2, 6, 4), False)
    plain = VoxelLoss(Exclusive(), Focal(gamma=0.0))(logits, batch.labels)
    torch.testing.assert_close(plain, ours("ce", logits, batch))


@each_shape
def test_binary_cross_entropy(shape):
    logits, batch, target = setting(shape, True)
    expected = functional.binary_cross_entropy_with_logits(logits, target)
    for name in ("bce", "ce"):
        same(ours(name, logits, batch, True), expected, logits)
    logits, batch, target = setting(shape, False)
    one_hot = functional.one_hot(target[:, 0], 4).movedim(-1, 1).double()
    same(ours("bce", logits, batch), functional.binary_cross_entropy_with_logits(logits, one_hot), logits)


@each_shape
@pytest.mark.parametrize("ignore", [False, True])
@pytest.mark.parametrize("weights", [False, True])
def test_top_k(shape, ignore, weights):
    """Weights multiply before the choice; the mean is over the chosen, with all known voxels' mean weight as unit."""
    batch = random_batch(5, shape, ignore, weights, False)
    (logits,) = random_outputs(6, shape, 4)
    labels = tumour(ignore)
    values = functional.cross_entropy(logits, batch.labels.long(), ignore_index=-1, reduction="none")
    weight = (torch.ones(shape) if batch.weight is None else batch.weight)[batch.labels >= 0].double()
    values = (values[batch.labels >= 0] * weight).sort(descending=True).values
    worst = values[: -(-len(values) // 10)].mean() / weight.mean()
    same(build_loss("topk", labels, False, 1)([logits], batch), worst, logits)
    both = build_loss("dice", labels, False, 1)([logits], batch) + worst
    same(build_loss("dice_topk", labels, False, 1)([logits], batch), both, logits)


@each_shape
def test_weighted_cross_entropy(shape):
    batch = random_batch(7, shape, True, True, False)
    (logits,) = random_outputs(8, shape, 4)
    values = functional.cross_entropy(logits, batch.labels.long(), ignore_index=-1, reduction="none")
    weight = batch.weight * (batch.labels >= 0)
    value = build_loss("weighted_ce", tumour(True), False, 1)([logits], batch)
    same(value, (values * weight).sum() / weight.double().sum(), logits)


@each_sum
def test_marginal_dice_and_cross_entropy(batch_dice):
    """Sample 0 was not annotated for class 1: p0 + p1 is its background, and class 1 has no Dice there."""
    batch = random_batch(9, (2, 6, 4), False, False, True)
    (logits,) = random_outputs(10, (2, 6, 4), 4)
    p = logits.softmax(1)
    merged = torch.stack((torch.stack((p[0, 0] + p[0, 1], torch.zeros_like(p[0, 1]), p[0, 2], p[0, 3])), p[1]))
    ce = -merged.gather(1, batch.labels[:, None].long()).log().mean()
    y = functional.one_hot(batch.labels.long(), 4).movedim(-1, 1).double()
    both, sizes = (merged * y).sum((2, 3)), (merged + y).sum((2, 3))
    if batch_dice:
        dice = ((2 * both.sum(0) + 1e-5) / (sizes.sum(0) + 1e-5))[1:].mean()
    else:
        scores = (2 * both + 1e-5) / (sizes + 1e-5)
        dice = torch.stack((scores[0, 2], scores[0, 3], *scores[1, 1:])).mean()
    same(ours("dice_ce", logits, batch, False, batch_dice), ce - dice, logits)


@each_sum
@each_kind
def test_log_dice(overlapping, batch_dice):
    """Class 3 occurs in sample 1 only, and class 1 is hardly found: a straight line goes on below a Dice of 0.02."""
    shape = (2, 6, 4)
    batch = random_batch(3, shape, False, False, False)
    batch = batch._replace(
        labels=torch.where((batch.labels == 3) & (torch.arange(2)[:, None, None] == 0), 0, batch.labels)
    )
    (logits,) = random_outputs(4, shape, 3 if overlapping else 4)
    hidden = torch.zeros(logits.shape[1]).index_fill(0, torch.tensor([2 if overlapping else 1]), -6.0)
    logits = (logits.detach() + hidden[:, None, None]).requires_grad_()
    y = functional.one_hot(batch.labels.long(), 4).movedim(-1, 1).double()
    if overlapping:
        y, p = torch.stack((y[:, 1:].sum(1), y[:, 2:].sum(1), y[:, 3]), 1), logits.sigmoid()
        ce = functional.binary_cross_entropy(p, y)
    else:
        p = logits.softmax(1)
        ce = -p.gather(1, batch.labels[:, None].long()).log().mean()
        p, y = p[:, 1:], y[:, 1:]
    axes = (0, 2, 3) if batch_dice else (2, 3)
    scores = (2 * (p * y).sum(axes) + 1e-5) / (p.sum(axes) + y.sum(axes) + 1e-5)
    found = [score for score, true in zip(scores.flatten(), y.sum(axes).flatten(), strict=True) if true]
    assert min(found) < 0.02 < max(found)
    parts = [score.log() if score > 0.02 else math.log(0.02) + (score - 0.02) / 0.02 for score in found]
    same(ours("log_dice_ce", logits, batch, overlapping, batch_dice), ce - torch.stack(parts).mean(), logits)


def test_uncertain_regions_are_left_out():
    """Without class 2 a case knows neither the whole tumour nor its core; class 3 it knows."""
    batch = random_batch(11, (1, 6, 4), False, False, False)
    batch = Batch(
        batch.image, torch.where(batch.labels == 2, 0, batch.labels), torch.tensor([[True, True, False, True]])
    )
    (logits,) = random_outputs(12, (1, 6, 4), 3)
    expected = functional.binary_cross_entropy_with_logits(logits[:, 2], (batch.labels == 3).double())
    same(ours("bce", logits, batch, True), expected, logits)

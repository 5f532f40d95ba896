"""Soft Dice plus cross-entropy over softmax classes, with its gradient written out.

Both terms need the same softmax, and the gradient of both with respect to the logits has a closed form. Computing it
beside the value takes one softmax and a handful of passes over the (B, K, voxels) array, where automatic
differentiation keeps and walks a dozen of them.

Formulas (Isensee et al. 2021, nnU-Net): with p the softmax, y the one-hot labels and m the voxel weight,

    I_k = sum m p_k y_k        P_k = sum m p_k        Y_k = sum m y_k
    dice = mean_k (2 I_k + s) / (P_k + Y_k + s)       k over the foreground, s = 1e-5
    ce   = - sum m log p_label / sum m
    loss = ce - dice

`I`, `P`, `Y` are summed per sample, or over the batch with `batch_dice`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

SMOOTH = 1e-5


class DiceCrossEntropy:
    """`loss(logits (B, K, *S), labels (B, *S) with -1 for no loss, weight (B, *S) or None) -> scalar`."""

    def __init__(self, batch_dice: bool, dice_weight: float = 1.0, ce_weight: float = 1.0) -> None:
        self.batch_dice = batch_dice
        self.dice_weight = dice_weight
        self.ce_weight = ce_weight

    def __call__(self, logits: Tensor, labels: Tensor, weight: Tensor | None = None) -> Tensor:
        return _DiceCrossEntropy.apply(
            logits, labels, weight, self.batch_dice, self.dice_weight, self.ce_weight, bool((labels < 0).any())
        )


class _DiceCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        labels: Tensor,
        weight: Tensor | None,
        batch_dice: bool,
        dice_weight: float,
        ce_weight: float,
        some_ignored: bool,
    ) -> Tensor:
        accumulate = torch.float64 if logits.dtype == torch.float64 else torch.float32
        target = labels.flatten(1).long()  # (B, N)
        mask = None if weight is None else weight.flatten(1).to(accumulate)  # (B, N)
        if some_ignored:
            known = (target >= 0).to(accumulate)
            mask = known if mask is None else mask * known
            target = target.clamp(min=0)
        # (B, K, N) contiguous: softmax over a strided class axis is vectorised along the voxels
        flat = logits.flatten(2).to(accumulate, memory_format=torch.contiguous_format)
        probability = flat.log_softmax(1)
        index = target[:, None]  # (B, 1, N)
        log_true = probability.gather(1, index)[:, 0]  # (B, N)
        probability.exp_()
        true = log_true.exp()

        batch, classes, voxels = probability.shape
        sums = true.new_zeros(3, batch, classes)  # I, P, Y
        if mask is None:
            total = true.new_tensor(float(batch * voxels))
            ce = -log_true.sum() / total
            sums[0].scatter_add_(1, target, true)
            sums[1] = probability.sum(-1)
            sums[2].scatter_add_(1, target, torch.ones_like(true))
        else:
            total = mask.sum().clamp(min=1e-8)
            ce = -(log_true * mask).sum() / total
            sums[0].scatter_add_(1, target, true * mask)
            sums[1] = torch.bmm(probability, mask[:, :, None])[:, :, 0]
            sums[2].scatter_add_(1, target, mask)
        dice, by_overlap, by_size = _dice(sums, batch_dice)
        if ctx.needs_input_grad[0]:
            gradient = _gradient(
                probability, true, index, mask,
                by_overlap * -dice_weight, by_size * -dice_weight, ce_weight / total,
            )  # fmt: skip
            # in half precision most of it would become 0 before GradScaler's factor arrives
            kept = torch.float32 if logits.dtype == torch.float16 else logits.dtype
            ctx.gradient = torch.empty_like(logits, dtype=kept).copy_(gradient.view(logits.shape))
            ctx.dtype = logits.dtype
        return ce_weight * ce - dice_weight * dice

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        return ((ctx.gradient * upstream.to(ctx.gradient.dtype)).to(ctx.dtype), *[None] * 6)


def _dice(sums: Tensor, batch_dice: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Mean foreground Dice and its derivatives by I and by P, both (B, K), from `sums` (3, B, K)."""
    shape = sums.shape[1:]
    overlap, predicted, reference = sums.sum(1, keepdim=True) if batch_dice else sums
    numerator = 2 * overlap + SMOOTH
    denominator = (predicted + reference + SMOOTH).clamp(min=1e-8)
    score = numerator / denominator
    counted = torch.ones_like(score)
    counted[:, 0] = 0
    counted /= counted.sum()
    by_overlap = 2 * counted / denominator
    by_size = -counted * score / denominator
    return (score * counted).sum(), by_overlap.expand(shape), by_size.expand(shape)


def _gradient(
    probability: Tensor, true: Tensor, index: Tensor, mask: Tensor | None,
    by_overlap: Tensor, by_size: Tensor, by_ce: Tensor,
) -> Tensor:  # fmt: skip
    """d loss / d logits (B, K, N); overwrites `probability`.

    With g = d loss / d p, softmax turns it into p (g - sum_k p_k g_k); cross-entropy adds (p - y) / total.
    g_k is `by_size`_k everywhere plus `by_overlap`_k on the voxels of class k.
    """
    at_true = by_overlap.gather(1, index[:, 0]) * true  # (B, N)
    mean = torch.bmm(by_size[:, None], probability)[:, 0] + at_true  # (B, N)
    factor = (by_size + by_ce)[:, :, None] - mean[:, None]  # (B, K, N)
    gradient = probability.mul_(factor)
    gradient.scatter_add_(1, index, (at_true - by_ce)[:, None])
    return gradient if mask is None else gradient.mul_(mask[:, None])

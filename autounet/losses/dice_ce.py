"""Soft Dice plus cross-entropy over softmax classes, with its gradient written out.

Both terms need the same softmax, and the gradient of both with respect to the logits has a closed form. Computing it
together with the value takes one softmax and a handful of passes over the (B, K, voxels) array, where automatic
differentiation keeps and walks a dozen of them.

Formulas (Isensee et al. 2021, nnU-Net): with p the softmax, y the one-hot labels and m the voxel weight,

    I_k = sum m p_k y_k        P_k = sum m p_k        Y_k = sum m y_k
    dice = mean_k (2 I_k + s) / (P_k + Y_k + s)       k over the foreground, s = 1e-5
    ce   = - sum m log p_label / sum m
    loss = ce - dice

`I`, `P`, `Y` are summed per sample, or over the batch with `batch_dice`. Classes that were not annotated in a sample's
case are merged into its background beforehand (`merge_unannotated`) and left out of the mean over k.

With `logarithm` it is the mean of log dice_k over the classes that occur (Wong, Moradi, Tang, Syeda-Mahmood 2018, 3D
segmentation with exponential logarithmic loss, MICCAI): its gradient is that of Dice divided by the Dice, so that a
class counts the more the less of it is found, and as in Dice once it is.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .terms import LEAST_SCORE, SMOOTH, log_score
from .voxels import SMALLEST_TOTAL, flat_logits, known_weight, merge_unannotated, shares


class DiceCrossEntropy:
    """`loss(logits (B, K, *S), labels (B, *S), weight (B, *S) or None, annotated (B, K) or None) -> scalar`.

    Labels are -1 where there is no loss; without `ignores` there is no such voxel.
    """

    def __init__(
        self,
        batch_dice: bool,
        dice_weight: float = 1.0,
        ce_weight: float = 1.0,
        ignores: bool = True,
        logarithm: bool = False,
    ) -> None:
        self.batch_dice = batch_dice
        self.dice_weight = dice_weight
        self.ce_weight = ce_weight
        self.ignores = ignores
        self.logarithm = logarithm

    def __call__(
        self, logits: Tensor, labels: Tensor, weight: Tensor | None = None, annotated: Tensor | None = None
    ) -> Tensor:
        if annotated is not None:
            logits, labels, annotated = merge_unannotated(flat_logits(logits), labels.flatten(1).long(), annotated)
        return _DiceCrossEntropy.apply(
            logits, labels, weight, annotated,
            self.batch_dice, self.dice_weight, self.ce_weight, self.ignores, self.logarithm,
        )  # fmt: skip


class _DiceCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        labels: Tensor,
        weight: Tensor | None,
        annotated: Tensor | None,
        batch_dice: bool,
        dice_weight: float,
        ce_weight: float,
        ignores: bool,
        logarithm: bool,
    ) -> Tensor:
        # (B, K, N) contiguous: softmax over a strided class axis is vectorised along the voxels
        flat = flat_logits(logits)
        target = labels.flatten(1).long()  # (B, N)
        mask = known_weight(target, weight, ignores, flat.dtype)  # (B, N)
        if ignores:
            target = target.clamp(min=0)
        probability = flat.log_softmax(1)
        index = target[:, None]  # (B, 1, N)
        log_true = probability.gather(1, index)[:, 0]  # (B, N)
        probability.exp_()
        true = log_true.exp()

        batch, classes, voxels = probability.shape
        sums = true.new_zeros(3, batch, classes)  # I, P, Y
        if mask is None:
            total = true.new_full((), float(sum(shares().all_of(batch * voxels))))
            ce = -shares().summed(log_true.sum()) / total
            sums[0].scatter_add_(1, target, true)
            sums[1] = probability.sum(-1)
            sums[2].scatter_add_(1, target, torch.ones_like(true))
        else:
            total = shares().summed(mask.sum()).clamp(min=SMALLEST_TOTAL)
            ce = -shares().summed((log_true * mask).sum()) / total
            sums[0].scatter_add_(1, target, true * mask)
            sums[1] = torch.bmm(probability, mask[:, :, None])[:, :, 0]
            sums[2].scatter_add_(1, target, mask)
        dice, by_overlap, by_size = _dice(sums, annotated, batch_dice, logarithm)
        if ctx.needs_input_grad[0]:
            gradient = _gradient(
                probability, true, index, mask,
                by_overlap * -dice_weight, by_size * -dice_weight, ce_weight / total,
            )  # fmt: skip
            # in half precision most of it would become 0 before GradScaler's factor arrives
            kept = torch.float32 if logits.dtype == torch.float16 else logits.dtype
            ctx.save_for_backward(torch.empty_like(logits, dtype=kept).copy_(gradient.view(logits.shape)))
            ctx.dtype = logits.dtype
        return ce_weight * ce - dice_weight * dice

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return ((gradient * upstream.to(gradient.dtype)).to(ctx.dtype), *[None] * 8)


def _dice(sums: Tensor, annotated: Tensor | None, batch_dice: bool, logarithm: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Mean foreground Dice, or its logarithm, and the derivatives by I and by P, both (B, K), from `sums` (3, B, K)."""
    own = sums.shape[1]
    counted = torch.ones_like(sums[0]) if annotated is None else annotated.to(sums.dtype)
    counted[:, 0] = 0
    sums, counted = shares().gathered(sums, 1), shares().gathered(counted, 0)
    shape = sums.shape[1:]
    if batch_dice:
        sums, counted = sums.sum(1, keepdim=True), counted.sum(0, keepdim=True).clamp(max=1)
    if logarithm:
        counted = counted * (sums[2] > 0)
    counted = counted / counted.sum().clamp(min=1)
    overlap, predicted, reference = sums
    numerator = 2 * overlap + SMOOTH
    denominator = predicted + reference + SMOOTH
    score = numerator / denominator
    slope = counted / score.clamp(min=LEAST_SCORE) if logarithm else counted
    by_overlap = 2 * slope / denominator
    by_size = -slope * score / denominator
    if logarithm:
        score = log_score(score)
    first = sum(shares().samples[: shares().rank])
    return (score * counted).sum(), *(each.expand(shape).narrow(0, first, own) for each in (by_overlap, by_size))


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

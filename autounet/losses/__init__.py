"""Losses: `loss(outputs, batch) -> scalar`, made by name. docs/losses.md lists them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..schema.errors import OptionError, unknown_name
from ..schema.labels import Labels, overlapping_targets
from ..schema.plugins import Registry, not_callable
from .deep_supervision import Batch, DeepSupervision, Pixelwise
from .dice_ce import DiceCrossEntropy
from .terms import (
    Dice,
    Focal,
    FocalTversky,
    LogDice,
    TopKCrossEntropy,
    Tversky,
    VoxelLoss,
    WeightedCrossEntropy,
    cross_entropy,
)
from .voxels import Encoding, Exclusive, Overlapping

__all__ = [
    "BORDER_WEIGHTED",
    "LOSSES",
    "Batch",
    "Loss",
    "LossFactory",
    "LossSetting",
    "Pixelwise",
    "build_loss",
    "even_weight",
]

Loss = Callable[[Sequence[Tensor], Batch], Tensor]


class LossSetting(NamedTuple):
    """What the factories of losses get."""

    labels: Labels
    batch_dice: bool = False
    """sums of Dice and Tversky go over the whole batch"""
    overlapping: bool = False
    """one sigmoid for each of `overlapping_targets(labels)`, instead of a softmax over all classes"""

    @property
    def ignores(self) -> bool:
        """-1 occurs only where the labels have an ignore value; asking the data would stop a GPU, and a tracer."""
        return self.labels.ignore is not None

    @property
    def encoding(self) -> Encoding:
        if not self.overlapping:
            return Exclusive(self.ignores)
        members = [target.members for target in overlapping_targets(self.labels)]
        return Overlapping(members, self.labels.count, self.ignores)


def _dice_ce(setting: LossSetting, dice: float = 1.0, ce: float = 1.0, logarithm: bool = False) -> Pixelwise:
    """Both terms or one of them: for exclusive classes with the gradient written out."""
    if not setting.overlapping:
        return DiceCrossEntropy(setting.batch_dice, dice, ce, setting.ignores, logarithm)
    terms = [cross_entropy] if ce else []
    overlap = LogDice if logarithm else Dice
    return VoxelLoss(setting.encoding, *terms, *([overlap(setting.batch_dice)] if dice else []))


def _binary(setting: LossSetting) -> Pixelwise:
    """Each channel against the rest; for exclusive classes the channels are the classes, background included."""
    if setting.overlapping:
        return _dice_ce(setting, dice=0.0)
    members = [(index,) for index in range(setting.labels.count)]
    return VoxelLoss(Overlapping(members, len(members), setting.ignores), cross_entropy)


LossFactory = Callable[[LossSetting], Pixelwise]
OWN_LOSSES: dict[str, LossFactory] = {
    "dice_ce": _dice_ce,
    "log_dice_ce": lambda setting: _dice_ce(setting, logarithm=True),
    "dice": lambda setting: _dice_ce(setting, ce=0.0),
    "ce": lambda setting: _dice_ce(setting, dice=0.0),
    "bce": _binary,
    "weighted_ce": lambda setting: WeightedCrossEntropy(_dice_ce(setting, dice=0.0)),
    "topk": lambda setting: VoxelLoss(setting.encoding, TopKCrossEntropy()),
    "dice_topk": lambda setting: VoxelLoss(setting.encoding, Dice(setting.batch_dice), TopKCrossEntropy()),
    "focal": lambda setting: VoxelLoss(setting.encoding, Focal()),
    "dice_focal": lambda setting: VoxelLoss(setting.encoding, Dice(setting.batch_dice), Focal()),
    "tversky": lambda setting: VoxelLoss(setting.encoding, Tversky(setting.batch_dice)),
    "focal_tversky": lambda setting: VoxelLoss(setting.encoding, FocalTversky(setting.batch_dice)),
}
"""name -> factory of the loss of one output"""
LOSSES: Registry[LossFactory] = Registry("losses", OWN_LOSSES, not_callable)
"""with those of plug-ins"""

BORDER_WEIGHTED = frozenset({"weighted_ce"})
"""losses that need `ops.surfaces.border_weight` of every sample in `Batch.weight`"""


def even_weight(name: str, shape: Sequence[int]) -> Tensor | None:
    """(B, *P) ones where the loss `name` needs a weight of each voxel and only its cost counts; None for others."""
    return torch.ones(tuple(shape)) if name in BORDER_WEIGHTED else None


def build_loss(
    name: str,
    labels: Labels,
    batch_dice: bool,
    levels: int,
    *,
    overlapping: bool = False,
) -> DeepSupervision:
    """The loss `name` for `levels` outputs, of K channels, or with `overlapping` one for each target.

    Raises OptionError for an unknown name or too few classes.
    """
    if name not in LOSSES:
        raise unknown_name("--loss", name, LOSSES)
    if labels.count < 2:
        raise OptionError("the labels have no class besides the background", "Give at least one class to segment")
    return DeepSupervision(LOSSES[name](LossSetting(labels, batch_dice, overlapping)), levels)

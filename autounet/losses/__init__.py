"""Losses: `loss(outputs, batch) -> scalar`, made by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from autounet.losses.batch import Batch
from autounet.losses.deep_supervision import DeepSupervision, Pixelwise
from autounet.losses.dice_ce import DiceCrossEntropy
from autounet.schema.errors import OptionError
from autounet.schema.labels import Labels

__all__ = ["LOSSES", "Batch", "Loss", "build_loss"]

Loss = Callable[[Sequence[Tensor], Batch], Tensor]

LOSSES: dict[str, Callable[[bool], Pixelwise]] = {
    "dice_ce": lambda batch_dice: DiceCrossEntropy(batch_dice),
    "dice": lambda batch_dice: DiceCrossEntropy(batch_dice, ce_weight=0.0),
    "ce": lambda batch_dice: DiceCrossEntropy(batch_dice, dice_weight=0.0),
}
"""name -> factory(batch_dice)"""


def build_loss(name: str, labels: Labels, batch_dice: bool, levels: int) -> Loss:
    """The loss `name` for `levels` outputs. Raises OptionError for an unknown name or too few classes."""
    if name not in LOSSES:
        raise OptionError(f"there is no loss {name!r}; choose one of {', '.join(sorted(LOSSES))}")
    if labels.count < 2:
        raise OptionError("a loss needs background and at least one class")
    return DeepSupervision(LOSSES[name](batch_dice), levels)

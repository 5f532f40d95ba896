"""Dice on a few fixed patches of the validation cases: shown while training, and used to see that it has converged."""

from __future__ import annotations

import time

import torch
from torch import Tensor, nn

from ..losses import Batch
from ..losses.deep_supervision import centre_crop
from ..schema.dataset import is_certain
from ..schema.labels import Labels, TargetKind, targets_of
from ..step import Precision
from .samples import SampleSource

TIME_SHARE = 0.02
"""of the training time, at most"""
BATCHES = 2
"""that are shown"""
DECIDING_PATCHES = 32
"""at least, where their Dice decides when the training ends. Between measurements 50 steps apart the Dice of 4 patches
varied by 0.013, of 8 by 0.009, and of 16, 32 and 64 by 0.007: from 16 on it is the training itself that varies
(standard deviations around the trend, Task04, a small network, at a Dice of 0.83 after 3000 steps)"""
KEPT_BYTES = 1024**3
"""of those patches at most, that stay in main memory; the others are cut anew each time"""


def monitored_batches(size: int, deciding: bool) -> int:
    """Batches of `size` samples; `deciding`: whether they say when the training has converged."""
    return max(BATCHES, -(-DECIDING_PATCHES // size)) if deciding else BATCHES


class PatchMonitor:
    """Always the same patches, so that values of different steps can be compared."""

    def __init__(
        self,
        source: SampleSource | None,
        labels: Labels,
        precision: Precision,
        device: torch.device,
        kind: TargetKind = "classes",
        batches: int = BATCHES,
    ) -> None:
        """`source` None: there are no validation cases, and `measure` returns None."""
        self.batches = batches
        self._kept: dict[int, Batch] = {}
        self._bytes = 0
        self.targets = targets_of(labels, kind)
        self.exclusive = kind == "classes"
        self.background = labels.classes[0].name
        self.precision = precision
        self.device = device
        self.source = source
        self._seconds = 0.0
        self._last = 0.0

    def affordable(self, elapsed: float) -> bool:
        return self.source is not None and self._seconds + self._last <= TIME_SHARE * elapsed

    @torch.no_grad()
    def measure(self, model: nn.Module) -> dict[str, float] | None:
        """Dice per target but the background over all voxels of all patches; those absent from them are left out."""
        if self.source is None:
            return None
        began = time.monotonic()
        training = model.training
        model.eval()
        sums = torch.zeros(3, len(self.targets), dtype=torch.int64)
        for number in range(self.batches):
            batch = self._batch(self.source, number).to(self.device, self.precision.channels_last)
            with self.precision.autocast(self.device.type):
                logits = model(batch.image)
            sums += self._overlaps(logits, batch).cpu()
        model.train(training)
        self._last = time.monotonic() - began
        self._seconds += self._last
        return {
            target.name: float(2 * both / (predicted + true))
            for target, both, predicted, true in zip(self.targets, *sums, strict=True)
            if target.name != self.background and true > 0
        }

    def _batch(self, source: SampleSource, number: int) -> Batch:
        """Kept where many are looked at often; those few that are shown are cut anew each time."""
        if number in self._kept:
            return self._kept[number]
        batch = source.batch(number)
        self._bytes += batch.image.nbytes + batch.labels.nbytes
        if self.batches > BATCHES and self._bytes <= KEPT_BYTES:
            self._kept[number] = batch
        return batch

    def _overlaps(self, logits: Tensor, batch: Batch) -> Tensor:
        """(3, C) voxels that are predicted and true, predicted, and true, of logits (B, C, *S)."""
        labels = centre_crop(batch.labels, logits.shape[2:])
        winner = logits.argmax(1) if self.exclusive else None
        known = labels >= 0
        found = torch.zeros(3, len(self.targets), dtype=torch.int64, device=logits.device)
        for channel, target in enumerate(self.targets):
            predicted = logits[:, channel] > 0 if winner is None else winner == channel
            true = torch.isin(labels, torch.tensor(target.members, device=labels.device, dtype=labels.dtype))
            counted = known & self._certain(target.members, batch).view(-1, *[1] * (labels.ndim - 1))
            both = predicted & true & counted
            found[:, channel] = torch.stack([both.sum(), (predicted & counted).sum(), (true & counted).sum()])
        return found

    def _certain(self, members: tuple[int, ...], batch: Batch) -> Tensor:
        """(B) bool: whether a sample's labels tell what is in a target."""
        if batch.annotated is None:
            return torch.ones(len(batch.labels), dtype=torch.bool, device=self.device)
        rows = batch.annotated.tolist()
        return torch.tensor([is_certain(members, row) for row in rows], device=self.device)

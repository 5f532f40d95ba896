"""Dice on a few fixed patches, measured while training: of validation cases and of training cases.

That of validation cases is shown, and says when a training without a given length has converged. That of training cases
says which classes are left behind. They are not learnt, so they are shown more often, and people are told. Patches
of validation cases could show that as well, but then the weights of a fold would depend on the cases that validate it.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from ..losses import Batch
from ..losses.deep_supervision import centre_crop
from ..schema.dataset import is_certain
from ..schema.labels import Labels, TargetKind, targets_of
from ..schema.metrics import NEAR_ZERO, WHAT_HELPS
from ..schema.run import EpochLog
from ..step import Precision
from .samples import EMPHASIS, Reading, SampleSource, one_thread

TIME_SHARE = 0.02
"""of the training time, at most"""
BATCHES = 2
"""that are shown"""
DECIDING_PATCHES = 32
"""at least, where their Dice decides when the training ends. Between measurements 50 steps apart the Dice of 4 patches
varied by 0.013, of 8 by 0.009, and of 16, 32 and 64 by 0.007: from 16 on it is the training itself that varies
(standard deviations around the trend, Task04, a small network, at a Dice of 0.83 after 3000 steps)"""
JUDGING_PATCHES = 8
"""of training cases, at least, by which classes are left behind"""
STEPS_A_BATCH = 15
"""of a training at least, for each batch that is measured, where the measurements must not depend on time: a batch goes
through the network alone, in about a third of a step"""
KEPT_BYTES = 1024**3
"""of those that decide, at most, that stay in main memory; the others are cut anew each time"""


def monitored_batches(size: int, deciding: bool) -> int:
    """Batches of `size` samples; `deciding`: whether they say when the training has converged."""
    return max(BATCHES, -(-DECIDING_PATCHES // size)) if deciding else BATCHES


def judging_batches(size: int) -> int:
    """Batches of `size` samples by which classes are left behind."""
    return -(-JUDGING_PATCHES // size)


class Patches(Protocol):
    """A `SampleSource`, or `ClassPatches`."""

    def batch(self, step: int, /) -> Batch: ...


@dataclass(frozen=True)
class ClassPatches:
    """Patches that show the rarest classes of a source's cases, in turn."""

    source: SampleSource
    classes: tuple[int, ...]
    """dense, the rarest first, without the background"""

    @classmethod
    def of(cls, source: SampleSource) -> ClassPatches | None:
        """None where no case has a class."""
        total: dict[int, int] = {}
        for each in source.cases.counts:
            for label, count in each.items():
                total[label] = total.get(label, 0) + count
        return cls(source, tuple(sorted(total, key=lambda label: (total[label], label)))) if total else None

    def batch(self, step: int, /) -> Batch:
        """The first patch of a class is from the case with most of it, the second from the next one, and so on."""
        first, size = step * self.source.batch_size, self.source.batch_size
        with one_thread():
            return self.source.collated([self._reading(number) for number in range(first, first + size)])

    def _reading(self, number: int) -> Reading:
        turn, place = divmod(number, len(self.classes))
        label, counts = self.classes[place], self.source.cases.counts
        cases = sorted(self.source.cases.holding([label]), key=lambda case: (-counts[case][label], case))
        return self.source.showing(number, cases[turn % len(cases)], label)


class PatchMonitor:
    """Always the same patches, so that values of different steps can be compared."""

    def __init__(
        self,
        source: Patches | None,
        labels: Labels,
        precision: Precision,
        device: torch.device,
        kind: TargetKind = "classes",
        batches: int = BATCHES,
        kept_bytes: int = 0,
    ) -> None:
        """`source` None: there are no cases to measure on, and `measure` returns None.

        Batches stay in memory up to `kept_bytes`.
        """
        self.batches, self.kept_bytes = batches, kept_bytes
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

    def due(self, steps: int) -> bool:
        """Whether enough steps were made since the last measurement, however long they took."""
        return self.source is not None and steps >= STEPS_A_BATCH * self.batches

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

    def _batch(self, source: Patches, number: int) -> Batch:
        """Kept where many are looked at often; a few are cut anew each time."""
        if number in self._kept:
            return self._kept[number]
        batch = source.batch(number)
        self._bytes += batch.image.nbytes + batch.labels.nbytes
        if self._bytes <= self.kept_bytes:
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
            true = torch.isin(labels, torch.tensor(target.members, dtype=labels.dtype).to(labels.device))
            counted = known & self._certain(target.members, batch).view(-1, *[1] * (labels.ndim - 1))
            both = predicted & true & counted
            found[:, channel] = torch.stack([both.sum(), (predicted & counted).sum(), (true & counted).sum()])
        return found

    def _certain(self, members: tuple[int, ...], batch: Batch) -> Tensor:
        """(B) bool: whether a sample's labels tell what is in a target."""
        if batch.annotated is None:
            return torch.ones(len(batch.labels), dtype=torch.bool, device=self.device)
        rows = batch.annotated.tolist()
        return torch.tensor([is_certain(members, row) for row in rows]).to(self.device)


BEGIN = 0.15
"""share of a training before which no class is left behind: it may only be slow to begin with"""
VALUES = 3
"""in a row, near zero, with which a class is left behind"""
RECOVERED, RECOVERED_VALUES = 0.2, 2
"""Dice that so many values in a row have to reach, until a class is left behind no longer"""


def left_behind(curve: Sequence[EpochLog], before: Collection[str] = ()) -> tuple[str, ...]:
    """Classes that are left behind after the last line of the log, of which `before` were until then.

    Those that the patches do not show are not judged, and no single value decides.
    """
    if not curve or not curve[-1].training_dice:
        return tuple(before)
    measured = [line.training_dice for line in curve if line.training_dice][-max(VALUES, RECOVERED_VALUES) :]
    found = []
    for name in curve[-1].training_dice:
        values = [dice[name] for dice in measured if name in dice]
        if name in before:
            behind = min(values[-RECOVERED_VALUES:]) < RECOVERED or len(values) < RECOVERED_VALUES
        else:
            behind = curve[-1].progress >= BEGIN and len(values) >= VALUES and max(values[-VALUES:]) < NEAR_ZERO
        found += [name] if behind else []
    return tuple(found)


def left_behind_sentence(line: EpochLog, before: Collection[str], emphasised: bool) -> str | None:
    """What has changed since `before`, for the log, the record and the report; None: nothing."""
    told, dice = [], line.training_dice or {}
    if new := [name for name in line.left_behind if name not in before]:
        more = f"; from here on {EMPHASIS} times as many samples show it as another class, and its voxels weigh "
        more = f"{more}{EMPHASIS} times as much in the loss" if emphasised else ""
        told.append(
            f"left behind, with a Dice below {NEAR_ZERO:g} on patches of training cases: {', '.join(new)}{more}. "
            f"What helps: {WHAT_HELPS}"
        )
    if recovered := [name for name in before if name in dice and name not in line.left_behind]:
        told.append(f"no longer left behind: {', '.join(f'{name} (Dice {dice[name]:.2f})' for name in recovered)}")
    return "; ".join(told) or None

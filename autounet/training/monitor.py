"""Dice on a few fixed patches of the validation cases: shown while training, never used for a decision."""

from __future__ import annotations

import time

import torch
from torch import nn

from autounet.losses.deep_supervision import centre_crop
from autounet.schema.labels import Labels
from autounet.step import Precision
from autounet.training.samples import SampleSource

TIME_SHARE = 0.02
"""of the training time, at most"""
BATCHES = 2


class PatchMonitor:
    """Always the same patches, so that values of different steps can be compared."""

    def __init__(self, source: SampleSource | None, labels: Labels, precision: Precision, device: torch.device) -> None:
        """`source` None: there are no validation cases, and `measure` returns None."""
        self.labels = labels
        self.precision = precision
        self.device = device
        self.source = source
        self._seconds = 0.0
        self._last = 0.0

    def affordable(self, elapsed: float) -> bool:
        return self.source is not None and self._seconds + self._last <= TIME_SHARE * elapsed

    @torch.no_grad()
    def measure(self, model: nn.Module) -> dict[str, float] | None:
        """Dice per foreground class over all voxels of all patches; classes absent from them are left out."""
        if self.source is None:
            return None
        began = time.monotonic()
        training = model.training
        model.eval()
        overlap = torch.zeros(self.labels.count)
        size = torch.zeros(self.labels.count)
        truth = torch.zeros(self.labels.count)
        for number in range(BATCHES):
            batch = self.source.batch(number).to(self.device, self.precision.channels_last)
            with self.precision.autocast(self.device.type):
                found = model(batch.image).argmax(1)
            labels = centre_crop(batch.labels, found.shape[1:])
            known = labels >= 0
            for index in range(1, self.labels.count):
                predicted, true = (found == index) & known, labels == index
                overlap[index] += (predicted & true).sum().cpu()
                size[index] += predicted.sum().cpu()
                truth[index] += true.sum().cpu()
        model.train(training)
        self._last = time.monotonic() - began
        self._seconds += self._last
        return {
            label.name: float(2 * overlap[index] / (size[index] + truth[index]))
            for index, label in enumerate(self.labels.classes)
            if index > 0 and truth[index] > 0
        }

"""Copies of batches to the device that trains, and how long that waited for them."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from ..losses import Batch

AHEAD = 2
"""steps that a GPU may have before it while the processor copies the next batch; each keeps a batch in its memory"""


class Copies:
    """To a device whose steps the processor makes itself, or waits for: one after the other."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._waited = 0.0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Around the making and the copying of one batch."""
        asked = time.monotonic()
        yield
        self._waited += time.monotonic() - asked

    def of(self, arrays: Sequence[Tensor]) -> list[Tensor]:
        return [each.to(self.device, non_blocking=True) for each in arrays]

    def batch(self, batch: Batch) -> Batch:
        """The same batch there."""
        if batch.image.device == self.device:
            return batch
        image, labels, *others = self.of([each for each in batch[:4] if each is not None])
        annotated = None if batch.annotated is None else others.pop(0)
        return Batch(image, labels, annotated, None if batch.weight is None else others.pop(), batch.cases)

    def waited(self) -> float:
        """Seconds that the device has waited for batches since this was asked last."""
        waited, self._waited = self._waited, 0.0
        return waited


class CopiesBeside(Copies):
    """To a GPU, on a stream of their own beside its steps.

    The processor has a step's kernels started long before they have run, and goes on to the next batch: its copy runs
    while the step does, and only the step that uses it waits for it. From pinned memory, as the loader's workers give
    it, the processor does not wait either, except where it would be more than `AHEAD` steps ahead, each with a batch
    in the GPU's memory. What the GPU has waited for is known to it alone: a pair of its clock's readings for each
    batch, at the end of the step before and when the batch was there.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self._stream = torch.cuda.Stream(device)
        self._ends: deque[torch.cuda.Event] = deque()
        self._pairs: deque[tuple[torch.cuda.Event, torch.cuda.Event]] = deque()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        self._ends.append(self._mark())
        if len(self._ends) > AHEAD:
            self._ends.popleft().synchronize()
            self._read(AHEAD)
        yield

    def of(self, arrays: Sequence[Tensor]) -> list[Tensor]:
        steps = torch.cuda.current_stream(self.device)
        with torch.cuda.stream(self._stream):
            moved = super().of(arrays)
        steps.wait_stream(self._stream)
        for each in moved:
            each.record_stream(steps)  # its memory is not given away before the steps are through with it
        if self._ends:
            self._pairs.append((self._ends[-1], self._mark()))
        return moved

    def waited(self) -> float:
        """To be asked when the GPU has made all steps that it was given."""
        self._read(0)
        return super().waited()

    def _read(self, left: int) -> None:
        """The readings of all batches but the last, whose steps the GPU may not have made."""
        while len(self._pairs) > left:
            end, there = self._pairs.popleft()
            self._waited += end.elapsed_time(there) / 1000

    def _mark(self) -> torch.cuda.Event:
        mark = torch.cuda.Event(enable_timing=True, blocking=True)
        mark.record(torch.cuda.current_stream(self.device))
        return mark


def copies_to(device: torch.device) -> Copies:
    return CopiesBeside(device) if device.type == "cuda" else Copies(device)

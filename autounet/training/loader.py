"""Batches made in processes beside the training. Where they cannot be, fewer make the same batches, more slowly."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Generator, Iterator
from functools import partial
from mmap import PAGESIZE
from pathlib import Path
from typing import Any

import torch

from ..losses import Batch
from ..schema.errors import AutoUNetError
from ..schema.quantities import format_size
from ..system_memory import memory_sentence
from ..torch_private import lost_workers, without_child_signals
from ..workers import INHERITED, ended_by, take_over, without_main
from .copies import copies_to
from .samples import PackedReadings, SampleSource

logger = logging.getLogger(__name__)

CPU = torch.device("cpu")
PREFETCHED = 3
"""batches that a process makes ahead"""
LOOK_SECONDS = 5.0
"""that a batch is waited for before somebody looks whether the processes are well"""
ENDING_SECONDS = 1.0
"""that the system takes to say how a process has ended"""
MOST_SECONDS = 300.0
"""that a batch is waited for in all; starting processes on a slow disk takes a minute or two"""
SHARED_MEMORY = Path("/dev/shm")
"""through which Linux hands tensors from process to process"""
BESIDE_BYTES = 4 * PAGESIZE
"""of a batch: each of its tensors fills whole pages"""
LARGER = f"a larger {SHARED_MEMORY} (docker run --shm-size=1g) lets more processes be used, --workers 0 none"


class WorkersLost(Exception):
    """The processes make no batches any more; says why."""


def shared_memory_free() -> int | None:
    """Bytes; None where tensors travel in another way."""
    try:
        return shutil.disk_usage(SHARED_MEMORY).free
    except OSError:
        return None


class _BatchTable(torch.utils.data.Dataset):
    """Batches, or what they are made of, by step and the classes emphasised then; for torch's worker processes."""

    def __init__(self, source: SampleSource, packed: bool) -> None:
        self.source, self.packed = source, packed

    def __getitem__(self, asked: tuple[int, tuple[int, ...]]) -> Batch | PackedReadings | Exception:
        """In a worker process. An error with words for a user is handed over: torch would make a traceback of it."""
        try:
            return self.made(asked)
        except (AutoUNetError, OSError, MemoryError) as error:
            return error

    def made(self, asked: tuple[int, tuple[int, ...]]) -> Batch | PackedReadings:
        return self.source.packed(*asked) if self.packed else self.source.batch(*asked)


class BatchLoader:
    """Batches of steps `start`, `start` + 1, ...: the same ones for every number of `workers`.

    Workers are spawned, because a fork after torch has used its threads hangs; 0 works in this process. Where `device`
    is no CPU and the source allows it (`SampleSource.on_device`), they only read, and batches are augmented there.
    Where workers are killed, give no batch, or have no room in the memory that processes share, half as many go on,
    and none at last; `events` says so.
    """

    def __init__(
        self,
        source: SampleSource,
        start: int,
        workers: int,
        device: torch.device = CPU,
        emphasised: tuple[int, ...] = (),
    ) -> None:
        self._source, self._device = source, device
        self._copies = copies_to(device)
        self._next, self._asked, self._emphasised = start, 0, emphasised
        self._outdated = 0
        self.events: list[str] = []
        self._table = _BatchTable(source, source.on_device and device.type != "cpu")
        self._workers = self._fitting(workers)
        self._batches = self._made()

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        """On the device."""
        with self._copies.waiting():
            made = self._next_made()
            if not isinstance(made, PackedReadings):
                return self._copies.batch(made)
            readings = made.on(self._copies)
        return self._source.collated(readings)

    def waited(self) -> float:
        """Seconds that the device has waited for batches since this was asked last.

        A GPU has to have made the steps with all of them.
        """
        return self._copies.waited()

    def _next_made(self) -> Batch | PackedReadings:
        while True:
            try:
                while self._outdated:
                    next(self._batches)
                    self._outdated -= 1
                made = next(self._batches)
                break
            except WorkersLost as error:
                self._go_on_with(self._workers // 2, str(error))
        self._asked -= 1
        return made

    def emphasise(self, classes: tuple[int, ...]) -> None:
        """From the next batch on. Workers go on; what they were asked for ahead is made again."""
        if classes == self._emphasised:
            return
        self._emphasised = classes
        self._next -= self._asked
        self._outdated += self._asked
        self._asked = 0

    def close(self) -> None:
        self._batches.close()

    def _fitting(self, workers: int) -> int:
        """So many of `workers` as there is memory for what they hand over."""
        free, each = shared_memory_free(), PREFETCHED * (self._source.batch_bytes(self._table.packed) + BESIDE_BYTES)
        if not workers or free is None or workers * each <= free:
            return workers
        fitting = free // each
        self._tell(
            f"{SHARED_MEMORY} has {format_size(free)} free, and {workers} worker processes need "
            f"{format_size(workers * each)} there for their batches: {_made_by(fitting)}; {LARGER}"
        )
        return fitting

    def _go_on_with(self, workers: int, why: str) -> None:
        """What the lost ones were asked for is asked for again."""
        self._batches.close()
        self._next -= self._asked
        self._asked = self._outdated = 0
        self._workers = workers
        self._tell(f"{why}. From step {self._next} on {_made_by(workers)}, and are the same ones")
        self._batches = self._made()

    def _tell(self, what: str) -> None:
        logger.warning("%s", what)
        self.events.append(what)

    def _asked_for(self) -> Iterator[tuple[int, tuple[int, ...]]]:
        """What is asked for next, of the source or of its workers."""
        while True:
            self._next += 1
            self._asked += 1
            yield self._next - 1, self._emphasised

    def _made(self) -> Generator[Batch | PackedReadings, None, None]:
        if not self._workers:
            for asked in self._asked_for():
                yield self._table.made(asked)
        loader = torch.utils.data.DataLoader(
            self._table,
            batch_size=None,
            collate_fn=_as_it_is,
            sampler=self._asked_for(),  # type: ignore[arg-type]
            num_workers=self._workers,
            prefetch_factor=PREFETCHED,
            pin_memory=self._device.type == "cuda",
            multiprocessing_context="spawn",
            worker_init_fn=partial(take_over, dict(INHERITED)),
            timeout=LOOK_SECONDS,
        )
        first = self._next
        with without_main(), without_child_signals():
            made = iter(loader)
        while True:
            yield self._waited_for(made, first)

    def _waited_for(self, made: Iterator[Batch | PackedReadings | Exception], first: int) -> Batch | PackedReadings:
        """The next batch of the workers, of which they were asked for step `first` at first. Raises WorkersLost."""
        until = time.monotonic() + MOST_SECONDS
        while True:
            try:
                found = next(made)
            except (RuntimeError, OSError, EOFError) as error:
                waited = str(error).startswith("DataLoader timed out")
                if not waited:  # a process that has gone cannot hand over what it had made; its end takes a moment
                    time.sleep(ENDING_SECONDS)
                if lost := lost_workers(made):
                    raise WorkersLost(self._explained(*lost[0], first)) from None
                if not waited:
                    raise
            else:
                if isinstance(found, Exception):
                    raise found
                return found
            free = shared_memory_free()
            if free is not None and free < self._source.batch_bytes(self._table.packed):
                raise WorkersLost(f"{SHARED_MEMORY} is full, which worker processes need: {LARGER}")
            if time.monotonic() > until:
                raise WorkersLost(f"no batch has come from {self._workers} worker processes in {MOST_SECONDS:g} s")

    def _explained(self, status: int | None, number: int | None, first: int) -> str:
        """Why the batch with this number was not made. Classes that are emphasised since it was asked for are not known
        to it, which matters for its cases alone."""
        told = f"a worker process {ended_by(status)}"
        if number is not None:
            step = first + number
            told += f" while it made the batch of step {step} (cases {', '.join(self._source.case_names(step))})"
        return f"{told}; {memory_sentence()}"


def _made_by(workers: int) -> str:
    return f"batches are made by {workers} of them" if workers else "batches are made in the process of the training"


def _as_it_is(batch: Any) -> Any:
    return batch

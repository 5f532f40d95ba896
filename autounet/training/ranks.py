"""One training by several processes, one on each device: the samples of a batch are shared out, gradients are summed.

The first process decides everything and writes everything: it tells the others each step with its learning rate, and
which classes are emphasised. Sample i of a step is the same whatever the number of processes, and so are loss and
gradient up to rounding (`losses.voxels.Shares`); statistics of batch norm are those of a process's own samples.
"""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed

from ..losses import Batch
from ..losses.deep_supervision import DeepSupervision
from ..losses.voxels import Shares, share_batches
from ..processes import Lost, Raised, Returned, Tell, Told, WorkerProcess, heard
from ..schema.errors import OptionError, WorkerLost
from ..schema.options import TrainOptions
from ..schema.stage_inputs import TrainingInputs, TrainingPlace
from ..step import Precision, algorithms, configuration_loss, train_step
from ..workers import available_cores
from .loader import BatchLoader
from .samples import EMPHASIS, SampleSource
from .sources import train_source
from .state import TrainState, new_state

STARTING = timedelta(minutes=5)
"""that processes wait for each other, and for a part of a step"""
READY = "ready"
ENDING_SECONDS = 5.0
"""until a process that failed has said why, and until the others have ended"""


def shares_of(batch: int, processes: int, rank: int = 0) -> Shares:
    """The samples of each, as even as possible. Raises OptionError where there are fewer samples than processes."""
    if batch < processes:
        raise OptionError(
            f"a batch of {batch} cannot be shared by {processes} devices",
            f"Give --devices-per-training {batch}, or more --memory for a larger batch",
        )
    return Shares(tuple(batch // processes + (each < batch % processes) for each in range(processes)), rank)


class Alone:
    """The crew of a training in one process."""

    def source(self, whole: SampleSource) -> SampleSource:
        return whole

    def begin(self, state: TrainState) -> None:
        """Everybody has the state of the first process."""

    def step(self, rate: float) -> None:
        """Everybody makes a step."""

    def emphasise(self, classes: tuple[int, ...]) -> None:
        """Everybody's samples show these classes more often from the next step on."""


ALONE = Alone()


@dataclass(frozen=True)
class Crew(Alone):
    """This process among others."""

    shares: Shares
    device: torch.device

    def source(self, whole: SampleSource) -> SampleSource:
        first = sum(self.shares.samples[: self.shares.rank])
        return replace(whole, own=range(first, first + self.shares.samples[self.shares.rank]))

    def begin(self, state: TrainState) -> None:
        content = [state.content() if self.shares.rank == 0 else None]
        distributed.broadcast_object_list(content, device=torch.device("cpu"))
        if self.shares.rank:
            state.load(content[0] or {})
        state.exchange = sum_gradients

    def step(self, rate: float) -> None:
        self.tell(rate)

    def emphasise(self, classes: tuple[int, ...]) -> None:
        self.tell(classes)

    def tell(self, order: object) -> None:
        distributed.broadcast_object_list([order], device=torch.device("cpu"))

    def hear(self) -> Any:
        """A learning rate, classes to emphasise, or None: it is over."""
        order: list[Any] = [None]
        distributed.broadcast_object_list(order, device=torch.device("cpu"))
        return order[0]


def sum_gradients(gradients: Sequence[Tensor]) -> None:
    """Of all processes, in place: each is that of the whole loss by a process's own samples.

    In one message after the backward pass, and not in DistributedDataParallel's many during it: that takes means, and
    warns of parameters whose output has no weight in the loss and of kernels in channels-last order.
    """
    whole = torch.cat([each.flatten() for each in gradients])
    distributed.all_reduce(whole)
    for each, part in zip(gradients, whole.split([each.numel() for each in gradients]), strict=True):
        each.copy_(part.view(each.shape))


@contextmanager
def group(store: distributed.Store, shares: Shares, device: torch.device) -> Iterator[Crew]:
    """Inside, this process is one of those that meet at `store`."""
    try:
        if device.type == "cuda":
            torch.cuda.set_device(device)
        distributed.init_process_group(
            "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
            store=store, rank=shares.rank, world_size=len(shares.samples), timeout=STARTING,
        )  # fmt: skip
        share_batches(shares)
        yield Crew(shares, device)
    finally:
        share_batches(Shares())
        if distributed.is_initialized():
            distributed.destroy_process_group()


@contextmanager
def group_here(store: Path, shares: Shares, device: torch.device) -> Iterator[Crew]:
    """As `group`, of processes that meet at a file and talk by this machine's loopback."""
    loopback = next((name for _, name in socket.if_nameindex() if name.startswith("lo")), "lo")
    before = os.environ.get("GLOO_SOCKET_IFNAME")
    os.environ["GLOO_SOCKET_IFNAME"] = loopback
    try:
        with group(distributed.FileStore(str(store), len(shares.samples)), shares, device) as crew:
            yield crew
    finally:
        os.environ.pop("GLOO_SOCKET_IFNAME")
        if before is not None:
            os.environ["GLOO_SOCKET_IFNAME"] = before


@contextmanager
def started_crew(inputs: TrainingInputs, place: TrainingPlace, shares: Shares) -> Iterator[Alone]:
    """The crew of a training, whose other processes are started here and have ended afterwards, however it ends.

    Where one of them fails, its own error is raised.
    """
    threads = max(1, available_cores() // len(place.devices))
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "store"
        others = [WorkerProcess(f"training on {device}", threads) for device in place.devices[1:]]
        before = torch.get_num_threads()
        try:
            for rank, (worker, device) in enumerate(zip(others, place.devices[1:], strict=True), start=1):
                own = place.model_copy(update={"device": device, "devices": ()})
                worker.call(follow_here, inputs=inputs, place=own, store=store, shares=replace(shares, rank=rank))
            wait_for_all(others)
            torch.set_num_threads(threads)
            with group_here(store, shares, torch.device(place.device)) as crew:
                yield crew
                crew.tell(None)
        except RuntimeError as error:
            raise failure(others) or error from None
        finally:
            torch.set_num_threads(before)
            for worker in others:
                worker.process.terminate()
                worker.end(ENDING_SECONDS)


def wait_for_all(others: Sequence[WorkerProcess]) -> None:
    """Until all have what they need to begin. Raises the error of one that has not."""
    waiting = list(others)
    while waiting:
        for worker in heard(waiting):
            answer = worker.answer()
            if answer == Told(READY):
                waiting.remove(worker)
            elif isinstance(answer, Raised | Lost):
                raise why(worker, answer)


def why(worker: WorkerProcess, answer: Raised | Lost) -> Exception:
    if isinstance(answer, Raised):
        answer.error.add_note(f"In the process of {worker.name}:\n{answer.trace}")
        return answer.error
    return WorkerLost(
        f"the process of {worker.name} was ended from outside (exit code {answer.status})",
        "Run the same command again: the training continues at its last checkpoint",
    )


def failure(others: Sequence[WorkerProcess]) -> Exception | None:
    """Why the first of the other processes that failed has failed."""
    left = list(others)
    while left and (ready := heard(left, ENDING_SECONDS)):
        for worker in ready:
            answer = worker.answer()
            if isinstance(answer, Raised | Lost):
                return why(worker, answer)
            if isinstance(answer, Returned):
                left.remove(worker)
    return None


def advance(
    state: TrainState, loss: DeepSupervision, batch: Batch, precision: Precision, options: TrainOptions, rate: float
) -> torch.Tensor:
    """One step of the training; returns its loss, NaN where it was skipped."""
    state.set_learning_rate(rate)
    value = train_step(
        state.model, loss, state.optimiser, state.scaler, batch, precision, options.gradient_clip, state.exchange,
        state.forward,
    )  # fmt: skip
    state.step += 1
    state.update_average(options.ema_decay, value)
    return value


def emphasise(classes: tuple[int, ...], loader: BatchLoader, loss: DeepSupervision, crew: Alone = ALONE) -> None:
    """From the next step on samples show these dense classes more often, and their voxels weigh more."""
    crew.emphasise(classes)
    loader.emphasise(classes)
    loss.emphasise(classes, EMPHASIS)


def follow_here(tell: Tell, inputs: TrainingInputs, place: TrainingPlace, store: Path, shares: Shares) -> None:
    follow(tell, inputs, place, group_here(store, shares, torch.device(place.device)))


def follow(tell: Tell, inputs: TrainingInputs, place: TrainingPlace, meeting: AbstractContextManager[Crew]) -> None:
    """What another process than the first does: every step that it is told. It says once that it is ready to meet."""
    configuration, options, device = inputs.configuration, inputs.options, torch.device(place.device)
    precision = Precision(configuration.precision, configuration.channels_last)
    torch.zeros(1, device=device)  # an error of the device comes before the others wait for it
    tell(READY)
    with algorithms(options.deterministic), meeting as crew:
        state = new_state(inputs, place.initial, precision, device)
        crew.begin(state)
        loss = configuration_loss(configuration, inputs.labels, options)
        loader = BatchLoader(crew.source(train_source(inputs, place)), state.step, place.workers, device)
        while (order := crew.hear()) is not None:
            if isinstance(order, tuple):
                emphasise(order, loader, loss)
                continue
            batch = next(loader).to(device, precision.channels_last)
            advance(state, loss, batch, precision, options, order)
        loader.close()

"""One training by processes that torchrun, or another launcher with its variables, has started on several machines.

All are given the same command. The first process does it; the others wait for its trainings and follow every step. What
a training is goes to them as JSON, through the store at which they meet; OUT has to lie at the same path everywhere.
"""

from __future__ import annotations

import itertools
import logging
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cache

import torch
from torch import distributed

from ..losses.voxels import Shares
from ..processes import Launch, launched
from ..schema.errors import AutoUNetError, WorkerLost
from ..schema.record import Part
from ..schema.stage_inputs import TrainingInputs, TrainingPlace
from ..system_memory import is_out_of_memory
from ..workers import available_cores
from .ranks import STARTING, Alone, follow, group, shares_of, started_crew
from .state import Unstable

log = logging.getLogger(__name__)

WAIT = 0.2
"""seconds between two looks at the store"""
FAILED_SECONDS = 5.0
"""until a process that failed has said why"""
LEAVING_SECONDS = 10.0
"""that the first process waits for the others before it takes the store away"""

AGAIN = "Mend that, and give the same command again: the training continues at its last checkpoint"


class Order(Part):
    """A training, as the other processes are told of it."""

    inputs: TrainingInputs
    place: TrainingPlace
    samples: tuple[int, ...]
    """of each process"""


@cache
def meeting_place() -> distributed.Store:
    store, _, _ = next(iter(distributed.rendezvous("env://", timeout=STARTING)))
    return distributed.PrefixStore("autounet", store)


_trainings = itertools.count()
"""numbers of those that this process has ordered: all of a launch have one store"""


@contextmanager
def leading() -> Iterator[None]:
    """Inside, the first process does the command; afterwards the others are sent home."""
    store, launch = meeting_place(), launched()
    assert launch is not None
    try:
        yield
    finally:
        others, until = [f"left {rank}" for rank in range(1, launch.processes)], time.monotonic() + LEAVING_SECONDS
        with suppress(distributed.DistError):  # the store has gone with its machine
            store.set(_order(next(_trainings)), "")
            while time.monotonic() < until and not store.check(others):
                time.sleep(WAIT)


@contextmanager
def crew_of(inputs: TrainingInputs, place: TrainingPlace) -> Iterator[Alone]:
    """The crew of a training: of this launch, or of processes that are started for it. Where one fails, so does it.

    Raises OptionError for more devices than samples.
    """
    count, launch = len(place.devices), launched()
    if count < 2:
        yield Alone()
        return
    shares = shares_of(inputs.configuration.batch_size, count)
    with (
        started_crew(inputs, place, shares) if launch is None else launched_crew(launch, inputs, place, shares) as crew
    ):
        yield crew


@contextmanager
def launched_crew(launch: Launch, inputs: TrainingInputs, place: TrainingPlace, shares: Shares) -> Iterator[Alone]:
    """The crew of a training of the first process. Where another one fails, its error is raised."""
    store, number = meeting_place(), next(_trainings)
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, available_cores() // launch.local_processes))
    order = Order(inputs=inputs, place=place, samples=shares.samples)
    store.set(_order(number), order.model_dump_json())
    try:
        for rank in range(1, launch.processes):
            while not store.check([f"ready {number} {rank}"]):
                _require_none_failed(store, number, launch)
                time.sleep(WAIT)
        with group(distributed.PrefixStore(f"group {number}", store), shares, torch.device(place.device)) as crew:
            try:
                yield crew
            except (AutoUNetError, Unstable):  # it comes between two steps, as of a training that is asked to end
                with suppress(RuntimeError):
                    crew.tell(None)
                raise
            crew.tell(None)
    except RuntimeError as error:
        until = time.monotonic() + FAILED_SECONDS
        while time.monotonic() < until:
            _require_none_failed(store, number, launch)
            time.sleep(WAIT)
        if is_out_of_memory(error):
            raise
        raise WorkerLost(f"another process of the training has ended, or cannot be reached ({error})", AGAIN) from None
    finally:
        torch.set_num_threads(before)


def _order(number: int) -> str:
    return f"training {number}"


def _require_none_failed(store: distributed.Store, number: int, launch: Launch) -> None:
    for rank in range(1, launch.processes):
        if store.check([f"failed {number} {rank}"]):
            told = store.get(f"failed {number} {rank}").decode(errors="replace")
            raise WorkerLost(f"process {rank} of {launch.processes}: {told}", AGAIN)


def serve(launch: Launch) -> None:
    """What another process than the first does: all its trainings. Ends with the first process.

    What the scheduler asks of all processes is left to the first, which then saves its state and ends the training.
    """
    for name in ("SIGTERM", "SIGUSR1", "SIGINT"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    torch.set_num_threads(max(1, available_cores() // launch.local_processes))
    try:
        store = meeting_place()
        for number in itertools.count():
            while not store.check([_order(number)]):
                time.sleep(WAIT)
            if not (order := store.get(_order(number)).decode()):
                break
            _follow(launch, store, number, Order.model_validate_json(order))
        store.set(f"left {launch.rank}", "")
    except distributed.DistError as error:
        log.debug("the store is gone: %s", error)
        raise WorkerLost("the first process has ended, or cannot be reached any more", "Look at what it said") from None


def _follow(launch: Launch, store: distributed.Store, number: int, order: Order) -> None:
    name = f"cuda:{launch.local_rank}" if order.place.device.startswith("cuda") else order.place.device
    place = order.place.model_copy(update={"device": name, "devices": ()})

    def tell(_: object) -> None:
        store.set(f"ready {number} {launch.rank}", "")

    shares = replace(Shares(order.samples), rank=launch.rank)
    meeting = group(distributed.PrefixStore(f"group {number}", store), shares, torch.device(name))
    try:
        follow(tell, order.inputs, place, meeting)
    except Exception as error:  # told to the first process, which ends the training, or has ended it
        told = str(error) if isinstance(error, AutoUNetError) else f"{type(error).__name__}: {error}"
        log.debug("training %d ended here: %s", number, told, exc_info=True)
        store.set(f"failed {number} {launch.rank}", told)

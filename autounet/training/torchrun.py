"""One training by processes that torchrun, or another launcher with its variables, has started on several machines.

All are given the same command. The first process does it; the others wait for its orders: they follow every step of its
trainings, and take part in the validations. What an order is about goes to them as JSON, through the store at which
they meet; OUT has to lie at the same path everywhere.
"""

from __future__ import annotations

import itertools
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cache

import torch
from torch import distributed

from ..losses.voxels import Shares
from ..processes import Launch, launched
from ..progress import stop_if_cancelled
from ..schema.errors import AutoUNetError, WorkerLost
from ..schema.record import CaseName, Part
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
BEAT_SECONDS, SILENT_SECONDS = 2.0, 30.0
"""between two signs of life of a process that works on cases, and without one, after which it has ended"""
LEAVING_SECONDS = 10.0
"""that the first process waits for the others before it takes the store away"""

AGAIN = "Mend that, and give the same command again: the training continues at its last checkpoint"
AGAIN_CASES = "Give the same command again: what is done of the cases is kept"


class Training(Part):
    """A training, as the other processes are told of it."""

    inputs: TrainingInputs
    place: TrainingPlace
    samples: tuple[int, ...]
    """of each process"""


class SharedWork(Part):
    """Work on cases, each of which goes to the process that is free next."""

    work: str
    """what there is to do, for `TakePart`"""
    device: str
    cases: tuple[CaseName, ...]


class Order(Part):
    """What comes next: one of the two."""

    training: Training | None = None
    shared: SharedWork | None = None


TakePart = Callable[[str, str, Iterable[str], Callable[[], object]], None]
"""does some work on a device with the cases that it is given, and calls the last argument after each"""


@cache
def meeting_place() -> distributed.Store:
    store, _, _ = next(iter(distributed.rendezvous("env://", timeout=STARTING)))
    return distributed.PrefixStore("autounet", store)


_orders = itertools.count()
"""numbers of what this process has ordered: all of a launch have one store"""


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
            store.set(_order(next(_orders)), "")
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
    store, number = meeting_place(), next(_orders)
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, available_cores() // launch.local_processes))
    order = Order(training=Training(inputs=inputs, place=place, samples=shares.samples))
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


def together(work: str, device: str, cases: Sequence[str], on_case: Callable[[], object], take_part: TakePart) -> None:
    """Some work by all processes of the launch, of which this is the first. Where another one fails, so does it.

    `on_case` is called after each case that this process does.
    """
    store, number, launch = meeting_place(), next(_orders), launched()
    assert launch is not None
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, available_cores() // launch.local_processes))
    shared = SharedWork(work=work, device=device, cases=tuple(cases))
    store.set(_order(number), Order(shared=shared).model_dump_json())
    try:
        take_part(work, device, _next_cases(store, number, shared), on_case)
    except BaseException:
        with suppress(distributed.DistError):  # the others get no more
            store.add(f"case {number}", len(cases))
        raise
    finally:
        torch.set_num_threads(before)
    heard = dict.fromkeys(range(1, launch.processes), (0, time.monotonic()))
    while waited_for := [rank for rank in heard if not store.check([f"ready {number} {rank}"])]:
        _require_none_failed(store, number, launch)
        stop_if_cancelled()
        for rank in waited_for:
            beat, seen = store.add(f"beat {number} {rank}", 0), heard[rank]
            if beat != seen[0]:
                heard[rank] = beat, time.monotonic()
            elif time.monotonic() - seen[1] > SILENT_SECONDS:
                raise WorkerLost(f"process {rank} of {launch.processes} has ended, or cannot be reached", AGAIN_CASES)
        time.sleep(WAIT)


def _next_cases(store: distributed.Store, number: int, shared: SharedWork) -> Iterator[str]:
    """Those that this process gets: the next that none has."""
    while (index := store.add(f"case {number}", 1) - 1) < len(shared.cases):
        yield shared.cases[index]


def _take_part(launch: Launch, store: distributed.Store, number: int, shared: SharedWork, take_part: TakePart) -> None:
    ended = threading.Event()

    def beat() -> None:
        with suppress(distributed.DistError):  # the first process has gone: that is seen at the next case
            while not ended.wait(BEAT_SECONDS):
                store.add(f"beat {number} {launch.rank}", 1)

    alive = threading.Thread(target=beat, daemon=True)
    alive.start()
    try:
        take_part(shared.work, _own_device(launch, shared.device), _next_cases(store, number, shared), lambda: None)
        store.set(f"ready {number} {launch.rank}", "")
    finally:
        ended.set()
        alive.join()


def _order(number: int) -> str:
    return f"order {number}"


def _own_device(launch: Launch, device: str) -> str:
    return f"cuda:{launch.local_rank}" if device.startswith("cuda") else device


def _require_none_failed(store: distributed.Store, number: int, launch: Launch) -> None:
    for rank in range(1, launch.processes):
        if store.check([f"failed {number} {rank}"]):
            told = store.get(f"failed {number} {rank}").decode(errors="replace")
            raise WorkerLost(f"process {rank} of {launch.processes}: {told}", AGAIN)


def serve(launch: Launch, take_part: TakePart) -> None:
    """What another process than the first does: its part of all that the first orders. Ends with the first process.

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
            _obey(launch, store, number, Order.model_validate_json(order), take_part)
        store.set(f"left {launch.rank}", "")
    except distributed.DistError as error:
        log.debug("the store is gone: %s", error)
        raise WorkerLost("the first process has ended, or cannot be reached any more", "Look at what it said") from None


def _obey(launch: Launch, store: distributed.Store, number: int, order: Order, take_part: TakePart) -> None:
    try:
        if order.training is not None:
            _follow(launch, store, number, order.training)
        if order.shared is not None:
            _take_part(launch, store, number, order.shared, take_part)
    except Exception as error:  # told to the first process, which ends what it does, or has ended it
        told = str(error) if isinstance(error, AutoUNetError) else f"{type(error).__name__}: {error}"
        log.debug("order %d ended here: %s", number, told, exc_info=True)
        store.set(f"failed {number} {launch.rank}", told)


def _follow(launch: Launch, store: distributed.Store, number: int, order: Training) -> None:
    name = _own_device(launch, order.place.device)
    place = order.place.model_copy(update={"device": name, "devices": ()})

    def tell(_: object) -> None:
        store.set(f"ready {number} {launch.rank}", "")

    shares = replace(Shares(order.samples), rank=launch.rank)
    meeting = group(distributed.PrefixStore(f"group {number}", store), shares, torch.device(name))
    follow(tell, order.inputs, place, meeting)

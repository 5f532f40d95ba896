"""Batches on their way to a GPU: the order of copies and steps, on a stand-in for its streams and events."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
import torch

from autounet.losses import Batch
from autounet.training.copies import AHEAD, Copies, CopiesBeside, copies_to

CUDA, CPU = torch.device("cuda:0"), torch.device("cpu")


@dataclass
class Gpu:
    """What it was told, in order; `clock` is what an event that is recorded now reads."""

    told: list[str] = field(default_factory=list)
    current: str = "steps"
    clock: float = 0.0
    events: int = 0


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    """In place of torch.cuda's streams and events; what is copied to it stays where it is."""
    gpu = Gpu()

    class Stream:
        def __init__(self, device: torch.device, name: str = "copies") -> None:
            self.name = name

        def wait_stream(self, other: Stream) -> None:
            gpu.told.append(f"{self.name} waits for {other.name}")

    class Event:
        def __init__(self, enable_timing: bool, blocking: bool) -> None:
            assert enable_timing
            assert blocking

        def record(self, stream: Stream) -> None:
            self.number, self.read = gpu.events, gpu.clock
            gpu.events += 1
            gpu.told.append(f"{stream.name} record {self.number}")

        def synchronize(self) -> None:
            gpu.told.append(f"the processor waits for {self.number}")

        def elapsed_time(self, later: Event) -> float:
            return later.read - self.read

    @contextmanager
    def on(stream: Stream) -> Iterator[None]:
        before, gpu.current = gpu.current, stream.name
        yield
        gpu.current = before

    def to(array: torch.Tensor, device: torch.device, non_blocking: bool) -> torch.Tensor:
        assert device == CUDA
        assert non_blocking
        gpu.told.append(f"{gpu.current} copy")
        return array.clone()

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "stream", on)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream(device, gpu.current))
    monkeypatch.setattr(torch.Tensor, "to", to)
    monkeypatch.setattr(
        torch.Tensor, "record_stream", lambda array, stream: gpu.told.append(f"memory is held for {stream.name}")
    )
    return gpu


def batch_of(number: int) -> Batch:
    image, labels = torch.full((2, 1, 4), float(number)), torch.zeros(2, 4, dtype=torch.int16)
    return Batch(image, labels, None, torch.ones(2, 4), ("a",))


def test_a_batch_is_copied_beside_the_step_before(gpu: Gpu) -> None:
    copies = copies_to(CUDA)
    assert isinstance(copies, CopiesBeside)
    with copies.waiting():
        moved = copies.batch(batch_of(3))
    assert gpu.told == [
        "steps record 0", *["copies copy"] * 3, "steps waits for copies", *["memory is held for steps"] * 3,
        "steps record 1",
    ]  # fmt: skip
    given = batch_of(3)
    assert (moved.annotated, moved.cases) == (None, ("a",))
    assert all(torch.equal(getattr(moved, name), getattr(given, name)) for name in ("image", "labels", "weight"))


def test_the_processor_is_no_more_than_some_steps_ahead(gpu: Gpu) -> None:
    copies, waited = copies_to(CUDA), []
    for number in range(5):
        gpu.told.clear()
        with copies.waiting():
            copies.batch(batch_of(number))
        waited += [(number, told) for told in gpu.told if told.startswith("the processor waits")]
    # the end of the step that is `AHEAD` before the last one; each batch has two events
    assert waited == [(number, f"the processor waits for {2 * (number - AHEAD)}") for number in range(AHEAD, 5)]


def test_the_clock_of_the_gpu_says_how_long_it_waited(gpu: Gpu) -> None:
    copies = copies_to(CUDA)
    for end, there in ((0.0, 30.0), (100.0, 100.0), (200.0, 250.0), (300.0, 300.0), (400.0, 400.0)):  # ms
        gpu.clock = end
        with copies.waiting():
            gpu.clock = there
            copies.batch(batch_of(0))
    assert copies.waited() == pytest.approx(0.08)
    assert copies.waited() == 0


def test_a_cpu_waits_while_a_batch_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    copies = copies_to(CPU)
    assert type(copies) is Copies
    times = iter((1.0, 1.5, 4.0, 4.25))
    monkeypatch.setattr("autounet.training.copies.time.monotonic", lambda: next(times))
    given = batch_of(1)
    for _ in range(2):
        with copies.waiting():
            assert copies.batch(given) is given
    assert copies.waited() == 0.75
    assert copies.waited() == 0


def test_all_of_a_batch_goes_to_another_device() -> None:
    meta = torch.device("meta")
    moved = copies_to(meta).batch(batch_of(1)._replace(annotated=torch.ones(2, 3, dtype=torch.bool)))
    assert {each.device for each in moved[:4]} == {meta}
    assert moved.annotated.shape == (2, 3)


@pytest.mark.gpu
def test_batches_on_a_gpu_are_whole_while_steps_run() -> None:
    copies, device = copies_to(torch.device("cuda:0")), torch.device("cuda:0")
    weight = torch.randn(2048, 2048, device=device)
    found = []
    for number in range(12):
        with copies.waiting():
            image = torch.full((64, 1, 64, 64), float(number)).pin_memory()
            batch = copies.batch(Batch(image, torch.zeros(64, 64, 64, dtype=torch.int16).pin_memory()))
        for _ in range(20):
            weight = torch.nn.functional.normalize(weight @ weight)
        found.append(batch.image.mean() + 0 * weight.sum())
        del batch, image
    assert torch.stack(found).cpu().tolist() == pytest.approx([*range(12)])
    assert copies.waited() >= 0

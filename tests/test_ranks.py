"""One training in several processes: what each computes is what one process does with the whole batch."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from loss_cases import PATCH, channels, random_batch, random_outputs, tumour
from test_losses_contract import situations, with_weights
from torch import Tensor, distributed, multiprocessing
from training_cases import BOTH, OPTIONS, configuration, task

from autounet.losses import LOSSES, Batch, build_loss
from autounet.losses.voxels import Shares, share_batches, shares
from autounet.schema.errors import AutoUNetError, Cancelled, OptionError, WorkerLost
from autounet.schema.options import RunOptions
from autounet.schema.run import DeviceProfile
from autounet.store.weights import load_weights
from autounet.time_budget.deadline import Lanes
from autounet.training import Horizon, ranks, train_fold
from autounet.workflow import executor
from autounet.workflow.defaults import planner_options

SAMPLES = (2, 1)
"""of each process"""


def questions() -> Iterator[tuple[str, Any, Batch, list[Tensor]]]:
    """Every loss with and without batch Dice, for classes and regions; ignored voxels, weights and partly annotated
    cases, of which the processes have unequal numbers."""
    shape = (sum(SAMPLES), *PATCH[:3])
    for name, batch_dice, overlapping in itertools.product(sorted(LOSSES), (False, True), (False, True)):
        for number, (ignore, weights, partial) in enumerate(situations(name)):
            labels = tumour(ignore)
            batch = with_weights(name, random_batch(number, shape, ignore, weights, partial))
            outputs = random_outputs(number, shape, channels(labels, overlapping), 2)
            said = f"{name}, batch Dice {batch_dice}, regions {overlapping}, {ignore} {weights} {partial}"
            yield said, build_loss(name, labels, batch_dice, 2, overlapping=overlapping), batch, outputs


def part_of(batch: Batch, outputs: list[Tensor], rank: int) -> tuple[Batch, list[Tensor]]:
    own = slice(sum(SAMPLES[:rank]), sum(SAMPLES[: rank + 1]))
    fields = [
        None if each is None else each[own] for each in (batch.image, batch.labels, batch.annotated, batch.weight)
    ]
    return Batch(*fields), [each.detach()[own].clone().requires_grad_() for each in outputs]


def gradient(loss: Any, batch: Batch, outputs: list[Tensor]) -> tuple[Tensor, Tensor]:
    value = loss(outputs, batch)
    value.backward()
    return value.detach(), outputs[0].grad


def answer(rank: int, folder: str) -> None:
    """In a process of its own, but for the first."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    store = distributed.FileStore(f"{folder}/store", len(SAMPLES))
    distributed.init_process_group(
        "gloo", timeout=timedelta(minutes=2), store=store, rank=rank, world_size=len(SAMPLES)
    )
    share_batches(Shares(SAMPLES, rank))
    try:
        answers = [gradient(loss, *part_of(batch, outputs, rank)) for _, loss, batch, outputs in questions()]
    finally:
        share_batches(Shares())
        distributed.destroy_process_group()
    torch.save(answers, f"{folder}/{rank}.pt")


def second_answer(_: int, folder: str) -> None:
    answer(1, folder)


def test_losses_and_gradients_are_those_of_the_whole_batch(
    tmp_path: Path, one_thread: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    context = multiprocessing.start_processes(second_answer, (str(tmp_path),), 1, join=False)
    answer(0, str(tmp_path))
    while not context.join():
        pass
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(len(SAMPLES))]
    for (said, loss, batch, outputs), *parts in zip(questions(), *found, strict=True):
        value, whole = gradient(loss, batch, outputs)
        for part, _ in parts:
            torch.testing.assert_close(part, value, rtol=1e-6, atol=1e-8, msg=said)
        torch.testing.assert_close(torch.cat([own for _, own in parts]), whole, rtol=1e-5, atol=1e-9, msg=said)


PARTLY = {"case1": (True, True, False)}


def assert_alike(one: Path, other: Path) -> None:
    first, second = (load_weights(each / "weights.safetensors") for each in (one, other))
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=1e-4, atol=1e-4)


@pytest.fixture
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_two_processes_train_as_one_does(tmp_path: Path, one_thread: None) -> None:
    """With partly annotated cases, and three samples for two processes."""
    planned = configuration(batch=3).model_copy(update={"batch_dice": True})
    given = {"options": OPTIONS, "configuration": planned, "annotated": PARTLY}
    alone = task(tmp_path / "alone", Horizon(steps=20), **given)
    together = task(tmp_path / "together", Horizon(steps=20), devices=BOTH, **given)
    expected, found = train_fold(*alone), train_fold(*together)
    for one, other in zip(expected.curve, found.curve, strict=True):
        assert other.loss == pytest.approx(one.loss, abs=1e-4)
    assert_alike(alone.folder, together.folder)
    assert shares() == Shares()
    assert not distributed.is_initialized()


def test_a_training_may_go_on_with_another_number_of_processes(tmp_path: Path, one_thread: None) -> None:
    whole = task(tmp_path / "a", Horizon(steps=8), options=OPTIONS)
    parts = task(tmp_path / "b", Horizon(steps=8), options=OPTIONS, devices=BOTH)
    train_fold(*whole)

    def stop(progress: float) -> None:
        if progress > 0.5:
            raise Cancelled("stopped")

    with pytest.raises(Cancelled):
        train_fold(*parts, on_step=stop)
    record = train_fold(*task(tmp_path / "b", Horizon(steps=8), options=OPTIONS))
    assert any("continued at step 5" in event for event in record.events)
    assert_alike(whole.folder, parts.folder)


def test_a_process_that_is_killed_ends_the_training_with_its_reason(
    tmp_path: Path, one_thread: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[ranks.WorkerProcess] = []

    class Watched(ranks.WorkerProcess):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            started.append(self)

    monkeypatch.setattr(ranks, "WorkerProcess", Watched)

    def kill(progress: float) -> None:
        if progress > 0.1:
            started[0].process.kill()

    with pytest.raises(WorkerLost, match="the process of training on cpu was ended from outside"):
        train_fold(*task(tmp_path, Horizon(steps=1000), options=OPTIONS, devices=BOTH), on_step=kill)
    assert not started[0].process.is_alive()


def test_an_error_of_another_process_is_raised_here(tmp_path: Path, one_thread: None) -> None:
    given = task(tmp_path, Horizon(steps=5), options=OPTIONS, devices=("cpu", "cuda:77"))
    with pytest.raises(Exception, match=r"(?i)cuda") as caught:
        train_fold(*given)
    assert "In the process of training on cuda:77" in "".join(caught.value.__notes__)


def test_more_devices_than_samples_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="a batch of 2 cannot be shared by 3 devices") as caught:
        train_fold(*task(tmp_path, Horizon(steps=5), devices=("cpu",) * 3))
    assert "--devices-per-training 2" in str(caught.value.remedy)
    assert issubclass(OptionError, AutoUNetError)


def test_devices_that_are_not_there_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    profile = DeviceProfile(
        device="cpu", name="Test CPU", cores=2, memory_bytes=2**33, precision="fp32", channels_last=False
    )
    monkeypatch.setattr(executor, "available_cores", lambda: 4)
    assert executor.training_devices(RunOptions(), profile) == ()
    assert executor.training_devices(RunOptions(devices_per_training=3), profile) == ("cpu",) * 3
    with pytest.raises(OptionError, match="--devices-per-training 5: of devices like cpu there are 4"):
        executor.training_devices(RunOptions(devices_per_training=5), profile)
    options = RunOptions(devices_per_training=2)
    assert executor.lanes_of(options, profile, 3600.0, 5) == Lanes()
    assert planner_options(RunOptions(devices_per_training=3), profile).minimum_batch == 3

"""One training in several processes: what each computes is what one process does with the whole batch."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from loss_cases import PATCH, channels, random_batch, random_outputs, tumour
from test_losses_contract import situations, with_weights
from torch import Tensor, distributed, multiprocessing

from autounet.losses import LOSSES, Batch, build_loss
from autounet.losses.voxels import Shares, share_batches

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
    """In a process of its own."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    store = distributed.FileStore(f"{folder}/store", len(SAMPLES))
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=len(SAMPLES))
    share_batches(Shares(SAMPLES, rank))
    answers = [gradient(loss, *part_of(batch, outputs, rank)) for _, loss, batch, outputs in questions()]
    torch.save(answers, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


def test_losses_and_gradients_are_those_of_the_whole_batch(tmp_path: Path) -> None:
    multiprocessing.spawn(answer, (str(tmp_path),), len(SAMPLES))
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(len(SAMPLES))]
    for (said, loss, batch, outputs), *parts in zip(questions(), *found, strict=True):
        value, whole = gradient(loss, batch, outputs)
        for part, _ in parts:
            torch.testing.assert_close(part, value, rtol=1e-6, atol=1e-8, msg=said)
        torch.testing.assert_close(torch.cat([own for _, own in parts]), whole, rtol=1e-5, atol=1e-9, msg=said)

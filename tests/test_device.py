"""Training, validation and prediction on a device that is not the CPU: what a GPU would refuse, and wait for."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import NamedTuple
from unittest import mock

import numpy as np
import pytest
import torch
from host_device import NAME, elsewhere
from loss_cases import PATCH, channels, random_batch, random_outputs, tumour
from test_family_contract import CHANNELS, CLASSES, LABELS, built, families_and_dims, size_of, small_spec
from test_losses_contract import both_kinds, every_loss, situations, with_weights
from training_cases import Training, configuration, task

from autounet.inference.sliding_window import predict_scores
from autounet.losses import Batch, build_loss
from autounet.schema.errors import Cancelled
from autounet.schema.options import TrainOptions
from autounet.schema.run import RunRecord
from autounet.step import Precision, build_optimiser, train_step
from autounet.store.weights import load_weights
from autounet.training import Horizon, train_fold
from autounet.training.loader import BatchLoader
from autounet.training.sources import train_source
from autounet.training.state import new_state


class Place(NamedTuple):
    """A device under test. Inside `unwaited()` nothing may make the CPU wait for it."""

    name: str
    unwaited: Callable[[], AbstractContextManager[None]]

    @property
    def device(self) -> torch.device:
        return torch.device(self.name)


@contextmanager
def unwaited_elsewhere(seen: Counter[str]) -> Iterator[None]:
    seen.clear()
    yield
    assert seen == Counter()


@contextmanager
def unwaited_gpu() -> Iterator[None]:
    """torch raises where something waits."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.fixture(params=[NAME, pytest.param("cuda", marks=pytest.mark.gpu)])
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    if request.param == NAME:
        with elsewhere() as seen:
            yield Place(NAME, partial(unwaited_elsewhere, seen))
    else:
        with mock.patch.object(torch.backends.cudnn, "allow_tf32", False):
            yield Place("cuda", unwaited_gpu)
    torch.set_num_threads(threads)


def test_tensors_of_two_devices_do_not_meet() -> None:
    with elsewhere() as seen:
        here, away = torch.ones(3), torch.ones(3, device=NAME)
        assert away.device.type == NAME
        for wrong in (lambda: here + away, lambda: torch.cat([here, away]), lambda: torch.where(away > 0, here, away)):
            with pytest.raises(RuntimeError, match="on the CPU and others on elsewhere"):
                wrong()
        assert seen == Counter()
        assert float((away * 2).sum()) == 6
        assert (away + 1).cpu().tolist() == [2, 2, 2]
        assert seen == {"values read": 1, "copies to the CPU": 1}
        away[0] = 5
        away[1:].zero_()
        assert away.cpu().tolist() == [5, 0, 0]
        assert bool(away[away > 1].sum() == 5)
        assert seen == {"values read": 3, "copies to the CPU": 2}


OPTIONS = TrainOptions(learning_rate=5e-3, ema_decay=0.9, augmentation="full", augmented_by="torch")
"""with SGD: AdamW makes whole steps of the rounding of gradients that are 0"""


def trained(given: Training) -> RunRecord:
    return train_fold(*given)


def assert_alike(one: Training, other: Training) -> None:
    first, second = (load_weights(each.folder / "weights.safetensors") for each in (one, other))
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=1e-3, atol=1e-4)


def test_a_training_gets_the_weights_that_it_gets_on_the_cpu(tmp_path, place):
    given = [task(tmp_path / name, Horizon(steps=5), options=OPTIONS, device=name) for name in ("cpu", place.name)]
    lines = [trained(each).curve for each in given]
    assert_alike(*given)
    for here, away in zip(*lines, strict=True):
        assert away.loss == pytest.approx(here.loss, rel=1e-3)
        assert (away.validation_dice is None) == (here.validation_dice is None)
    assert lines[1][-1].validation_dice == pytest.approx(lines[0][-1].validation_dice, abs=0.02)


def test_an_interrupted_training_continues_on_the_device(tmp_path, place):
    whole, parts = (task(tmp_path / name, Horizon(steps=4), options=OPTIONS, device=place.name) for name in ("a", "b"))
    trained(whole)

    def stop(progress: float) -> None:
        if progress > 0.5:
            raise Cancelled("stopped")

    with pytest.raises(Cancelled):
        train_fold(*parts, on_step=stop)
    assert (parts.folder / "state.pt").exists()
    record = trained(parts)
    assert any("continued at step" in event for event in record.events)
    assert_alike(whole, parts)


@pytest.mark.parametrize("optimiser", ["sgd", "adamw"])
@pytest.mark.parametrize("augmentation", ["full", "light", "none"])
def test_neither_samples_nor_steps_wait_for_the_device(tmp_path, place, optimiser, augmentation):
    options = OPTIONS.model_copy(update={"optimiser": optimiser, "augmentation": augmentation, "elastic": True})
    given = task(tmp_path, Horizon(steps=9), options=options, device=place.name)
    state = new_state(given.inputs, None, Precision(), place.device)
    loss = build_loss("dice_ce", given.labels, False, 2)
    loader = BatchLoader(train_source(given.inputs, given.place), 0, 0, place.device)
    next(loader)
    with place.unwaited():
        for _ in range(3):
            batch = next(loader).to(place.device, False)
            value = train_step(state.model, loss, state.optimiser, None, batch, Precision(), 12.0)
            state.update_average(0.9, value)
    assert value.device.type == place.name


@every_loss
@both_kinds
def test_losses_are_those_of_the_cpu_and_wait_for_nothing(place, name, overlapping):
    shape = (2, *PATCH[:3])
    for batch_dice, (ignore, weights, some) in zip(itertools.cycle((False, True)), situations(name)):
        labels = tumour(ignore)
        batch = with_weights(name, random_batch(1, shape, ignore, weights, some))
        outputs = [each.float() for each in random_outputs(2, shape, channels(labels, overlapping), 2)]
        loss = build_loss(name, labels, batch_dice, 2, overlapping=overlapping)
        loss.emphasise((1, 3), 4)
        here = [each.detach().clone().requires_grad_() for each in outputs]
        away = [each.detach().to(place.device).requires_grad_() for each in outputs]
        expected, moved = loss(here, batch), batch.to(place.device, False)
        with place.unwaited():
            value = loss(away, moved)
            value.backward()
        expected.backward()
        assert float(value.detach()) == pytest.approx(float(expected.detach()), rel=1e-4)
        for one, other in zip(here, away, strict=True):
            assert (other.grad is None) == (one.grad is None)  # the coarsest output has no weight
            if one.grad is not None:
                torch.testing.assert_close(other.grad.cpu(), one.grad, rtol=1e-3, atol=1e-5)


@families_and_dims
def test_families_train_and_predict_on_the_device_and_wait_for_nothing(place, name, dims):
    spec = small_spec(name, dims)
    model = built(spec).train().to(place.device)
    size = size_of(name, spec)
    with torch.no_grad():
        finest = tuple(model.eval()(torch.zeros(1, CHANNELS, *size, device=place.name)).shape[2:])
    labels = torch.randint(CLASSES, (2, *finest)).short()
    batch = Batch(torch.randn(2, CHANNELS, *size), labels).to(place.device, False)
    levels = len(spec.decoder_blocks) if spec.deep_supervision else 1
    loss, optimiser = build_loss("dice_ce", LABELS, False, levels), build_optimiser(OPTIONS, model.parameters())
    model.train()
    with place.unwaited():
        train_step(model, loss, optimiser, None, batch, Precision(), 12.0)
        model.eval()(batch.image)


@pytest.mark.parametrize("patch", [(8, 12, 8), (8, 12)])
def test_scores_are_those_of_the_cpu(place, patch):
    planned = configuration(patch)
    mirrored = planned.inference.model_copy(update={"mirror_axes": planned.mirror_axes})
    planned = planned.model_copy(update={"inference": mirrored})
    models = [built_here(planned, seed) for seed in range(2)]
    image = np.random.default_rng(0).normal(size=(1, 5, 14, 9)).astype(np.float32)
    here = predict_scores(models, image, planned, 3, "cpu")
    away = predict_scores([model.to(place.device) for model in models], image, planned, 3, place.device)
    np.testing.assert_allclose(away, here, rtol=1e-4, atol=1e-4)


def built_here(planned, seed):
    return built(planned.network, seed).requires_grad_(False).eval()

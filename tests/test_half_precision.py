"""fp16, whose gradients are scaled: what the scaler skips by itself is no fault, and NaN is one, scaled or not.

A GPU's fp16 on the CPU: the same scaler, on float32, whose gradients overflow at a scale that is large enough.
"""

from __future__ import annotations

import copy

import pytest
import torch
from test_resume import checkpoint_always, same_after_interruptions, weights
from test_training_guard import NAN, a_state, faulty_losses, same
from training_cases import configuration, labels, task

from autounet.losses import build_loss
from autounet.schema.errors import AutoUNetError
from autounet.schema.options import TrainOptions
from autounet.step import Precision, train_step
from autounet.training import Horizon, train_fold

TOO_MUCH = 2.0**127
"""a loss above 2 is infinite when it is multiplied by this"""


@pytest.fixture(autouse=True)
def _checkpoint_always(monkeypatch):
    with checkpoint_always(monkeypatch):
        yield


@pytest.fixture
def scaled(monkeypatch):
    """Trainings of fp16 have a scaler here, which begins with the scale that is given."""

    def begin(scale: float) -> None:
        monkeypatch.setattr(Precision, "scaler", lambda self, device: torch.amp.GradScaler("cpu", init_scale=scale))

    return begin


@pytest.mark.parametrize("optimiser", ["sgd", "adamw"])
def test_a_scale_that_is_too_large_is_no_fault_and_falls(optimiser):
    """Neither weights nor what the optimiser keeps change, the loss counts, and a smaller scale makes the step."""
    state, batch = a_state(TrainOptions(optimiser=optimiser, learning_rate=1e-3, momentum=0.9))
    state.scaler = torch.amp.GradScaler("cpu", init_scale=TOO_MUCH)
    loss = build_loss("dice_ce", labels(), False, 2)
    large = lambda outputs, batch: 2.0**16 * loss(outputs, batch)  # noqa: E731
    overflowed = 0
    while True:
        before = copy.deepcopy({"model": state.model.state_dict(), **state.optimiser.state_dict()["state"]})
        scale = state.scaler.get_scale()
        value = train_step(state.model, large, state.optimiser, state.scaler, batch, Precision("fp16"), 12.0)
        assert value.isfinite()
        if state.scaler.get_scale() == scale:
            break
        overflowed += 1
        assert state.scaler.get_scale() == scale / 2
        if overflowed > 1:  # the first one makes the momentum, of zeros
            assert same(before, {"model": state.model.state_dict(), **state.optimiser.state_dict()["state"]})
    assert 10 < overflowed < 40
    assert not same(before["model"], state.model.state_dict())
    assert state.is_finite()


@pytest.mark.parametrize(("fault", "scale"), [("loss", 1024.0), ("infinite", 1024.0), ("gradient", 1.0)])
def test_nan_is_a_fault_whatever_scales_it(fault, scale):
    """Also gradients that are not finite although nothing more is multiplied to them."""
    state, batch = a_state(TrainOptions(learning_rate=1e-3, momentum=0.9, ema_decay=0.9), "batch")
    state.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    plain = lambda outputs, batch: torch.nn.functional.cross_entropy(outputs, batch.labels.long())  # noqa: E731
    value = train_step(state.model, plain, state.optimiser, state.scaler, batch, Precision("fp16"), 12.0)
    state.update_average(0.9, value)

    def faulty(outputs, batch):
        if fault == "gradient":
            outputs.register_hook(lambda gradient: gradient * NAN)
        return plain(outputs, batch) * {"loss": NAN, "infinite": float("inf")}.get(fault, 1.0)

    before = copy.deepcopy({**state.content(), "scaler": None})
    value = train_step(state.model, faulty, state.optimiser, state.scaler, batch, Precision("fp16"), 12.0)
    state.update_average(0.9, value)
    assert value.isnan()
    assert same({**state.content(), "scaler": None}, before)


def test_a_training_in_fp16_tells_faults_and_not_what_its_scaler_skips(tmp_path, monkeypatch, scaled):
    """More than ten steps in a row whose gradients overflow are no event; ten of NaN go back."""
    precise = configuration(precision="fp16")
    with monkeypatch.context() as patch:
        faulty_losses(patch, lambda call: True, factor=2.0**16)
        scaled(TOO_MUCH)
        record = train_fold(*task(tmp_path, Horizon(steps=20), configuration=precise))
    assert record.events == ()
    assert [line.step for line in record.curve] == list(range(1, 21))
    faulty_losses(monkeypatch, lambda call: 3 <= call < 13)
    scaled(2.0**10)
    given = task(tmp_path, Horizon(steps=20), configuration=precise, folder=tmp_path / "nan")
    record = train_fold(*given)
    assert "not finite in 10 steps in a row" in record.events[0]
    assert all(bool(tensor.isfinite().all()) for tensor in weights(given.folder).values())


def test_a_scaler_that_has_nothing_left_to_give_ends_with_advice(tmp_path, monkeypatch, scaled):
    faulty_losses(monkeypatch, lambda call: True)
    scaled(2.0**3)
    given = task(tmp_path, Horizon(steps=60), configuration=configuration(precision="fp16"))
    with pytest.raises(AutoUNetError, match="happened before") as raised:
        train_fold(*given)
    assert '"precision" of 3d_fullres' in raised.value.remedy
    assert not (given.folder / "weights.safetensors").exists()


def test_an_interrupted_training_keeps_its_scale(tmp_path, monkeypatch, scaled):
    """Else it would skip other steps, and end in other weights."""
    faulty_losses(monkeypatch, lambda call: True, factor=8.0)
    scaled(TOO_MUCH)
    options = TrainOptions(ema_decay=0.9)
    given = [
        task(tmp_path, Horizon(steps=12), options=options, configuration=configuration(precision="fp16"), folder=each)
        for each in (tmp_path / "one", tmp_path / "two")
    ]
    train_fold(*given[0])
    same_after_interruptions(given[0], given[1], (2, 4, 9))

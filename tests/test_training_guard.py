"""Losses and data that are no numbers, and networks that forget: what is skipped, gone back to, and said."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_resume import Interrupted, checkpoint_always, same_after_interruptions, stop_at, weights
from training_cases import configuration, labels, task, write_case

from autounet.losses import Batch, build_loss
from autounet.nets import FAMILIES
from autounet.schema.errors import AutoUNetError
from autounet.schema.options import TrainOptions
from autounet.schema.run import EpochLog, read_log
from autounet.step import Precision, build_optimiser, make_momentum, step_in_kernels, train_step
from autounet.training import Horizon, guard, loop, train_fold
from autounet.training.schedule import learning_rate
from autounet.training.state import Checkpoint, TrainState, Unstable, average_where, new_state

NAN = float("nan")


@pytest.fixture(autouse=True)
def _checkpoint_always(monkeypatch):
    with checkpoint_always(monkeypatch):
        yield


def a_state(options: TrainOptions, normalisation: str = "instance") -> tuple[TrainState, Batch]:
    """A network that has made a step, and a batch."""
    torch.manual_seed(0)
    model = FAMILIES["plain"].build(configuration().network).train()
    if normalisation == "batch":
        model = torch.nn.Sequential(torch.nn.Conv3d(1, 3, 3, padding=1), torch.nn.BatchNorm3d(3)).train()
    average = copy.deepcopy(model).eval().requires_grad_(False)
    state = TrainState(model, build_optimiser(options, model.parameters()), None, average)
    target = torch.randint(3, (2, 8, 12, 8), dtype=torch.int16)
    batch = Batch(torch.randn(2, 1, 8, 12, 8), target, cases=("a", "b"))
    return state, batch


def same(one: dict[str, object], other: dict[str, object]) -> bool:
    """Whether nested contents of states are equal."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    if isinstance(one, list):
        return all(map(same, one, other))
    return one == other


@pytest.mark.parametrize(
    ("optimiser", "fault", "normalisation"),
    [
        ("sgd", "loss", "instance"),
        ("adamw", "gradient", "instance"),
        ("sgd", "infinite", "batch"),
        ("adamw", "image", "batch"),
    ],
)
def test_a_step_that_is_not_finite_changes_nothing(optimiser, fault, normalisation):
    options = TrainOptions(optimiser=optimiser, learning_rate=1e-3, momentum=0.9, ema_decay=0.9)
    state, batch = a_state(options, normalisation)
    loss = build_loss("dice_ce", labels(), False, 2 if normalisation == "instance" else 1)
    if normalisation == "batch":
        loss = lambda outputs, batch: torch.nn.functional.cross_entropy(outputs, batch.labels.long())  # noqa: E731
    for turn in range(3):
        before = copy.deepcopy(state.content())
        broken = batch._replace(image=torch.full_like(batch.image, NAN)) if fault == "image" else batch

        def faulty(outputs, batch):
            factor = {"loss": NAN, "infinite": float("inf")}.get(fault, 1.0)
            if fault == "gradient":  # of a loss that is finite
                first = outputs[0] if isinstance(outputs, (tuple, list)) else outputs
                first.register_hook(lambda gradient: gradient * NAN)
            return loss(outputs, batch) * factor

        value = train_step(state.model, faulty, state.optimiser, None, broken, Precision(), 12.0)
        state.update_average(0.9, value)
        assert value.isnan()
        assert same(state.content(), before), turn
        value = train_step(state.model, loss, state.optimiser, None, batch, Precision(), 12.0)
        state.update_average(0.9, value)
        assert value.isfinite()
        assert not same(state.content(), before)
        assert state.is_finite()


@pytest.mark.parametrize("optimiser", ["sgd", "adamw"])
def test_skipping_in_the_kernels_is_skipping(optimiser):
    """What a GPU does, whose optimisers look at a number of the device: the same kernels' form for a CPU."""
    options = TrainOptions(optimiser=optimiser, learning_rate=1e-3, momentum=0.9)
    state, batch = a_state(options)
    loss = build_loss("dice_ce", labels(), False, 2)
    train_step(state.model, loss, state.optimiser, None, batch, Precision(), 12.0)
    before = copy.deepcopy(state.content())
    used = [parameter for parameter in state.model.parameters() if parameter.grad is not None]
    for parameter in used:
        parameter.grad = torch.full_like(parameter, NAN)
    step_in_kernels(torch.tensor(False), state.optimiser)
    assert same(state.content(), before)
    for parameter in used:
        parameter.grad = torch.ones_like(parameter)
    twin = copy.deepcopy(state)  # without gradients
    for mine, theirs in zip(state.model.parameters(), twin.model.parameters(), strict=True):
        theirs.grad = mine.grad
    step_in_kernels(torch.tensor(True), state.optimiser)
    twin.optimiser.step()
    assert same(state.content(), twin.content())
    assert not hasattr(state.optimiser, "found_inf")


def test_a_momentum_of_zero_makes_the_first_step():
    one, other = (a_state(TrainOptions(optimiser="sgd", learning_rate=1e-2, momentum=0.9)) for _ in range(2))
    loss = build_loss("dice_ce", labels(), False, 2)
    for state, batch in (one, other):
        loss(state.model(batch.image), batch).backward()
    make_momentum(one[0].optimiser)
    step_in_kernels(torch.tensor(False), one[0].optimiser)
    step_in_kernels(torch.tensor(True), one[0].optimiser)
    other[0].optimiser.step()
    assert same(one[0].content(), other[0].content())


@settings(max_examples=20)
@given(decay=st.floats(0.0, 0.999), finite=st.booleans())
def test_an_average_moves_only_where_the_step_was_made(decay, finite):
    average, current = (torch.nn.Parameter(torch.randn(5), requires_grad=grad) for grad in (False, True))
    expected = torch.lerp(average, current.detach(), 1 - decay) if finite else average.clone()
    average_where(torch.tensor(finite), [average], [current], decay)
    torch.testing.assert_close(average, expected)
    assert finite or torch.equal(average, expected)


def faulty_losses(monkeypatch: pytest.MonkeyPatch, broken: Callable[[int], bool], factor: float = NAN) -> list[int]:
    """Losses of a training are NaN, or so many times as large, at calls for which `broken` is true.

    Returns the numbers of the calls as they are made.
    """
    calls: list[int] = []
    build = loop.configuration_loss

    def built(*arguments):
        loss = build(*arguments)
        forward = loss.__class__.__call__

        class Faulty(loss.__class__):
            def __call__(self, outputs, batch):
                calls.append(len(calls))
                return forward(self, outputs, batch) * (factor if broken(calls[-1]) else 1.0)

        loss.__class__ = Faulty
        return loss

    monkeypatch.setattr(loop, "configuration_loss", built)
    return calls


def finite_files(folder) -> bool:
    tensors = list(weights(folder).values())
    return all(bool(tensor.isfinite().all()) for tensor in tensors)


def test_single_faults_are_skipped_named_and_recorded(tmp_path, monkeypatch):
    faulty_losses(monkeypatch, {2, 3, 9}.__contains__)
    given = task(tmp_path, Horizon(steps=12), options=TrainOptions(ema_decay=0.9))
    record = train_fold(*given)
    assert record.steps == 12
    assert len(record.events) == 2  # steps 3 and 4 were told with the first line after them
    assert "step 3 of case" in record.events[0]
    assert "step 4 of case" in record.events[0]
    assert "step 10 of case" in record.events[1]
    lines = read_log(given.folder / "log.jsonl")
    assert [line.step for line in lines] == [1, 2, 5, 6, 7, 8, 9, 11, 12]
    assert [line.event for line in lines if line.event] == list(record.events)
    assert finite_files(given.folder)
    assert not (given.folder / "good.pt").exists()


def test_a_case_that_holds_no_numbers_is_named_and_the_others_are_learnt(tmp_path):
    given = task(tmp_path, Horizon(steps=9), options=TrainOptions(augmentation="none"))
    write_case(tmp_path / "prepared", "case1", (12, 12, 12), noise=NAN)
    record = train_fold(*given)
    assert record.steps == 9
    assert record.events
    assert all("case1" in event for event in record.events)
    assert finite_files(given.folder)


def test_ten_in_a_row_go_back_to_the_last_good_state_at_a_lower_rate(tmp_path, monkeypatch):
    calls = faulty_losses(monkeypatch, lambda call: 8 <= call < 18)
    monkeypatch.setattr(loop.PatchMonitor, "due", lambda self, steps: steps >= 4)
    options = TrainOptions(schedule="poly", deterministic=True)
    given = task(tmp_path, Horizon(steps=20), options=options)
    record = train_fold(*given)
    event = record.events[0]
    assert "not finite in 10 steps in a row, until step 18, with the cases case" in event
    assert "went back to step 8" in event
    assert len(calls) == 30  # eight, ten that were skipped, and twelve
    assert [line.step for line in record.curve] == list(range(1, 21))
    full = [learning_rate(options, given.horizon, line.step - 1, 0.0, None) for line in record.curve]
    expected = [rate * (1 if step < 8 else guard.RATE_AFTER_SETBACK) for step, rate in enumerate(full)]
    assert [line.learning_rate for line in record.curve] == pytest.approx(expected)
    assert finite_files(given.folder)


def test_a_training_without_a_good_state_goes_back_to_its_start(tmp_path, monkeypatch):
    faulty_losses(monkeypatch, lambda call: call < 10)
    record = train_fold(*task(tmp_path, Horizon(steps=12)))
    assert "went back to step 0" in record.events[0]
    assert record.steps == 12


@pytest.mark.parametrize(("precision", "remedy"), [("fp32", "another --loss"), ("bf16", '"precision" of 3d_fullres')])
def test_a_training_that_fails_again_ends_with_advice(tmp_path, monkeypatch, precision, remedy):
    calls = faulty_losses(monkeypatch, lambda call: call >= 3)
    given = task(tmp_path, Horizon(steps=100), configuration=configuration(precision=precision))
    with pytest.raises(AutoUNetError, match=r"3d_fullres fold_0: .* 10 steps.*happened before") as raised:
        train_fold(*given)
    assert remedy in raised.value.remedy
    assert "case" in raised.value.message
    assert len(calls) in range(20, 24)
    content = torch.load(given.folder / "state.pt", weights_only=True)
    assert all(bool(tensor.isfinite().all()) for tensor in content["model"].values())
    assert not (given.folder / "weights.safetensors").exists()


def test_a_short_training_without_any_step_is_an_error(tmp_path, monkeypatch):
    faulty_losses(monkeypatch, lambda call: True)
    given = task(tmp_path, Horizon(steps=5))
    with pytest.raises(AutoUNetError, match=r"no step changed the network.*step 1 of case"):
        train_fold(*given)
    assert not (given.folder / "weights.safetensors").exists()


def test_going_back_survives_interruptions(tmp_path, monkeypatch):
    """Interrupted before, while and after it goes back, the training ends in the same weights."""
    monkeypatch.setattr(loop.PatchMonitor, "due", lambda self, steps: steps >= 4)
    options = TrainOptions(deterministic=True)
    given = [task(tmp_path, Horizon(steps=16), options=options, folder=tmp_path / name) for name in ("one", "two")]
    fault = loop.advance

    def until_it_went_back(state, *others):
        if state.setback is None and state.step >= 4:
            others = (lambda outputs, batch: outputs[0].sum() * NAN, *others[1:])
        return fault(state, *others)

    monkeypatch.setattr(loop, "advance", until_it_went_back)
    train_fold(*given[0])
    record = same_after_interruptions(given[0], given[1], (3, 8, 12))
    assert "went back to step 4" in record.events[0]
    assert record.events[1] == "continued at step 12 after an interruption"


def measured_dice(monkeypatch: pytest.MonkeyPatch, values: Iterable[float]) -> None:
    """What the monitor of the training's own cases finds, one value after the other, the last one for ever."""
    left = list(values)

    def measure(self, model):
        return {"organ1": left.pop(0) if len(left) > 1 else left[0], "organ2": 0.0}

    monkeypatch.setattr(loop.PatchMonitor, "measure", measure)
    monkeypatch.setattr(loop.PatchMonitor, "affordable", lambda self, elapsed: False)
    monkeypatch.setattr(loop.PatchMonitor, "due", lambda self, steps: True)


def test_a_network_that_forgets_goes_back_and_ends_where_it_does_again(tmp_path, monkeypatch):
    measured_dice(monkeypatch, [0.1, 0.5, 0.0, 0.6, 0.0, 0.0, 0.7])
    given = task(tmp_path, Horizon(steps=12))
    record = train_fold(*given)
    told = [event for event in record.events if "calls everything background" in event]
    assert len(told) == 1
    assert "at step 6" in told[0]
    assert "Dice of 0.60" in told[0]
    assert "went back to step 4" in told[0]
    again = task(tmp_path, Horizon(steps=12), folder=tmp_path / "again")
    measured_dice(monkeypatch, [0.5, 0.0])
    with pytest.raises(AutoUNetError, match=r"calls everything background.*happened before"):
        train_fold(*again)


@given(values=st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_only_what_had_learned_can_collapse(values):
    curve = [
        EpochLog(
            step=step, progress=step / 20, seconds=1.0, learning_rate=0.1, loss=1.0, step_seconds=1.0,
            data_wait_seconds=0.0, training_dice={"organ": value},
        )
        for step, value in enumerate(values)
    ]  # fmt: skip
    best = guard.collapsed(curve, guard.COLLAPSED_VALUES)
    if best is not None:
        assert max(values[-2:]) < guard.COLLAPSED < guard.LEARNED <= best == max(values[:-2])
    else:
        assert max(values[-2:]) >= guard.COLLAPSED or max(values[:-2], default=0) < guard.LEARNED
    unmeasured = [*curve, curve[-1].model_copy(update={"training_dice": None})]
    assert guard.collapsed(unmeasured, guard.COLLAPSED_VALUES) is None


def test_no_state_that_holds_nan_is_written_or_read(tmp_path):
    given = task(tmp_path, Horizon(steps=4))
    with pytest.raises(Interrupted):
        train_fold(*given, stop_at(2))
    path = given.folder / "state.pt"
    state = new_state(given.inputs, None, Precision(), torch.device("cpu"))
    checkpoint = Checkpoint(path, given.inputs.key)
    before = path.read_bytes()
    checkpoint.restore(state)
    with torch.no_grad():
        next(state.model.parameters()).view(-1)[0] = np.inf
    with pytest.raises(Unstable, match="not finite"):
        checkpoint.save(state)
    assert path.read_bytes() == before
    state.save(path, given.inputs.key)
    fresh = new_state(given.inputs, None, Precision(), torch.device("cpu"))
    assert "not finite" in (checkpoint.restore(fresh) or "")
    assert fresh.is_finite()
    assert fresh.step == 0


def test_weights_that_are_no_numbers_at_the_end_are_not_written(tmp_path, monkeypatch):
    made = loop.advance

    def ruined(state, *others):
        value = made(state, *others)
        if state.step == 6:
            with torch.no_grad():
                next(state.model.parameters()).fill_(NAN)
        return value

    monkeypatch.setattr(loop, "advance", ruined)
    given = task(tmp_path, Horizon(steps=6))
    with pytest.raises(AutoUNetError, match=r"not finite.*happened before"):
        train_fold(*given)
    assert not (given.folder / "weights.safetensors").exists()

"""A training without a given length ends when it has converged, after its learning rate has fallen, and says why."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_resume import checkpoint_always, same_after_interruptions
from training_cases import task

from autounet.schema.options import RunOptions, TrainOptions
from autounet.schema.run import EpochLog, read_log
from autounet.schema.stage_inputs import TrainingCase
from autounet.training import Horizon, train_fold
from autounet.training.monitor import DECIDING_PATCHES, monitored_batches
from autounet.training.schedule import (
    EPOCH,
    LEAST_AHEAD,
    MOST_GAIN,
    SCHEDULES,
    CoolDown,
    cool_down_after,
    has_converged,
    is_flat,
    learning_rate,
    sentence,
)
from autounet.workflow.defaults import ends_when_converged

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
EPOCHS = (5, 10, 20, 50, 100, 200, 500, 1000)
# Mean pseudo-Dice of the five folds after these epochs of nnU-Net's default network and of its residual encoders M and
# L on the Medical Segmentation Decathlon, and the standard deviation of such a mean from one epoch to the next.
# From the training curves of automl/AutoNNUnet (Becktepe et al. 2025).
PUBLISHED: dict[str, tuple[tuple[tuple[float, ...], float], ...]] = {
    "BrainTumour": (
        ((0.7282, 0.7566, 0.7663, 0.7912, 0.7973, 0.8024, 0.8027, 0.8055), 0.0057),
        ((0.7339, 0.7582, 0.7801, 0.7955, 0.8035, 0.7955, 0.7997, 0.8036), 0.0058),
        ((0.7447, 0.7693, 0.7846, 0.7965, 0.7997, 0.8027, 0.8006, 0.8028), 0.0045),
    ),
    "Heart": (
        ((0.8991, 0.9150, 0.9246, 0.9283, 0.9317, 0.9326, 0.9347, 0.9357), 0.0016),
        ((0.8985, 0.9153, 0.9216, 0.9312, 0.9332, 0.9362, 0.9341, 0.9367), 0.0015),
        ((0.8929, 0.9059, 0.9143, 0.9254, 0.9281, 0.9295, 0.9306, 0.9287), 0.0017),
    ),
    "Liver": (
        ((0.5787, 0.6493, 0.6965, 0.7555, 0.7905, 0.8027, 0.8027, 0.8687), 0.0218),
        ((0.5872, 0.6869, 0.7222, 0.7772, 0.7916, 0.8199, 0.8333, 0.8744), 0.0214),
        ((0.4807, 0.6382, 0.7079, 0.7918, 0.8086, 0.8355, 0.8412, 0.8807), 0.0162),
    ),
    "Hippocampus": (
        ((0.8681, 0.8781, 0.8845, 0.8855, 0.8837, 0.8852, 0.8844, 0.8844), 0.0009),
        ((0.8721, 0.8814, 0.8833, 0.8825, 0.8826, 0.8830, 0.8829, 0.8803), 0.0004),
        ((0.8742, 0.8823, 0.8827, 0.8822, 0.8817, 0.8805, 0.8799, 0.8774), 0.0003),
    ),
    "Prostate": (
        ((0.6120, 0.6648, 0.6854, 0.7057, 0.7143, 0.7249, 0.7431, 0.7360), 0.0097),
        ((0.6261, 0.6712, 0.6958, 0.7238, 0.7204, 0.7362, 0.7499, 0.7503), 0.0091),
        ((0.6528, 0.6816, 0.6802, 0.6979, 0.7097, 0.7182, 0.7334, 0.7311), 0.0063),
    ),
    "Lung": (
        ((0.4642, 0.5238, 0.5457, 0.6015, 0.6540, 0.6761, 0.6653, 0.7526), 0.0340),
        ((0.4604, 0.5132, 0.5923, 0.6437, 0.6598, 0.6727, 0.6749, 0.7599), 0.0335),
        ((0.4189, 0.5126, 0.5909, 0.6516, 0.6374, 0.7075, 0.7122, 0.7662), 0.0391),
    ),
    "Pancreas": (
        ((0.2299, 0.3628, 0.4628, 0.5337, 0.5693, 0.5939, 0.6383, 0.6728), 0.0194),
        ((0.2276, 0.3775, 0.4924, 0.5702, 0.6247, 0.6429, 0.6518, 0.6833), 0.0201),
        ((0.2243, 0.4530, 0.5444, 0.6117, 0.6518, 0.6536, 0.6750, 0.6930), 0.0185),
    ),
    "HepaticVessel": (
        ((0.4105, 0.5074, 0.5852, 0.6657, 0.6931, 0.7157, 0.7319, 0.7604), 0.0114),
        ((0.3489, 0.5257, 0.6275, 0.6951, 0.7095, 0.7272, 0.7322, 0.7602), 0.0107),
        ((0.4643, 0.5845, 0.6700, 0.7139, 0.7266, 0.7308, 0.7481, 0.7516), 0.0081),
    ),
    "Spleen": (
        ((0.7834, 0.8448, 0.8864, 0.9072, 0.9283, 0.9363, 0.9502, 0.9682), 0.0094),
        ((0.7813, 0.8352, 0.8847, 0.9221, 0.9374, 0.9313, 0.9526, 0.9695), 0.0092),
        ((0.7782, 0.8335, 0.8796, 0.9095, 0.9247, 0.9422, 0.9550, 0.9704), 0.0098),
    ),
    "Colon": (
        ((0.3942, 0.4304, 0.5035, 0.5290, 0.5736, 0.5853, 0.6357, 0.6862), 0.0271),
        ((0.3170, 0.4655, 0.5251, 0.5797, 0.6291, 0.6196, 0.6491, 0.6759), 0.0275),
        ((0.1419, 0.3789, 0.4597, 0.5367, 0.5725, 0.6088, 0.6205, 0.6783), 0.0248),
    ),
}
TOLERANCE = 0.005
LONGEST_HIPPOCAMPUS = 60


@pytest.fixture(scope="module")
def replay():
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import convergence

        yield convergence.ended
    finally:
        sys.path.remove(str(BENCHMARKS))


def published_curve(figures: tuple[float, ...]) -> np.ndarray:
    """(1000,): evenly over the logarithm of the epochs between the figures, and before them as between the first."""
    places, epochs = np.log(EPOCHS), np.log(np.arange(1, EPOCHS[-1] + 1))
    rise = (figures[1] - figures[0]) / (places[1] - places[0])
    return np.where(epochs < places[0], figures[0] + rise * (epochs - places[0]), np.interp(epochs, places, figures))


ENDING_EARLY = ("BrainTumour", "Heart", "Hippocampus")


@pytest.mark.parametrize(("name", "seed"), [*((name, 0) for name in PUBLISHED), *((name, 1) for name in ENDING_EARLY)])
def test_published_curves_give_nothing_away_and_hippocampus_ends_soon(replay, name, seed):
    for figures, deviation in PUBLISHED[name]:
        dice = published_curve(figures)
        end = replay(dice + np.random.default_rng(seed).normal(0, deviation, len(dice)))
        assert dice[end - 1] > dice[-1] - TOLERANCE
        if name == "Hippocampus":
            assert end <= LONGEST_HIPPOCAMPUS


curves = st.tuples(st.integers(0, 1000), st.integers(20, 120), st.floats(0, 0.02), st.floats(0, 0.01))
"""seed, epochs, deviation of the values, rise over the logarithm of the steps"""


def curve_of(given_curve: tuple[int, int, float, float]) -> tuple[np.ndarray, np.ndarray]:
    seed, count, deviation, rise = given_curve
    steps = EPOCH * np.arange(1, count + 1)
    return steps, 0.7 + rise * np.log(steps) + np.random.default_rng(seed).normal(0, deviation, count)


@given(curves, st.floats(0, 1), st.data())
def test_no_single_value_decides(given_curve, value, data):
    """Whatever one value becomes: where the training then has converged, the others alone show it."""
    steps, dice = curve_of(given_curve)
    place = data.draw(st.integers(0, len(steps) - 1))
    dice[place] = value
    others = np.arange(len(steps)) != place
    assert not has_converged(steps, dice, 1000 * EPOCH) or is_flat(steps[others], dice[others], 1000 * EPOCH)


@given(curves, st.floats(1, 5), st.floats(-0.5, 0.2))
def test_what_rises_goes_on_and_the_height_does_not_matter(given_curve, steeper, shift):
    steps, dice = curve_of(given_curve)
    rise = steeper * MOST_GAIN / np.log(LEAST_AHEAD)
    assert not is_flat(steps, 0.5 + rise * np.log(steps), 1000 * EPOCH)
    assert has_converged(steps, dice + shift, 1000 * EPOCH) == has_converged(steps, dice, 1000 * EPOCH)


@given(st.integers(1, 800), st.sampled_from(sorted(SCHEDULES)))
def test_no_training_ends_before_its_learning_rate_has_fallen(begin, schedule):
    options, horizon, cool_down = TrainOptions(schedule=schedule), Horizon(steps=1000), CoolDown.after(0, begin)
    rates = [learning_rate(options, horizon, step, 0.0, cool_down) for step in range(begin, cool_down.end + 1)]
    assert rates[0] == learning_rate(options, horizon, begin, 0.0)
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] == 0
    assert horizon.progress(cool_down.end - 1, 0.0, cool_down) < 1 == horizon.progress(cool_down.end, 0.0, cool_down)
    assert cool_down.end <= horizon.steps


def flat_log(count: int, limit: int) -> list[EpochLog]:
    return [
        EpochLog(
            step=EPOCH * number, progress=number / limit, seconds=1.0, learning_rate=0.01, loss=0.0, step_seconds=1.0,
            validation_dice={"organ": 0.8}, data_wait_seconds=0.0,
        )
        for number in range(1, count + 1)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("schedule", "limit", "ends"),
    [("poly", 1000, True), ("poly", 120, False), ("warmup_poly", 1000, False), ("warmup_poly", 500, True)],
    ids=["flat", "too late to save anything", "the rate has only just risen", "after the warm-up"],
)
def test_a_flat_curve_ends_where_that_saves_time_and_the_rate_was_high(schedule, limit, ends):
    found = cool_down_after(flat_log(100, limit), Horizon(steps=limit * EPOCH), schedule)
    assert (found is not None) == ends
    if found:
        assert (found.since, found.begin, found.end) == (40 * EPOCH, 100 * EPOCH, 125 * EPOCH)
        told = sentence(found, Horizon(steps=limit * EPOCH))
        assert "from epoch 40 to 100" in told
        assert f"after epoch 125 of at most {limit}" in told
    for dice in ({"organ": 0.8, "lesion": 0.0}, {"organ": 0.05}):
        unlearnt = [line.model_copy(update={"validation_dice": dice}) for line in flat_log(100, limit)]
        assert cool_down_after(unlearnt, Horizon(steps=limit * EPOCH), schedule) is None
    unmeasured = [line.model_copy(update={"validation_dice": None}) for line in flat_log(100, limit)]
    assert cool_down_after(unmeasured, Horizon(steps=limit * EPOCH), schedule) is None


def test_only_a_training_without_a_given_length_ends_when_it_has_converged():
    assert ends_when_converged(RunOptions(), None)
    assert not ends_when_converged(RunOptions(), 3600.0)
    for given_options in ({"epochs": 1000}, {"iterations": 250_000}, {"preset": "nnunet"}, {"preset": "residual-l"}):
        assert not ends_when_converged(RunOptions(**given_options), None)


@pytest.mark.parametrize("size", [1, 2, 9, 40])
def test_enough_patches_decide(size):
    assert size * monitored_batches(size, deciding=True) >= DECIDING_PATCHES
    assert monitored_batches(size, deciding=False) == 2


# ---- a whole training ---------------------------------------------------------------------------------------------

UNMOVED = TrainOptions(learning_rate=1e-12)
"""weights, and so the Dice, stay as they are"""


@pytest.fixture
def _short_epochs(monkeypatch):
    """A line of the log every step, each with a measurement, and a checkpoint with each."""
    monkeypatch.setattr("autounet.training.journal.LOG_STEPS", 1)
    monkeypatch.setattr("autounet.training.monitor.TIME_SHARE", 1e9)
    monkeypatch.setattr("autounet.training.monitor.DECIDING_PATCHES", 4)
    monkeypatch.setattr("autounet.training.schedule.LEAST_DICE", 0.0)  # nothing is learnt
    with checkpoint_always(monkeypatch):
        yield


def to_convergence(tmp_path: Path, folder: str, **changes: object):
    monitored = (TrainingCase(identifier="case3", prepared="test"),)
    given = {"options": UNMOVED, "monitored": monitored, "folder": tmp_path / folder, **changes}
    return task(tmp_path, Horizon(steps=100), **given)


@pytest.mark.usefixtures("_short_epochs")
def test_a_flat_training_ends_early_also_when_interrupted_and_says_why(tmp_path):
    straight = to_convergence(tmp_path, "straight")
    record = train_fold(*straight)
    begin = next(line for line in record.curve if line.event)
    assert 25 <= begin.step < 30
    assert record.steps == CoolDown.after(0, begin.step).end < 100
    assert record.curve[-1].learning_rate < begin.learning_rate / 2
    assert record.events == (begin.event,)
    assert begin.event == next(line.event for line in read_log(straight.folder / "log.jsonl") if line.event)
    progress = [line.progress for line in record.curve]
    assert progress == sorted(progress)
    assert progress[-1] == 1

    broken = to_convergence(tmp_path, "broken")
    again = same_after_interruptions(straight, broken, (20, begin.step, begin.step + 3))  # before, at, in the cool-down
    assert again.events[-1] == begin.event


@pytest.mark.usefixtures("_short_epochs")
def test_given_steps_are_all_made(tmp_path):
    record = train_fold(*task(tmp_path, Horizon(steps=40), options=UNMOVED))
    assert record.steps == 40
    assert record.events == ()

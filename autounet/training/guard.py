"""What a training does where its loss is no number any more, or where it has forgotten what it had learned.

Steps whose loss or gradients are not finite are skipped (`step.train_step`). Where nothing but skipping is left, or the
network suddenly calls everything background, the training goes back once to its last good state, at a lower learning
rate; where it happens again, it ends with advice.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from ..schema.errors import AutoUNetError
from ..schema.run import EpochLog, fold_name
from ..schema.stage_inputs import TrainingInputs, TrainingPlace
from ..step import Precision
from ..store.run_folder import FoldFolder
from .state import Checkpoint, TrainState, Unstable, new_state

logger = logging.getLogger(__name__)

MOST_SKIPPED = 10
"""steps in a row: a case at fault, or a number that overflows once, does not spoil so many"""
RATE_AFTER_SETBACK = 0.25
"""of the learning rate that the schedule gives, once a training has gone back"""
LEARNED, COLLAPSED = 0.2, 0.01
"""Dice that a class reaches in a network that has learned something, and that none reaches where all is background"""
COLLAPSED_VALUES = 2
"""measurements in a row that say so; at the end of a training one suffices, since there is no other"""
SHOWN = 3
"""steps at most whose cases are named"""
ADVICE = "Look at the cases that are named (autounet check), or give another --loss, --family or --seed"


class MadeStep(NamedTuple):
    step: int
    cases: tuple[str, ...]
    loss: torch.Tensor


def count_skipped(losses: Sequence[float], made: Sequence[MadeStep], state: TrainState) -> list[MadeStep]:
    """The steps `made` whose loss is NaN: they were skipped. `state` counts those in a row.

    Raises Unstable after `MOST_SKIPPED` in a row.
    """
    skipped = []
    for loss, each in zip(losses, made, strict=True):
        if not math.isnan(loss):
            state.skipped = []
            continue
        skipped.append(each)
        state.skipped.append((each.step, each.cases))
        if len(state.skipped) >= MOST_SKIPPED:
            cases = dict.fromkeys(case for _, cases in state.skipped for case in cases)
            raise Unstable(
                f"the loss or its gradients were not finite in {MOST_SKIPPED} steps in a row, until step {each.step}, "
                f"with the cases {', '.join(cases)}",
                state,
            )
    return skipped


def skipped_sentence(skipped: Sequence[MadeStep]) -> str | None:
    """Which steps were skipped, and what they were made of; None without any."""
    if not skipped:
        return None
    named = "; ".join(f"step {each.step} of {', '.join(dict.fromkeys(each.cases))}" for each in skipped[:SHOWN])
    more = f" and {len(skipped) - SHOWN} more" if len(skipped) > SHOWN else ""
    return f"the loss or its gradients were not finite in {named}{more}; no weight was changed there"


def require_learned(curve: Sequence[EpochLog], state: TrainState) -> None:
    """Raises Unstable where the last lines say that a network which had learned calls everything background."""
    best = collapsed(curve, 1 if curve[-1].progress >= 1 else COLLAPSED_VALUES)
    if best is not None:
        raise Unstable(
            f"at step {curve[-1].step} the network calls everything background on patches of training cases, where a "
            f"class had a Dice of {best:.2f} before",
            state,
        )


def collapsed(curve: Sequence[EpochLog], values: int) -> float | None:
    """The best Dice of a class until then, where the last measurements find nothing any more; None where they do.

    So many `values` in a row have to say so. Without one in the last line nothing is said.
    """
    if not curve[-1].training_dice:
        return None
    measured = [max(line.training_dice.values()) for line in curve if line.training_dice]
    best = max(measured[:-values], default=0.0)
    return best if best >= LEARNED and max(measured[-values:]) < COLLAPSED else None


def is_good(curve: Sequence[EpochLog], state: TrainState) -> bool:
    """Whether a state can be gone back to: what it segments was measured, and its last step was made."""
    return bool(curve[-1].training_dice) and collapsed(curve, 1) is None and not state.skipped


def save_when_due(
    checkpoint: Checkpoint, state: TrainState, curve: Sequence[EpochLog], deterministic: bool, good_state: Path
) -> None:
    """A checkpoint, which is also kept as one that can be gone back to where it is good.

    Where the same weights are promised, what is gone back to must not depend on the clock.
    """
    good = is_good(curve, state)
    if checkpoint.due() or curve[-1].event or (good and deterministic):
        checkpoint.save(state)
        if good:
            checkpoint.keep(good_state)


def set_back(inputs: TrainingInputs, place: TrainingPlace, found: Unstable) -> None:
    """Let the training continue from its last good state, or from its start, at a lower rate; its time goes on.

    Raises AutoUNetError where it has gone back before.
    """
    name = f"{place.configuration_name} {fold_name(inputs.fold)}"
    if found.setback is not None:
        raise AutoUNetError(f"{name}: {found.what}. This happened before: {found.setback}", advice(inputs, place))
    folder = FoldFolder(place.folder)
    precision = Precision(inputs.configuration.precision, inputs.configuration.channels_last)
    state = new_state(inputs, place.initial, precision, torch.device(place.device))
    Checkpoint(folder.good_state, inputs.key).restore(state)
    state.elapsed, state.skipped = found.elapsed, []
    state.setback = (
        f"{found.what}. The training went back to step {state.step} and goes on at {RATE_AFTER_SETBACK:g} of its "
        "learning rate"
    )
    logger.warning("%s: %s", name, state.setback)
    Checkpoint(folder.state, inputs.key).save(state)


def advice(inputs: TrainingInputs, place: TrainingPlace) -> str:
    """What helps against a training that is unstable."""
    if inputs.configuration.precision == "fp32":
        return ADVICE
    return (
        f'Set "precision" of {place.configuration_name} to "fp32" in plan.json (it is '
        f"{inputs.configuration.precision}) and run again. If that does not help: {ADVICE}"
    )

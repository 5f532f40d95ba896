"""The guard of the memory budget: trial steps before the first fold, and what follows when memory does not suffice.

The planner believes a prediction. Here it is compared with what the steps really take; when they take more than the
budget, or memory runs out at any time, the device profile is corrected, so that everything is planned smaller.
"""

from __future__ import annotations

import logging

from ..memory_model import memory_margin
from ..schema.dataset import partly_annotated
from ..schema.errors import BudgetExceeded, OutOfMemory
from ..schema.plan import Configuration
from ..schema.quantities import format_size
from ..schema.record import digest
from ..schema.run import DeviceProfile, fold_name
from .context import Context
from .jobs import read_key, write_key

log = logging.getLogger(__name__)

TRIED_FROM = 0.5
"""share of the budget: predictions are within a tenth or two (benchmarks/planning.py), so that less is surely enough"""
MOST_ATTEMPTS = 6
"""plans of one command; each is smaller than the one before by what was measured, so that two nearly always suffice"""
UNKNOWN_EXCESS = 1.25
"""factor of the prediction when memory ran out: how much was missing is not known then"""
ROUNDING = 1.02
"""a measured peak is repeated within 2 %"""


def try_configurations(context: Context) -> None:
    """Trial steps of every configuration that is still to be trained and could come near its budget.

    A passed trial is remembered beside the folds. Raises BudgetExceeded. Presets are not held to the budget, which is
    nnU-Net's nominal target there: only running out of memory counts.
    """
    for name, configuration in context.configurations.items():
        folder = context.out / "models" / name
        folds = [folder / fold_name(fold) for fold in context.folds_of(name)]
        share = configuration.predicted_memory_bytes / context.budget
        if share < TRIED_FROM or all((fold / "record.json").exists() for fold in folds):
            continue
        passed = folder / "trial.json"
        key = digest([configuration.key, context.train_options(configuration).digest(), context.profile.device])
        if read_key(passed) != key:
            _try(context, name, configuration)
            write_key(passed, key)


def _try(context: Context, name: str, configuration: Configuration) -> None:
    budget, planned = context.budget, configuration.predicted_memory_bytes
    try:
        peak = trial_peak(context, configuration)
    except OutOfMemory:
        raise BudgetExceeded(
            f"{name}: memory ran out in the trial steps, where {format_size(planned)} were predicted", name, None
        ) from None
    log.info("%s: training steps need %s, %s were predicted", name, format_size(peak), format_size(planned))
    if peak <= budget:
        return
    message = f"{name}: training steps need {format_size(peak)}, more than the {format_size(budget)} that are allowed"
    if context.plan.options.preset:
        log.warning("%s; a preset keeps its plan", message)
        return
    raise BudgetExceeded(message, name, peak)


def trial_peak(context: Context, configuration: Configuration) -> int:
    """Bytes that steps of the planned patch and batch need in a process of their own.

    On a CPU of the whole process; on a GPU what was allocated, with the margin for what nobody can count. Raises
    OutOfMemory.
    """
    from ..memory_model.real_steps import Question, measure
    from ..memory_model.traced import StepSetting
    from ..step import Precision

    device = context.profile.device
    precision = Precision(configuration.precision, configuration.channels_last)
    labels, options = context.known.dataset.labels, context.train_options(configuration)
    partial = bool(partly_annotated(context.known.dataset))
    setting = StepSetting(labels, options, precision, "cpu" if device == "cpu" else "cuda", partial)
    found = measure(
        Question(configuration.network, configuration.patch_size, configuration.batch_size, setting, device)
    )
    return found.before + found.peak if device == "cpu" else memory_margin(context.profile).on(found.peak)


def corrected(profile: DeviceProfile, configuration: Configuration, error: BudgetExceeded) -> DeviceProfile:
    """The profile with predictions raised to what was measured."""
    if error.measured_bytes is None:
        factor = UNKNOWN_EXCESS
    else:
        factor = max(1.0, error.measured_bytes / max(1, configuration.predicted_memory_bytes)) * ROUNDING
    return profile.model_copy(update={"memory_correction": profile.memory_correction * factor})

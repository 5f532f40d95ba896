"""The guard of the memory budget: trial steps before the first fold, and what follows when memory does not suffice.

The planner believes a prediction. Here it is compared with what the steps really take; when they take more than the
budget, or memory runs out at any time, the device profile is corrected, so that everything is planned smaller.
"""

from __future__ import annotations

import logging

from ..memory_model import memory_margin
from ..schema.dataset import Dataset, partly_annotated
from ..schema.errors import BudgetExceeded, OutOfMemory
from ..schema.labels import Labels
from ..schema.options import TrainOptions
from ..schema.plan import Configuration
from ..schema.quantities import format_size
from ..schema.run import DeviceProfile
from ..schema.stage_inputs import TrialInputs
from ..store.run_folder import RunFolder
from .cache import is_done, mark_done
from .defaults import TrainingSchedule

log = logging.getLogger(__name__)

TRIED_FROM = 0.5
"""share of the budget: predictions are within a tenth or two (benchmarks/planning.py), so that less is surely enough"""
MOST_ATTEMPTS = 6
"""plans of one command; each is smaller than the one before by what was measured, so that two nearly always suffice"""
UNKNOWN_EXCESS = 1.25
"""factor of the prediction when memory ran out: how much was missing is not known then"""
LESS_MEMORY = "Give another --memory, or free memory of the device"
ROUNDING = 1.02
"""a measured peak is repeated within 2 %"""


def try_configurations(
    schedule: TrainingSchedule,
    folder: RunFolder,
    dataset: Dataset,
    profile: DeviceProfile,
    budget: int,
    preset: bool,
) -> None:
    """Trial steps of every configuration that is still to be trained and could come near the budget in bytes.

    A passed trial is remembered in the output folder. Raises BudgetExceeded. A `preset` is not held to the budget,
    which is nnU-Net's nominal target there: only running out of memory counts.
    """
    partial = bool(partly_annotated(dataset))
    for name, configuration in schedule.configurations.items():
        share = configuration.predicted_memory_bytes / budget
        if share < TRIED_FROM or all(folder.fold(name, fold).record.exists() for fold in schedule.folds_of(name)):
            continue
        passed, options = folder.trial(name), schedule.train_options[name]
        key = TrialInputs(configuration=configuration.trained, options=options, device=profile.device).key
        if is_done(passed, key):
            continue
        planned = configuration.predicted_memory_bytes
        try:
            peak = trial_peak(configuration, dataset.labels, options, partial, profile)
        except OutOfMemory:
            raise BudgetExceeded(
                f"memory ran out in the trial steps, where {format_size(planned)} were predicted",
                name,
                None,
                LESS_MEMORY,
            ) from None
        log.info("%s: training steps need %s, %s were predicted", name, format_size(peak), format_size(planned))
        if peak > budget:
            message = f"training steps need {format_size(peak)}, more than the {format_size(budget)} that are allowed"
            if not preset:
                raise BudgetExceeded(message, name, peak, LESS_MEMORY)
            log.warning("%s: %s; a preset keeps its plan", name, message)
        mark_done(passed, key)


def trial_peak(
    configuration: Configuration, labels: Labels, options: TrainOptions, partial: bool, profile: DeviceProfile
) -> int:
    """Bytes that steps of the planned patch and batch need in a process of their own.

    On a CPU of the whole process; on a GPU what was allocated, with the margin for what is not counted. `partial`:
    some cases are annotated in part. Raises OutOfMemory.
    """
    from ..memory_model.measured_steps import MemoryProbe, StepSetting, measure
    from ..step import Precision

    device = profile.device
    precision = Precision(configuration.precision, configuration.channels_last)
    setting = StepSetting(labels, options, precision, "cpu" if device == "cpu" else "cuda", partial)
    found = measure(
        MemoryProbe(configuration.network, configuration.patch_size, configuration.batch_size, setting, device)
    )
    return found.before + found.peak if device == "cpu" else memory_margin(profile).on(found.peak)


def corrected(profile: DeviceProfile, configuration: Configuration, error: BudgetExceeded) -> DeviceProfile:
    """The profile with predictions raised to what was measured."""
    if error.measured_bytes is None:
        factor = UNKNOWN_EXCESS
    else:
        factor = max(1.0, error.measured_bytes / max(1, configuration.predicted_memory_bytes)) * ROUNDING
    return profile.model_copy(update={"memory_correction": profile.memory_correction * factor})

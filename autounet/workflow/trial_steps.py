"""Trial steps: what memory training really takes, before the first fold and for `autounet calibrate`.

The planner believes a prediction. Here it is compared with what the steps really take; when they take more than the
budget, or memory runs out at any time, the device profile is corrected, so that everything is planned smaller.

`autounet calibrate` measures how much more memory a device takes than is traced, for all later plans on it. Three
networks of different size are traced and trained for a few steps. What a process needs beyond the traced bytes becomes
a margin: bytes + fraction x traced, on no trial less than what was measured.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from ..memory_model import InferenceMemory, Margin, TrainingMemory, inference_memory, memory_margin
from ..schema.dataset import Dataset, partly_annotated
from ..schema.errors import BudgetExceeded, OutOfMemory
from ..schema.fingerprint import Fingerprint
from ..schema.labels import LabelClass, Labels
from ..schema.options import TrainOptions
from ..schema.plan import Configuration
from ..schema.quantities import format_size
from ..schema.run import DeviceProfile, MemoryCalibration, MemoryMargin
from ..schema.stage_inputs import TrialInputs, plugins_of
from ..store.run_folder import RunFolder
from .cache import is_done, mark_done
from .training_schedule import TrainingSchedule

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
    for name, key in untried(schedule, folder, profile, budget).items():
        configuration, options = schedule.configurations[name], schedule.train_options[name]
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
        mark_done(folder.trial(name), key)


def untried(schedule: TrainingSchedule, folder: RunFolder, profile: DeviceProfile, budget: int) -> dict[str, str]:
    """Configurations that trial steps are needed of, each with the key of these."""
    found = {}
    for name, configuration in schedule.configurations.items():
        share = configuration.predicted_memory_bytes / budget
        if share < TRIED_FROM or all(folder.fold(name, fold).record.exists() for fold in schedule.folds_of(name)):
            continue
        options = schedule.train_options[name]
        key = TrialInputs(
            configuration=configuration.trained,
            options=options,
            device=profile.device,
            plugins=plugins_of(configuration.network, options),
        ).key
        if not is_done(folder.trial(name), key):
            found[name] = key
    return found


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


def prediction_memory(
    configuration: Configuration, fingerprint: Fingerprint, profile: DeviceProfile, networks: int
) -> InferenceMemory | None:
    """Of the largest case by so many networks; None where this torch cannot be traced."""
    import torch

    from ..inference.sliding_window import default_batch

    return inference_memory(
        configuration,
        fingerprint,
        configuration.network.out_channels,
        profile.device,
        default_batch(configuration, torch.device(profile.device)),
        networks=networks,
        margin=memory_margin(profile),
        free_bytes=profile.memory_bytes,
    )


def bytes_of_a_fold(configuration: Configuration, fingerprint: Fingerprint, profile: DeviceProfile) -> int:
    """Memory that training or validating one takes, whichever is more."""
    predicting = prediction_memory(configuration, fingerprint, profile, 1)
    return max(configuration.predicted_memory_bytes, predicting.device_bytes if predicting else 0)


def corrected(profile: DeviceProfile, configuration: Configuration, error: BudgetExceeded) -> DeviceProfile:
    """The profile with predictions raised to what was measured."""
    if error.measured_bytes is None:
        factor = UNKNOWN_EXCESS
    else:
        factor = max(1.0, error.measured_bytes / max(1, configuration.predicted_memory_bytes)) * ROUNDING
    return profile.model_copy(update={"memory_correction": profile.memory_correction * factor})


# autounet calibrate

CHANGED = 64 * 1024**2
"""bytes of free GPU memory that other programs may take or give back without spoiling a measurement"""


class TrialSize(NamedTuple):
    """A network and its input."""

    dims: int
    stages: int
    features: int
    patch: tuple[int, ...]
    batch: int


TRIALS = {
    "cpu": (
        TrialSize(3, 3, 8, (16, 16, 16), 2), TrialSize(3, 4, 16, (48, 48, 48), 2), TrialSize(2, 5, 32, (192, 192), 6),
    ),
    "cuda": (
        TrialSize(3, 3, 16, (32, 32, 32), 2), TrialSize(3, 5, 32, (96, 96, 96), 2), TrialSize(2, 7, 32, (512, 512), 8),
    ),
}  # fmt: skip
"""well under a gigabyte on a CPU, up to about four on a GPU"""
LABELS = Labels(classes=tuple(LabelClass(name=str(value), value=value) for value in range(3)))


class MemoryTrial(NamedTuple):
    """Bytes of one trial."""

    traced: int
    measured: int
    """of the whole process, its start or context included"""


def calibrate(device: str) -> tuple[Margin, Path]:
    """Measure on a device ('auto': the best there is), keep the margin in `calibration_file()`, and return both.

    Raises OptionError when there is no such device, AutoUNetError when a trial runs out of memory.
    """
    from ..ops.device import choose_device
    from ..training.probe import probe_device

    profile = probe_device(choose_device(device))
    trials = [_try(trial, profile) for trial in TRIALS["cpu" if profile.device == "cpu" else "cuda"]]
    margin = fit_margin(trials)
    path = calibration_file()
    entry = MemoryMargin(
        memory_margin_bytes=margin.bytes, memory_margin_fraction=margin.fraction, torch=version("torch")
    )
    known = MemoryCalibration.load(path).devices if path.exists() else {}
    path.parent.mkdir(parents=True, exist_ok=True)
    MemoryCalibration(devices={**known, profile.name: entry}).save(path)
    log.info(
        "%s: %s and %.1f %% beyond what is traced; written to %s",
        profile.name, format_size(margin.bytes), 100 * margin.fraction, path,
    )  # fmt: skip
    return margin, path


def calibrated(profile: DeviceProfile) -> DeviceProfile:
    """`profile` with the margin that was measured on its device with this version of torch, if it was."""
    path = calibration_file()
    entry = MemoryCalibration.load(path).devices.get(profile.name) if path.exists() else None
    if entry is None or entry.torch != version("torch"):
        return profile
    return profile.model_copy(update=entry.model_dump(exclude={"torch"}))


def calibration_file() -> Path:
    """In the user's folder for settings: %APPDATA% on Windows, else $XDG_CONFIG_HOME or ~/.config (XDG)."""
    if sys.platform == "win32":
        base = os.environ.get("APPDATA") or Path.home() / "AppData" / "Roaming"
    else:
        base = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(base) / "autounet" / "calibration.json"


def fit_margin(trials: Sequence[MemoryTrial]) -> Margin:
    """The steepest line that a least-squares fit gives, moved up until no trial lies above; never below the trace."""
    mean = sum(each.traced for each in trials) / len(trials)
    mean_measured = sum(each.measured for each in trials) / len(trials)
    spread = sum((each.traced - mean) ** 2 for each in trials)
    slope = sum((each.traced - mean) * (each.measured - mean_measured) for each in trials) / spread
    fraction = round(max(0.0, slope - 1), 4)
    beyond = max(each.measured - (1 + fraction) * each.traced for each in trials)
    return Margin(max(0, round(beyond)), fraction)


def _try(trial: TrialSize, profile: DeviceProfile) -> MemoryTrial:
    from ..memory_model.measured_steps import MemoryProbe, StepSetting, measure
    from ..nets import FAMILIES
    from ..step import Precision

    ones, twos = (1,) * trial.dims, (2,) * trial.dims
    strides = [ones, *[twos] * (trial.stages - 1)]
    spec = FAMILIES["plain"].propose(trial.dims, 1, 3, strides, [(3,) * trial.dims] * trial.stages, trial.features)
    kind = profile.device.partition(":")[0]
    memory = TrainingMemory(
        LABELS, TrainOptions(), profile.precision, profile.channels_last, kind, Margin(0, 0.0)  # type: ignore[arg-type]
    )  # fmt: skip
    traced = memory.traced_fully(spec, trial.patch, trial.batch)
    precision = Precision(profile.precision, profile.channels_last)  # type: ignore[arg-type]
    setting = StepSetting(LABELS, TrainOptions(), precision, kind)
    probe = MemoryProbe(spec, trial.patch, trial.batch, setting, profile.device)
    if kind != "cuda":
        measured = measure(probe)
        total = measured.before + measured.peak
    else:
        total = _gpu_bytes(probe)
    log.info(
        "%d-D, patch %s, batch %d: traced %s, measured %s",
        trial.dims, "x".join(map(str, trial.patch)), trial.batch, format_size(traced), format_size(total),
    )  # fmt: skip
    return MemoryTrial(traced, total)


def _gpu_bytes(probe) -> int:  # type: ignore[no-untyped-def]
    """Bytes of the GPU that the measured process takes: its allocator's peak, and its context as seen from here."""
    import torch

    from ..memory_model.measured_steps import measure

    device = torch.device(probe.device)
    before = torch.cuda.mem_get_info(device)[0]
    held: list[int] = []
    measured = measure(probe, lambda: held.append(torch.cuda.mem_get_info(device)[0]))
    after = torch.cuda.mem_get_info(device)[0]
    if abs(after - before) > CHANGED:
        log.warning("another program took or gave back memory of %s while it was measured", probe.device)
    return max(before - held[0], measured.reserved)

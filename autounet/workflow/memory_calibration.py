"""`autounet calibrate`: how much more memory a device takes than is traced; kept for all later plans on it.

Three networks of different size are traced and trained for a few steps. What a process needs beyond the traced bytes
becomes a margin: bytes + fraction x traced, on no trial less than what was measured.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from ..memory_model import Margin, TrainingMemory
from ..schema.labels import LabelClass, Labels
from ..schema.options import TrainOptions
from ..schema.quantities import format_size
from ..schema.run import DeviceProfile, MemoryCalibration, MemoryMargin

log = logging.getLogger(__name__)

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

"""The device that a run uses, and what a training was: its log and its record."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from .options import TrainOptions
from .record import ConfigurationName, Part, Record

AugmentedBy = Literal["batchgeneratorsv2", "torch"]
FIXED_AUGMENTED_BY: AugmentedBy = "torch"
"""where no measurement may decide, or none was made"""


class DeviceProfile(Record):
    """`device.json`: probed once per output folder."""

    device: str
    """cpu, cuda:0, mps"""
    name: str
    """of the processor or GPU"""
    cores: int
    memory_bytes: int
    """free for training when probed"""
    precision: str
    """fp32, bf16 or fp16: measured on a CPU, by rule elsewhere"""
    channels_last: bool
    throughput: dict[str, float] = {}
    """convolution GFLOP/s by precision, where it was measured"""
    memory_correction: float = Field(default=1.0, ge=1.0)
    """factor of predicted memory, raised when trial steps needed more or memory ran out"""
    sample_rates: dict[str, float] = {}
    """voxels a second on one core. light_2d, light_3d, full_2d, full_3d: augmenting one channel with labels of two
    classes by batchgeneratorsv2; the same with torch_ before it: in plain torch; reading: decompressing one channel of
    a prepared case. Empty: not measured"""
    augmented_by: AugmentedBy = FIXED_AUGMENTED_BY
    """which of the two is the quicker one here; not asked where the same weights are promised, or on a GPU"""
    memory_margin_bytes: int | None = Field(default=None, ge=0)
    """added to the prediction that is traced, as measured by `autounet calibrate`: the CUDA context, or a process
    before its first step. None: not measured, the default of the kind of device applies (`memory_model`)"""
    memory_margin_fraction: float = Field(default=0.0, ge=0)
    """of the predicted bytes, added as well: work spaces, rounding, fragmentation"""


class MemoryMargin(Part):
    """Margin that `autounet calibrate` measured on one device; see `DeviceProfile` for the two numbers."""

    memory_margin_bytes: int = Field(ge=0)
    memory_margin_fraction: float = Field(ge=0)
    torch: str
    """version it was measured with; another version may need more or less memory"""


class MemoryCalibration(Record):
    """`calibration.json` in the user's folder for settings."""

    devices: dict[str, MemoryMargin] = {}
    """by `DeviceProfile.name`"""


def fold_name(fold: int | None) -> str:
    """Name of a fold's folder; fold None is the training on all cases."""
    return "fold_all" if fold is None else f"fold_{fold}"


class EpochLog(Part):
    """One line of `log.jsonl`."""

    step: int
    progress: float
    """0..1"""
    seconds: float
    """of training so far"""
    learning_rate: float
    loss: float
    validation_dice: dict[str, float] | None = None
    """class -> pseudo Dice over a few validation patches; None where it was not measured"""
    training_dice: dict[str, float] | None = None
    """the same over a few patches of training cases that show the rarest classes, by which classes are left behind"""
    left_behind: tuple[str, ...] = ()
    """classes, or regions, whose Dice on patches of training cases has stayed near zero until this step"""
    step_seconds: float
    """mean since the previous line"""
    data_wait_seconds: float
    """mean waiting time of a step for its batch, part of `step_seconds`"""
    peak_memory_bytes: int | None = None
    """so far: allocated on a GPU, resident on a CPU; None where it cannot be measured"""
    event: str | None = None
    """what happened at this step, in words: that the training has converged, and when it ends; which classes are left
    behind from here on, or no longer"""
    converged: bool = False
    """whether that is that the training has converged"""


def read_log(path: Path) -> list[EpochLog]:
    """Lines of a `log.jsonl`; none without a file. A last line that a crash cut off is left out."""
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            lines.append(EpochLog.model_validate_json(text))
        except ValidationError:
            break
    return lines


class RunRecord(Record):
    """`record.json` of one fold."""

    configuration_name: ConfigurationName
    configuration: str
    """digest of the configuration it was trained with"""
    fold: int | None = Field(ge=0)
    """None: trained on all cases"""
    options: TrainOptions
    train_cases: tuple[str, ...]
    validation_cases: tuple[str, ...]
    device: str
    steps: int
    seconds: float
    curve: tuple[EpochLog, ...]
    parameters: int
    peak_memory_bytes: int | None
    versions: dict[str, str]
    """of the packages that matter, by name"""
    events: tuple[str, ...] = ()
    """sentences: interruptions, smaller batches ..."""
    left_behind: tuple[str, ...] = ()
    """classes, or regions, whose Dice was still near zero on patches of training cases at the end"""

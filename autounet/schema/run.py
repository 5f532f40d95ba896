"""What a training was: its log and its record."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from .options import TrainOptions
from .record import Part, Record


def fold_name(fold: int | None) -> str:
    """Name of a fold's folder; None is the training on all cases."""
    return "fold_all" if fold is None else f"fold_{fold}"


class EpochLog(Part):
    """One line of log.jsonl."""

    step: int
    progress: float
    """0..1"""
    seconds: float
    """training time so far"""
    learning_rate: float
    loss: float
    validation_dice: dict[str, float] | None = None
    """pseudo Dice over validation patches, when measured"""
    step_seconds: float
    """mean since the line before"""
    data_wait_seconds: float
    """of a step, in which it waited for its batch"""
    peak_memory_bytes: int | None = None
    """so far: allocated on a GPU, resident on a CPU; None where nobody counts"""


class RunRecord(Record):
    """`record.json` of one fold."""

    configuration_name: str
    configuration: str
    """digest of the configuration it was trained with"""
    fold: int | None
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
    events: tuple[str, ...] = ()


def read_log(path: Path) -> list[EpochLog]:
    """The lines of a log; none where there is no file, and a last line cut off by a crash is left out."""
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            lines.append(EpochLog.model_validate_json(text))
        except ValidationError:
            break
    return lines


class DeviceProfile(Record):
    """`device.json`: probed once per output folder."""

    device: str
    """cpu, cuda:0, mps"""
    name: str
    """the machine in words"""
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
    classes; reading: decompressing one channel of a prepared case. Empty: not measured"""
    memory_margin_bytes: int | None = Field(default=None, ge=0)
    """on top of what tracing a step predicts, as `autounet calibrate` measured it: the CUDA context, or a process
    before its first step. None: not measured, and the default of the kind of device (`tracing.margins`) holds"""
    memory_margin_fraction: float = Field(default=0.0, ge=0)
    """share of the predicted bytes that comes on top as well: work spaces, rounding, holes between blocks"""


class CalibratedMargin(Part):
    """What `autounet calibrate` found on one device; see `DeviceProfile` for the two numbers."""

    memory_margin_bytes: int = Field(ge=0)
    memory_margin_fraction: float = Field(ge=0)
    torch: str
    """version it was measured with; another one may need other memory"""


class Calibration(Record):
    """`calibration.json` in the user's configuration folder: one entry per device, by its name in words."""

    devices: dict[str, CalibratedMargin] = {}


RunState = Literal["empty", "running", "interrupted", "stopped", "finished"]
"""interrupted: a command ended before its time, and the same one continues; stopped: it ended with an error, or was
asked for an earlier stage"""
FoldState = Literal["waiting", "running", "interrupted", "done"]


class FoldStatus(Part):
    """The training of one configuration on one fold, and the validation after it."""

    configuration: str
    fold: int | Literal["all"]
    state: FoldState
    """of the training"""
    progress: float
    """of the training, 0..1"""
    dice: float | None
    """mean Dice of its validation cases; None before they are validated"""
    patch_dice: float | None = None
    """mean Dice on a few validation patches, as last measured in training"""
    validated: bool = False
    """also where there is nothing to validate"""
    seconds: float = 0.0
    """of training so far"""
    peak_memory_bytes: int | None = None
    """of the training so far: allocated on a GPU, resident on a CPU"""
    predicted_memory_bytes: int | None = None


class RunStatus(Part):
    """The keys of `autounet status --json`."""

    state: RunState
    now: str | None = None
    """what runs, or where nothing does, the stage that comes next; None: everything is done"""
    stages: dict[str, bool]
    """stage -> whether it is done"""
    folds: tuple[FoldStatus, ...] = ()
    mean_dice: float | None = None
    seconds_left: float | None = None
    """until the run ends: by the promise of `--time`, or less where the folds will be done sooner; None: not known.
    Of a run that was interrupted, from when it continues"""
    memory_bytes: int | None = None
    """that the running process holds now, beside a GPU's; None: it does not run on this machine"""
    findings: int | None = None
    """warnings about the data; None before the check, and while there are fatal ones"""
    lines: tuple[str, ...] = ()
    """the same for people"""

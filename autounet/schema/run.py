"""What happened: the device, the trainings, the scores, the choice, the packed model."""

from __future__ import annotations

from pydantic import Field, JsonValue

from autounet.schema.dataset import Channel, Finding
from autounet.schema.labels import Labels
from autounet.schema.options import TrainOptions
from autounet.schema.plan import Configuration
from autounet.schema.record import Part, Record


def fold_name(fold: int | None) -> str:
    """Name of a fold's folder; None is the training on all cases."""
    return "fold_all" if fold is None else f"fold_{fold}"


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
    data_wait_seconds: float


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


class ClassMetrics(Part):
    """Metrics of one class in one case or over all. A null value has its reason in `undefined`."""

    dice: float | None = None
    iou: float | None = None
    hd95: float | None = None
    nsd: float | None = None
    volume_difference: float | None = None
    """(predicted - true) volume in ml (mm^3 / 1000); pixels for images without spacing"""
    undefined: dict[str, str] = {}


class CaseMetrics(Part):
    case: str
    fold: int | None = None
    per_class: dict[str, ClassMetrics]


class Metrics(Record):
    """`metrics.json`."""

    mean_dice: float | None
    """mean over foreground classes, or where there are regions over these and the classes that they do not tell apart,
    of the mean over cases where it is defined"""
    per_class: dict[str, ClassMetrics]
    """of classes and regions, by name"""
    cases: tuple[CaseMetrics, ...]
    tolerance: float = 1.0
    """surface distance tolerance of nsd: mm, or pixels without spacing"""
    unit: str = "mm"


class Candidate(Part):
    configurations: tuple[str, ...]
    mean_dice: float | None


class Selection(Record):
    """`selection.json`."""

    chosen: tuple[str, ...] = Field(min_length=1)
    """configurations whose probabilities are averaged"""
    compared: tuple[Candidate, ...]
    reason: str


class BundleMember(Part):
    configuration: str
    fold: int | None
    path: str
    """weights file relative to the bundle"""
    checksum: str
    """blake2b-128 of the file, hex"""


class ModelBundle(Record):
    """`model/bundle.json`: predicting needs this folder alone."""

    name: str
    layout: str
    image_pattern: str
    suffix: str
    file_kind: str
    channels: tuple[Channel, ...]
    channel_patterns: dict[str, str] = {}
    time_points: bool = False
    labels: Labels
    configurations: dict[str, Configuration]
    selection: Selection
    members: tuple[BundleMember, ...]
    mean_dice: float | None
    versions: dict[str, str]
    details: dict[str, JsonValue] = {}
    checksum: str | None = None
    """digest of this record without this field, so that a changed bundle.json is noticed"""


class CheckResult(Record):
    """`autounet check --json`."""

    layout: str
    channels: tuple[Channel, ...]
    labels: Labels
    cases: tuple[str, ...]
    findings: tuple[Finding, ...]


class Repair(Part):
    """What `autounet check --fix` did with one case."""

    case: str
    done: tuple[str, ...] = ()
    """a sentence each"""
    dropped: str | None = None
    """why the case is not in the new folder"""

    def __str__(self) -> str:
        return f"case {self.case}: " + (f"left out: {self.dropped}" if self.dropped else "; ".join(self.done))


class RepairResult(Record):
    """`autounet check --fix --json`: what was done, and what the check of the new folder found."""

    folder: str
    repairs: tuple[Repair, ...]
    """of the cases that were changed or left out"""
    result: CheckResult

"""What happened: the device, the trainings, the scores, the choice, the packed model."""

from __future__ import annotations

from typing import Any

from pydantic import Field, JsonValue, SerializerFunctionWrapHandler, model_serializer

from autounet.schema.aftercare import PostprocessStep, PostprocessTrial, TemperatureScaling, Weighting
from autounet.schema.card import ModelCard
from autounet.schema.dataset import Channel, Finding
from autounet.schema.labels import Labels
from autounet.schema.options import TrainOptions
from autounet.schema.plan import Configuration
from autounet.schema.record import Part, Record

WEIGHTED = "weighted"
"""folder of the selected out-of-fold segmentations where configurations have weights, beside those of equal ones"""


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


class ClassMetrics(Part):
    """Metrics of one class in one case or over all; the definitions: `docs/metrics.md`.

    A null value has its reason in `undefined`; what was not measured is not written.
    """

    dice: float | None = None
    iou: float | None = None
    sensitivity: float | None = None
    precision: float | None = None
    hd95: float | None = None
    nsd: float | None = None
    volume: float | None = None
    """predicted, in ml (mm^3 / 1000); pixels for images without spacing"""
    volume_difference: float | None = None
    """(predicted - true) volume, in the same unit"""
    assd: float | None = None
    nsd_subvoxel: float | None = None
    boundary_iou: float | None = None
    lesion_f1: float | None = None
    panoptic_quality: float | None = None
    cl_dice: float | None = None
    undefined: dict[str, str] = {}

    @model_serializer(mode="wrap")
    def _without_unmeasured(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in serialise(self).items() if value is not None or name in self.undefined}


class CaseMetrics(Part):
    case: str
    fold: int | None = None
    per_class: dict[str, ClassMetrics]
    uncertainty: float | None = Field(default=None, ge=0, le=1)
    """mean entropy of the out-of-fold probabilities around the structures, as a share of the greatest possible; None:
    not measured"""


class Metrics(Record):
    """`metrics.json`."""

    mean_dice: float | None
    """mean over foreground classes, or where there are regions over these and the classes that they do not tell apart,
    of the mean over cases where it is defined"""
    per_class: dict[str, ClassMetrics]
    """of classes and regions, by name"""
    cases: tuple[CaseMetrics, ...]
    tolerance: float = 1.0
    """surface distance tolerance of nsd and nsd_subvoxel, in `unit`"""
    unit: str = "mm"
    """of distances: mm, or pixels for images without spacing"""
    mean_dice_interval: tuple[float, float] | None = None
    """95 % confidence, by bootstrap over cases; None with fewer than two cases"""
    intervals: dict[str, dict[str, tuple[float, float]]] = {}
    """class or region -> metric -> the same of its mean in `per_class`"""
    calibration: TemperatureScaling | None = None
    """of the selected out-of-fold probabilities"""


class Candidate(Part):
    """One configuration, or several whose probabilities are averaged. See `selection.choose` for the numbers."""

    configurations: tuple[str, ...]
    mean_dice: float | None
    interval: tuple[float, float] | None = None
    """of the mean Dice: 95 %, by bootstrap over cases"""
    behind: float | None = None
    """mean Dice of the best candidate less its own"""
    noise: float | None = None
    """one standard error of `behind`, by the same bootstrap"""
    networks: int | None = None
    """configurations that are predicted, previous stages included: its cost"""


class Selection(Record):
    """`selection.json`."""

    chosen: tuple[str, ...] = Field(min_length=1)
    """configurations whose probabilities are averaged"""
    compared: tuple[Candidate, ...]
    reason: str
    rule: str = ""
    """by which candidates count as equal"""
    folds: tuple[int, ...] = ()
    """whose out-of-fold predictions were compared"""
    weights: tuple[float, ...] = ()
    """of the chosen configurations' probabilities, summing to 1; empty: equal"""
    weighting: Weighting | None = None
    """why these weights; None: a single configuration, or nothing to fit weights on"""
    postprocessing: tuple[PostprocessStep, ...] = ()
    """applied in this order to what is predicted"""
    postprocessing_trials: tuple[PostprocessTrial, ...] = ()
    postprocessing_reason: str = ""
    calibration: TemperatureScaling | None = None
    """of the probabilities that are written; None: they are as the networks give them"""

    @property
    def folder(self) -> str:
        """Of the selected out-of-fold segmentations before postprocessing, in `crossval/`."""
        return "+".join(self.chosen) + (f"/{WEIGHTED}" if self.weights else "")


class BundleMember(Part):
    configuration: str
    fold: int | None
    path: str
    """weights file relative to the bundle"""
    checksum: str
    """blake2b-128 of the file, hex"""


class ModelBundle(Record):
    """`model/bundle.json`: predicting needs this folder, or the `.autounet` file made of it, alone."""

    name: str
    layout: str
    image_pattern: str
    suffix: str
    file_kind: str
    channels: tuple[Channel, ...]
    channel_patterns: dict[str, str] = {}
    channel_combinations: tuple[tuple[bool, ...], ...] = ()
    """which channels an image may have: the combinations that occurred in training; empty: all of them"""
    time_points: bool = False
    labels: Labels
    configurations: dict[str, Configuration]
    selection: Selection
    members: tuple[BundleMember, ...]
    mean_dice: float | None
    versions: dict[str, str]
    details: dict[str, JsonValue] = {}
    card: ModelCard | None = None
    """None: packed before models had cards"""
    card_checksum: str | None = None
    """blake2b-128 of `model_card.md`, hex; None: there is none"""
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

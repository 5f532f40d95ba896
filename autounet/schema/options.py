"""The options of a run: `RunOptions` as given (options.json), and the records for each stage that follow from them."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from .errors import RecordError
from .record import Part, Record

GIB = 1024**3

Preset = Literal["nnunet", "residual-m", "residual-l", "residual-xl"]
"""plans equal to those of nnU-Net 2.8.1: its default planner, and its residual encoder planners"""


class DataOptions(Part):
    """What the files cannot tell about the data; all of it may change the result."""

    channels: dict[str, str] = {}
    """channel name -> glob pattern of its files, relative to the data folder"""
    kinds: dict[str, str] = {}
    """channel name -> ct, mri, photo or other"""
    label: str | None = None
    """glob pattern of the label files"""
    classes: dict[str, int] = {}
    """class name -> value in the label files"""
    regions: dict[str, tuple[int, ...]] = {}
    """region name -> label values that it unites"""
    ignore: int | None = None
    """label value of voxels that nobody annotated"""
    group: str | None = None
    """regular expression; its first capture in the case name is the group"""
    splits: str | None = None
    """'nnunet', or absolute path of a JSON file"""
    palette: str | None = None
    """absolute path of a JSON file with the colour of each class in the label pictures"""
    missing_channels: bool = False
    """cases may lack files of some channels"""
    frames: Literal["channels", "time"] | None = None
    """what the fourth axis of 4-D files is; None: as the files suggest (`datasets/scan.py`)"""


class PlannerOptions(Part):
    """What the planner is asked for: the options that concern it, with what fitting to a promised time has added."""

    memory_bytes: int = Field(default=8 * GIB, gt=0)
    preset: Preset | None = None
    family: str = "plain"
    configurations: tuple[str, ...] | None = None
    """None: all that the rules create"""
    base_features: int | None = Field(default=None, gt=0)
    """features of the first stage; None: 32, or more where memory limits patch or batch and some is left"""
    patch_limit: int | None = Field(default=None, gt=0)
    """most voxels of a patch, set to fit a promised time; None: memory and the images alone decide"""
    lowres_spacing: tuple[float, float, float] | None = None
    """target spacing of 3d_lowres, kept while networks shrink to fit a promised time, which would change it; None: by
    the rules"""
    batch_limit: int | None = None
    """largest batch, set to fit a promised time; None: memory and the 5 % rule alone decide"""
    minimum_batch: int = 2
    overlap: float = 0.5
    """share of a tile that neighbouring tiles have in common in prediction"""
    mirror: bool = True
    """test-time mirroring"""
    spacing_scale: float = Field(default=1.0, ge=1.0)
    """factor of the target spacing: the last resort to fit a promised time"""

    @property
    def orientation(self) -> Literal["canonical", "as_stored"]:
        """nnU-Net, and so its presets, works in the orientation as stored; everything else in the canonical one."""
        return "as_stored" if self.preset else "canonical"


class TrainOptions(Part):
    """How weights are reached: every field changes the trained weights, none the prepared data or tensor shapes."""

    loss: str = "dice_ce"
    """key of `losses.LOSSES`"""
    optimiser: Literal["sgd", "adamw"] = "sgd"
    learning_rate: float = Field(default=1e-2, gt=0)
    weight_decay: float = 3e-5
    momentum: float = 0.99
    schedule: Literal["poly", "warmup_cosine", "warmup_poly"] = "poly"
    gradient_clip: float = 12.0
    foreground_fraction: float = Field(default=1 / 3, ge=0, le=1)
    """share of each batch's samples that contain foreground for certain (nnU-Net: 0.33)"""
    augmentation: Literal["full", "light", "none"] = "full"
    elastic: bool = False
    """samples are bent as well, unless augmentation is none"""
    ema_decay: float | None = None
    """exponential moving average of the weights, used for validation and prediction; None: off"""
    seed: int = 0
    deterministic: bool = False
    start: str | None = None
    """checksum of the weights that training starts from; None: drawn from the seed"""


class StartingWeights(Part):
    """What training starts from in place of random numbers: `--init MODEL` or `--pretrained FILE`."""

    kind: Literal["model", "encoder", "none"]
    """a packed model or the output folder of a run; a file with an encoder's weights in timm's naming; or none, which
    takes back what an earlier command gave"""
    path: str = ""
    """absolute; empty for none"""
    checksum: str | None = None
    """of the weights, hexadecimal; None: not read yet"""


class RunOptions(Record):
    """`options.json`: every option of `autounet run` as it was given; None means not given.

    `schema/option_table.py` says how each is written on the command line. `device`, `workers` and `track` change no
    result, `metrics` only what is measured, and of `start` the checksum counts, not the path.
    """

    data: DataOptions = DataOptions()
    memory_bytes: int | None = Field(default=None, gt=0)
    seconds: float | None = Field(default=None, gt=0)
    """time for the whole command"""
    configurations: tuple[str, ...] | None = None
    """names, or ('auto',), which takes back names given earlier"""
    family: str | None = None
    """key of `nets.FAMILIES`"""
    loss: str | None = None
    """key of `losses.LOSSES`"""
    preset: Preset | None = None
    folds: str | None = None
    """all, full, or comma-separated indices"""
    epochs: int | None = Field(default=None, ge=1)
    iterations: int | None = Field(default=None, ge=1)
    """steps per fold"""
    device: str | None = None
    """auto, cpu, cuda, cuda:1 or mps"""
    workers: int | None = Field(default=None, ge=0)
    """processes for reading and augmentation; None: by the number of cores"""
    seed: int | None = Field(default=None, ge=0)
    deterministic: bool = False
    """the same weights each time, on the same machine"""
    start: StartingWeights | None = None
    """None: random numbers drawn from the seed"""
    track: Literal["tensorboard", "wandb", "mlflow", "none"] | None = None
    """service that also shows curves and results; none: no more"""
    metrics: tuple[str, ...] | None = None
    """names in metrics.json; None: the default. Others are measured anew, and nothing is trained again"""

    @property
    def starts_from(self) -> Literal["model", "encoder", "none"] | None:
        """The kind of weights that training starts from; None: random numbers."""
        return self.start.kind if self.start else None


def with_stored(given: RunOptions, file: Path) -> RunOptions:
    """The options given, and for each that was omitted its value in `file`, options.json.

    Raises RecordError where the file cannot be read.
    """
    values = given.model_dump(exclude_none=True, exclude_defaults=True)
    if file.exists():
        try:
            stored = RunOptions.load(file).model_dump()
        except RecordError as error:
            raise RecordError(error.message, "To go on, delete it and give all options again") from None
        values = {**stored, **values, "data": {**stored["data"], **values.get("data", {})}}
    options = RunOptions.model_validate(values)
    return options.model_copy(update={"start": None}) if options.starts_from == "none" else options

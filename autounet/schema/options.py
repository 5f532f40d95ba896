"""The options of a run: `RunOptions` as given (options.json), and the records for each stage that follow from them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, TypedDict, get_args

from pydantic import Field, PositiveFloat, model_validator

from .option_rules import (
    check,
    name_of,
    one_of,
    require_configurations,
    require_device,
    require_folds,
    require_group,
    require_ignore,
    require_kinds,
    require_metrics,
)
from .quantities import MOST_SEED, AnyPath
from .record import Part, Record

GIB = 1024**3
Preset = Literal["nnunet", "residual-m", "residual-l", "residual-xl"]
"""plans equal to those of nnU-Net 2.8.1: its default planner, and its residual encoder planners"""
Track = Literal["tensorboard", "wandb", "mlflow", "none"]
CompileSetting = Literal["auto", "on", "off"]
Frames = Literal["channels", "time"]
Overlaps = Literal["regions", "smaller"]
MissingStructures = Literal["unannotated", "absent"]


class DataOptions(Part):
    """What the files cannot tell about the data; all of it may change the result."""

    channels: dict[str, str] = {}
    """channel name -> glob pattern of its files, relative to the data folder"""
    kinds: dict[str, str] = {}
    """channel name -> ct, mri, photo or other"""
    label: str | None = None
    """glob pattern of the label files"""
    classes: dict[str, int | str] = {}
    """class name -> value in the label files, or glob pattern of the mask files of this one structure"""
    regions: dict[str, tuple[int, ...]] = {}
    """region name -> label values that it unites"""
    ignore: int | None = None
    """label value of voxels that nobody annotated"""
    group: str | None = None
    """regular expression; its first capture in the case name is the group"""
    splits: str | None = None
    """'nnunet', or absolute path of a JSON file"""
    join: str | None = Field(default=None, min_length=1)
    """name of the one class that every value above 0 is, where label files number objects"""
    objects: str | None = Field(default=None, min_length=1)
    """the same, with objects told apart"""
    palette: str | None = None
    """absolute path of a JSON file with the colour of each class in the label pictures"""
    missing_channels: bool = False
    """cases may lack files of some channels"""
    overlaps: Overlaps | None = None
    missing_structures: MissingStructures | None = None
    """rules for structures that share voxels, or that a label does not name; None: see `datasets/structures.py`"""
    frames: Frames | None = None
    """what the fourth axis of 4-D files is; None: as the files suggest (`datasets/scan.py`)"""

    @model_validator(mode="before")
    @classmethod
    def _names(cls, content: Any) -> Any:
        """Raises UsageError for a name that there is not, and for an ignore value that is something else."""
        require_ignore(content)
        return check(content, _DATA_RULES)

    @property
    def class_values(self) -> dict[str, int]:
        return {name: value for name, value in self.classes.items() if isinstance(value, int)}

    @property
    def class_patterns(self) -> dict[str, str]:
        return {name: value for name, value in self.classes.items() if isinstance(value, str)}


_DATA_RULES = {
    "kinds": require_kinds,
    "group": require_group,
    "frames": one_of("--frames", get_args(Frames)),
    "overlaps": one_of("--overlaps", get_args(Overlaps)),
    "missing_structures": one_of("--missing-structures", get_args(MissingStructures)),
}


class DataKeywords(TypedDict, total=False):
    """What the files cannot tell about the data: the options of `autounet check`."""

    channels: Mapping[str, str] | None
    kinds: Mapping[str, str] | None
    label: str | None
    classes: Mapping[str, int | str] | None
    regions: Mapping[str, Sequence[int]] | None
    ignore: int | None
    overlaps: str | None
    missing_structures: str | None
    join: str | None
    objects: str | None
    group: str | None
    splits: AnyPath | None
    palette: AnyPath | None
    frames: str | None
    missing_channels: bool | None


class RunKeywords(DataKeywords, total=False):
    """The options of `autounet run`; None is the same as leaving one out."""

    configurations: str | Sequence[str] | None
    family: str | None
    preset: str | None
    replan: bool | None
    time: str | float | None
    epochs: int | None
    iterations: int | None
    folds: str | int | Sequence[int] | None
    loss: str | None
    augmentation: str | None
    init: AnyPath | None
    pretrained: AnyPath | None
    seed: int | None
    deterministic: bool | None
    memory: str | int | None
    device: str | None
    devices_per_training: int | None
    workers: str | int | None
    compile_: str | None
    executor: AnyPath | None
    metrics: str | Sequence[str] | None
    track: str | None


MIRRORED_STEPS = 10_000
"""steps of a fold from which on samples are mirrored. Without, fold 0 of Task04, OpenKBP and ISBI gains 0.02 to 0.05 of
Dice in 2 minutes of a core (benchmarks/results/recipes_2026-11-30.md); where that ends was not measured"""


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
    lowres_spacing: tuple[PositiveFloat, PositiveFloat, PositiveFloat] | None = None
    """target spacing of 3d_lowres, kept while networks shrink to fit a promised time, which would change it; None: by
    the rules"""
    batch_limit: int | None = Field(default=None, gt=0)
    """largest batch, set to fit a promised time; None: memory and the 5 % rule alone decide"""
    minimum_batch: int = Field(default=2, gt=0)
    overlap: float = Field(default=0.5, ge=0, le=0.9)
    """share of a tile that neighbouring tiles have in common in prediction"""
    mirror: bool = True
    """test-time mirroring"""
    mirror_samples: bool = True
    """mirroring by augmentation; without it there is none at test time either"""
    spacing_scale: float = Field(default=1.0, ge=1.0)
    """factor of the target spacing: the last resort to fit a promised time"""

    @property
    def orientation(self) -> Literal["ras", "as_stored"]:
        """nnU-Net, and so its presets, works in the orientation as stored; everything else in that of the patient."""
        return "as_stored" if self.preset else "ras"


class TrainOptions(Part):
    """How weights are reached: every field changes the trained weights, none the prepared data or tensor shapes."""

    loss: str = "dice_ce"
    """key of `losses.LOSSES`"""
    optimiser: Literal["sgd", "adamw"] = "sgd"
    learning_rate: float = Field(default=1e-2, gt=0)
    weight_decay: float = Field(default=3e-5, ge=0)
    momentum: float = Field(default=0.99, ge=0, lt=1)
    schedule: Literal["poly", "warmup_cosine", "warmup_poly"] = "poly"
    gradient_clip: float = Field(default=12.0, gt=0)
    foreground_fraction: float = Field(default=1 / 3, ge=0, le=1)
    """share of each batch's samples that contain foreground for certain (nnU-Net: 0.33)"""
    augmentation: str = "full"
    """key of `training.transforms.AUGMENTATIONS`, or none"""
    augmented_by: Literal["batchgeneratorsv2", "torch"] = "batchgeneratorsv2"
    """of the same distributions, but not the same samples"""
    emphasis: bool = False
    """classes whose Dice on patches of training cases stays near zero are shown more often, and weigh more"""
    elastic: bool = False
    """samples are bent as well, unless augmentation is none"""
    ema_decay: float | None = Field(default=None, ge=0, lt=1)
    """exponential moving average of the weights, used for validation and prediction; None: off"""
    seed: int = Field(default=0, ge=0, le=MOST_SEED)
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

    `schema/option_table.py` says how each is written on the command line. `device`, `devices_per_training`, `workers`,
    `compile`, `executor` and `track` change no result but for rounding, `metrics` only what is measured, and of `start`
    the checksum counts, not the path. Raises UsageError for a name that there is not.
    """

    data: DataOptions = DataOptions()
    memory_bytes: int | None = Field(default=None, gt=0)
    seconds: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """time for the whole command"""
    configurations: tuple[str, ...] | None = None
    """names, or ('auto',), which takes back names given earlier"""
    family: str | None = None
    """key of `nets.FAMILIES`"""
    loss: str | None = None
    """key of `losses.LOSSES`"""
    augmentation: str | None = None
    """key of `training.transforms.AUGMENTATIONS`, or none; None: by the length of the training"""
    preset: Preset | None = None
    folds: str | None = None
    """all, full, or comma-separated indices"""
    epochs: int | None = Field(default=None, ge=1, le=10**9)
    iterations: int | None = Field(default=None, ge=1, le=10**12)
    """steps per fold"""
    device: str | None = None
    """auto, cpu, cuda, cuda:1 or mps; several GPUs separated by commas"""
    devices_per_training: int | None = Field(default=None, ge=1)
    """that share each batch"""
    workers: int | None = Field(default=None, ge=0, le=10**6)
    """processes for reading and augmentation; None: by the number of cores"""
    compile: CompileSetting | None = None
    """whether trainings run compiled networks; None: auto, where that is quicker and repays itself"""
    seed: int | None = Field(default=None, ge=0, le=MOST_SEED)
    deterministic: bool = False
    """the same weights each time, on the same machine"""
    start: StartingWeights | None = None
    """None: random numbers drawn from the seed"""
    executor: str | None = None
    """who does the jobs: local, this command, or the absolute path of a TOML file (`schema/cluster.py`)"""
    track: Track | None = None
    """service that also shows curves and results; none: no more"""
    metrics: tuple[str, ...] | None = None
    """names in metrics.json; None: the default. Others are measured anew, and nothing is trained again"""

    @model_validator(mode="before")
    @classmethod
    def _names(cls, content: Any) -> Any:
        return check(content, _RUN_RULES)

    @property
    def starts_from(self) -> Literal["model", "encoder", "none"] | None:
        """The kind of weights that training starts from; None: random numbers."""
        return self.start.kind if self.start else None


_RUN_RULES: dict[str, Callable[[object], None]] = {
    "metrics": require_metrics,
    "configurations": require_configurations,
    "family": name_of("--family", "families"),
    "loss": name_of("--loss", "losses"),
    "augmentation": name_of("--augmentation", "augmentations"),
    "preset": one_of("--preset", get_args(Preset)),
    "compile": one_of("--compile", get_args(CompileSetting)),
    "track": one_of("--track", get_args(Track)),
    "folds": require_folds,
    "device": partial(require_device, several=True),
}

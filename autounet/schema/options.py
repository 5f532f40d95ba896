"""What a person may say. `RunOptions` is options.json; the others are handed to the stages."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from .record import Part, Record

GIB = 1024**3

Preset = Literal["nnunet", "residual-m", "residual-l", "residual-xl"]
"""plans equal to those of nnU-Net 2.8.1: its default planner, and its residual encoder planners"""


class DataOptions(Part):
    """What the files cannot tell."""

    channels: dict[str, str] = {}
    """channel name -> glob pattern of its files, relative to the data folder"""
    kinds: dict[str, str] = {}
    """channel name -> ct, mri, photo or other"""
    label: str | None = None
    """glob pattern of the label files"""
    classes: dict[str, int] = {}
    regions: dict[str, tuple[int, ...]] = {}
    ignore: int | None = None
    group: str | None = None
    """regular expression; its first capture in the case name is the group"""
    splits: str | None = None
    """'nnunet' or a JSON file"""
    palette: str | None = None
    """JSON file that says which colour in the label pictures is which class"""
    missing_channels: bool = False
    """cases may lack files of some channels"""
    frames: Literal["channels", "time"] | None = None
    """what the fourth axis of 4-D files is; None: by the rule of `datasets.frames`"""


class PlannerOptions(Part):
    memory_bytes: int = Field(default=8 * GIB, gt=0)
    preset: Preset | None = None
    family: str = "plain"
    configurations: tuple[str, ...] | None = None
    """None: all that the rules create"""
    base_features: int | None = Field(default=None, gt=0)
    """features of the first stage; None: 32, or more where memory limits patch or batch and some is left"""
    patch_limit: int | None = Field(default=None, gt=0)
    """most voxels of a patch, set by the time shaping; None: memory and the images alone decide"""
    lowres_spacing: tuple[float, float, float] | None = None
    """target spacing of 3d_lowres, kept by the time shaping, whose smaller networks would change it; None: the rules"""
    batch_limit: int | None = None
    """upper bound set by the time shaping; None: memory and the 5 % rule alone decide"""
    minimum_batch: int = 2
    overlap: float = 0.5
    mirror: bool = True
    """test-time mirroring"""
    spacing_scale: float = Field(default=1.0, ge=1.0)
    """the time shaping's last resort: target spacing times this"""

    @property
    def orientation(self) -> Literal["canonical", "as_stored"]:
        """nnU-Net, and so its presets, works in the orientation as stored; everything else in the canonical one."""
        return "as_stored" if self.preset else "canonical"


class TrainOptions(Part):
    """How weights are reached. Changes neither prepared data nor shapes."""

    loss: str = "dice_ce"
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


NO_WEIGHTS = "none"
"""takes back the weights of an earlier command"""


class WeightsSource(Part):
    """A file or a packed model whose weights training starts from."""

    path: str
    """absolute, or `NO_WEIGHTS`"""
    checksum: str | None = None
    """of the weights, hex; None: not read yet"""


class RunOptions(Record):
    """`options.json`: every option of `autounet run` as given; None means not given."""

    data: DataOptions = DataOptions()
    memory_bytes: int | None = None
    seconds: float | None = None
    configurations: tuple[str, ...] | None = None
    family: str | None = None
    loss: str | None = None
    preset: Preset | None = None
    folds: str | None = None
    """all, full, or comma-separated indices"""
    epochs: int | None = Field(default=None, ge=1)
    iterations: int | None = Field(default=None, ge=1)
    device: str | None = None
    workers: int | None = Field(default=None, ge=0)
    seed: int | None = None
    deterministic: bool | None = None
    pretrained: WeightsSource | None = None
    """file with the weights of an encoder, in timm's naming"""
    init: WeightsSource | None = None
    """packed model, or the output folder of a run"""
    track: Literal["tensorboard", "wandb", "mlflow", "none"] | None = None
    """where curves and results are shown; changes nothing that is trained"""
    metrics: tuple[str, ...] | None = None
    """that metrics.json holds, by name; None: the default. Other ones are measured anew, and nothing is trained"""

    @property
    def start(self) -> WeightsSource | None:
        """What weights start from; None: random numbers. Of `pretrained` and `init` one is given at most."""
        given = (each for each in (self.pretrained, self.init) if each is not None and each.path != NO_WEIGHTS)
        return next(given, None)

"""The options of a run, one table: how each is written on the command line, what it means, which commands have it.

The signatures and the help of the commands (`cli/command_options.py`), `RunOptions`, the command in the report that
gives the same run again, and docs/commands.md are all made from `RUN_OPTIONS`. A new option is one entry here and its
field in `RunOptions` or `DataOptions`. Records are imported inside functions, so that `autounet --help` starts without
pydantic.
"""

from __future__ import annotations

import builtins
import keyword
import numbers
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .errors import OptionError, UsageError
from .quantities import (
    MOST_SEED,
    AnyPath,
    format_type,
    parse_integer,
    parse_integers,
    parse_pairs,
    parse_size,
    parse_time,
    write_list,
    write_pairs,
    write_size,
    write_time,
)

if TYPE_CHECKING:
    from .options import RunOptions, StartingWeights

RUN_COMMANDS = {
    "run": "Everything: read and check the data, plan, prepare, train, validate, select, pack the model, report.",
    "fingerprint": "Read the data, check them and split them into folds.",
    "plan": "Everything up to the plan, and how long the run will take.",
    "preprocess": "Everything up to the prepared cases.",
    "train": "Everything up to trained and validated folds.",
    "select": "Everything up to the selected and packed model.",
    "report": "Everything up to the report.",
}
"""commands with DATA and the options of `run`, each with what it does; each but `run` is the name of its last stage"""
RUN = tuple(RUN_COMMANDS)
DATA = (*RUN, "check")
Panel = Literal["Arguments", "Data", "Plan", "Training", "Prediction", "Comparison", "Device", "Output", "Options"]
"""headings of the help, in their order"""


@dataclass(frozen=True)
class Notation:
    """How a value is written on the command line."""

    read: Callable[[Any], Any] = lambda value: value
    """from the text, or the list of texts of an option that may be repeated; raises OptionError"""
    write: Callable[[Any], Sequence[str]] = lambda value: [str(value)]
    """the texts that `read` makes the value of, one for each time the option is given"""
    type: builtins.type = str
    """of each text: str, int, float, bool for a switch, or Path"""
    repeated: bool = False
    python: Any = str
    """type of a value that Python or a TOML file gives: a text as on the command line, or what `write` takes"""

    def texts(self, value: Any) -> list[Any]:
        """What gives the value on the command line, one for each time. Raises OptionError for one of another type."""
        from pydantic import ConfigDict, TypeAdapter, ValidationError

        if isinstance(value, numbers.Integral) and not isinstance(value, bool):
            value = int(value)  # also numpy's
        try:
            TypeAdapter(self.python, config=ConfigDict(strict=True)).validate_python(value)
        except ValidationError:
            raise OptionError(f"{value!r} cannot be used", f"Give {format_type(self.python)}") from None
        if self.type in (bool, int, float):
            return [value]
        return [fspath(value)] if isinstance(value, str | PathLike) else list(self.write(value))


@dataclass(frozen=True)
class Option:
    """One option, or an argument where the name is in capitals."""

    names: str
    """`--quiet`, or `--quiet -q`"""
    metavar: str
    """what stands for the value in the help; empty for a switch"""
    panel: Panel
    """heading in the help"""
    commands: tuple[str, ...]
    help: str
    notation: Notation
    field: str | None = None
    """of `RunOptions`, or `data.NAME` of `DataOptions`; None: it concerns this one command and is not kept"""
    default: Any = None
    required: bool = False
    least: float | None = None
    most: float | None = None

    @property
    def name(self) -> str:
        return self.names.partition(" ")[0]

    @property
    def parameter(self) -> str:
        """Name in Python."""
        name = self.name.strip("-").lower().replace("-", "_")
        return f"{name}_" if keyword.iskeyword(name) or hasattr(builtins, name) else name

    @property
    def key(self) -> str:
        """Name in a TOML file."""
        return self.name.strip("-").lower()

    @property
    def keyword(self) -> str:
        """Name in `autounet.run(...)`: of an option that may be repeated that of its field, which holds all of it."""
        holder, _, field = (self.field or "").rpartition(".")
        return field if self.notation.repeated and holder else self.parameter

    def texts(self, value: Any) -> Any:
        """What would stand on the command line for a value from Python or a TOML file, as `parse` takes it.

        None where nothing would. Raises UsageError for a value of another type.
        """
        if value is None:
            return None
        try:
            texts = self.notation.texts(value)
        except OptionError as error:
            raise UsageError(f"{self.name}: {error.message}", error.remedy) from None
        return texts if self.notation.repeated else texts[0]

    def parse(self, given: Any) -> Any:
        """The value of what stands on the command line; None where nothing does. Raises OptionError."""
        if given is None or given is False or given == []:
            return False if self.notation.type is bool and self.field is None else None
        try:
            return self.notation.read(given)
        except OptionError as error:
            message = error.message if error.message.startswith("--") else f"{self.name}: {error.message}"
            raise UsageError(message, error.remedy) from None

    def words(self, value: Any) -> list[str]:
        """The words of the command line that give the value, none for that of an option which is not given."""
        if value is None or value is False or value == {}:
            return []
        if self.notation.type is bool:
            return [self.name]
        return [word for text in self.notation.write(value) for word in (self.name, text)]


def _whole_path(text: str) -> str:
    """Absolute: a later command may be given in another folder."""
    return str(Path(text).expanduser().absolute())


def _metric_names(text: str) -> tuple[str, ...]:
    from .metrics import chosen_metrics

    return chosen_metrics(text.split(","))


def _starting_weights(kind: Literal["model", "encoder"]) -> Notation:
    def read(text: str) -> StartingWeights:
        from .options import StartingWeights

        return StartingWeights(kind="none") if text == "none" else StartingWeights(kind=kind, path=_whole_path(text))

    def write(start: StartingWeights) -> list[str]:
        if start.kind == "none":
            return ["none"] if kind == "model" else []
        return [start.path] if start.kind == kind else []

    return Notation(read, write, python=AnyPath)


def _channel_kinds(entries: Sequence[str]) -> dict[str, str]:
    """A kind alone, without its channel, is what is forgotten most."""
    from .option_rules import KINDS

    alone = next((entry.lower() for entry in entries if entry.lower() in KINDS), "mri")
    return parse_pairs(entries, example=f"image={alone}, with the channel's name as autounet check shows it")


def _class_values(entries: Sequence[str]) -> dict[str, int | str]:
    """A pattern of files is whatever could name one."""
    pairs = parse_pairs(entries)
    values = {name: each if set(each) & set("*?/[.") else parse_integer(each) for name, each in pairs.items()}
    if len(set(values.values())) < len(values):
        raise OptionError("two classes have the same value", "Give each class a value of its own, or use --region")
    from .labels import require_background_zero

    require_background_zero({name: value for name, value in values.items() if isinstance(value, int)})
    return values


def _region_values(entries: Sequence[str]) -> dict[str, tuple[int, ...]]:
    from .labels import require_background_zero

    regions = {name: parse_integers(values) for name, values in parse_pairs(entries, "whole_tumour=1,2,3").items()}
    require_background_zero(regions, "--region")
    return regions


TEXT = Notation()
INTEGER = Notation(type=int, python=int)
SWITCH = Notation(type=bool, python=bool)
PATH = Notation(type=Path, python=AnyPath)
WHOLE_PATH = Notation(_whole_path, python=AnyPath)
SIZE = Notation(parse_size, lambda size: [write_size(size)], python=str | int)
TIME = Notation(parse_time, lambda seconds: [write_time(seconds)], python=str | float)
NAMES = Notation(lambda text: tuple(text.split(",")), lambda names: [write_list(names)], python=str | Sequence[str])
METRIC_NAMES = Notation(_metric_names, lambda names: [write_list(names)], python=str | Sequence[str])
FOLDS = Notation(
    write=lambda folds: [write_list([folds] if isinstance(folds, str | int) else folds)],
    python=str | int | Sequence[int],
)
PATTERNS = Notation(
    partial(parse_pairs, example="T1=*_t1.nii.gz"), write_pairs, repeated=True, python=Mapping[str, str]
)
CHANNEL_KINDS = Notation(_channel_kinds, write_pairs, repeated=True, python=Mapping[str, str])
CLASS_VALUES = Notation(_class_values, write_pairs, repeated=True, python=Mapping[str, int | str])
REGION_VALUES = Notation(
    _region_values,
    lambda regions: write_pairs({name: write_list(values) for name, values in regions.items()}),
    repeated=True,
    python=Mapping[str, Sequence[int]],
)
EXECUTOR = Notation(lambda text: text if text == "local" else _whole_path(text), python=AnyPath)
SPLITS = Notation(lambda text: text if text == "nnunet" else _whole_path(text), python=AnyPath)
WORKERS = Notation(lambda text: None if text == "auto" else parse_integer(text), python=str | int)
MODEL = _starting_weights("model")
ENCODER = _starting_weights("encoder")

# Names of families, losses, augmentations, presets, configurations and metrics are written out, since the dicts that
# hold them load numpy and torch; tests/test_option_table.py compares.
RUN_OPTIONS: tuple[Option, ...] = (
    Option("DATA", "DATA", "Arguments", DATA, "Folder with images and labels in any supported layout, or a CSV or JSON "
           "table of them", PATH, required=True),
    Option("--channel", "NAME=PATTERN", "Data", DATA, "Files of an image channel, for example T1=*_t1.nii.gz", PATTERNS,
           "data.channels"),
    Option("--kind", "NAME=KIND", "Data", DATA, "Kind of a channel: ct, mri, photo or other. It decides how "
           "intensities are normalised", CHANNEL_KINDS, "data.kinds"),
    Option("--label", "PATTERN", "Data", DATA, "Which files are the labels, for example '1st_manual/*'", TEXT,
           "data.label"),
    Option("--class", "NAME=VALUE", "Data", (*DATA, "evaluate"), "Name of a label value, for example liver=1; or "
           "the masks of one structure, for example 'liver=*/masks/liver.nii.gz'", CLASS_VALUES, "data.classes"),
    Option("--region", "NAME=V1,V2", "Data", (*DATA, "evaluate"), "Structure made of several label values, for "
           "example whole_tumour=1,2,3", REGION_VALUES, "data.regions"),
    Option("--ignore", "VALUE", "Data", DATA, "Label value of voxels that nobody annotated", INTEGER, "data.ignore"),
    Option("--overlaps", "RULE", "Data", DATA, "Where structures share voxels: regions (they may overlap) or smaller "
           "(the smaller one has such a voxel)", TEXT, "data.overlaps"),
    Option("--missing-structures", "RULE", "Data", DATA, "A structure that other cases have and a case's label does "
           "not name is there unannotated (as by default) or absent", TEXT, "data.missing_structures"),
    Option("--join", "NAME", "Data", DATA, "Label files number objects, for example cells: every value above 0 is one "
           "class of this name", TEXT, "data.join"),
    Option("--objects", "NAME", "Data", (*DATA, "evaluate"), "As --join, with single objects told apart, also where "
           "they touch: label files and predictions number them", TEXT, "data.objects"),
    Option("--group", "REGEX", "Data", DATA, "Regular expression on case names. Cases with the same first capture, "
           "for example of one patient, stay in one fold", TEXT, "data.group"),
    Option("--splits", "FILE", "Data", DATA, "JSON file with the cross-validation folds, or nnunet for the five folds "
           "that nnU-Net makes", SPLITS, "data.splits"),
    Option("--palette", "FILE", "Data", DATA, "JSON file that says which colour is which class, for label pictures in "
           "colour", WHOLE_PATH, "data.palette"),
    Option("--frames", "AXIS", "Data", DATA, "What the fourth axis of 4-D files is: channels or time", TEXT,
           "data.frames"),
    Option("--missing-channels", "", "Data", DATA, "Cases may lack channels: train with those that are there", SWITCH,
           "data.missing_channels"),
    Option("--configurations", "NAMES", "Plan", RUN, "auto, or some of 2d, 3d_lowres, 3d_fullres, "
           "3d_cascade_fullres, with commas and no spaces between", NAMES, "configurations"),
    Option("--family", "NAME", "Plan", RUN, "Network family: plain, residual, original, unet3d, nested, attention, "
           "swin, efficient, mednext", TEXT, "family"),
    Option("--preset", "NAME", "Plan", RUN, "Plan as nnU-Net does: nnunet, residual-m, residual-l, residual-xl", TEXT,
           "preset"),
    Option("--replan", "", "Plan", RUN, "Make a new plan although there is one", SWITCH),
    Option("--explain", "", "Plan", ("plan",), "Say what limits each configuration", SWITCH),
    Option("--time", "TIME", "Training", RUN, "The whole command ends within this time, for example 30m or 2h", TIME,
           "seconds"),
    Option("--epochs", "N", "Training", RUN, "Length of the training of each fold in epochs of 250 steps", INTEGER,
           "epochs", least=1),
    Option("--iterations", "N", "Training", RUN, "Length of the training of each fold in steps", INTEGER,
           "iterations", least=1),
    Option("--folds", "FOLDS", "Training", RUN, "all, full (one model trained on all cases) or indices such as 0,1",
           FOLDS, "folds"),
    Option("--loss", "NAME", "Training", RUN, "Loss: dice_ce, dice, ce, bce, weighted_ce, topk, dice_topk, focal, "
           "dice_focal, tversky, focal_tversky, log_dice_ce", TEXT, "loss"),
    Option("--augmentation", "NAME", "Training", RUN, "Changes of samples: full, light, none", TEXT, "augmentation"),
    Option("--init", "MODEL", "Training", RUN, "Start from the weights of a packed model with the same network. none "
           "takes it back", MODEL, "start"),
    Option("--pretrained", "FILE", "Training", RUN, "Start from the weights of an EfficientNet in timm's naming "
           "(family efficient, 2-D images). none takes it back", ENCODER, "start"),
    Option("--seed", "N", "Training", RUN, "Seed of all random numbers", INTEGER, "seed", least=0, most=MOST_SEED),
    Option("--deterministic", "", "Training", RUN, "Get exactly the same weights each time, which is slower", SWITCH,
           "deterministic"),
    Option("--memory", "SIZE", "Device", RUN, "Most memory to use on the device, for example 8GB", SIZE,
           "memory_bytes"),
    Option("--device", "NAME", "Device", RUN, "auto, cpu, cuda, cuda:1 or mps. One training goes on on each of several "
           "GPUs: cuda:0,cuda:1; auto takes all that are alike", TEXT, "device"),
    Option("--devices-per-training", "N", "Device", RUN, "GPUs, or on a CPU processes, that share each batch of one "
           "training", INTEGER, "devices_per_training", least=1),
    Option("--workers", "N", "Device", RUN, "Processes that read and augment images: auto or a number", WORKERS,
           "workers"),
    Option("--compile", "WHEN", "Device", RUN, "Whether torch compiles networks for training: auto (where that is "
           "quicker and repays itself), on or off", TEXT, "compile"),
    Option("--executor", "local|FILE", "Device", RUN, "Who does the jobs: local, this command, or a cluster that a "
           "TOML file describes (needs the extra cluster)", EXECUTOR, "executor"),
    Option("--out", "FOLDER", "Output", RUN, "Folder for all results. Given again, the run continues where it was",
           PATH, required=True),
    Option("--metrics", "NAMES", "Output", (*RUN, "evaluate"), "What to measure: default, all, or some of dice, iou, "
           "sensitivity, precision, hd95, nsd, volume, volume_difference, assd, nsd_subvoxel, boundary_iou, "
           "lesion_f1, panoptic_quality, cl_dice, ap50, ap60, ap70, ap80, ap90, count_error", METRIC_NAMES, "metrics"),
    Option("--track", "SERVICE", "Output", RUN, "Also show curves and results in tensorboard, wandb or mlflow (needs "
           "the extra track). none takes it back", TEXT, "track"),
)  # fmt: skip
"""in the order of the help"""


def run_options(given: Iterable[tuple[Option, Any]]) -> RunOptions:
    """From options and what stands on the command line for each, None where nothing does. Raises OptionError."""
    from pydantic import ValidationError

    from .options import RunOptions

    values: dict[str, Any] = {}
    data: dict[str, Any] = {}
    for option, text in given:
        value = option.parse(text)
        if value is None or option.field is None:
            continue
        holder, _, field = option.field.rpartition(".")
        place = data if holder else values
        if field in place:
            names = " and ".join(each.name for each in RUN_OPTIONS if each.field == option.field)
            raise UsageError(f"{names} exclude each other", "Give one of them")
        place[field] = value
    try:
        return RunOptions.model_validate({**values, "data": data})
    except ValidationError as error:
        problem = error.errors()[0]
        field = ".".join(str(part) for part in problem["loc"])
        name = next((option.name for option in RUN_OPTIONS if option.field == field), field)
        message = f"{name} {problem['input']}: {problem['msg']}"
        raise UsageError(message, f"autounet run --help explains {name}") from None


def run_command(data: str, out: str, options: RunOptions) -> str:
    """`autounet run ...` with every option that was given, quoted for a POSIX shell; `run_options` reads it back."""
    words = ["autounet", "run", data, "--out", out]
    for option in RUN_OPTIONS:
        if option.field is not None:
            holder, _, field = option.field.rpartition(".")
            words += option.words(getattr(options.data if holder else options, field))
    return shlex.join(words)

"""The options of the commands that are no run, and how a command is made from the table of options.

`schema/option_table.py` holds those of a run.
"""

from __future__ import annotations

import inspect
import logging
import tomllib
from collections.abc import Callable, Sequence
from os import fspath
from pathlib import Path
from typing import Annotated, Any, Optional, get_args

import typer

from ..progress import show_bars
from ..schema.errors import UsageError, unknown_name
from ..schema.names import printable
from ..schema.option_table import (
    DATA,
    EXECUTOR,
    INTEGER,
    PATH,
    RUN_OPTIONS,
    SIZE,
    SWITCH,
    TEXT,
    TIME,
    Notation,
    Option,
    Panel,
    run_options,
)
from ..schema.quantities import AnyPath, parse_integers, parse_numbers, write_list


def _one_of(option: str, *names: str) -> Notation:
    def read(text: str) -> str:
        if text not in names:
            raise unknown_name(option, text, names)
        return text

    return Notation(read)


def _template(text: str) -> str:
    from ..prediction.submission import require_template

    require_template(text)
    return text


def _zip(out: Path) -> Path:
    from ..prediction.submission import require_zip

    require_zip(out)
    return out


def _device(several: bool) -> Notation:
    def read(text: str) -> str:
        from ..schema.option_rules import require_device

        require_device(text, several)
        return text

    return Notation(read)


COMMANDS = (
    *DATA, "demo", "calibrate", "status", "compare", "predict", "ensemble", "submit", "evaluate", "export", "import",
)  # fmt: skip
AVERAGE = _one_of("--average", "probabilities", "logits")
TEMPLATE = Notation(_template)
ZIP = Notation(_zip, type=Path, python=AnyPath)
FOLDS = Notation(
    lambda text: None if text == "all" else parse_integers(text),
    lambda folds: [write_list([folds] if isinstance(folds, str | int) else folds)],
    python=str | int | Sequence[int],
)
NUMBER = Notation(type=float, python=float)
NUMBERS = Notation(parse_numbers, lambda numbers: [write_list(numbers)], python=str | Sequence[float])
NAMES = Notation(lambda text: text.split(","), lambda names: [write_list(names)], python=str | Sequence[str])
PATHS = Notation(write=lambda paths: list(map(fspath, paths)), type=Path, repeated=True, python=Sequence[AnyPath])

MODEL_OPTIONS: tuple[Option, ...] = (
    Option("OUT", "OUT", "Arguments", ("compare",), "Output folder of a run", PATH, required=True),
    Option("OUT", "OUT", "Arguments", ("status",), "Output folder of a run. Of several one line each is shown", PATHS,
           required=True),
    Option("MODEL", "MODEL", "Arguments", ("predict", "submit", "export"), "A packed model: OUT/model, or a file "
           ".autounet", PATH, required=True),
    Option("INPUT", "INPUT", "Arguments", ("predict",), "An image or a folder of images", PATH, required=True),
    Option("INPUT", "INPUT", "Arguments", ("submit",), "A folder of test images", PATH, required=True),
    Option("FOLDERS", "DIR", "Arguments", ("ensemble",), "Folders that predict --probabilities wrote", PATHS,
           required=True),
    Option("PREDICTIONS", "PREDICTIONS", "Arguments", ("evaluate",), "Predicted label images", PATH, required=True),
    Option("REFERENCES", "REFERENCES", "Arguments", ("evaluate",), "Reference label images", PATH, required=True),
    Option("SOURCE", "SRC", "Arguments", ("import",), "Folder of a trained nnU-Net v2 model, or its zip file", PATH,
           required=True),
    # options that choose what is predicted, measured, compared or exported
    Option("--configuration", "NAME", "Prediction", ("predict", "export"), "Use this configuration in place of the "
           "selected ones", TEXT),
    Option("--configuration", "NAMES", "Prediction", ("import",), "Which of several configurations, for example 2d or "
           "2d,3d_fullres", NAMES),
    Option("--folds", "INDICES", "Prediction", ("predict", "export"), "Networks of these folds, for example 0,1. By "
           "default all", FOLDS),
    Option("--no-mirror", "", "Prediction", ("predict",), "Predict without mirrored views: faster, a little less "
           "accurate", SWITCH),
    Option("--overlap", "SHARE", "Prediction", ("predict",), "Overlap of neighbouring tiles. By default as planned",
           NUMBER, least=0, most=0.9),
    Option("--prune", "N", "Prediction", ("predict",), "For the family nested: predict with its U-Net of this many "
           "downsamplings", INTEGER, least=1),
    Option("--average", "QUANTITY", "Prediction", ("predict", "ensemble"), "Quantity that is averaged over views, "
           "folds, configurations and models: probabilities or logits", AVERAGE),
    Option("--weights", "NUMBERS", "Prediction", ("ensemble",), "Weight of each folder, for example 0.7,0.3. By "
           "default all are equal", NUMBERS),
    Option("--no-postprocessing", "", "Prediction", ("predict",), "Keep the components that the model was selected to "
           "remove", SWITCH),
    Option("--with", "OTHER", "Comparison", ("compare",), "Another output folder or a metrics.json: a paired test of "
           "the two", PATH),
    Option("--metric", "NAME", "Comparison", ("compare",), "Metric that --with tests", TEXT, default="dice"),
    Option("--test", "METRICS", "Comparison", ("compare",), "metrics.json of the public test set, written by autounet "
           "evaluate --out", PATH),
    Option("--model", "MODEL", "Data", ("evaluate",), "Take the classes and regions from this packed model", PATH),
    Option("--time", "TIME", "Training", ("demo",), "Time for the whole run", TIME, default="3m"),
    Option("--device", "NAME", "Device", ("predict",), "auto, cpu, cuda, cuda:1 or mps. Several share the cases: "
           "cuda:0,cuda:1 or cuda:all", _device(several=True), default="auto"),
    Option("--executor", "local|FILE", "Device", ("predict",), "Who predicts: local, this command, or a cluster that a "
           "TOML file describes (needs the extra cluster)", EXECUTOR),
    Option("--device", "NAME", "Device", ("submit", "calibrate"), "auto, cpu, cuda, cuda:1 or mps",
           _device(several=False), default="auto"),
    # options that say what is written, and where
    Option("--out", "FOLDER", "Output", ("demo",), "Output folder", PATH, default=Path("demo-output")),
    Option("--out", "FOLDER", "Output", ("predict", "ensemble"), "Folder for the segmentations", PATH, required=True),
    Option("--out", "FILE", "Output", ("submit",), "Zip file to write; its manifest is written beside it", ZIP,
           required=True),
    Option("--out", "FILE", "Output", ("evaluate",), "File metrics.json to write", PATH),
    Option("--out", "FOLDER", "Output", ("import",), "Folder for the model", PATH, required=True),
    Option("--out", "PATH", "Output", ("export",), "A new folder; with --format bundle also a new file "
           ".autounet, with nnunet a zip file", PATH, required=True),
    Option("--fix", "", "Output", ("check",), "Write a repaired copy of the data into the new folder --out", SWITCH),
    Option("--out", "FOLDER", "Output", ("check",), "New folder for --fix", PATH),
    Option("--format", "NAME", "Output", ("predict",), "dicom-seg: write DICOM segmentation objects, where INPUT is "
           "DICOM. bids: write a BIDS derivative", _one_of("--format", "dicom-seg", "bids")),
    Option("--format", "NAME", "Output", ("export",), "bundle, nnunet (a model of nnU-Net v2), monai (a bundle of "
           "MONAI), grand-challenge (a folder for Docker), onnx (needs the extra onnx) or torch (torch.export)",
           _one_of("--format", "bundle", "nnunet", "monai", "grand-challenge", "onnx", "torch"), required=True),
    Option("--dataset", "NAME", "Output", ("export",), "With --format nnunet: name in nnU-Net, such as "
           "Dataset123_Liver. By default made from the data set's name", TEXT),
    Option("--sockets", "SLUGS", "Output", ("export",), "With --format grand-challenge: slugs of the input sockets, "
           "one for each channel, with commas", NAMES),
    Option("--output-socket", "SLUG", "Output", ("export",), "With --format grand-challenge: slug of the "
           "segmentation's socket, or its path images/NAME", TEXT),
    Option("--memory", "SIZE", "Output", ("export",), "With --format grand-challenge: memory that the container "
           "is tried within. By default 16GB", SIZE),
    Option("--licence", "NAME", "Output", ("export",), "With --format bundle: licence of the weights, for the model "
           "card", TEXT),
    Option("--template", "NAME", "Output", ("submit",), "Names of the files in the zip: files, decathlon[:TASK], "
           "grand-challenge[:SLUG], or a pattern such as '{case}_seg.nii.gz'", TEMPLATE, default="files"),
    Option("--probabilities", "", "Output", ("predict", "ensemble"), "Also write the probabilities; classes.json has "
           "the order of the classes", SWITCH),
    Option("--uncertainty", "", "Output", ("predict",), "Also write maps of the entropy and of the disagreement "
           "between folds, in nats", SWITCH),
    Option("--gate-maps", "", "Output", ("predict",), "For the family attention: also write its gates as images",
           SWITCH),
    Option("--overwrite", "", "Output", ("predict",), "Also predict images that have a prediction already, and "
           "replace files that AutoUNet did not write", SWITCH),
    Option("--force", "", "Prediction", ("predict", "submit"), "Predict images also where dimension, spacing, "
           "modality or intensities are far from those of the model's training", SWITCH),
    Option("--json", "", "Output", ("check", "status", "compare"), "Machine-readable output", SWITCH),
    Option("--watch", "", "Output", ("status",), "Look again every 5 seconds for as long as it runs", SWITCH),
    Option("--version", "", "Options", ("autounet",), "Show the version", SWITCH),
    Option("--config", "FILE", "Options", COMMANDS, "TOML file with options of this command. What is given on the "
           "command line wins", PATH),
    Option("--quiet -q", "", "Options", ("autounet", *COMMANDS), "Show warnings and results only", SWITCH),
    Option("--verbose -v", "", "Options", ("autounet", *COMMANDS), "Show also where time goes and what is decided on "
           "the way; of errors also where they arose", SWITCH),
)  # fmt: skip


GENERAL = ("config", "quiet", "verbose")
"""parameters of every command, which say nothing about its work"""


def options_of(command: str) -> tuple[Option, ...]:
    """The options of a command in the order of its help; 'autounet' is what stands before any command."""
    panels = get_args(Panel)
    options = (option for option in (*RUN_OPTIONS, *MODEL_OPTIONS) if command in option.commands)
    return tuple(sorted(options, key=lambda option: panels.index(option.panel)))


def add_command(app: typer.Typer, name: str, action: Callable[..., None], text: str | None = None) -> None:
    """A command whose signature comes from the table; `text`, by default the docstring, is its help.

    `action` gets each option by its name in Python, parsed; those of the run and the data together as `options`.
    """
    table = options_of(name)

    def command(**given: Any) -> None:
        if given["quiet"] or given["verbose"]:
            show_messages(given["quiet"], given["verbose"])
        values = {option.parameter: option.parse(given[option.parameter]) for option in table if option.field is None}
        values = {name: value for name, value in values.items() if name not in GENERAL}
        recorded = [(option, given[option.parameter]) for option in table if option.field is not None]
        action(**values, **({"options": run_options(recorded)} if recorded else {}))

    command.__doc__ = text or action.__doc__
    command.__signature__ = inspect.Signature([_parameter(option) for option in table])  # type: ignore[attr-defined]
    app.command(name)(command)


def root_signature() -> inspect.Signature:
    """Of what stands before any command."""
    return inspect.Signature([_parameter(option) for option in options_of("autounet")])


def _parameter(option: Option) -> inspect.Parameter:
    """Of a function that typer makes a command of."""
    notation = option.notation
    taken: Any = list[notation.type] if notation.repeated else notation.type  # type: ignore[name-defined]
    common: dict[str, Any] = {"help": option.help, "min": option.least, "max": option.most}
    if option.name == "--config":  # before all others, whose defaults it holds
        common |= {"is_eager": True, "callback": _take_defaults}
    shown: Any
    if option.name.startswith("-"):
        shown = typer.Option(*option.names.split(), metavar=option.metavar, rich_help_panel=option.panel, **common)
    else:
        shown = typer.Argument(metavar=option.metavar, **common)
    if option.required:
        default: Any = inspect.Parameter.empty
    elif notation.type is bool:
        default = False
    else:
        default, taken = option.default, Optional[taken]  # noqa: UP045
    return inspect.Parameter(
        option.parameter, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[taken, shown]
    )


def _take_defaults(context: typer.Context, file: Path | None) -> Path | None:
    """What the file `--config` holds stands in for options that are not on the command line."""
    if file is not None:
        context.default_map = config_values(file, str(context.command.name))
    return file


def config_values(file: Path, command: str) -> dict[str, Any]:
    """Parameter -> what would stand on the command line, of a TOML file with options of a command.

    Raises UsageError for a file that cannot be read, a name that is no option, and a value of another type.
    """
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UsageError(f"--config {file} cannot be read: {reason}", "Give a TOML file in UTF-8") from None
    known = {option.key: option for option in options_of(command) if option.name != "--config"}
    values: dict[str, Any] = {}
    for key, value in content.items():
        if key not in known:
            raise unknown_name(f"{file}:", key, sorted(known))
        try:
            values[known[key].parameter] = known[key].texts(value)
        except UsageError as error:
            raise UsageError(f"{file}: {error.message}", error.remedy) from None
    return values


class PrintableLog(logging.Formatter):
    """Names of files and what libraries say of them may hold what steers a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


CONSOLE = "autounet console"
"""name of the handler that shows messages; where another program has set up logging, there is none"""


def show_messages(quiet: bool, verbose: bool) -> None:
    """Log to standard error: warnings alone, all that tells how it goes, or what is decided on the way as well.

    Raises UsageError for both.
    """
    if quiet and verbose:
        raise UsageError("--quiet and --verbose exclude each other", "Give one of them")
    root = logging.getLogger()
    if not root.handlers:
        console = logging.StreamHandler()
        console.set_name(CONSOLE)
        root.addHandler(console)
    for handler in root.handlers:
        if handler.name == CONSOLE:
            names = "%(name)s " if verbose else ""
            handler.setFormatter(PrintableLog(f"%(asctime)s {names}%(message)s", "%H:%M:%S"))
            root.setLevel(logging.WARNING if quiet else logging.INFO)
            logging.getLogger("autounet").setLevel(logging.DEBUG if verbose else logging.NOTSET)
    show_bars(not quiet)
    logging.getLogger("numexpr").setLevel(logging.WARNING)

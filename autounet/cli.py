"""The command line. Options are read here and nothing is decided here."""

from __future__ import annotations

import inspect
import json
import logging
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from autounet.schema.errors import AutoUNetError
from autounet.workers import wait_politely

app = typer.Typer(
    help="Self-configuring U-Nets: from a folder of images and labels to a cross-validated, ensembled model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Text = Optional[str]  # noqa: UP045
Texts = Optional[list[str]]  # noqa: UP045
Whole = Optional[int]  # noqa: UP045
Switch = Optional[bool]  # noqa: UP045
File = Optional[Path]  # noqa: UP045

Data = Annotated[Path, typer.Argument(help="Folder with images and labels, in any supported layout")]
Out = Annotated[Path, typer.Option(help="Output folder; given again, the run continues")]
Json = Annotated[bool, typer.Option("--json", help="Machine-readable output")]
# written out, since the dicts that hold the names of the next four load numpy and torch (tests/test_help_names.py)
Configurations = Annotated[Text, typer.Option(help="auto, or some of 2d,3d_lowres,3d_fullres,3d_cascade_fullres")]
Family = Annotated[
    Text,
    typer.Option(help="Network family: plain, residual, original, unet3d, nested, attention, swin, efficient, mednext"),
]
Loss = Annotated[
    Text,
    typer.Option(
        help="Loss: dice_ce, dice, ce, bce, weighted_ce, topk, dice_topk, focal, dice_focal, tversky, focal_tversky"
    ),
]
Preset = Annotated[Text, typer.Option(help="Plan as nnU-Net does: nnunet, residual-m, residual-l, residual-xl")]
Channel = Annotated[Texts, typer.Option(help="NAME=PATTERN: files of a channel")]
Kind = Annotated[Texts, typer.Option(help="NAME=ct|mri|photo|other: kind of a channel")]
Label = Annotated[Text, typer.Option(help="Pattern of the label files, for example '1st_manual/*'")]
Class = Annotated[Texts, typer.Option("--class", help="NAME=VALUE: name of a label value")]
Region = Annotated[Texts, typer.Option(help="NAME=V1,V2,...: target made of several values")]
Ignore = Annotated[Whole, typer.Option(help="Label value that means: not annotated")]
Group = Annotated[Text, typer.Option(help="Regular expression; cases with the same first capture stay together")]
Splits = Annotated[Text, typer.Option(help="nnunet, or a JSON file with the folds")]


SPECIAL = frozenset({"explain"})
"""options that not every command with DATA has"""


def _data_command(name: str, text: str, action: Callable[..., None], only: frozenset[str] = frozenset()) -> None:
    """A command that takes DATA, --out and every option of `run`: the signature is written once, here.

    `only` names the options of this command alone, handed to `action` by name; the others of `SPECIAL` are left out.
    """

    def command(
        data: Data,
        out: Out,
        memory: Annotated[Text, typer.Option(help="Memory budget on the device, for example 8GB")] = None,
        time: Annotated[Text, typer.Option(help="The whole command ends within this time, for example 30m")] = None,
        configurations: Configurations = None,
        family: Family = None,
        loss: Loss = None,
        preset: Preset = None,
        folds: Annotated[Text, typer.Option(help="all, full (one model on all cases) or indices such as 0,1")] = None,
        epochs: Annotated[Whole, typer.Option(help="Epochs of 250 steps per fold", min=1)] = None,
        iterations: Annotated[Whole, typer.Option(help="Steps per fold", min=1)] = None,
        device: Annotated[Text, typer.Option(help="auto, cpu, cuda, cuda:1 or mps")] = None,
        workers: Annotated[Text, typer.Option(help="Processes for reading and augmentation: auto or a number")] = None,
        seed: Annotated[Whole, typer.Option(help="Seed of everything random", min=0)] = None,
        deterministic: Annotated[Switch, typer.Option("--deterministic", help="The same weights on each run")] = None,
        channel: Channel = None,
        kind: Kind = None,
        label: Label = None,
        class_: Class = None,
        region: Region = None,
        ignore: Ignore = None,
        group: Group = None,
        splits: Splits = None,
        replan: Annotated[bool, typer.Option("--replan", help="Make a new plan although one is there")] = False,
        explain: Annotated[bool, typer.Option("--explain", help="What limits each configuration")] = False,
    ) -> None:
        given = dict(locals())
        special = {each: given.pop(each) for each in SPECIAL}
        from autounet.running.parsing import run_options

        action(data, out, run_options(given), replan, **{each: special[each] for each in only})

    command.__doc__ = text
    signature = inspect.signature(command, eval_str=True)
    shown = [each for key, each in signature.parameters.items() if key not in SPECIAL - only]
    command.__signature__ = signature.replace(parameters=shown)  # type: ignore[attr-defined]
    app.command(name)(command)


def _until(stage: str) -> Callable[[Path, Path, Any, bool], None]:
    def action(data: Path, out: Path, options: Any, replan: bool) -> None:
        from autounet.pipeline import Pipeline

        path = Pipeline(data, out, options, replan).run(stage)
        if stage in ("select", "report"):
            _show_dice(out)
        typer.echo(f"{stage}: {path}")

    return action


def _plan(data: Path, out: Path, options: Any, replan: bool, explain: bool) -> None:
    from autounet.pipeline import Pipeline
    from autounet.running.run_lengths import described

    pipeline = Pipeline(data, out, options, replan)
    path = pipeline.run("plan")
    typer.echo(described(pipeline.context, pipeline.plan_with, explain), nl=False)
    typer.echo(f"plan: {path}")


def _show_dice(out: Path) -> None:
    """The Dice per class; nothing when all cases were trained on."""
    from autounet.schema.quantities import format_number
    from autounet.schema.run import Metrics

    if not (out / "metrics.json").exists():
        return
    metrics = Metrics.load(out / "metrics.json")
    for name, values in metrics.per_class.items():
        typer.echo(f"Dice {name}: {format_number(values.dice)}")
    typer.echo(f"mean Dice: {format_number(metrics.mean_dice)} over {len(metrics.cases)} out-of-fold cases")


for _name, _stage, _text in (
    ("run", "report", "Everything: fingerprint, plan, preprocess, train, validate, select, pack, report."),
    ("fingerprint", "fingerprint", "Read, check and split the data."),
    ("preprocess", "preprocess", "Everything up to the prepared cases."),
    ("train", "train", "Everything up to trained and validated folds."),
    ("select", "select", "Everything up to the selected and packed model."),
    ("report", "report", "Everything up to the report."),
):
    _data_command(_name, _text, _until(_stage))
_data_command("plan", "Everything up to the plan, and how long the run takes.", _plan, frozenset({"explain"}))


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Output folder")] = Path("demo-output"),
    time: Annotated[str, typer.Option(help="Time for the whole run")] = "3m",
) -> None:
    """Make a small synthetic 3-D data set in OUT/data and run everything on it."""
    from autounet.datasets.synthetic import make_demo_dataset
    from autounet.pipeline import Pipeline
    from autounet.schema.options import RunOptions
    from autounet.schema.quantities import parse_time

    if not (out / "data").exists():  # made under another name first: an interruption leaves no half of it
        shutil.rmtree(out / ".data", ignore_errors=True)
        make_demo_dataset(out / ".data").rename(out / "data")
    report = Pipeline(out / "data", out, RunOptions(seconds=parse_time(time))).run()
    _show_dice(out)
    typer.echo(f"report: {report}")


@app.command()
def calibrate(
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps")] = "auto",
) -> None:
    """Measure how much more memory a device takes than tracing says; later plans on it reckon with that."""
    from autounet.running.calibrating import calibrate as measure
    from autounet.schema.quantities import format_size

    margin, path = measure(device)
    typer.echo(f"margin: {format_size(margin.bytes)} and {margin.fraction:.1%} of what is traced")
    typer.echo(f"calibration: {path}")


@app.command()
def check(
    data: Data,
    json_: Json = False,
    channel: Channel = None,
    kind: Kind = None,
    label: Label = None,
    class_: Class = None,
    region: Region = None,
    ignore: Ignore = None,
    group: Group = None,
    splits: Splits = None,
) -> None:
    """Say what was understood and every defect at once; exit 1 if any is fatal."""
    given = dict(locals())
    from autounet.running.parsing import data_options
    from autounet.running.reading import check_data
    from autounet.schema.dataset import Severity

    result = check_data(data, data_options(given))
    if json_:
        typer.echo(json.dumps(result.model_dump(mode="json"), indent=1))
    else:
        typer.echo(f"layout: {result.layout}, {len(result.cases)} cases")
        typer.echo("channels: " + ", ".join(f"{channel.name} ({channel.kind})" for channel in result.channels))
        typer.echo("labels: " + ", ".join(f"{label.value} {label.name}" for label in result.labels.classes))
        for finding in result.findings:
            typer.echo(f"{finding.severity}: {finding}")
        typer.echo(f"{len(result.findings)} findings" if result.findings else "nothing to complain about")
    if any(finding.severity is Severity.fatal for finding in result.findings):
        raise typer.Exit(1)


@app.command()
def predict(
    model: Annotated[Path, typer.Argument(help="A packed model: OUT/model")],
    input_: Annotated[Path, typer.Argument(metavar="INPUT", help="An image or a folder of images")],
    out: Annotated[Path, typer.Option(help="Folder for the segmentations")],
    configuration: Annotated[Text, typer.Option(help="One configuration instead of the selected ones")] = None,
    folds: Annotated[Text, typer.Option(help="Fold indices, for example 0,1; default all")] = None,
    no_mirror: Annotated[bool, typer.Option("--no-mirror", help="No mirrored views")] = False,
    overlap: Annotated[Optional[float], typer.Option(help="Overlap of tiles", min=0, max=0.9)] = None,  # noqa: UP045
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps")] = "auto",
) -> None:
    """Segment new images with the ensemble of folds, in their own geometry; exit 1 if an image could not be."""
    from autounet.api import load
    from autounet.running.parsing import integers

    chosen = None if folds in (None, "all") else integers(str(folds), "--folds")
    predictor = load(
        model, device=device, configuration=configuration, folds=chosen, mirror=not no_mirror, overlap=overlap
    )
    failures = predictor.predict_files(input_, out)
    for failure in failures:
        typer.echo(f"not predicted: {failure}", err=True)
    typer.echo(f"predictions: {out}")
    if failures:
        raise typer.Exit(1)


@app.command()
def evaluate(
    predictions: Annotated[Path, typer.Argument(help="Predicted label images")],
    references: Annotated[Path, typer.Argument(help="Reference label images")],
    out: Annotated[File, typer.Option(help="Write metrics.json here")] = None,
    class_: Class = None,
    model: Annotated[File, typer.Option(help="Take the classes from this model")] = None,
) -> None:
    """Compare segmentations with references, paired by name."""
    from autounet import api
    from autounet.running.parsing import classes
    from autounet.schema.quantities import format_number
    from autounet.workers import available_cores

    metrics = api.evaluate(predictions, references, classes(class_), model, available_cores())
    if out:
        metrics.save(out)
    for name, values in metrics.per_class.items():
        shown = values.model_dump(exclude={"undefined"})
        typer.echo(f"{name}: " + ", ".join(f"{metric} {format_number(value)}" for metric, value in shown.items()))
    typer.echo(f"mean Dice: {format_number(metrics.mean_dice)}")


@app.command()
def status(
    out: Annotated[Path, typer.Argument(help="Output folder of a run")],
    json_: Json = False,
) -> None:
    """What is done, what runs, time left."""
    from autounet.running.status import read_status

    found = read_status(out)
    if json_:
        typer.echo(json.dumps(found, indent=1))
        return
    for line in found["lines"]:
        typer.echo(line)


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Show the version")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Warnings and results only")] = False,
) -> None:
    logging.basicConfig(
        level=logging.WARNING if quiet else logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S",
        stream=sys.stderr,
    )  # fmt: skip
    logging.getLogger("numexpr").setLevel(logging.WARNING)
    if version:
        from autounet import __version__

        typer.echo(f"autounet {__version__}")
        raise typer.Exit


def main() -> None:
    """Entry point: a user's mistake ends with its message and exit code 1, never with a traceback."""
    wait_politely()
    try:
        app()
    except AutoUNetError as error:
        typer.echo(f"Error: {error}", err=True)
        sys.exit(1)
    except OSError as error:  # a full disk, a folder that may not be written
        where = f"{error.filename}: " if error.filename else ""
        remedy = "Check the path, the permissions and the space on the disk"
        typer.echo(f"Error: {where}{error.strerror or error}. {remedy}", err=True)
        sys.exit(1)
    except KeyboardInterrupt:
        typer.echo("Interrupted: the same command continues where it was.", err=True)
        sys.exit(130)


if __name__ == "__main__":
    main()

"""The command line. Options are read here and nothing is decided here."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from autounet.schema.errors import AutoUNetError, OptionError
from autounet.workers import wait_politely

app = typer.Typer(
    help="Self-configuring U-Nets: from a folder of images and labels to a cross-validated, ensembled model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Data = Annotated[
    Path, typer.Argument(help="Folder with images and labels, in any supported layout", show_default=False)
]
Out = Annotated[Path, typer.Option(help="Output folder; given again, the run continues")]
Memory = Annotated[Optional[str], typer.Option(help="Memory budget on the device, for example 8GB")]  # noqa: UP045
Time = Annotated[Optional[str], typer.Option(help="The whole command ends within this time, for example 30m")]  # noqa: UP045
Text = Optional[str]  # noqa: UP045
Whole = Optional[int]  # noqa: UP045
Texts = Optional[list[str]]  # noqa: UP045

CONFIGURATIONS = "auto, or some of 2d,3d_fullres"


def _pairs(entries: list[str] | None, option: str) -> dict[str, str]:
    """NAME=VALUE options as a dict."""
    pairs = {}
    for entry in entries or []:
        name, equals, value = entry.partition("=")
        if not equals or not name or not value:
            raise OptionError(f"{option} {entry}: write {option} NAME=VALUE")
        pairs[name] = value
    return pairs


def _integers(text: str, option: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise OptionError(f"{option}: '{text}' is not a whole number or a comma-separated list of them") from None


def _classes(entries: list[str] | None) -> dict[str, int]:
    return {name: _integers(value, "--class")[0] for name, value in _pairs(entries, "--class").items()}


def _run_options(given: dict[str, Any]) -> Any:
    """`RunOptions` from the parameters of a command with DATA."""
    from autounet.schema.options import DataOptions, RunOptions
    from autounet.schema.quantities import parse_size, parse_time

    data = DataOptions(
        channels=_pairs(given["channel"], "--channel"),
        kinds=_pairs(given["kind"], "--kind"),
        label=given["label"],
        classes=_classes(given["class_"]),
        regions={name: _integers(value, "--region") for name, value in _pairs(given["region"], "--region").items()},
        ignore=given["ignore"],
        group=given["group"],
        splits=given["splits"],
    )
    configurations = given["configurations"]
    chosen = None if configurations in (None, "auto") else tuple(configurations.split(","))
    workers = given["workers"]
    return RunOptions(
        data=data,
        memory_bytes=parse_size(given["memory"]) if given["memory"] else None,
        seconds=parse_time(given["time"]) if given["time"] else None,
        configurations=chosen,
        workers=None if workers in (None, "auto") else _integers(workers, "--workers")[0],
        **{
            name: given[name]
            for name in ("family", "loss", "preset", "folds", "epochs", "iterations", "device", "seed")
        },
        deterministic=given["deterministic"],
    )


def _data_command(name: str, text: str, action: Any) -> None:
    """A command that takes DATA, --out and every option of `run`: the signature is written once, here."""

    def command(
        data: Data,
        out: Out,
        memory: Memory = None,
        time: Time = None,
        configurations: Annotated[Text, typer.Option(help=CONFIGURATIONS)] = None,
        family: Annotated[Text, typer.Option(help="Network family")] = None,
        loss: Annotated[Text, typer.Option(help="Loss")] = None,
        preset: Annotated[Text, typer.Option(help="Published recipe: nnunet")] = None,
        folds: Annotated[Text, typer.Option(help="all, full (one model on all cases) or indices such as 0,1")] = None,
        epochs: Annotated[Whole, typer.Option(help="Epochs of 250 steps per fold", min=1)] = None,
        iterations: Annotated[Whole, typer.Option(help="Steps per fold", min=1)] = None,
        device: Annotated[Text, typer.Option(help="auto, cpu, cuda, cuda:1 or mps")] = None,
        workers: Annotated[Text, typer.Option(help="Processes for reading and augmentation: auto or a number")] = None,
        seed: Annotated[Whole, typer.Option(help="Seed of everything random")] = None,
        deterministic: Annotated[bool | None, typer.Option("--deterministic", help="Same weights on each run")] = None,
        channel: Annotated[Texts, typer.Option(help="NAME=PATTERN: files of a channel")] = None,
        kind: Annotated[Texts, typer.Option(help="NAME=ct|mri|photo|other")] = None,
        label: Annotated[Text, typer.Option(help="Pattern of the label files, for example '1st_manual/*'")] = None,
        class_: Annotated[Texts, typer.Option("--class", help="NAME=VALUE: name of a label value")] = None,
        region: Annotated[Texts, typer.Option(help="NAME=V1,V2,...: target made of several values")] = None,
        ignore: Annotated[Whole, typer.Option(help="Label value that means: not annotated")] = None,
        group: Annotated[
            Text, typer.Option(help="Regular expression; cases with equal first capture stay together")
        ] = None,
        splits: Annotated[Text, typer.Option(help="nnunet, or a JSON file with the folds")] = None,
        replan: Annotated[bool, typer.Option("--replan", help="Make a new plan although one is there")] = False,
    ) -> None:
        given = dict(locals())
        action(data, out, _run_options(given), replan)

    command.__doc__ = text
    app.command(name, help=text)(command)


def _until(stage: str) -> Any:
    def action(data: Path, out: Path, options: Any, replan: bool) -> None:
        from autounet.pipeline import Pipeline

        path = Pipeline(data, out, options, replan).run(stage)
        _summary(out)
        typer.echo(f"{stage}: {path}")

    return action


def _summary(out: Path) -> None:
    """The Dice per class, when the run has come so far."""
    from autounet.schema.run import Metrics

    file = out / "metrics.json"
    if not file.exists():
        return
    metrics = Metrics.load(file)
    for name, values in metrics.per_class.items():
        typer.echo(f"Dice {name}: {'undefined' if values.dice is None else f'{values.dice:.4f}'}")
    if metrics.mean_dice is not None:
        typer.echo(f"mean Dice: {metrics.mean_dice:.4f} over {len(metrics.cases)} out-of-fold cases")


_data_command(
    "run", "Everything: fingerprint, plan, preprocess, train, validate, select, pack, report.", _until("report")
)
_data_command(
    "fingerprint", "Read and check the data; write dataset.json, splits.json, fingerprint.json.", _until("fingerprint")
)
_data_command("plan", "Everything up to the plan.", _until("plan"))
_data_command("preprocess", "Everything up to the prepared cases.", _until("preprocess"))
_data_command("train", "Everything up to trained and validated folds.", _until("train"))
_data_command("select", "Everything up to the selected and packed model.", _until("select"))
_data_command("report", "Everything up to the report.", _until("report"))


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

    if not (out / "data").exists():
        make_demo_dataset(out / "data")
    report = Pipeline(out / "data", out, RunOptions(seconds=parse_time(time))).run()
    _summary(out)
    typer.echo(f"report: {report}")


@app.command()
def check(
    data: Data,
    json_: Annotated[bool, typer.Option("--json", help="Machine-readable output")] = False,
    channel: Annotated[Texts, typer.Option(help="NAME=PATTERN: files of a channel")] = None,
    kind: Annotated[Texts, typer.Option(help="NAME=ct|mri|photo|other")] = None,
    label: Annotated[Text, typer.Option(help="Pattern of the label files")] = None,
    class_: Annotated[Texts, typer.Option("--class", help="NAME=VALUE")] = None,
    ignore: Annotated[Whole, typer.Option(help="Label value that means: not annotated")] = None,
    group: Annotated[Text, typer.Option(help="Regular expression of groups")] = None,
) -> None:
    """Say what was understood and every defect at once; exit 1 if any is fatal."""
    from autounet.pipeline import check_data
    from autounet.schema.dataset import Severity
    from autounet.schema.options import DataOptions, RunOptions

    options = DataOptions(
        channels=_pairs(channel, "--channel"), kinds=_pairs(kind, "--kind"), label=label, classes=_classes(class_),
        ignore=ignore, group=group,
    )  # fmt: skip
    result = check_data(data, RunOptions(data=options))
    if json_:
        typer.echo(json.dumps(result.model_dump(mode="json"), indent=1))
    else:
        typer.echo(f"layout: {result.layout}, {len(result.cases)} cases")
        typer.echo("channels: " + ", ".join(f"{channel.name} ({channel.kind})" for channel in result.channels))
        typer.echo("labels: " + ", ".join(f"{label.value} {label.name}" for label in result.labels.classes))
        for finding in result.findings:
            typer.echo(f"{finding.severity}: {finding}")
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
    """Segment new images with the ensemble of folds, in their own geometry."""
    from autounet.api import load

    chosen = None if folds in (None, "all") else _integers(folds, "--folds")
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
    out: Annotated[Optional[Path], typer.Option(help="Write metrics.json here")] = None,  # noqa: UP045
    class_: Annotated[Texts, typer.Option("--class", help="NAME=VALUE")] = None,
    model: Annotated[Optional[Path], typer.Option(help="Take the classes from this model")] = None,  # noqa: UP045
) -> None:
    """Compare segmentations with references, paired by name."""
    from autounet import api
    from autounet.workers import available_cores

    bundle = None
    if model:
        from autounet.inference.bundle import load_bundle

        bundle = load_bundle(model)[0]
    metrics = api.evaluate(predictions, references, _classes(class_), bundle, available_cores())
    if out:
        metrics.save(out)
    for name, values in metrics.per_class.items():
        shown = ", ".join(
            f"{metric} {'undefined' if value is None else f'{value:.4f}'}"
            for metric, value in values.model_dump(exclude={"undefined"}).items()
        )
        typer.echo(f"{name}: {shown}")
    typer.echo(f"mean Dice: {'undefined' if metrics.mean_dice is None else f'{metrics.mean_dice:.4f}'}")


@app.command()
def status(
    out: Annotated[Path, typer.Argument(help="Output folder of a run")],
    json_: Annotated[bool, typer.Option("--json", help="Machine-readable output")] = False,
) -> None:
    """What is done, what runs, time left."""
    from autounet.status import read_status

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
    except KeyboardInterrupt:
        typer.echo("Interrupted: the same command continues where it was.", err=True)
        sys.exit(130)


if __name__ == "__main__":
    main()

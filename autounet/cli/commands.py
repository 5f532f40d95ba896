"""The commands with DATA (`run`, one for each stage up to which it can go, `check`, `demo`), then those with a packed
model: predicting, submitting, evaluating, and exchange with other programs.
"""

from __future__ import annotations

import json as json_format
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from ..processes import launched
from ..progress import ends_when_asked
from ..run_log import keep_line, run_log
from ..schema.errors import UsageError
from ..schema.option_table import RUN_COMMANDS
from .command_options import add_command

if TYPE_CHECKING:
    from ..schema.options import RunOptions
    from ..schema.plan import Average


def add_data_commands(app: typer.Typer) -> None:
    for name, text in RUN_COMMANDS.items():
        add_command(app, name, plan if name == "plan" else _until("report" if name == "run" else name), text)
    add_command(app, "demo", demo)
    add_command(app, "check", check)


def add_model_commands(app: typer.Typer) -> None:
    for command in (predict, ensemble, submit, evaluate, export):
        add_command(app, command.__name__, command)
    add_command(app, "import", import_)


def _until(stage: str) -> Callable[..., None]:
    """What a command does that goes up to and including a stage."""

    def action(data: Path, out: Path, replan: bool, options: RunOptions) -> None:
        from ..workflow.pipeline import run_pipeline

        with _first_of_launch(options) as first, ends_when_asked(), run_log(shown_command()):
            if not first:
                return
            path = run_pipeline(data, out, options, stage, replan).written
            if stage in ("select", "report"):
                show_dice(out)
            if stage == "report":
                show_advice(out)
            say(f"{stage}: {path}")

    return action


@contextmanager
def _first_of_launch(options: RunOptions) -> Iterator[bool]:
    """Whether this process does the command. Others that torchrun started with it have then done their part.

    Raises UsageError for another number of processes than the options name.
    """
    if (launch := launched()) is None:
        yield True
        return
    if options.devices_per_training not in (None, launch.processes):
        problem = f"--devices-per-training {options.devices_per_training}: {launch.processes} processes were started"
        raise UsageError(problem, "Leave it out: each process that torchrun starts has one device")
    from ..training.torchrun import leading, serve

    if launch.rank:
        from ..workflow.validation import take_part_of_launch

        serve(launch, take_part_of_launch)
        yield False
        return
    with leading():
        yield True


def plan(data: Path, out: Path, replan: bool, explain: bool, options: RunOptions) -> None:
    from ..workflow.pipeline import describe, run_pipeline

    with _first_of_launch(options) as first, ends_when_asked(), run_log(shown_command()):
        if first:
            say(describe(run_pipeline(data, out, options, "plan", replan), explain).rstrip("\n"))
            say(f"plan: {out / 'plan.json'}")


def demo(out: Path, time: float) -> None:
    """Make a small synthetic 3-D data set in OUT/data and run everything on it."""
    from ..datasets.synthetic import make_whole_demo_dataset
    from ..schema.options import RunOptions
    from ..workflow.pipeline import run_pipeline

    if not (out / "data").exists():
        make_whole_demo_dataset(out / "data")
    with ends_when_asked(), run_log(shown_command()):
        report = run_pipeline(out / "data", out, RunOptions(seconds=time)).written
        show_dice(out)
        say(f"report: {report}")


def check(data: Path, fix: bool, out: Path | None, json: bool, options: RunOptions) -> None:
    """Show what was understood of the data and every defect at once; exit code 1 if any is fatal."""
    from ..workflow.dataset_stage import check_data, fix_data, has_fatal, result_lines
    from ..workflow.defaults import require_files

    if fix != (out is not None):
        raise UsageError("--fix and --out go together", "Give --out NEW, the folder that repaired data are written to")
    require_files(options.data)
    found = fix_data(data, options.data, out) if out else check_data(data, options.data)
    typer.echo(json_format.dumps(found.model_dump(mode="json"), indent=1) if json else "\n".join(result_lines(found)))
    if has_fatal(found):
        raise typer.Exit(1)


def shown_command() -> str:
    """As it was given, quoted for a POSIX shell."""
    return shlex.join(["autounet", *sys.argv[1:]])


def say(text: str) -> None:
    """A result, on standard output and in the log of the run."""
    typer.echo(text)
    keep_line(text)


def show_dice(out: Path) -> None:
    """The Dice per class; nothing when all cases were trained on."""
    from ..schema.metrics import Metrics
    from ..schema.quantities import format_number
    from ..store.run_folder import RunFolder

    if not RunFolder(out).metrics.exists():
        return
    metrics = Metrics.load(RunFolder(out).metrics)
    for name, values in metrics.per_class.items():
        say(f"Dice {name}: {format_number(values.dice)}")
        if values.ap50 is not None:
            say(
                f"objects {name}: AP50 {format_number(values.ap50)}, panoptic quality "
                f"{format_number(values.panoptic_quality)}, error of the count {format_number(values.count_error)}"
            )
    mean = f"{format_number(metrics.mean_dice)}{shown_interval(metrics.mean_dice_interval)}"
    say(f"mean Dice: {mean} over {len(metrics.cases)} out-of-fold cases")


def show_advice(out: Path) -> None:
    """What the record says could be tried next, a line each."""
    from ..report.advice import find_advice
    from ..report.output_records import read_output_records

    for each in find_advice(read_output_records(out)):
        say(f"to try next: {each}")


def shown_interval(interval: tuple[float, float] | None) -> str:
    """Empty without one."""
    return f" (95 % interval {interval[0]:.4f} to {interval[1]:.4f})" if interval else ""


def predict(
    model: Path,
    input_: Path,
    configuration: str | None,
    folds: tuple[int, ...] | None,
    no_mirror: bool,
    overlap: float | None,
    prune: int | None,
    average: Average | None,
    no_postprocessing: bool,
    device: str,
    executor: str | None,
    out: Path,
    format_: str | None,
    probabilities: bool,
    uncertainty: bool,
    gate_maps: bool,
    overwrite: bool,
    force: bool,
) -> None:
    """Segment new images with the ensemble of folds, in their own geometry; exit code 1 if an image could not be."""
    from functools import partial

    from ..prediction.folder import OutputOptions
    from ..prediction.predictor import Predictor
    from ..workflow.shards import predict_on

    load = partial(
        Predictor, model.absolute(), configuration=configuration, folds=folds, mirror=not no_mirror, overlap=overlap,
        prune=prune, average=average, postprocess=not no_postprocessing,
    )  # fmt: skip
    outputs = OutputOptions(format_, probabilities, uncertainty, gate_maps)
    failures = predict_on(device, executor, load, input_, out, outputs, overwrite, force).failures
    for failure in failures:
        typer.echo(f"not predicted: {failure}", err=True)
    typer.echo(f"predictions: {out}")
    if failures:
        raise typer.Exit(1)


def ensemble(
    folders: list[Path],
    average: Average | None,
    weights: tuple[float, ...] | None,
    out: Path,
    probabilities: bool,
) -> None:
    """Average the probabilities that several models predicted for the same images, matching classes by name."""
    from ..prediction import ensemble as averaging

    cases = averaging.ensemble(folders, out, weights, average or "probabilities", probabilities)
    typer.echo(f"predictions: {out}, {len(cases)} cases by {len(folders)} models")


def submit(model: Path, input_: Path, device: str, out: Path, template: str, force: bool) -> None:
    """Segment test images, check each result, and write the zip file that a challenge takes."""
    from ..api import load
    from ..prediction.submission import submit as write

    submission = write(load(model, device=device), input_, out, template, force)
    typer.echo(f"submission: {out} with {len(submission.files)} cases, sha256 {submission.sha256}")


def evaluate(predictions: Path, references: Path, model: Path | None, out: Path | None, options: RunOptions) -> None:
    """Compare segmentations with references, paired by name."""
    from .. import api
    from ..schema.errors import OptionError
    from ..schema.metrics import DEFAULT_METRICS
    from ..schema.quantities import format_number
    from ..schema.record import require_folder
    from ..workers import available_cores

    if patterns := options.data.class_patterns:
        raise OptionError(
            f"--class gives {', '.join(patterns)} a pattern", "Give values of the label files: NAME=VALUE"
        )
    if out and out.is_dir():
        raise OptionError(f"--out {out} is a folder", f"Give a file, for example {out / 'metrics.json'}")
    if out:
        require_folder(out.absolute().parent)
    found = api.evaluate(
        predictions,
        references,
        options.data.class_values,
        model,
        available_cores(),
        metrics=options.metrics or DEFAULT_METRICS,
        regions=options.data.regions,
        objects=options.data.objects,
    )
    if out:
        found.save(out)
    for name, values in found.per_class.items():
        shown = values.model_dump(exclude={"undefined"})
        typer.echo(f"{name}: " + ", ".join(f"{metric} {format_number(value)}" for metric, value in shown.items()))
    typer.echo(f"mean Dice: {format_number(found.mean_dice)}{shown_interval(found.mean_dice_interval)}")


def import_(source: Path, configuration: list[str] | None, out: Path) -> None:
    """Make a model of AutoUNet from one that nnU-Net trained; it predicts what nnU-Net predicts."""
    from ..interop.import_nnunet import import_model

    bundle = import_model(source, out, configuration)
    typer.echo(f"configurations: {', '.join(bundle.configurations)}, {len(bundle.members)} networks")
    typer.echo(f"model: {out}")


def _require_of_format(format_: str, given: Mapping[str, tuple[object, tuple[str, ...]]]) -> None:
    """`given`: option -> its value and the formats that have it. Raises UsageError for those of another format."""

    for option, (value, formats) in given.items():
        if value and format_ not in formats:
            raise UsageError(
                f"{option} is an option of --format {', '.join(formats)}, not {format_}", "Leave one of the two out"
            )


def export(
    model: Path,
    configuration: str | None,
    folds: tuple[int, ...] | None,
    out: Path,
    format_: str,
    dataset: str | None,
    sockets: tuple[str, ...] | None,
    output_socket: str | None,
    memory: int | None,
    licence: str | None,
) -> None:
    """Write a model as one file to give away, as a model of nnU-Net, as a bundle of MONAI, as an algorithm of
    grand-challenge.org, or its networks for programs without autounet."""
    _require_of_format(
        format_,
        {
            "--dataset": (dataset, ("nnunet",)),
            "--sockets": (sockets, ("grand-challenge",)),
            "--output-socket": (output_socket, ("grand-challenge",)),
            "--memory": (memory, ("grand-challenge",)),
            "--licence": (licence, ("bundle",)),
            "--configuration": (configuration, ("nnunet", "monai", "onnx", "torch")),
            "--folds": (folds, ("nnunet", "monai", "onnx", "torch")),
        },
    )
    if format_ == "bundle":
        from ..inference.bundle import export_bundle

        card = export_bundle(model, out, licence)
        lines = [f"exported: {out}, licence: {card.licence}"]
    elif format_ == "grand-challenge":
        lines = _export_grand_challenge(model, out, sockets, output_socket, memory)
    elif format_ == "nnunet":
        from ..interop.export_nnunet import export_nnunet

        written = export_nnunet(model, out, configuration, folds, dataset)
        lines = _exported(written.differences, ", ".join(map(str, written.paths)), written.commands)
    elif format_ == "monai":
        from ..interop.export_monai import export_monai

        made = export_monai(model, out, configuration, folds)
        lines = _exported(made.differences, str(made.path), [made.command])
    else:
        lines = _export_networks(model, out, format_, configuration, folds)
    typer.echo("\n".join(lines))


def _exported(differences: Sequence[str], what: str, commands: Sequence[str]) -> list[str]:
    """What is printed of a model for another program."""
    return [*(f"differs from autounet predict: {each}" for each in differences), f"exported: {what}", *commands]


def _export_grand_challenge(
    model: Path, out: Path, sockets: tuple[str, ...] | None, output_socket: str | None, memory: int | None
) -> list[str]:
    from ..prediction.grand_challenge_folder import export_grand_challenge

    folder, interface = export_grand_challenge(model, out, sockets, output_socket, memory)
    tried = f"try it with a case in {folder / 'test' / 'input'}: {folder / 'test.sh'}; then {folder / 'save.sh'}"
    return [f"reads {', '.join(interface.inputs)}; writes {interface.output}", f"exported: {folder}", tried]


def _export_networks(
    model: Path, out: Path, format_: str, configuration: str | None, folds: tuple[int, ...] | None
) -> list[str]:
    from ..interop.export_networks import export_model

    exported = export_model(model, out, format_, configuration, folds)
    networks = [network for found in exported.configurations.values() for network in found.networks]
    shown = [f"{each.largest_difference:.1e} at logits up to {each.largest_logit:.1f}" for each in networks]
    lines = [f"{each.path}: largest difference from torch {text}" for each, text in zip(networks, shown, strict=True)]
    return [*lines, f"exported: {out}"]

"""The commands about a packed model: predicting, submitting, evaluating, and exchange with other programs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from .command_options import add_command
from .data_commands import shown_interval

if TYPE_CHECKING:
    from ..schema.options import RunOptions
    from ..schema.plan import Average


def add_model_commands(app: typer.Typer) -> None:
    for command in (predict, ensemble, submit, evaluate, export):
        add_command(app, command.__name__, command)
    add_command(app, "import", import_)


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
    out: Path,
    format_: str | None,
    probabilities: bool,
    uncertainty: bool,
    gate_maps: bool,
    overwrite: bool,
) -> None:
    """Segment new images with the ensemble of folds, in their own geometry; exit code 1 if an image could not be."""
    from functools import partial

    from ..api import load
    from ..ops.device import choose_devices
    from ..prediction.folder import OutputOptions
    from ..prediction.several_devices import predict_on

    loading = partial(
        load, model, configuration=configuration, folds=folds, mirror=not no_mirror, overlap=overlap,
        prune=prune, average=average, postprocess=not no_postprocessing,
    )  # fmt: skip
    outputs = OutputOptions(format_, probabilities, uncertainty, gate_maps)
    failures = predict_on(choose_devices(device), loading, input_, out, outputs, overwrite).failures
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


def submit(model: Path, input_: Path, device: str, out: Path, template: str) -> None:
    """Segment test images, check each result, and write the zip file that a challenge takes."""
    from ..api import load
    from ..prediction.submission import submit as write

    submission = write(load(model, device=device), input_, out, template)
    typer.echo(f"submission: {out} with {len(submission.files)} cases, sha256 {submission.sha256}")


def evaluate(predictions: Path, references: Path, model: Path | None, out: Path | None, options: RunOptions) -> None:
    """Compare segmentations with references, paired by name."""
    from .. import api
    from ..schema.errors import OptionError
    from ..schema.metrics import DEFAULT_METRICS
    from ..schema.quantities import format_number
    from ..schema.record import require_folder
    from ..workers import available_cores

    if out and out.is_dir():
        raise OptionError(f"--out {out} is a folder", f"Give a file, for example {out / 'metrics.json'}")
    if out:
        require_folder(out.absolute().parent)
    found = api.evaluate(
        predictions,
        references,
        options.data.classes,
        model,
        available_cores(),
        metrics=options.metrics or DEFAULT_METRICS,
        regions=options.data.regions,
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


def export(
    model: Path,
    configuration: str | None,
    folds: tuple[int, ...] | None,
    out: Path,
    format_: str,
    licence: str | None,
) -> None:
    """Write a model as one file to give away, or its networks for programs without autounet, checked against torch."""
    from ..schema.errors import UsageError

    if format_ == "bundle":
        if configuration or folds:
            raise UsageError(
                "--configuration and --folds are for networks alone", "Leave them out with --format bundle"
            )
        from ..inference.bundle import export_bundle

        card = export_bundle(model, out, licence)
        typer.echo(f"exported: {out}, licence: {card.licence}")
        return
    if licence:
        raise UsageError("--licence is written into the model card of --format bundle", "Leave it out")
    from ..interop.export_networks import export_model

    exported = export_model(model, out, format_, configuration, folds)
    for each in (network for found in exported.configurations.values() for network in found.networks):
        shown = f"{each.largest_difference:.1e} at logits up to {each.largest_logit:.1f}"
        typer.echo(f"{each.path}: largest difference from torch {shown}")
    typer.echo(f"exported: {out}")

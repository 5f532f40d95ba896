"""The commands about a packed model: predicting, submitting, evaluating, and exchange with other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from autounet import cli_options as option
from autounet.cli_options import File, Text
from autounet.cli_stages import shown_interval


def add_model_commands(app: typer.Typer) -> None:
    for command in (predict, submit, evaluate, export):
        app.command()(command)
    app.command("import")(import_)


def predict(
    model: Annotated[Path, typer.Argument(help="A packed model: OUT/model")],
    input_: Annotated[Path, typer.Argument(metavar="INPUT", help="An image or a folder of images")],
    out: Annotated[Path, typer.Option(help="Folder for the segmentations")],
    configuration: Annotated[Text, typer.Option(help="One configuration instead of the selected ones")] = None,
    folds: Annotated[Text, typer.Option(help="Fold indices, for example 0,1; default all")] = None,
    no_mirror: Annotated[bool, typer.Option("--no-mirror", help="No mirrored views")] = False,
    overlap: option.Overlap = None,
    prune: option.Prune = None,
    gate_maps: option.GateMaps = False,
    probabilities: option.Probabilities = False,
    uncertainty: option.Uncertainty = False,
    average: option.Average = None,
    no_postprocessing: option.NoPostprocessing = False,
    format_: Annotated[Text, typer.Option("--format", help="dicom-seg: DICOM objects, where INPUT is DICOM")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps")] = "auto",
) -> None:
    """Segment new images with the ensemble of folds, in their own geometry; exit 1 if an image could not be."""
    from autounet.api import load
    from autounet.running.parsing import averaged, integers

    chosen = None if folds in (None, "all") else integers(str(folds), "--folds")
    predictor = load(
        model, device=device, configuration=configuration, folds=chosen, mirror=not no_mirror, overlap=overlap,
        prune=prune, average=averaged(average), postprocess=not no_postprocessing,
    )  # fmt: skip
    failures = predictor.predict_files(
        input_, out, gate_maps=gate_maps, form=format_, probabilities=probabilities, uncertainty=uncertainty
    )
    for failure in failures:
        typer.echo(f"not predicted: {failure}", err=True)
    typer.echo(f"predictions: {out}")
    if failures:
        raise typer.Exit(1)


def submit(
    model: Annotated[Path, typer.Argument(help="A packed model: OUT/model")],
    input_: Annotated[Path, typer.Argument(metavar="INPUT", help="A folder of test images")],
    out: Annotated[Path, typer.Option(help="The zip; its manifest is written beside it")],
    template: option.Template = "files",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps")] = "auto",
) -> None:
    """Segment test images, check each result, and write the zip that a challenge takes."""
    from autounet.api import load
    from autounet.running.submission import submit as write

    submission = write(load(model, device=device), input_, out, template)
    typer.echo(f"submission: {out} with {len(submission.files)} cases, sha256 {submission.sha256}")


def evaluate(
    predictions: Annotated[Path, typer.Argument(help="Predicted label images")],
    references: Annotated[Path, typer.Argument(help="Reference label images")],
    out: Annotated[File, typer.Option(help="Write metrics.json here")] = None,
    class_: option.Class = None,
    model: Annotated[File, typer.Option(help="Take the classes from this model")] = None,
    metrics: option.Metrics = None,
) -> None:
    """Compare segmentations with references, paired by name."""
    from autounet import api
    from autounet.running.parsing import classes
    from autounet.schema.quantities import format_number
    from autounet.workers import available_cores

    wanted = (metrics or "default").split(",")
    found = api.evaluate(predictions, references, classes(class_), model, available_cores(), metrics=wanted)
    if out:
        found.save(out)
    for name, values in found.per_class.items():
        shown = values.model_dump(exclude={"undefined"})
        typer.echo(f"{name}: " + ", ".join(f"{metric} {format_number(value)}" for metric, value in shown.items()))
    typer.echo(f"mean Dice: {format_number(found.mean_dice)}{shown_interval(found.mean_dice_interval)}")


def import_(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="Folder of a trained nnU-Net v2 model, or its zip")],
    out: Annotated[Path, typer.Option(help="Folder for the model")],
    configuration: Annotated[Text, typer.Option(help="Which of several, for example 2d or 2d,3d_fullres")] = None,
) -> None:
    """Make a model of ours from one that nnU-Net trained; it predicts what nnU-Net predicts."""
    from autounet.interop.nnunet import import_model

    bundle = import_model(source, out, configuration.split(",") if configuration else None)
    typer.echo(f"configurations: {', '.join(bundle.configurations)}, {len(bundle.members)} networks")
    typer.echo(f"model: {out}")


def export(
    model: Annotated[Path, typer.Argument(help="A packed model: OUT/model")],
    format_: Annotated[str, typer.Option("--format", help="onnx (needs the extra onnx) or torch (torch.export)")],
    out: Annotated[Path, typer.Option(help="New folder for the networks and preprocessing.json")],
    configuration: Annotated[Text, typer.Option(help="One configuration instead of the selected ones")] = None,
    folds: Annotated[Text, typer.Option(help="Fold indices, for example 0,1; default all")] = None,
) -> None:
    """Write a model's networks for programs without autounet, each checked against torch."""
    from autounet.interop.exporting import export_model
    from autounet.running.parsing import integers

    chosen = None if folds in (None, "all") else integers(str(folds), "--folds")
    exported = export_model(model, out, format_, configuration, chosen)
    for each in (network for found in exported.configurations.values() for network in found.networks):
        shown = f"{each.largest_difference:.1e} at logits up to {each.largest_logit:.1f}"
        typer.echo(f"{each.path}: largest difference from torch {shown}")
    typer.echo(f"exported: {out}")

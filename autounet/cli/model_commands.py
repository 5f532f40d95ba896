"""The commands about a packed model: predicting, submitting, evaluating, and exchange with other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import options as option
from .data_commands import shown_interval
from .options import File, Text


def add_model_commands(app: typer.Typer) -> None:
    for command in (predict, ensemble, submit, evaluate, export):
        app.command()(command)
    app.command("import")(import_)


def predict(
    model: option.Model,
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
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Also predict what is predicted already")] = False,
    device: Annotated[
        str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps; several share the cases: cuda:0,cuda:1 or cuda:all")
    ] = "auto",
) -> None:
    """Segment new images with the ensemble of folds, in their own geometry; exit 1 if an image could not be."""
    from functools import partial

    from ..api import load
    from ..ops.device import choose_devices
    from ..prediction.folder import OutputOptions
    from ..prediction.several_devices import predict_on
    from ..workflow.parsing import averaged, integers

    chosen = None if folds in (None, "all") else integers(str(folds), "--folds")
    loading = partial(
        load, model, configuration=configuration, folds=chosen, mirror=not no_mirror, overlap=overlap,
        prune=prune, average=averaged(average), postprocess=not no_postprocessing,
    )  # fmt: skip
    outputs = OutputOptions(format_, probabilities, uncertainty, gate_maps)
    failures = predict_on(choose_devices(device), loading, input_, out, outputs, overwrite).failures
    for failure in failures:
        typer.echo(f"not predicted: {failure}", err=True)
    typer.echo(f"predictions: {out}")
    if failures:
        raise typer.Exit(1)


def ensemble(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR DIR...", help="What predict --probabilities wrote")],
    out: Annotated[Path, typer.Option(help="Folder for the segmentations")],
    weights: Annotated[Text, typer.Option(help="One number a folder, for example 0.7,0.3; default equal")] = None,
    average: option.Average = None,
    probabilities: option.Probabilities = False,
) -> None:
    """Average the probabilities that several models have written of the same images, matching classes by name."""
    from ..prediction import ensemble as averaging
    from ..workflow import parsing

    cases = averaging.ensemble(
        folders, out, parsing.weights(weights), parsing.averaged(average) or "probabilities", probabilities
    )
    typer.echo(f"predictions: {out}, {len(cases)} cases by {len(folders)} models")


def submit(
    model: option.Model,
    input_: Annotated[Path, typer.Argument(metavar="INPUT", help="A folder of test images")],
    out: Annotated[Path, typer.Option(help="The zip; its manifest is written beside it")],
    template: option.Template = "files",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps")] = "auto",
) -> None:
    """Segment test images, check each result, and write the zip that a challenge takes."""
    from ..api import load
    from ..prediction.submission import submit as write

    submission = write(load(model, device=device), input_, out, template)
    typer.echo(f"submission: {out} with {len(submission.files)} cases, sha256 {submission.sha256}")


def evaluate(
    predictions: Annotated[Path, typer.Argument(help="Predicted label images")],
    references: Annotated[Path, typer.Argument(help="Reference label images")],
    out: Annotated[File, typer.Option(help="Write metrics.json here")] = None,
    class_: option.Class = None,
    region: option.Region = None,
    model: Annotated[File, typer.Option(help="Take the classes and regions from this model")] = None,
    metrics: option.Metrics = None,
) -> None:
    """Compare segmentations with references, paired by name."""
    from .. import api
    from ..schema.quantities import format_number
    from ..workers import available_cores
    from ..workflow.parsing import classes, regions

    wanted = (metrics or "default").split(",")
    found = api.evaluate(
        predictions, references, classes(class_), model, available_cores(), metrics=wanted, regions=regions(region)
    )
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
    from ..interop.import_nnunet import import_model

    bundle = import_model(source, out, configuration.split(",") if configuration else None)
    typer.echo(f"configurations: {', '.join(bundle.configurations)}, {len(bundle.members)} networks")
    typer.echo(f"model: {out}")


def export(
    model: option.Model,
    format_: Annotated[
        str, typer.Option("--format", help="bundle, onnx (needs the extra onnx) or torch (torch.export)")
    ],
    out: Annotated[Path, typer.Option(help="bundle: a new file .autounet, or a folder; else a new folder")],
    configuration: Annotated[Text, typer.Option(help="One configuration instead of the selected ones")] = None,
    folds: Annotated[Text, typer.Option(help="Fold indices, for example 0,1; default all")] = None,
    licence: Annotated[Text, typer.Option(help="bundle: licence of the weights, for the model card")] = None,
) -> None:
    """Write a model as one file to give away, or its networks for programs without autounet, checked against torch."""
    from ..schema.errors import OptionError
    from ..workflow.parsing import integers

    if format_ == "bundle":
        if configuration or folds:
            raise OptionError("--configuration and --folds are for networks alone. Leave them out with --format bundle")
        from ..inference.bundle import export_bundle

        card = export_bundle(model, out, licence)
        typer.echo(f"exported: {out}, licence: {card.licence}")
        return
    if licence:
        raise OptionError("--licence is written into the card of --format bundle. Leave it out")
    from ..interop.export_networks import export_model

    chosen = None if folds in (None, "all") else integers(str(folds), "--folds")
    exported = export_model(model, out, format_, configuration, chosen)
    for each in (network for found in exported.configurations.values() for network in found.networks):
        shown = f"{each.largest_difference:.1e} at logits up to {each.largest_logit:.1f}"
        typer.echo(f"{each.path}: largest difference from torch {shown}")
    typer.echo(f"exported: {out}")

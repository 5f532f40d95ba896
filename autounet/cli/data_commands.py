"""The commands with DATA and the options of `run`: each does everything up to and including one stage."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from .options import (
    Channel,
    Class,
    Configurations,
    Data,
    Family,
    Frames,
    Group,
    Ignore,
    Init,
    Kind,
    Label,
    Loss,
    Metrics,
    MissingChannels,
    Out,
    Palette,
    Preset,
    Pretrained,
    Region,
    Splits,
    Switch,
    Text,
    Track,
    Whole,
)

SPECIAL = frozenset({"explain"})
"""options that not every command with DATA has"""


def add_stages(app: typer.Typer) -> None:
    """`run`, and one command for each stage up to which it can go."""
    for name, stage, text in (
        ("run", "report", "Everything: fingerprint, plan, preprocess, train, validate, select, pack, report."),
        ("fingerprint", "fingerprint", "Read, check and split the data."),
        ("preprocess", "preprocess", "Everything up to the prepared cases."),
        ("train", "train", "Everything up to trained and validated folds."),
        ("select", "select", "Everything up to the selected and packed model."),
        ("report", "report", "Everything up to the report."),
    ):
        _data_command(app, name, text, _until(stage))
    _data_command(app, "plan", "Everything up to the plan, and how long the run takes.", _plan, frozenset({"explain"}))


def _data_command(
    app: typer.Typer, name: str, text: str, action: Callable[..., None], only: frozenset[str] = frozenset()
) -> None:
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
        pretrained: Pretrained = None,
        init: Init = None,
        metrics: Metrics = None,
        track: Track = None,
        channel: Channel = None,
        kind: Kind = None,
        label: Label = None,
        class_: Class = None,
        region: Region = None,
        ignore: Ignore = None,
        group: Group = None,
        splits: Splits = None,
        palette: Palette = None,
        frames: Frames = None,
        missing_channels: MissingChannels = False,
        replan: Annotated[bool, typer.Option("--replan", help="Make a new plan although one is there")] = False,
        explain: Annotated[bool, typer.Option("--explain", help="What limits each configuration")] = False,
    ) -> None:
        given = dict(locals())
        special = {each: given.pop(each) for each in SPECIAL}
        from ..workflow.parsing import run_options

        action(data, out, run_options(given), replan, **{each: special[each] for each in only})

    command.__doc__ = text
    signature = inspect.signature(command, eval_str=True)
    shown = [each for key, each in signature.parameters.items() if key not in SPECIAL - only]
    command.__signature__ = signature.replace(parameters=shown)  # type: ignore[attr-defined]
    app.command(name)(command)


def _until(stage: str) -> Callable[[Path, Path, Any, bool], None]:
    def action(data: Path, out: Path, options: Any, replan: bool) -> None:
        from ..workflow.pipeline import run_pipeline

        path = run_pipeline(data, out, options, stage, replan).written
        if stage in ("select", "report"):
            show_dice(out)
        typer.echo(f"{stage}: {path}")

    return action


def _plan(data: Path, out: Path, options: Any, replan: bool, explain: bool) -> None:
    from ..workflow.pipeline import describe, run_pipeline

    typer.echo(describe(run_pipeline(data, out, options, "plan", replan), explain), nl=False)
    typer.echo(f"plan: {out / 'plan.json'}")


def show_dice(out: Path) -> None:
    """The Dice per class; nothing when all cases were trained on."""
    from ..schema.metrics import Metrics
    from ..schema.quantities import format_number

    if not (out / "metrics.json").exists():
        return
    metrics = Metrics.load(out / "metrics.json")
    for name, values in metrics.per_class.items():
        typer.echo(f"Dice {name}: {format_number(values.dice)}")
    mean = f"{format_number(metrics.mean_dice)}{shown_interval(metrics.mean_dice_interval)}"
    typer.echo(f"mean Dice: {mean} over {len(metrics.cases)} out-of-fold cases")


def shown_interval(interval: tuple[float, float] | None) -> str:
    """Empty without one."""
    return f" (95 % interval {interval[0]:.4f} to {interval[1]:.4f})" if interval else ""

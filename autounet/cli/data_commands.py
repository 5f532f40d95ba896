"""The commands with DATA: `run`, one command for each stage up to which it can go, `check`, and `demo`."""

from __future__ import annotations

import json as json_format
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from ..schema.option_table import RUN_COMMANDS
from .command_options import add_command

if TYPE_CHECKING:
    from ..schema.options import RunOptions


def add_data_commands(app: typer.Typer) -> None:
    for name, text in RUN_COMMANDS.items():
        add_command(app, name, plan if name == "plan" else _until("report" if name == "run" else name), text)
    add_command(app, "demo", demo)
    add_command(app, "check", check)


def _until(stage: str) -> Callable[..., None]:
    """What a command does that goes up to and including a stage."""

    def action(data: Path, out: Path, replan: bool, options: RunOptions) -> None:
        from ..workflow.pipeline import run_pipeline

        path = run_pipeline(data, out, options, stage, replan).written
        if stage in ("select", "report"):
            show_dice(out)
        typer.echo(f"{stage}: {path}")

    return action


def plan(data: Path, out: Path, replan: bool, explain: bool, options: RunOptions) -> None:
    from ..workflow.pipeline import describe, run_pipeline

    typer.echo(describe(run_pipeline(data, out, options, "plan", replan), explain), nl=False)
    typer.echo(f"plan: {out / 'plan.json'}")


def demo(out: Path, time: float) -> None:
    """Make a small synthetic 3-D data set in OUT/data and run everything on it."""
    from ..datasets.synthetic import make_demo_dataset
    from ..schema.options import RunOptions
    from ..schema.record import new_folder
    from ..workflow.pipeline import run_pipeline

    if not (out / "data").exists():  # made under another name first: an interruption leaves no half of it
        made = new_folder(out / "data")
        try:
            make_demo_dataset(made).rename(out / "data")
        except BaseException:
            shutil.rmtree(made, ignore_errors=True)
            raise
    report = run_pipeline(out / "data", out, RunOptions(seconds=time)).written
    show_dice(out)
    typer.echo(f"report: {report}")


def check(data: Path, fix: bool, out: Path | None, json: bool, options: RunOptions) -> None:
    """Show what was understood of the data and every defect at once; exit code 1 if any is fatal."""
    from ..schema.errors import UsageError
    from ..workflow.dataset_stage import check_data, fix_data, has_fatal, result_lines
    from ..workflow.defaults import require_files

    if fix != (out is not None):
        raise UsageError("--fix and --out go together", "Give --out NEW, the folder that repaired data are written to")
    require_files(options.data)
    found = fix_data(data, options.data, out) if out else check_data(data, options.data)
    typer.echo(json_format.dumps(found.model_dump(mode="json"), indent=1) if json else "\n".join(result_lines(found)))
    if has_fatal(found):
        raise typer.Exit(1)


def show_dice(out: Path) -> None:
    """The Dice per class; nothing when all cases were trained on."""
    from ..schema.metrics import Metrics
    from ..schema.quantities import format_number
    from ..store.run_folder import RunFolder

    if not RunFolder(out).metrics.exists():
        return
    metrics = Metrics.load(RunFolder(out).metrics)
    for name, values in metrics.per_class.items():
        typer.echo(f"Dice {name}: {format_number(values.dice)}")
    mean = f"{format_number(metrics.mean_dice)}{shown_interval(metrics.mean_dice_interval)}"
    typer.echo(f"mean Dice: {mean} over {len(metrics.cases)} out-of-fold cases")


def shown_interval(interval: tuple[float, float] | None) -> str:
    """Empty without one."""
    return f" (95 % interval {interval[0]:.4f} to {interval[1]:.4f})" if interval else ""

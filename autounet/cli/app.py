"""The command line. Options are read here and nothing is decided here."""

from __future__ import annotations

import json
import logging
import shutil
import sys
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Annotated

import typer

from ..schema.errors import AutoUNetError
from ..workers import wait_politely
from . import options as option
from .data_commands import add_stages, show_dice
from .model_commands import add_model_commands
from .options import Data, File, Json

app = typer.Typer(
    help="Self-configuring U-Nets: from a folder of images and labels to a cross-validated, ensembled model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
add_stages(app)
LOST_WORKER = "DataLoader worker (pid"
"""how torch's message begins when a process that makes batches was killed; one that failed has its own error raised"""


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Output folder")] = Path("demo-output"),
    time: Annotated[str, typer.Option(help="Time for the whole run")] = "3m",
) -> None:
    """Make a small synthetic 3-D data set in OUT/data and run everything on it."""
    from ..datasets.synthetic import make_demo_dataset
    from ..schema.options import RunOptions
    from ..schema.quantities import parse_time
    from ..workflow.pipeline import run_pipeline

    if not (out / "data").exists():  # made under another name first: an interruption leaves no half of it
        shutil.rmtree(out / ".data", ignore_errors=True)
        make_demo_dataset(out / ".data").rename(out / "data")
    report = run_pipeline(out / "data", out, RunOptions(seconds=parse_time(time))).written
    show_dice(out)
    typer.echo(f"report: {report}")


@app.command()
def calibrate(
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps")] = "auto",
) -> None:
    """Measure how much more memory a device takes than tracing says; later plans on it reckon with that."""
    from ..schema.quantities import format_size
    from ..workflow.memory_calibration import calibrate as measure

    margin, path = measure(device)
    typer.echo(f"margin: {format_size(margin.bytes)} and {margin.fraction:.1%} of what is traced")
    typer.echo(f"calibration: {path}")


@app.command()
def check(
    data: Data,
    json_: Json = False,
    fix: Annotated[bool, typer.Option("--fix", help="Repair what can be repaired into the new folder --out")] = False,
    out: Annotated[File, typer.Option(help="With --fix: the new folder")] = None,
    channel: option.Channel = None,
    kind: option.Kind = None,
    label: option.Label = None,
    class_: option.Class = None,
    region: option.Region = None,
    ignore: option.Ignore = None,
    group: option.Group = None,
    splits: option.Splits = None,
    palette: option.Palette = None,
    frames: option.Frames = None,
    missing_channels: option.MissingChannels = False,
) -> None:
    """Say what was understood and every defect at once; exit 1 if any is fatal."""
    given = dict(locals())
    from ..schema.errors import OptionError
    from ..workflow import dataset_stage as finding_lines
    from ..workflow.dataset_stage import check_data, fix_data
    from ..workflow.parsing import data_options

    if fix != (out is not None):
        raise OptionError("--fix and --out go together: --out NEW is the folder that repaired data are written to")
    found = fix_data(data, data_options(given), out) if out else check_data(data, data_options(given))
    typer.echo(json.dumps(found.model_dump(mode="json"), indent=1) if json_ else "\n".join(finding_lines.told(found)))
    if finding_lines.is_fatal(found):
        raise typer.Exit(1)


@app.command()
def status(
    out: Annotated[Path, typer.Argument(help="Output folder of a run")],
    json_: Json = False,
    watch: Annotated[bool, typer.Option("--watch", help="Look again every 5 seconds for as long as it runs")] = False,
) -> None:
    """What is done, what runs, time left."""
    from ..workflow import status as run_status
    from ..workflow.read_status import read_status

    statuses = run_status.watch(read_status, out) if watch else iter([read_status(out)])
    if not json_:
        run_status.show(statuses)
        return
    for each in statuses:
        typer.echo(json.dumps(each.model_dump(mode="json"), indent=None if watch else 1))


@app.command()
def compare(
    out: Annotated[Path, typer.Argument(help="Output folder of a run")],
    other: Annotated[File, typer.Option("--with", help="Another output folder, or a metrics.json: paired test")] = None,
    metric: Annotated[str, typer.Option(help="With --with: the metric that is tested")] = "dice",
    test: Annotated[
        File, typer.Option(metavar="METRICS", help="metrics.json of the public test set, from autounet evaluate --out")
    ] = None,
    json_: Json = False,
) -> None:
    """This run's cross-validation beside published results with their sources, or beside another run."""
    from ..report import comparison as comparing
    from ..schema.errors import OptionError

    if test and other:
        raise OptionError("--test sets published results beside test metrics, --with another run. Give one of them")

    if other:
        found = comparing.compare_runs(out, other, metric)
        told = comparing.difference_lines(found, metric)
        record = {"metric": metric, "classes": [each.model_dump(mode="json") for each in found]}
    else:
        comparison = comparing.compare_with_published(out, test)
        told, record = comparing.published_lines(comparison), comparison.model_dump(mode="json")
    typer.echo(json.dumps(record, indent=1) if json_ else "\n".join(told))


add_model_commands(app)


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
        from .. import __version__

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
    except RuntimeError as error:
        if not (isinstance(error, BrokenProcessPool) or str(error).startswith(LOST_WORKER)):
            raise
        remedy = "If memory ran out, give fewer --workers; the same command continues where it was"
        typer.echo(f"Error: a process beside this one was killed: {error}. {remedy}", err=True)
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

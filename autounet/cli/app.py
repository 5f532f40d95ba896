"""The command line: all commands together, and how errors end. Options are read here and nothing is decided here."""

from __future__ import annotations

import json as json_format
import logging
import os
import signal
import sys
from io import TextIOWrapper
from pathlib import Path
from typing import Any

import typer

from ..schema.disk import disk_problem
from ..schema.errors import AutoUNetError, OutOfMemory, UsageError, lost_worker
from ..schema.names import printable
from ..system_memory import is_out_of_memory
from ..workers import wait_politely
from .command_options import add_command, root_signature, show_messages
from .commands import add_data_commands, add_model_commands


def status(out: list[Path], json: bool, watch: bool) -> None:
    """Show what is done, what runs, and the time left; of several runs one line each."""
    from ..workflow import status as run_status
    from ..workflow.read_status import read_status

    def read(folder: Path) -> run_status.Reading:
        """Of several folders one that is no run's keeps back nothing of the others."""
        try:
            return read_status(folder)
        except AutoUNetError as error:
            if len(out) == 1:
                raise
            return error

    def told(found: list[run_status.Reading]) -> list[str]:
        failed.extend(str(each) for each in found if isinstance(each, AutoUNetError))
        if not json:
            return run_status.shown_lines(out, found)
        records = [
            {"error": str(each)} if isinstance(each, AutoUNetError) else each.model_dump(mode="json") for each in found
        ]
        several = [{"out": str(folder), **record} for folder, record in zip(out, records, strict=True)]
        return [json_format.dumps(records[0] if len(out) == 1 else several, indent=None if watch else 1)]

    failed: list[str] = []
    texts = map(told, run_status.watch(read, out) if watch else iter([[read(each) for each in out]]))
    if json:
        for (text,) in texts:
            typer.echo(text)
    else:
        run_status.show(texts)
    if failed:
        raise typer.Exit(1)


def compare(out: Path, with_: Path | None, metric: str, test: Path | None, json: bool) -> None:
    """Show this run's cross-validation beside published results with their sources, or beside another run."""
    from ..report import comparison as comparing

    if test and with_:
        raise UsageError(
            "--test compares with published results on a test set, --with with another run", "Give one of them"
        )
    if with_:
        found = comparing.compare_runs(out, with_, metric)
        lines = comparing.difference_lines(found, metric)
        record = {"metric": metric, "classes": [each.model_dump(mode="json") for each in found]}
    else:
        comparison = comparing.compare_with_published(out, test)
        lines, record = comparing.published_lines(comparison), comparison.model_dump(mode="json")
    if json:
        _show_json(record)
    else:
        typer.echo("\n".join(lines))


def calibrate(device: str) -> None:
    """Measure how much more memory a device takes than tracing predicts, so that later plans for it allow for that."""
    from ..schema.quantities import format_size
    from ..workflow.trial_steps import calibrate as measure

    margin, path = measure(device)
    typer.echo(f"margin: {format_size(margin.bytes)} and {margin.fraction:.1%} of what is traced")
    typer.echo(f"calibration: {path}")


def _show_json(content: Any, indent: int | None = 1) -> None:
    typer.echo(json_format.dumps(content, indent=indent))


def _root(version: bool, quiet: bool, verbose: bool) -> None:
    """What stands before any command."""
    show_messages(quiet, verbose)
    if version:
        from .. import __version__

        typer.echo(f"autounet {__version__}")
        raise typer.Exit


def _make_app() -> typer.Typer:
    made = typer.Typer(
        help="Self-configuring U-Nets: from a folder of images and labels to a cross-validated, ensembled model.",
        no_args_is_help=True,
        add_completion=False,
        context_settings={"help_option_names": ["-h", "--help"]},
        pretty_exceptions_enable=False,
    )
    _root.__signature__ = root_signature()  # type: ignore[attr-defined]
    made.callback(invoke_without_command=True)(_root)
    add_data_commands(made)
    for command in (calibrate, status, compare):
        add_command(made, command.__name__, command)
    add_model_commands(made)
    return made


app = _make_app()


INTERRUPTED = 128 + signal.SIGINT
"""exit code"""


def main() -> None:
    """Entry point: a user's mistake ends with its message and exit code 1, never with a traceback.

    Options that are wrong by themselves end with exit code 2, as typer's own do.
    """
    wait_politely()
    for number in filter(None, (signal.SIGTERM, getattr(signal, "SIGUSR1", None))):
        signal.signal(number, _leave)
    try:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, TextIOWrapper):  # names of files that are no text are shown, and end no command
                stream.reconfigure(errors="backslashreplace")
        app()
    except UsageError as error:
        _end(str(error), 2)
    except AutoUNetError as error:
        _end(str(error))
    except (MemoryError, RuntimeError) as error:
        if (known := _known(error)) is None:
            raise
        _end(str(known))
    except OSError as error:  # a full disk, a folder that may not be written
        _end(str(disk_problem(error)))
    except (KeyboardInterrupt, SystemExit) as ended:
        if isinstance(ended, SystemExit) and ended.code != INTERRUPTED:  # which typer makes of Ctrl-C
            raise
        typer.echo("Interrupted: the same command continues where it was.", err=True)
        sys.exit(INTERRUPTED)


def _known(error: MemoryError | RuntimeError) -> AutoUNetError | None:
    """What Python and torch say without an exception of their own: memory ran out, or a worker was lost."""
    if (lost := lost_worker(error)) is not None:
        return lost
    if not is_out_of_memory(error):
        return None
    return OutOfMemory(
        f"memory ran out{f' ({error})' if str(error) else ''}; what was done is kept",
        "Free memory, or give a smaller --memory or fewer --workers, and the same command again",
    )


def _leave(number: int, _: object) -> None:
    """Unwinds, so that nothing half written stays and no process works on."""
    name = signal.Signals(number).name  # in the middle of anything, also of something else that is printed
    os.write(2, f"Asked to end by {name}: the same command continues where it was.\n".encode())
    raise SystemExit(128 + number)


def _end(message: str, code: int = 1) -> None:
    logging.getLogger("autounet").debug("where it arose:", exc_info=True)
    typer.echo(f"Error: {printable(message)}", err=True)
    sys.exit(code)


if __name__ == "__main__":
    main()

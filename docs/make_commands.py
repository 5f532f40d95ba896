"""Writes docs/commands.md from the table of options: `python docs/make_commands.py`.

tests/test_docs.py compares the file with what this makes.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from typer.main import get_command

from autounet.cli.app import app
from autounet.cli.command_options import GENERAL, options_of
from autounet.schema.option_table import Option

PAGE = Path(__file__).with_name("commands.md")
HEAD = """\
# Commands and options

Made from the program itself by `docs/make_commands.py`. `autounet COMMAND --help` shows the same.

Every command ends with exit code 0 when all went well, 1 with a message when something is wrong with the data or
the files, or they do not fit the options ([what messages mean](errors.md)), 2 when an option is wrong by itself, before
any file is read, and 130 when it was interrupted.
Every command takes, before or after its name, `-q` or `--quiet` and `-v` or `--verbose`, and after it `-h` or
`--help` and [`--config FILE`](files.md#options-in-a-file).
Sizes are written like `8GB` or `500MB` (powers of 1024), times like `90s`, `30m`, `2h` or `1h30m`.
"""
SHARED = "run"
"""the command whose options others share"""
ONE_TABLE = 10
"""options that one table holds at most"""


def page() -> str:
    """The whole text of docs/commands.md."""
    root: Any = get_command(app)
    parts = [HEAD, "## autounet\n\n" + _table(options_of("autounet"))]
    names = [SHARED, *(name for name in root.commands if name != SHARED)]
    parts += [_section(name, root.commands[name].help) for name in names]
    return "\n".join(parts)


def own_options(command: str) -> list[Option]:
    """Without those of every command."""
    return [option for option in options_of(command) if option.parameter not in GENERAL]


def _section(command: str, text: str) -> str:
    options, shared = own_options(command), own_options(SHARED)
    needed = [
        each.metavar if _is_argument(each) else f"{each.name} {each.metavar}" for each in options if each.required
    ]
    usage = " ".join(["autounet", command, *needed, "[OPTIONS]"])
    text = f"## autounet {command}\n\n{text}\n\n    {usage}\n\n"
    if command == SHARED or not set(shared) <= set(options):
        return text + _tables(options)
    own = [each for each in options if each not in shared]
    text += f"Takes what [`autounet {SHARED}`](#autounet-{SHARED}) takes" + (", and:\n\n" if own else ".\n")
    return text + (_table(own) if own else "")


def _tables(options: Sequence[Option]) -> str:
    """One table, or where there are many options one for each panel of the help."""
    if len(options) <= ONE_TABLE:
        return _table(options)
    panels = [(panel, list(rows)) for panel, rows in groupby(options, lambda option: option.panel)]
    return "\n".join(f"{panel}:\n\n{_table(rows)}" for panel, rows in panels)


def _table(options: Sequence[Option]) -> str:
    return "\n".join(["| option | what it is | default |", "|---|---|---|", *map(_row, options)]) + "\n"


def _row(option: Option) -> str:
    default = "must be given" if option.required else "" if option.default is None else f"`{option.default}`"
    return f"| {_shown(option)} | {_cell(option.help)} | {default} |"


def _shown(option: Option) -> str:
    """The name, and what it takes."""
    repeated = ", may be repeated" if option.notation.repeated else ""
    if _is_argument(option):
        return f"`{option.metavar}`{repeated}"
    names = ", ".join(f"`{name}`" for name in option.names.split())
    return f"{names} `{_cell(option.metavar)}`{repeated}" if option.metavar else names


def _is_argument(option: Option) -> bool:
    return not option.name.startswith("-")


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")

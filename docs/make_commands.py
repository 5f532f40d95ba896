"""Writes docs/commands.md from the command line itself: `python docs/make_commands.py`.

tests/test_docs.py compares the file with what this makes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from typer.main import get_command

from autounet.cli.app import app

PAGE = Path(__file__).with_name("commands.md")
HEAD = """\
# Commands and options

Made from the program itself by `docs/make_commands.py`. `autounet COMMAND --help` shows the same.

Every command ends with exit code 0 when all went well, 1 with a message when something is wrong with the data, the
options or the files ([what messages mean](errors.md)), 2 when the command line itself cannot be read, and 130 when it
was interrupted.
Sizes are written like `8GB` or `500MB` (powers of 1024), times like `90s`, `30m`, `2h` or `1h30m`.
"""
SHARED = "run"
"""the command whose options others share"""


def page() -> str:
    """The whole text of docs/commands.md."""
    root: Any = get_command(app)
    parts = [HEAD, "## autounet\n\n" + _table(root.params)]
    shared = _rows(root.commands[SHARED].params)
    names = [SHARED, *(name for name in root.commands if name != SHARED)]
    parts += [_section(name, root.commands[name], shared) for name in names]
    return "\n".join(parts)


def _section(name: str, command: Any, shared: list[str]) -> str:
    needed = [_needed(each) for each in command.params if each.required]
    usage = " ".join(["autounet", name, *needed, "[OPTIONS]"])
    text = f"## autounet {name}\n\n{command.help}\n\n    {usage}\n\n"
    rows = _rows(command.params)
    if name != SHARED and set(shared) <= set(rows):
        own = [each for each in command.params if _row(each) not in shared]
        text += f"Takes what [`autounet {SHARED}`](#autounet-{SHARED}) takes" + (", and:\n\n" if own else ".\n")
        return text + (_table(own) if own else "")
    return text + _table(command.params)


def _table(parameters: list[Any]) -> str:
    return "\n".join(["| option | what it is | default |", "|---|---|---|", *_rows(parameters)]) + "\n"


def _rows(parameters: list[Any]) -> list[str]:
    return [_row(each) for each in parameters if "--help" not in each.opts]


def _row(parameter: Any) -> str:
    text = (parameter.help or "").replace("|", "\\|")
    return f"| {_shown(parameter)} | {text} | {_default(parameter)} |"


def _shown(parameter: Any) -> str:
    """The name, and what it takes."""
    if parameter.param_type_name == "argument":
        return f"`{_placeholder(parameter)}`"
    names = ", ".join(f"`{name}`" for name in parameter.opts)
    if parameter.is_flag:
        return names
    takes = (parameter.metavar or _taken(parameter)).replace("|", "\\|")
    return f"{names} `{takes}`" + (", may be repeated" if parameter.multiple else "")


def _taken(parameter: Any) -> str:
    described = getattr(parameter, "type_descriptor", None)  # before typer 0.20 options had click's types
    name = described.annotation.__name__ if described else parameter.type.name
    return {"int": "N", "integer": "N", "float": "X", "Path": "PATH", "path": "PATH"}.get(name, "TEXT")


def _needed(parameter: Any) -> str:
    """As in a usage line."""
    if parameter.param_type_name == "argument":
        return _placeholder(parameter)
    return f"{parameter.opts[0]} {parameter.metavar or _taken(parameter)}"


def _placeholder(argument: Any) -> str:
    return (argument.metavar or argument.name).upper()


def _default(parameter: Any) -> str:
    if parameter.required:
        return "must be given"
    unset = parameter.default in (None, False, ()) or parameter.is_flag
    return "" if unset else f"`{parameter.default}`"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")

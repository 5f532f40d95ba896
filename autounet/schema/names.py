"""Names from files and tables as checked values: of cases, of classes and channels, of configurations, inside archives.

Each is checked once, where it becomes part of a record (`CaseName` and the like in `record`). What passes is safe as a
part of a path on every system, and shows as what it is; how a name is escaped for HTML, Markdown or figures is decided
where those are written.
"""

from __future__ import annotations

import re
import unicodedata
from pathlib import PurePosixPath

MOST_BYTES = 200
"""of a case's name: file systems allow 255 for one with its ending, and temporary names are longer"""
MOST_LETTERS = 200
"""of a class's or channel's name"""
FORBIDDEN = frozenset('\\:*?"<>|')
"""in names of files on Windows; the slash is told apart"""
RESERVED = frozenset(("con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10))))
"""names of devices on Windows, with any ending"""
OWN_FOLDERS = frozenset(("scores", "cases", "next", "weighted", "postprocessed", "objects", "fold_all"))
"""beside which the segmentations of cases lie: `store.run_folder.CrossvalFolder`"""
RENAME = "Rename it: letters, digits, _, -, . and spaces are safe everywhere"


def path_problem(name: str) -> str:
    """Why a name is no relative path of plain names on every system, as a part of a sentence; empty where it is."""
    if not name:
        return "is empty"
    if len(name.encode("utf-8", "surrogateescape")) > MOST_BYTES:
        return f"is longer than {MOST_BYTES} bytes"
    if control := hidden_characters(name):
        return f"holds the invisible character {control[0]!a}"
    if wrong := sorted(FORBIDDEN & set(name)):
        return f"holds {wrong[0]}"
    for part in name.split("/"):
        if not part or part.startswith(".") or part != part.strip():
            return f"has the part {part!r}"
        if part.partition(".")[0].lower() in RESERVED:
            return f"has the part {part!r}, which names a device on Windows"
    return ""


def hidden_characters(text: str) -> str:
    """Control characters and those that change the direction of text; bytes that are no text (surrogates) are none."""
    return "".join(each for each in text if unicodedata.category(each) in ("Cc", "Zl", "Zp") or each in _DIRECTIONS)


_DIRECTIONS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ufeff")


def printable(text: str) -> str:
    """For a terminal or a log: what would steer it, or hide something, is spelt out; line breaks and tabs stay."""
    hidden = set(hidden_characters(text)) - set("\n\t")
    return "".join(each.encode("unicode_escape").decode() if each in hidden else each for each in text)


def case_problem(name: str) -> str:
    """As `path_problem`, for a case; a slash makes a folder, which must not be one of ours."""
    first = name.partition("/")
    if first[1] and (first[0] in OWN_FOLDERS or re.fullmatch(r"fold_\d+", first[0])):
        return f"begins with {first[0]}/, which the output folder needs for itself"
    return path_problem(name)


def is_plain_path(name: str) -> bool:
    """A relative path of plain names on every system, in its shortest form."""
    return not path_problem(name) and str(PurePosixPath(name)) == name

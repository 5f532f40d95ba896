"""Masks that number no objects, given where objects are told apart: each connected piece of them is one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

import cc3d
import numpy as np

from ..imageio import CROWD, read_label_content
from ..imageio.stored_values import values_of_objects
from ..schema.dataset import Case, Finding, Severity
from ..schema.errors import DataError
from ..schema.labels import LabelCode, numbers_objects

MOST_READ = 12
"""label files that are compared, at equal distances; of files that number objects mostly the first one tells"""
MOST_VALUES = 4
"""that all compared files hold together: more of them are numbers of objects"""
MANY = 5.0
"""pieces for each value, from which on the same few values in every file number no objects; a single one does not
where any file has several"""
PIECES, NUMBERS = 3, 3
"""of a file that numbers no objects among others that do: pieces of its one value, and values that others have"""
SMALL = 2**22
"""bytes of a label file, up to which it is read although others number objects"""
LEAST_PIECE = 0.1
"""of the largest piece in a file, below which a piece counts as none: what a brush has left"""
NEIGHBOURS: Final = 26
"""in space, 8 in a picture: pieces that meet diagonally are one, as in ImageJ and scikit-image"""
CODE = "unnumbered-objects"


class Unnumbered(NamedTuple):
    """What masks hold in place of numbers."""

    finding: Finding
    pieces: bool
    """whether each connected piece is to be an object; else the values are taken for numbers nevertheless"""


def unnumbered_masks(masks: Sequence[tuple[Path, int | None]], ignore: int | None = None) -> Unnumbered | None:
    """Of label files, each with its time point; None where their values number objects.

    Files that cannot be read say nothing here.
    """
    counts: list[tuple[int, int]] = []
    found: set[int] = set()
    plain: list[str] = []
    for path, frame in masks[:: max(1, len(masks) // MOST_READ)]:
        if len(found) > MOST_VALUES and not _is_small(path):
            continue
        try:
            values = read_label_content(path, (), frame, numbers=True).values
        except DataError:
            continue
        inside = (values != 0) & (values != ignore)
        own = set(np.unique(values[inside]).tolist())
        found |= own
        if own:
            counts.append(
                (len(own), _count_pieces(np.where(inside, values, 0)) if len(own) <= MOST_VALUES else len(own))
            )
            plain += [path.name] if len(own) == 1 and counts[-1][1] >= PIECES else []
    numbers, pieces = (sum(each) for each in zip(*counts, strict=True)) if counts else (0, 0)
    single = all(count == 1 for count, _ in counts)
    if len(found) > MOST_VALUES:
        numbered = any(count >= NUMBERS for count, _ in counts)
        return Unnumbered(_among_numbered(plain, len(counts)), False) if plain and numbered else None
    if not counts or (pieces == numbers if single else pieces < MANY * numbers):
        return None
    shown = ", ".join(map(str, sorted(found)))
    least, most = (limit(count for _, count in counts) for limit in (min, max))
    several = str(most) if least == most else f"{least} to {most}"
    return Unnumbered(_single(shown, several) if single else _several(shown, several), single)


def _is_small(path: Path) -> bool:
    try:
        return path.is_file() and path.stat().st_size <= SMALL
    except OSError:
        return False


def _count_pieces(values: np.ndarray) -> int:
    """Connected pieces of equal values of (Z, Y, X), 0 around them."""
    pieces: np.ndarray = cc3d.connected_components(values, connectivity=NEIGHBOURS)
    sizes = np.bincount(pieces.ravel())[1:]
    return int((sizes >= LEAST_PIECE * sizes.max()).sum())


def _single(values: str, pieces: str) -> Finding:
    message = (
        f"the label files number no objects: each holds one value besides 0 ({values}), in {pieces} connected pieces, "
        "and each piece is taken for an object"
    )
    remedy = (
        "Where objects touch, these pieces are several: number them in the files. check --fix --out NEW with the same "
        "--objects writes the pieces as numbers. Without --objects all is one class"
    )
    return Finding(code=CODE, severity=Severity.warning, message=message, remedy=remedy)


def _among_numbered(names: Sequence[str], compared: int) -> Finding:
    shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    message = (
        f"{len(names)} of {compared} label files that were compared number no objects, while others do: {shown}. Each "
        f"holds one value besides 0, in {PIECES} or more connected pieces, which are taken for one object"
    )
    return Finding(code=CODE, severity=Severity.warning, message=message, remedy="Number the objects in these files")


def _several(values: str, pieces: str) -> Finding:
    message = (
        f"the label files seem to hold classes, not numbers of objects: only the values {values} in all, in {pieces} "
        "connected pieces a file. All pieces of a value in a file are taken for one object"
    )
    remedy = (
        "Give each object a number of its own, or every object the same value, where none touch. Without --objects the "
        "values are classes: --class NAME=VALUE names them"
    )
    return Finding(code=CODE, severity=Severity.warning, message=message, remedy=remedy)


def masks_of(root: Path, cases: Sequence[Case]) -> list[tuple[Path, int | None]]:
    """The label files of cases, without outlines, which are an object each."""
    return [(root / case.label, case.frame) for case in cases if case.label and not case.label_parts]


def with_pieces(codes: Sequence[LabelCode]) -> tuple[LabelCode, ...]:
    """The codes of objects, for masks whose connected pieces they are."""
    return tuple(code.model_copy(update={"pieces": code.above is not None}) for code in codes)


def object_numbers(values: np.ndarray, codes: Sequence[LabelCode]) -> np.ndarray:
    """Numbers of objects (Z, Y, X) int32 from the values of a file: as they are, or by the pieces of its foreground.

    The ignore value stays, and is no number.
    """
    if not any(code.pieces for code in codes):
        return values
    outermost = next(code.value for code in codes if code.level == 1)
    inside = values_of_objects(values, codes) == outermost
    first = max(code.above or 0 for code in codes if code.value == outermost)
    numbers = cc3d.connected_components(inside, connectivity=NEIGHBOURS).astype(np.int32)
    return np.where(inside, numbers + np.int32(first), values)


def outlined_numbers(values: np.ndarray, codes: Sequence[LabelCode]) -> np.ndarray:
    """Numbers of outlines (Z, Y, X) int32 that are no ignore value, by the codes of their labels.

    Crowds get the ignore value where objects are told apart, and are an object of the class where they are joined.
    """
    core = next(code.value for code in codes if code.above is not None)
    ignore = max(code.above or 0 for code in codes if code.value == core)  # 0 where there is none
    crowd = ignore if numbers_objects(codes) else ignore + 1
    return np.where(values == CROWD, np.int32(crowd), np.where(values > 0, values + np.int32(ignore), 0))

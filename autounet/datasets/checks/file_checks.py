"""What is wrong with the files of a data set before any of them is read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ...imageio import describe_unread, unread_images
from ...schema.dataset import Case, Finding, Severity
from ...schema.errors import DataError


def image_as_label(root: Path, cases: Sequence[Case]) -> list[Finding]:
    """Cases whose label is their image. Raises DataError where it is so in all."""
    double = [case for case in cases if case.label and (root / case.label).resolve() in _resolved(root, case)]
    if len(double) == len(cases) > 1:
        raise DataError(
            f"the same files are given as images and as labels, such as {double[0].label}",
            "Give --channel and --label patterns of different files",
        )
    message, remedy = "is given as its image and as its label", "Give another file for one of the two"
    return [
        Finding(case=case.identifier, code="layout", message=f"{case.label} {message}", remedy=remedy)
        for case in double
    ]


def _resolved(root: Path, case: Case) -> set[Path]:
    return {(root / path).resolve() for path in case.images}


def unread_files(root: Path, cases: Sequence[Case]) -> list[Finding]:
    """A warning for all images that lie beside those of the cases, or their labels, and whose format is not read."""
    named = [path for case in cases for path in (*case.images, *([case.label] if case.label else []))]
    files = [file for folder in sorted({(root / path).parent for path in named}) for file in unread_images(folder)]
    if not files:
        return []
    message, remedy = describe_unread(files)
    return [Finding(code="unread-format", severity=Severity.warning, message=message, remedy=remedy)]

"""How folders are laid out: one module a layout, and what they share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from ...schema.options import DataOptions
from ...schema.plugins import Registry
from . import bids, case_folders, case_table, containers, dicom_tree, msd, nnunet_raw, outlines, paired_folders
from .detected_layout import DetectedLayout


class Layout(NamedTuple):
    detect: Callable[[Path, DataOptions], bool]
    """whether a folder is laid out so"""
    find: Callable[[Path, DataOptions], DetectedLayout]
    """its cases, with paths relative to it; raises DataError"""


OWN_LAYOUTS: dict[str, Layout] = {
    "table": Layout(case_table.detect, case_table.find),
    "msd": Layout(msd.detect, msd.find),
    "nnunet": Layout(nnunet_raw.detect, nnunet_raw.find),
    "dicom": Layout(dicom_tree.detect, dicom_tree.find),
    "outlines": Layout(outlines.detect, outlines.find),
    "containers": Layout(containers.detect, containers.find),
    "bids": Layout(bids.detect, bids.find),
    "cases": Layout(case_folders.detect, case_folders.find),
    "pairs": Layout(paired_folders.detect, paired_folders.find),
}
"""tried in this order; the first that recognises the folder reads it"""


def no_layout(name: str, found: object) -> str | None:
    """What is wrong with a layout that a plug-in brings."""
    return None if isinstance(found, Layout) else "is no autounet.datasets.Layout"


LAYOUTS: Registry[Layout] = Registry("layouts", OWN_LAYOUTS, no_layout)
"""with those of plug-ins, which are tried before the others: the last of these takes every folder"""

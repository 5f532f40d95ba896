"""Data sets as people have them: layouts, labels, pairing, folds, loading."""

from autounet.datasets.checks.examine import examine, examine_case
from autounet.datasets.inputs import InputCase, find_inputs, load_input
from autounet.datasets.labels import complete_labels, label_findings
from autounet.datasets.layouts.folders import image_files
from autounet.datasets.layouts.pairing import Match, pair
from autounet.datasets.loading import LoadedCase, load_case, read_channels, read_reference
from autounet.datasets.scan import LAYOUTS, scan
from autounet.datasets.splits import make_splits, nnunet_folds

__all__ = [
    "LAYOUTS",
    "InputCase",
    "LoadedCase",
    "Match",
    "complete_labels",
    "examine",
    "examine_case",
    "find_inputs",
    "image_files",
    "label_findings",
    "load_case",
    "load_input",
    "make_splits",
    "nnunet_folds",
    "pair",
    "read_channels",
    "read_reference",
    "scan",
]

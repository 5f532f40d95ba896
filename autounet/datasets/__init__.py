"""Data sets as people have them: layouts, labels, pairing, folds, loading."""

from .checks.examine import examine, examine_case
from .inputs import InputCase, find_inputs
from .labels import complete_labels, label_findings
from .layouts import LAYOUTS, Layout
from .layouts.detected_layout import DeclaredLabels, DetectedLayout
from .layouts.files import image_files
from .layouts.pairing import Match, pair
from .reading import LoadedCase, load_case, load_input, read_channels, read_numbers, read_reference
from .scan import scan
from .splits import make_splits, nnunet_folds

__all__ = [
    "LAYOUTS",
    "DeclaredLabels",
    "DetectedLayout",
    "InputCase",
    "Layout",
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
    "read_numbers",
    "read_reference",
    "scan",
]

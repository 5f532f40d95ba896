"""Cases as read to cases as trained on, and predictions back to the file's own voxels."""

from .prepare import (
    CHECK_SPACING,
    Interpolation,
    Prepared,
    class_locations,
    enlargement,
    kept_labels,
    prepare_case,
    prepare_labels,
    restore_map,
    to_file,
    to_grid,
)

__all__ = [
    "CHECK_SPACING",
    "Interpolation",
    "Prepared",
    "class_locations",
    "enlargement",
    "kept_labels",
    "prepare_case",
    "prepare_labels",
    "restore_map",
    "to_file",
    "to_grid",
]

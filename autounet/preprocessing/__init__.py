"""Cases as read to cases as trained on, and predictions back to the file's own voxels."""

from .prepare import (
    Interpolation,
    Prepared,
    class_locations,
    prepare_case,
    prepare_labels,
    restore_map,
    to_file,
    to_grid,
)

__all__ = [
    "Interpolation",
    "Prepared",
    "class_locations",
    "prepare_case",
    "prepare_labels",
    "restore_map",
    "to_file",
    "to_grid",
]

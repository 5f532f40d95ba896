"""Cases as read to cases as trained on, and predictions back to the file's own voxels."""

from .by_rows import ImageFigures, measure_image, prepared_rows
from .prepare import (
    CHECK_SPACING,
    Interpolation,
    Prepared,
    case_properties,
    class_locations,
    crop_taps,
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
    "ImageFigures",
    "Interpolation",
    "Prepared",
    "case_properties",
    "class_locations",
    "crop_taps",
    "enlargement",
    "kept_labels",
    "measure_image",
    "prepare_case",
    "prepare_labels",
    "prepared_rows",
    "restore_map",
    "to_file",
    "to_grid",
]

"""Writing images and labels: checked for what a format can hold, under a temporary name that is renamed."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..schema.errors import FileError
from ..schema.geometry import Geometry
from ..schema.record import replacing
from .formats import FORMATS, file_kind, suffix
from .label_rows import LabelRows
from .nifti import write_nifti_channels


def write_labels(path: Path | str, values: np.ndarray, geometry: Geometry) -> None:
    """Write (Z, Y, X) integers in the smallest type that holds them, under a temporary name that is renamed.

    NIfTI, NRRD and MetaImage keep origin, direction and spacing. Raises DataError for values or shapes the format
    cannot hold.
    """
    path = Path(path)
    if tuple(values.shape) != geometry.shape:
        raise FileError(path, f"needs an array of shape {geometry.shape}, not {tuple(values.shape)}")
    low, high = (int(values.min()), int(values.max())) if values.size else (0, 0)
    _write(path, values.astype(_label_type(path, low, high))[None], geometry)


def write_label_rows(path: Path | str, labels: LabelRows, geometry: Geometry) -> None:
    """As `write_labels`, of labels that need not fit into the memory, the same file. Raises DataError likewise."""
    path = Path(path)
    form = FORMATS[file_kind(path)]
    if form.write_rows is None:
        raise FileError(path, "is of a format that is not written row by row", "Write TIFF or HDF5")
    extremes = [(int(piece.min()), int(piece.max())) for _, piece in labels.pieces()]
    number = _label_type(path, min(low for low, _ in extremes), max(high for _, high in extremes))
    with replacing(path, suffix(path).lower()) as temporary:
        form.write_rows(temporary, labels, np.dtype(number), geometry)


def _label_type(path: Path, low: int, high: int) -> type[np.integer]:
    """The smallest type that holds label values from `low` to `high`. Raises DataError where the format cannot."""
    least, largest = FORMATS[file_kind(path)].label_limits
    if low < least or high > largest:
        raise FileError(path, f"cannot hold the label values {low} to {high}", "Write TIFF or NIfTI")
    types = (np.uint8, np.uint16, np.uint32) if low >= 0 else (np.int8, np.int16, np.int32)
    return next(each for each in types if np.iinfo(each).min <= low and high <= np.iinfo(each).max)


def write_image(path: Path | str, array: np.ndarray, geometry: Geometry) -> None:
    """Write (C, Z, Y, X) where the format holds its number type; pictures take C 1 or 3 of uint8, PNG or uint16."""
    path = Path(path)
    form = FORMATS[file_kind(path)]
    types = (np.uint8, np.uint16) if form.label_limits[1] > np.iinfo(np.uint8).max else (np.uint8,)
    if form.is_picture and (array.dtype not in types or array.shape[0] not in (1, 3)):
        raise FileError(path, f"cannot hold {array.dtype} with {array.shape[0]} channels", "Write TIFF or NIfTI")
    _write(path, array, geometry)


def write_channels(path: Path | str, array: np.ndarray, geometry: Geometry) -> None:
    """Write (C, Z, Y, X) with the channels as the fourth and last axis of the file, each in the geometry of the volume.

    Raises DataError for other formats than NIfTI, images of two axes, and arrays of another shape than the geometry's.
    """
    path = Path(path)
    if file_kind(path) != "nifti" or geometry.dimension != 3:
        raise FileError(path, "cannot hold several values per voxel: only NIfTI of a volume does", "Write .nii.gz")
    if array.shape[1:] != geometry.shape:
        raise FileError(path, f"needs an array of shape {geometry.shape} per channel, not {tuple(array.shape[1:])}")
    with replacing(path, suffix(path).lower()) as temporary:
        write_nifti_channels(temporary, array, geometry)


def _write(path: Path, array: np.ndarray, geometry: Geometry) -> None:
    form, ending = FORMATS[file_kind(path)], suffix(path).lower()
    if form.write is None:
        raise FileError(path, "is a folder of a format that is only read", "Give a file, for example .nii.gz")
    if ending == ".mhd":
        raise FileError(path, "would be two files", "Write .mha")
    if form.is_picture and array.shape[1] != 1:
        raise FileError(path, f"cannot hold {array.shape[1]} slices", "Write TIFF or NIfTI")
    with replacing(path, ending) as temporary:
        form.write(temporary, array, geometry)

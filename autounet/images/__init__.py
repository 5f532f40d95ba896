"""Image files <-> arrays. The only place that knows SimpleITK, Pillow and tifffile (all loaded on first use)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from autounet.atomic import replacing
from autounet.images.formats import (
    SUFFIXES,
    VOLUME_KINDS,
    file_kind,
    is_image,
    label_limits,
    output_suffix,
    stem,
    suffix,
)
from autounet.images.pictures import read_picture, read_picture_geometry, write_picture
from autounet.images.tiffs import read_tiff, write_tiff
from autounet.images.volumes import read_volume, read_volume_geometry, write_volume
from autounet.schema.errors import DataError
from autounet.schema.geometry import Geometry

__all__ = [
    "SUFFIXES",
    "VOLUME_KINDS",
    "file_kind",
    "is_image",
    "label_limits",
    "output_suffix",
    "read_geometry",
    "read_header",
    "read_image",
    "read_labels",
    "stem",
    "suffix",
    "write_image",
    "write_labels",
]

_PICTURES = frozenset({"png", "gif", "jpeg", "bmp"})


def _read(path: Path, labels: bool) -> tuple[np.ndarray, Geometry]:
    kind = _existing_kind(path)
    if kind in VOLUME_KINDS:
        return read_volume(path, kind)
    if kind == "tiff":
        return read_tiff(path)
    return read_picture(path, kind, labels)


def _existing_kind(path: Path) -> str:
    kind = file_kind(path)
    if not path.is_file():
        raise DataError(f"{path} does not exist. Check the path, or put the file there")
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty (0 bytes). Copy or export the file again")
    return kind


def read_image(path: Path | str) -> tuple[np.ndarray, Geometry]:
    """Array (C, Z, Y, X) float32 as stored, and its geometry. Colour images have C = 3.

    Raises DataError naming the file, what is wrong with it and what to do; truncated and damaged files included.
    """
    array, geometry = _read(Path(path), labels=False)
    if np.iscomplexobj(array):
        raise DataError(f"{path} holds complex numbers. Store magnitude and phase as channels")
    return np.require(array, np.float32, ["C", "W"]), geometry


def read_labels(path: Path | str) -> tuple[np.ndarray, Geometry]:
    """Array (Z, Y, X) int32 of the values as in the file, and its geometry.

    Raises DataError when the file cannot be read, has colours, or holds values that are not integers.
    """
    path = Path(path)
    array, geometry = _read(path, labels=True)
    if array.shape[0] > 1:
        if not (array == array[:1]).all():
            raise DataError(
                f"{path} has {array.shape[0]} channels with different values. Store labels as one channel of integers"
            )
        array = array[:1]
    values = array[0]
    if not np.issubdtype(values.dtype, np.integer):
        wrong = int(np.count_nonzero(~np.isfinite(values) | (values != np.round(values))))
        if wrong:
            raise DataError(f"{path} holds {wrong} label values that are not integers. Store whole numbers")
    if values.size and (values.max() > np.iinfo(np.int32).max or values.min() < np.iinfo(np.int32).min):
        raise DataError(f"{path} holds label values beyond 32 bits. Renumber the classes")
    return np.require(values, np.int32, ["C", "W"]), geometry


def read_header(path: Path | str) -> tuple[Geometry, int]:
    """Geometry and number of channels, from the header where the format allows. Raises DataError."""
    path = Path(path)
    kind = _existing_kind(path)
    if kind in VOLUME_KINDS:
        return read_volume_geometry(path, kind)
    if kind == "tiff":
        array, geometry = read_tiff(path)
        return geometry, array.shape[0]
    return read_picture_geometry(path, kind)


def read_geometry(path: Path | str) -> Geometry:
    """Geometry, from the header where the format allows. Raises DataError."""
    return read_header(path)[0]


def write_labels(path: Path | str, values: np.ndarray, geometry: Geometry) -> None:
    """Write (Z, Y, X) integers in the smallest type that holds them, under a temporary name that is renamed.

    NIfTI, NRRD and MetaImage keep origin, direction and spacing. Raises DataError for values or shapes the format
    cannot hold.
    """
    path = Path(path)
    if tuple(values.shape) != geometry.shape:
        raise DataError(f"{path} needs an array of shape {geometry.shape}, not {tuple(values.shape)}")
    low, high = (int(values.min()), int(values.max())) if values.size else (0, 0)
    number = _smallest_type(low, high)
    if file_kind(path) in _PICTURES and number not in (np.uint8, np.uint16):
        raise DataError(f"{path} cannot hold the label values {low} to {high}. Write TIFF or NIfTI")
    _write(path, values.astype(number)[None], geometry)


def _smallest_type(low: int, high: int) -> type[np.integer]:
    choices = (np.uint8, np.uint16, np.uint32) if low >= 0 else (np.int8, np.int16, np.int32)
    return next(choice for choice in choices if np.iinfo(choice).min <= low and high <= np.iinfo(choice).max)


def write_image(path: Path | str, array: np.ndarray, geometry: Geometry) -> None:
    """Write (C, Z, Y, X) as it is when the format holds its number type; pictures take uint8 with C 1 or 3."""
    path = Path(path)
    if file_kind(path) in _PICTURES and (array.dtype not in (np.uint8, np.uint16) or array.shape[0] not in (1, 3)):
        raise DataError(f"{path} cannot hold {array.dtype} with {array.shape[0]} channels. Write TIFF or NIfTI")
    _write(path, array, geometry)


def _write(path: Path, array: np.ndarray, geometry: Geometry) -> None:
    kind = file_kind(path)
    if suffix(path).lower() == ".mhd":
        raise DataError(f"{path} would be two files. Write .mha")
    if kind in _PICTURES and array.shape[1] != 1:
        raise DataError(f"{path} cannot hold {array.shape[1]} slices. Write TIFF or NIfTI")
    writer: Callable[[Path], None]
    if kind in VOLUME_KINDS:
        writer = lambda target: write_volume(target, array, geometry)  # noqa: E731
    elif kind == "tiff":
        writer = lambda target: write_tiff(target, array, geometry)  # noqa: E731
    else:
        writer = lambda target: write_picture(target, array)  # noqa: E731
    with replacing(path, suffix(path)) as temporary:
        writer(temporary)

"""NIfTI, NRRD and MetaImage volumes: read with care for damage, written by SimpleITK."""

from __future__ import annotations

import errno
import math
import struct
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..schema.errors import DataError
from ..schema.geometry import Geometry
from ..schema.record import replacing
from .formats import file_kind, suffix
from .headers import AGAIN, VolumeHeader, damaged, gunzip, make_geometry
from .metaimage import read_meta, read_meta_header
from .nrrd import read_nrrd, read_nrrd_header

if TYPE_CHECKING:
    import SimpleITK
    import SimpleITK as sitk

_TYPES = {
    2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8",
}  # fmt: skip
"""datatype codes of scalar voxels -> numpy's names without byte order"""


class Header(NamedTuple):
    order: str
    """byte order, < or >"""
    shape: tuple[int, ...]
    """(x, y, z, ...)"""
    datatype: int
    bits: int
    """per voxel"""
    offset: int
    """of the first voxel"""
    slope: float
    intercept: float


def read_voxels(path: Path) -> np.ndarray | None:
    """Array (..., Z, Y, X) as stored, scaled when the header says so; None for types that are left to ITK.

    Raises DataError when the file is truncated or damaged.
    """
    content = path.read_bytes()
    if content[:2] == b"\x1f\x8b":
        content = gunzip(path, content)
    header = _header(path, content)
    expected = header.offset + math.prod(header.shape) * header.bits // 8
    if len(content) < expected:
        raise DataError(f"{path} is truncated: {len(content)} of {expected} bytes are there. {AGAIN}")
    if content[expected:].strip(b"\0"):
        raise damaged(path, f"its header tells of {expected} bytes, and {len(content)} are there")
    if header.datatype not in _TYPES or header.offset < 348 or len(header.shape) > 4:
        return None
    number = np.dtype(header.order + _TYPES[header.datatype])
    count = math.prod(header.shape)
    voxels = np.frombuffer(content, number, count, header.offset).reshape(header.shape[::-1])
    scaled = math.isfinite(header.slope) and header.slope != 0 and math.isfinite(header.intercept)
    if not scaled or (header.slope, header.intercept) == (1, 0):
        return voxels
    return (voxels * float(header.slope) + float(header.intercept)).astype(np.float32)


def _header(path: Path, content: bytes) -> Header:
    for order in "<>":
        size = struct.unpack_from(order + "i", content)[0] if len(content) >= 348 else 0
        if size == 348:
            extents = struct.unpack_from(order + "8h", content, 40)
            datatype, bits = struct.unpack_from(order + "2h", content, 70)
            offset, slope, intercept = struct.unpack_from(order + "3f", content, 108)
        elif size == 540 and len(content) >= 540:
            datatype, bits = struct.unpack_from(order + "2h", content, 12)
            extents = struct.unpack_from(order + "8q", content, 16)
            (offset,) = struct.unpack_from(order + "q", content, 168)
            slope, intercept = struct.unpack_from(order + "2d", content, 176)
        else:
            continue
        shape = [max(1, extent) for extent in extents[1 : 1 + max(1, min(7, extents[0]))]]
        while len(shape) > 2 and shape[-1] == 1:
            shape.pop()
        return Header(order, tuple(shape), datatype, bits, int(offset), slope, intercept)
    raise DataError(f"{path} is not a NIfTI file: its header is missing or damaged. {AGAIN}")


NIFTI_SUFFIXES = (".nii", ".nii.gz")
LEAST_HEADER, MOST_HEADER = 348, 4096
"""bytes before the voxels of a NIfTI-1 file as ITK writes it: 352"""
TRAILER = 4
"""last bytes of a gzip file: length of the content modulo 2^32, little-endian (RFC 1952)"""


def write_whole(image: sitk.Image, path: Path, content_bytes: int) -> None:
    """Write an image of so many bytes of voxels, compressed where the format can.

    Raises OSError where the file cannot be written to its end, as on a full disk.
    """
    import SimpleITK as sitk

    ending = suffix(path).lower()
    try:
        sitk.WriteImage(image, str(path), useCompression=ending != ".nii")
    except RuntimeError as error:  # its only type; array and geometry were made by us and can be written
        raise OSError(errno.EIO, f"cannot be written: {str(error).splitlines()[-1].strip()}", str(path)) from None
    if ending in NIFTI_SUFFIXES:
        _require_end(path, ending, content_bytes)


def _require_end(path: Path, ending: str, content_bytes: int) -> None:
    """Of zlib's writer nothing follows a failed write, so that the end of the file tells of all of it."""
    size = path.stat().st_size
    if ending == ".nii.gz":
        with open(path, "rb") as file:
            file.seek(-min(size, TRAILER), 2)
            size = int.from_bytes(file.read(), "little")
    if not LEAST_HEADER <= (size - content_bytes) % 2**32 <= MOST_HEADER:
        raise OSError(errno.EIO, "could be written in part only, as on a full disk", str(path))


def _reader(path: Path) -> SimpleITK.ImageFileReader:
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    reader = sitk.ImageFileReader()
    reader.SetImageIO("NiftiImageIO")
    reader.SetFileName(str(path))
    return reader


def _reason(error: Exception) -> str:
    """The last telling line of an ITK message."""
    text = str(error)
    if "orthonormal" in text:
        return "its axes are not at right angles (sheared or inexact direction matrix)"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    line = lines[-1] if lines else type(error).__name__
    return line.split("): ")[-1].split("ERROR: ")[-1]


def read_volume(path: Path, kind: str) -> tuple[np.ndarray, VolumeHeader]:
    """Array (C, Z, Y, X) in the file's own number type, and its header. Raises DataError."""
    if kind == "nrrd":
        return read_nrrd(path)
    if kind == "mha":
        return read_meta(path)
    voxels = read_voxels(path)
    header = _nifti_header(path)
    if voxels is None or voxels.size != header.channels * np.prod(header.geometry.shape):
        voxels = _read_with_itk(path)
    return voxels.reshape(header.channels, *header.geometry.shape), header


def read_volume_header(path: Path, kind: str) -> VolumeHeader:
    """From the header alone. Raises DataError."""
    return {"nrrd": read_nrrd_header, "mha": read_meta_header, "nifti": _nifti_header}[kind](path)


def _read_with_itk(path: Path) -> np.ndarray:
    """Vectors and colours in NIfTI: components first."""
    import SimpleITK as sitk

    try:
        image = _reader(path).Execute()
    except RuntimeError as error:
        raise DataError(f"{path} cannot be read: {_reason(error)}. {AGAIN}") from None
    array = sitk.GetArrayFromImage(image)
    return np.moveaxis(array, -1, 0) if image.GetNumberOfComponentsPerPixel() > 1 else array


def _nifti_header(path: Path) -> VolumeHeader:
    """ITK's reading of the two transforms that a NIfTI header may hold; the fourth axis is time or channels."""
    reader = _reader(path)
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise DataError(f"{path} cannot be read: {_reason(error)}. {AGAIN}") from None
    count, components = reader.GetDimension(), reader.GetNumberOfComponents()
    if count not in (2, 3, 4):
        raise DataError(f"{path} has {count} axes. Images have 2 or 3, and one more for channels")
    if count == 4 and components > 1:
        raise DataError(f"{path} has vectors in four dimensions. Store one channel per file")
    axes = min(count, 3)
    columns = np.reshape(reader.GetDirection(), (count, count))[:axes, :axes]
    size, spacing, origin = reader.GetSize(), reader.GetSpacing()[:axes], reader.GetOrigin()[:axes]
    geometry = make_geometry(path, "nifti", size[:axes], spacing, origin, columns)
    return VolumeHeader(geometry, components, size[3] if count == 4 else 1)


def write_volume(path: Path, array: np.ndarray, geometry: Geometry) -> None:
    """Write (C, Z, Y, X), compressed where the format can. One channel becomes a scalar image."""
    import SimpleITK as sitk

    flat = geometry.dimension == 2
    if array.shape[0] == 1:
        image = sitk.GetImageFromArray(array[0, 0] if flat else array[0])
    else:
        moved = np.ascontiguousarray(np.moveaxis(array, 0, -1))
        image = sitk.GetImageFromArray(moved[0] if flat else moved, isVector=True)
    axes = 2 if flat else 3
    image.SetSpacing(tuple(reversed(geometry.spacing))[:axes])
    image.SetOrigin(geometry.origin[:axes])
    image.SetDirection(np.reshape(geometry.direction, (3, 3))[:axes, :axes].ravel().tolist())
    write_whole(image, path, array.nbytes)


def write_channels(path: Path, array: np.ndarray, geometry: Geometry) -> None:
    """Write (C, Z, Y, X) with the channels as the fourth and last axis of the file, each in the geometry of the volume.

    Raises DataError for other formats than NIfTI, images of two axes, and arrays of another shape than the geometry's.
    """
    import SimpleITK as sitk

    path = Path(path)
    if file_kind(path) != "nifti" or geometry.dimension != 3:
        raise DataError(f"{path}: several values a voxel are written as NIfTI of a volume. Write .nii.gz")
    if array.shape[1:] != geometry.shape:
        raise DataError(f"{path} needs an array of shape {geometry.shape} a channel, not {tuple(array.shape[1:])}")
    image = sitk.GetImageFromArray(array, isVector=False)
    direction = np.eye(4)
    direction[:3, :3] = np.reshape(geometry.direction, (3, 3))
    image.SetSpacing((*reversed(geometry.spacing), 1.0))
    image.SetOrigin((*geometry.origin, 0.0))
    image.SetDirection(direction.ravel().tolist())
    with replacing(path, suffix(path)) as temporary:
        write_whole(image, temporary, array.nbytes)

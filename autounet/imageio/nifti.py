"""NIfTI-1 and NIfTI-2 (nifti.nimh.nih.gov): voxels taken here, geometry from ITK's reading of the two transforms.

Voxels are not read through ITK, because its reader takes what is missing at the end of a file for zeros. Of the checks
that nibabel makes of a header, ours lacked that of the magic letters, without which ITK reads another format.
"""

from __future__ import annotations

import errno
import gzip
import math
import struct
import tempfile
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..schema.errors import FileError
from ..schema.geometry import Geometry
from .image_format import (
    COPY_AGAIN,
    ImageFormat,
    ImageHeader,
    damaged,
    gunzip,
    itk_reader,
    itk_reason,
    make_geometry,
    write_itk_image,
    write_volume,
)

_SIZE_1, _SIZE_2 = 348, 540
"""bytes of a header of NIfTI-1 and of NIfTI-2, which is also its first entry"""
_ITK_READER = "NiftiImageIO"
_ITK_ENDINGS = (".nii", ".nii.gz", ".NII", ".NII.GZ")
"""of the file names that it accepts"""
_NUMBER_TYPES = {
    2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8",
}  # fmt: skip
"""datatype codes of scalar voxels -> numpy's names without byte order"""
_ITK_MAX_SKEW = 1e-5
"""scalar product of two axes' unit vectors that ITK reads without complaint"""
_MOST_WRITTEN_HEADER = 4096
"""bytes before the voxels of a NIfTI-1 file as ITK writes it: 352"""
_GZIP_MAGIC = b"\x1f\x8b"
_GZIP_TRAILER = 4
"""last bytes of a gzip file: length of the content modulo 2^32, little-endian (RFC 1952)"""


class _Header(NamedTuple):
    version: int
    """1 or 2"""
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
    sform: np.ndarray | None
    """(3, 4) voxel indices -> mm, None where the file has none"""

    @property
    def end(self) -> int:
        """Offset of the first byte after the voxels."""
        return self.offset + math.prod(self.shape) * self.bits // 8


def read_nifti(path: Path) -> tuple[np.ndarray, ImageHeader]:
    """Array (C, Z, Y, X), scaled as the header says, and the image's header. Raises DataError."""
    start = _first_bytes(path)
    header = _parse(path, start)
    content = path.read_bytes()
    if content.startswith(_GZIP_MAGIC):
        content = gunzip(path, content, header.end)
    voxels = _voxels(path, header, content)
    image_header = _image_header(path, header, start)
    if voxels is None or voxels.size != image_header.channels * math.prod(image_header.geometry.shape):
        voxels = _read_with_itk(path, header)
    return voxels.reshape(image_header.channels, *image_header.geometry.shape), image_header


def read_nifti_header(path: Path) -> ImageHeader:
    """Reads the first bytes of the file only. Raises DataError."""
    start = _first_bytes(path)
    return _image_header(path, _parse(path, start), start)


def _first_bytes(path: Path) -> bytes:
    """As many as a header has, unpacked where the file is gzip, whatever its name says. Raises DataError."""
    with path.open("rb") as file:
        magic = file.read(len(_GZIP_MAGIC))
        file.seek(0)
        if magic != _GZIP_MAGIC:
            return file.read(_SIZE_2)
        try:
            return gzip.GzipFile(fileobj=file).read(_SIZE_2)
        except EOFError:
            raise FileError(path, "is truncated: its compressed header ends early", COPY_AGAIN) from None
        except (OSError, zlib.error) as error:
            raise damaged(path, str(error)) from None


def _parse(path: Path, content: bytes) -> _Header:
    size, order = 0, "<"
    for order in "<>":
        size = struct.unpack_from(order + "i", content)[0] if len(content) >= _SIZE_1 else 0
        if size == _SIZE_1 or (size == _SIZE_2 and len(content) >= _SIZE_2):
            break
    else:
        raise FileError(path, "is not a NIfTI file: its header is missing or damaged", COPY_AGAIN)
    if size == _SIZE_1:
        extents = struct.unpack_from(order + "8h", content, 40)
        datatype, bits = struct.unpack_from(order + "2h", content, 70)
        offset, slope, intercept = struct.unpack_from(order + "3f", content, 108)
        code, form = struct.unpack_from(order + "h", content, 254)[0], struct.unpack_from(order + "12f", content, 280)
        magic, expected = content[344:348], b"n+1\0"
    else:
        datatype, bits = struct.unpack_from(order + "2h", content, 12)
        extents = struct.unpack_from(order + "8q", content, 16)
        (offset,) = struct.unpack_from(order + "q", content, 168)
        slope, intercept = struct.unpack_from(order + "2d", content, 176)
        code, form = struct.unpack_from(order + "i", content, 348)[0], struct.unpack_from(order + "12d", content, 400)
        magic, expected = content[4:8], b"n+2\0"
    if magic != expected:
        raise damaged(path, f"its header has the letters {magic!r} where NIfTI has {expected!r}")
    if not math.isfinite(offset):
        raise damaged(path, f"its voxels begin at byte {offset}")
    shape = [max(1, extent) for extent in extents[1 : 1 + max(1, min(7, extents[0]))]]
    while len(shape) > 2 and shape[-1] == 1:
        shape.pop()
    sform = np.reshape(form, (3, 4)) if code > 0 else None
    version = 1 if size == _SIZE_1 else 2
    return _Header(version, order, tuple(shape), datatype, bits, int(offset), slope, intercept, sform)


def _voxels(path: Path, header: _Header, content: bytes) -> np.ndarray | None:
    """Array (..., Z, Y, X), scaled when the header says so; None for types that are left to ITK. Raises DataError."""
    expected = header.end
    if len(content) < expected:
        raise FileError(path, f"is truncated: {len(content)} of {expected} bytes are there", COPY_AGAIN)
    if content[expected:].strip(b"\0"):
        raise damaged(path, f"its header says {expected} bytes, and {len(content)} are there")
    if header.datatype not in _NUMBER_TYPES or header.offset < _SIZE_1 or len(header.shape) > 4:
        return None
    number = np.dtype(header.order + _NUMBER_TYPES[header.datatype])
    count = math.prod(header.shape)
    if len(content) < header.offset + count * number.itemsize:
        raise damaged(path, f"its header says {header.bits} bits per voxel of type {number.name}")
    voxels = np.frombuffer(content, number, count, header.offset).reshape(header.shape[::-1])
    scaled = math.isfinite(header.slope) and header.slope != 0 and math.isfinite(header.intercept)
    if not scaled or (header.slope, header.intercept) == (1, 0):
        return voxels
    return (voxels * float(header.slope) + float(header.intercept)).astype(np.float32)


def _read_with_itk(path: Path, header: _Header) -> np.ndarray:
    """Vectors and colours: components first."""
    import SimpleITK as sitk

    if header.version == 2:
        raise FileError(path, f"is NIfTI-2 with voxels of type {header.datatype}", "Store them as integers or floats")
    try:
        image = itk_reader(path, _ITK_READER).Execute()
    except RuntimeError as error:
        raise FileError(path, f"cannot be read: {itk_reason(error)}", COPY_AGAIN) from None
    array = sitk.GetArrayFromImage(image)
    return np.moveaxis(array, -1, 0) if image.GetNumberOfComponentsPerPixel() > 1 else array


def _image_header(path: Path, header: _Header, content: bytes) -> ImageHeader:
    """ITK's reading of the two transforms that a header may hold; the fourth axis is time or channels."""
    if header.version == 1 and path.name.endswith(_ITK_ENDINGS):
        return _itk_header(path, path, header)
    with tempfile.TemporaryDirectory() as folder:
        first = Path(folder) / "header.nii"
        head = content[:_SIZE_1] if header.version == 1 else _as_first_version(path, content)
        first.write_bytes(head + bytes(4))  # no extension follows
        return _itk_header(path, first, header)


def _as_first_version(path: Path, content: bytes) -> bytes:
    """The header of a NIfTI-2 file in the layout of NIfTI-1, which is all that ITK reads, and no voxels."""
    from nibabel import Nifti1Header, Nifti2Header

    second = Nifti2Header(content[:_SIZE_2], check=False)
    longest = int(second["dim"].max())
    if longest > np.iinfo(np.int16).max:
        raise FileError(path, f"has an axis of {longest} voxels", f"Store at most {np.iinfo(np.int16).max} an axis")
    first = Nifti1Header(endianness=second.endianness)
    with np.errstate(all="ignore"):  # numbers of a damaged header that 32 bits cannot hold
        for name in set(first.keys()) & set(second.keys()) - {"sizeof_hdr", "magic", "vox_offset"}:
            first[name] = second[name]
    return first.binaryblock


def _itk_header(path: Path, source: Path, header: _Header) -> ImageHeader:
    """Of `source`; errors name `path`."""
    reader = itk_reader(source, _ITK_READER)
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        if header.sform is not None and _is_skewed(header.sform[:, :3]):
            raise FileError(
                path,
                "cannot be read: its axes are not at right angles (sheared or inexact direction matrix)",
                "Resample it to a rectangular grid",
            ) from None
        raise FileError(path, f"cannot be read: {itk_reason(error)}", COPY_AGAIN) from None
    count, components = reader.GetDimension(), reader.GetNumberOfComponents()
    if count not in (2, 3, 4):
        raise FileError(path, f"has {count} axes", "Store 2 or 3 axes, and one more for channels")
    if count == 4 and components > 1:
        raise FileError(path, "has vectors in four dimensions", "Store one channel per file")
    axes = min(count, 3)
    columns = np.reshape(reader.GetDirection(), (count, count))[:axes, :axes]
    size, spacing, origin = reader.GetSize(), reader.GetSpacing()[:axes], reader.GetOrigin()[:axes]
    geometry = make_geometry(path, "nifti", size[:axes], spacing, origin, columns)
    return ImageHeader(geometry, components, size[3] if count == 4 else 1)


def _is_skewed(columns: np.ndarray) -> bool:
    """Whether two axes (the columns) are off a right angle, which ITK refuses without a word that users know."""
    with np.errstate(all="ignore"):  # a damaged header
        units = columns / np.linalg.norm(columns, axis=0)
    products = np.abs(units.T @ units - np.eye(3))
    return bool(np.isfinite(products).all() and products.max() > _ITK_MAX_SKEW)


def write_nifti(path: Path, array: np.ndarray, geometry: Geometry) -> None:
    """Write (C, Z, Y, X). Raises OSError, also where a part of the file is missing, as on a full disk."""
    write_volume(path, array, geometry)
    _require_end(path, array.nbytes)


def write_nifti_channels(path: Path, array: np.ndarray, geometry: Geometry) -> None:
    """Write (C, Z, Y, X) with the channels as the fourth and last axis of the file. Raises OSError."""
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(array, isVector=False)
    direction = np.eye(4)
    direction[:3, :3] = np.reshape(geometry.direction, (3, 3))
    image.SetSpacing((*reversed(geometry.spacing), 1.0))
    image.SetOrigin((*geometry.origin, 0.0))
    image.SetDirection(direction.ravel().tolist())
    write_itk_image(path, image)
    _require_end(path, array.nbytes)


def _require_end(path: Path, voxel_bytes: int) -> None:
    """zlib's writer writes nothing after a failed write, so that the length at the end of the file shows one."""
    size = path.stat().st_size
    if path.name.endswith(".gz"):
        with open(path, "rb") as file:
            file.seek(-min(size, _GZIP_TRAILER), 2)
            size = int.from_bytes(file.read(), "little")
    if not _SIZE_1 <= (size - voxel_bytes) % 2**32 <= _MOST_WRITTEN_HEADER:
        raise OSError(errno.EIO, "could be written in part only, as on a full disk", str(path))


NIFTI = ImageFormat((".nii.gz", ".nii"), read_nifti, read_nifti_header, write_nifti, has_geometry=True)

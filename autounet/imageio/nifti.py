"""NIfTI-1 and NIfTI-2 (nifti.nimh.nih.gov): voxels taken here, geometry from ITK's reading of the two transforms.

Voxels are not read through ITK, because its reader takes what is missing at the end of a file for zeros; nor are files
written through it, because it writes one transform into the places of both. ITK never sees a file's own name: it goes
by the ending, and ends the process where a name is no text. Of the checks that nibabel makes of a header, ours lacked
that of the magic letters, without which ITK reads another format.
"""

from __future__ import annotations

import gzip
import math
import struct
import tempfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..schema.errors import FileError
from ..schema.geometry import Geometry, NiftiTransforms, transforms_of
from .image_format import (
    COPY_AGAIN,
    MAX_SKEW,
    ImageFormat,
    ImageHeader,
    damaged,
    deflated,
    gunzip,
    itk_reader,
    itk_reason,
    little_endian,
    make_geometry,
    require_memory,
)

_SIZE_1, _SIZE_2 = 348, 540
"""bytes of a header of NIfTI-1 and of NIfTI-2, which is also its first entry"""
_ITK_READER = "NiftiImageIO"
_NUMBER_TYPES = {
    2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8",
}  # fmt: skip
"""datatype codes of scalar voxels -> numpy's names without byte order"""
_CODES = {name: code for code, name in _NUMBER_TYPES.items()}
_LAYOUT_1 = {
    "size": (0, "i"), "regular": (38, "c"), "dim": (40, "8h"), "intent": (68, "h"), "datatype": (70, "h"),
    "bits": (72, "h"), "pixdim": (76, "8f"), "offset": (108, "f"), "slope": (112, "f"), "intercept": (116, "f"),
    "units": (123, "B"), "qform_code": (252, "h"), "sform_code": (254, "h"), "quaternion": (256, "3f"),
    "qoffset": (268, "3f"), "sform": (280, "12f"), "magic": (344, "4s"),
}  # fmt: skip
_LAYOUT_2 = {
    "magic": (4, "4s"), "datatype": (12, "h"), "bits": (14, "h"), "dim": (16, "8q"), "pixdim": (104, "8d"),
    "offset": (168, "q"), "slope": (176, "d"), "intercept": (184, "d"), "qform_code": (344, "i"),
    "sform_code": (348, "i"), "quaternion": (352, "3d"), "qoffset": (376, "3d"), "sform": (400, "12d"),
    "units": (500, "i"), "intent": (504, "i"),
}  # fmt: skip
"""name of a field -> offset in the header, and numbers as `struct` has them"""
_LONGEST = 2**15 - 1
"""voxels along an axis of NIfTI-1, which is all that ITK reads"""
_MOST_OFFSET = 1 << 26
"""bytes before the voxels: header extensions hold DICOM headers or protocols, not images"""
_NO_INTENSITIES = {1: "single bits", **dict.fromkeys((32, 1792, 2048), "complex numbers")}
"""types of voxels by their codes in the header"""
_GZIP_MAGIC = b"\x1f\x8b"
_VECTOR = 1007
"""intent code of files with components along the fifth axis"""


class _Header(NamedTuple):
    version: int
    """1 or 2"""
    order: str
    """byte order, < or >"""
    shape: tuple[int, ...]
    """(x, y, z, ...)"""
    dim: tuple[int, ...]
    """as stored: the number of axes, and seven lengths"""
    intent: int
    datatype: int
    bits: int
    """per voxel"""
    offset: int
    """of the first voxel"""
    slope: float
    intercept: float
    transforms: NiftiTransforms

    @property
    def scales(self) -> bool:
        """Whether the voxels are scaled by slope and intercept."""
        known = math.isfinite(self.slope) and self.slope != 0 and math.isfinite(self.intercept)
        return known and (self.slope, self.intercept) != (1, 0)

    @property
    def end(self) -> int:
        """Offset of the first byte after the voxels."""
        return self.offset + math.prod(self.shape) * self.bits // 8


def read_nifti(path: Path) -> tuple[np.ndarray, ImageHeader]:
    """Array (C, Z, Y, X), scaled as the header says, and the image's header. Raises DataError."""
    header = _parse(path, _first_bytes(path))
    require_memory(path, math.prod(header.shape), max(1, header.bits // 8))
    content = path.read_bytes()
    if content.startswith(_GZIP_MAGIC):
        content = gunzip(path, content, header.end)
    voxels = _voxels(path, header, content)
    image_header = _image_header(path, header)
    if voxels is None or voxels.size != image_header.channels * math.prod(image_header.geometry.shape):
        voxels = _read_with_itk(path, header, content)
    return voxels.reshape(image_header.channels, *image_header.geometry.shape), image_header


def read_nifti_header(path: Path) -> ImageHeader:
    """Reads the first bytes of the file only. Raises DataError."""
    return _image_header(path, _parse(path, _first_bytes(path)))


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
    version, layout = (1, _LAYOUT_1) if size == _SIZE_1 else (2, _LAYOUT_2)
    fields = {name: struct.unpack_from(order + form, content, at) for name, (at, form) in layout.items()}
    (magic,), expected = fields["magic"], (b"n+1\0", b"n+2\0")[version - 1]
    if magic != expected:
        raise damaged(path, f"its header has the letters {magic!r} where NIfTI has {expected!r}")
    (offset,), (slope,), (intercept,) = fields["offset"], fields["slope"], fields["intercept"]
    if not (math.isfinite(offset) and offset <= _MOST_OFFSET):
        raise damaged(path, f"its voxels begin at byte {offset}")
    dim = fields["dim"]
    shape = [max(1, extent) for extent in dim[1 : 1 + max(1, min(7, dim[0]))]]
    while len(shape) > 2 and shape[-1] == 1:
        shape.pop()
    (datatype,), (bits,), (intent,) = fields["datatype"], fields["bits"], fields["intent"]
    for name in ("intent", "qform_code", "sform_code"):
        if not 0 <= fields[name][0] <= _LONGEST:
            raise damaged(path, f"its {name} is {fields[name][0]}")
    transforms = _transforms(path, fields)
    return _Header(version, order, tuple(shape), dim, intent, datatype, bits, int(offset), slope, intercept, transforms)


def _transforms(path: Path, fields: dict[str, tuple[Any, ...]]) -> NiftiTransforms:
    """Rounded to 32 bits. Numbers of a transform that the file has not may be anything, and some of `pixdim`."""
    (qform_code,), (sform_code,) = fields["qform_code"], fields["sform_code"]
    quaternion, offset, sform = fields["quaternion"], fields["qoffset"], fields["sform"]
    if qform_code > 0 and not np.isfinite([*quaternion, *offset]).all():
        raise damaged(path, f"its qform has the numbers {(*quaternion, *offset)}")
    if sform_code > 0 and not np.isfinite(sform).all():
        raise damaged(path, f"its sform has the numbers {sform}")
    with np.errstate(over="ignore"):  # numbers of a damaged NIfTI-2 header that 32 bits cannot hold
        finite = {
            name: tuple(np.nan_to_num(np.asarray(values, np.float32), posinf=0, neginf=0).tolist())
            for name, values in fields.items()
            if name in ("quaternion", "qoffset", "sform", "pixdim")
        }
    return NiftiTransforms(
        qform_code=qform_code,
        sform_code=sform_code,
        quaternion=finite["quaternion"],
        offset=finite["qoffset"],
        sform=(finite["sform"][:4], finite["sform"][4:8], finite["sform"][8:]),
        pixdim=finite["pixdim"],
        units=fields["units"][0] & 255,
    )


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
    if not header.scales:
        return voxels
    with np.errstate(over="ignore"):  # a damaged slope: infinite voxels are told of by whoever uses them
        return (voxels * float(header.slope) + float(header.intercept)).astype(np.float32)


def _read_with_itk(path: Path, header: _Header, content: bytes) -> np.ndarray:
    """Vectors and colours: components first. `content` is unpacked."""
    import SimpleITK as sitk

    if header.version == 2:
        raise FileError(path, f"is NIfTI-2 with voxels of type {header.datatype}", "Store them as integers or floats")
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "image.nii"
        copy.write_bytes(content)
        try:
            image = itk_reader(copy, _ITK_READER).Execute()
        except RuntimeError as error:
            raise FileError(path, f"cannot be read: {itk_reason(error)}", COPY_AGAIN) from None
    array = sitk.GetArrayFromImage(image)
    return np.moveaxis(array, -1, 0) if image.GetNumberOfComponentsPerPixel() > 1 else array


def _image_header(path: Path, header: _Header) -> ImageHeader:
    """ITK's reading of the two transforms that a header may hold; the fourth axis is time or channels."""
    if header.datatype in _NO_INTENSITIES:
        raise FileError(path, f"holds {_NO_INTENSITIES[header.datatype]}", "Store them as integers or floats")
    if min(header.dim) < 0:
        raise damaged(path, f"its axes have the lengths {header.dim[1:]}")
    if max(header.dim) > _LONGEST:
        raise FileError(path, f"has an axis of {max(header.dim)} voxels", f"Store at most {_LONGEST} an axis")
    whole = not _NUMBER_TYPES.get(header.datatype, "f").startswith("f")
    slope = abs(header.slope) if header.scales and whole else 0.0
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "header.nii"
        first, *_, fourth, fifth, sixth, last = header.transforms.pixdim
        read = header.transforms.model_copy(
            update={"pixdim": (first, *header.transforms.distances, fourth, fifth, sixth, last)}
        )
        source.write_bytes(_packed(header.dim, header.intent, header.datatype, header.bits, read))
        reader = itk_reader(source, _ITK_READER)
        try:
            reader.ReadImageInformation()
        except RuntimeError as error:
            geometry = _skewed_geometry(path, header)
            if geometry is None:
                raise FileError(path, f"cannot be read: {itk_reason(error)}", COPY_AGAIN) from None
            return ImageHeader(geometry, 1, header.shape[3] if len(header.shape) == 4 else 1, slope)
    count, components = reader.GetDimension(), reader.GetNumberOfComponents()
    if count not in (2, 3, 4):
        raise FileError(path, f"has {count} axes", "Store 2 or 3 axes, and one more for channels")
    if count == 4 and components > 1:
        raise FileError(path, "has vectors in four dimensions", "Store one channel per file")
    axes = min(count, 3)
    columns = np.reshape(reader.GetDirection(), (count, count))[:axes, :axes]
    size, spacing, origin = reader.GetSize(), reader.GetSpacing()[:axes], reader.GetOrigin()[:axes]
    if axes == 2 and _skew(columns) > MAX_SKEW:
        columns = _plane(columns, header)
    geometry = make_geometry(path, "nifti", size[:axes], spacing, origin, columns, header.transforms)
    return ImageHeader(geometry, components, size[3] if count == 4 else 1, slope)


def _skewed_geometry(path: Path, header: _Header) -> Geometry | None:
    """By the sform of a volume whose axes are a little off right angles, which ITK refuses; None for other reasons.

    Raises FileError where they are further off than any format's may be.
    """
    transforms, axes = header.transforms, min(3, header.dim[0])
    if transforms.sform_code <= 0 or axes < 2 or len(header.shape) > 4 or header.datatype not in _NUMBER_TYPES:
        return None
    matrix = next(transforms.matrices()) * [[-1], [-1], [1]]  # RAS to LPS
    columns, origin, size = matrix[:, :axes], matrix[:axes, 3].tolist(), (*header.shape, 1)[:axes]
    with np.errstate(all="ignore"):  # a damaged header; refused by make_geometry
        lengths = np.sqrt((columns**2).sum(axis=0))
        units = (columns / lengths)[:axes]
        units = units if axes == 3 else _plane(units, header)
        return make_geometry(path, "nifti", size, lengths.tolist(), origin, units, transforms)


def _skew(columns: np.ndarray) -> float:
    return float(np.abs(columns.T @ columns - np.eye(columns.shape[1])).max())


def _plane(columns: np.ndarray, header: _Header) -> np.ndarray:
    """Directions of a 2-D image, of whose plane the first two coordinates are none where it lies across space."""
    planes = [matrix[:, :2] / np.sqrt((matrix[:, :2] ** 2).sum(axis=0)) for matrix in header.transforms.matrices()]
    return np.eye(2) if any(_skew(plane) <= MAX_SKEW for plane in planes) else columns


def write_nifti(path: Path, array: np.ndarray, geometry: Geometry) -> None:
    """Write (C, Z, Y, X) with the transforms of the NIfTI file that the geometry was read from. Raises OSError."""
    _write(path, array, geometry, vectors=True)


def write_nifti_channels(path: Path, array: np.ndarray, geometry: Geometry) -> None:
    """Write (C, Z, Y, X) with the channels as the fourth and last axis of the file. Raises OSError."""
    _write(path, array, geometry, vectors=False)


def _write(path: Path, array: np.ndarray, geometry: Geometry, vectors: bool) -> None:
    channels, *shape = array.shape
    lengths = [*shape[::-1]] if geometry.dimension == 3 else shape[:0:-1]
    axes = len(lengths)
    intent = 0
    if not vectors:
        lengths, axes = [*lengths, channels], 4
    elif channels > 1:
        lengths, axes, intent = [*shape[::-1], 1, channels], 5, _VECTOR
    dim = (axes, *lengths, *[1] * (7 - len(lengths)))
    transforms = geometry.nifti or transforms_of(geometry)
    number = array.dtype.newbyteorder("<")
    header = _packed(dim, intent, _CODES[number.str[1:]], 8 * number.itemsize, transforms)
    with path.open("wb") as file:
        if path.name.endswith(".gz"):
            file.writelines(deflated(array, 31, header))
        else:
            file.write(header)
            file.writelines(little_endian(array))


def _packed(dim: Sequence[int], intent: int, datatype: int, bits: int, transforms: NiftiTransforms) -> bytes:
    """A header of NIfTI-1, little-endian, and the four bytes that say that no extension follows."""
    values: dict[str, Sequence[Any]] = {
        "size": (_SIZE_1,),
        "regular": (b"r",),
        "dim": dim,
        "intent": (intent,),
        "datatype": (datatype,),
        "bits": (bits,),
        "pixdim": transforms.pixdim,
        "offset": (_SIZE_1 + 4,),
        "slope": (1.0,),
        "units": (transforms.units,),
        "qform_code": (transforms.qform_code,),
        "sform_code": (transforms.sform_code,),
        "quaternion": transforms.quaternion,
        "qoffset": transforms.offset,
        "sform": [number for row in transforms.sform for number in row],
        "magic": (b"n+1\0",),
    }
    header = bytearray(_SIZE_1 + 4)
    for name, numbers in values.items():
        at, form = _LAYOUT_1[name]
        struct.pack_into("<" + form, header, at, *numbers)
    return bytes(header)


NIFTI = ImageFormat((".nii.gz", ".nii"), read_nifti, read_nifti_header, write_nifti, has_geometry=True)

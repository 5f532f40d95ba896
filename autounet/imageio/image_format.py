"""What a file format offers, and what the formats share: checked headers, compressed voxels, numbers as text.

Another format is one new file that exports an `ImageFormat`, and one entry in `formats.FORMATS`.
"""

from __future__ import annotations

import html
import math
import re
import sys
import unicodedata
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..schema.errors import FileError
from ..schema.geometry import Geometry, NiftiTransforms, Spacing3, placements
from ..schema.quantities import format_size
from ..system_memory import available_memory
from .label_rows import LabelRows

if TYPE_CHECKING:
    import SimpleITK as sitk

COPY_AGAIN = "Copy or export the file again"
MAX_SKEW = 1e-2
"""largest scalar product of two axes' unit vectors: headers keep few digits; a sheared image is far beyond it"""
LEAST_TOLD_SKEW = 1e-4
"""what is read without a word: headers with four decimals and more"""
SKEWED_AXES = "skewed-axes"
"""code of the finding"""
PADDING = 1 << 20
"""bytes behind the voxels that are accepted in compressed data, if they are zeros"""
_ESCAPE = re.compile(r"\\+[uU]([0-9a-fA-F]{4})")
_ITK_PLACE = re.compile(r"^(ITK )?ERROR: (\w+\(0x[0-9a-f]+\): )?")
MAX_MILLIMETRES = 1e9
"""a spacing or an origin beyond it comes from a damaged header"""


class Remark(NamedTuple):
    """What a reader has to say of a sound file: what it left out, guessed, or read otherwise than a viewer shows."""

    code: str
    """of the finding that `check` makes of it"""
    text: str
    """continues a sentence that begins with the file"""
    remedy: str


class ImageHeader(NamedTuple):
    """What is known of an image without its voxels."""

    geometry: Geometry
    components: int
    """values per voxel: colours, vectors, layers"""
    frames: int
    """length of a fourth axis, 1 when there is none"""
    slope: float = 0.0
    """of voxels that are stored as whole numbers and scaled to others: the step between neighbours; 0: not scaled"""
    remarks: tuple[Remark, ...] = ()
    colours: tuple[tuple[int, tuple[int, int, int]], ...] = ()
    """(value, its red, green and blue) of those that occur in a label file which says how they are shown"""
    measured: bool = False
    """whether the file says that the components are channels of their own, as of fluorescence, and no colours"""
    names: tuple[str, ...] = ()
    """of such channels, one for each; none where the file does not say"""

    @property
    def channels(self) -> int:
        return self.components * self.frames


@dataclass(frozen=True)
class ImageFormat:
    """A file format. Arrays are (C, Z, Y, X) in the file's own number type.

    Readers raise FileError for everything that a file can have wrong; writers raise OSError where a file cannot be
    written to its end.
    """

    endings: tuple[str, ...]
    """of file names, in lower case with the dot, the longest first; none where an image is a folder"""
    read: Callable[[Path], tuple[np.ndarray, ImageHeader]]
    read_header: Callable[[Path], ImageHeader]
    write: Callable[[Path, np.ndarray, Geometry], None] | None = None
    """for a path with one of the endings in lower case; None for formats that are only read"""
    write_rows: Callable[[Path, LabelRows, np.dtype, Geometry], None] | None = None
    """the file that `write` makes of labels, as this number type; None for formats that need all of them at once"""
    read_indices: Callable[[Path], tuple[np.ndarray, ImageHeader]] | None = None
    """as `read`, but the indices of a palette of colours instead of its colours; None where there are no palettes"""
    written_as: Mapping[str, str] = field(default_factory=dict)
    """ending of images -> ending of their segmentations, where it is another ("" for a folder)"""
    has_geometry: bool = False
    """whether files hold spacing in millimetres, origin and direction; others take their spacing from a sidecar"""
    is_folder: bool = False
    """whether an image is a folder whose name ends so"""
    is_picture: bool = False
    """one slice of 8 or 16 bits a value, grey or RGB"""
    label_limits: tuple[int, int] = (-(2**31), 2**31 - 1)
    """the least and the largest label value that a file can hold"""


UNKNOWN_UNIT, UNKNOWN_SPACING = "unknown-unit", "unknown-spacing"
"""codes of what is said where a file does not give the size of its voxels in a unit of length, or not along all axes"""
_PREFIXES = {"p": 1e-9, "n": 1e-6, "u": 1e-3, "\u03bc": 1e-3, "m": 1.0, "c": 10.0, "d": 100.0, "": 1000.0, "k": 1e6}
_PREFIX_WORDS = {"pico": "p", "nano": "n", "micro": "u", "milli": "m", "centi": "c", "deci": "d", "": "", "kilo": "k"}
_LENGTHS = {
    **{f"{prefix}m": size for prefix, size in _PREFIXES.items()},
    **{
        f"{word}{metre}": _PREFIXES[prefix]
        for word, prefix in _PREFIX_WORDS.items()
        for metre in ("meter", "meters", "metre", "metres")
    },
    **dict.fromkeys(("micron", "microns", "micra", "\u03bc"), 1e-3),
    **dict.fromkeys(("\u00e5", "angstrom", "angstroms", "\u00e5ngstr\u00f6m"), 1e-7),
    **dict.fromkeys(("in", "inch", "inches", '"'), 25.4),
    **dict.fromkeys(("thou", "mil"), 0.0254),
    **dict.fromkeys(("ft", "foot", "feet"), 304.8),
}
"""unit of length in small letters, its compatibility forms resolved -> mm"""


def millimetres(unit: str) -> float | None:
    """The mm of a unit of length as programs spell it, in any case: um, \\u00B5m, MICRON, Angstrom; None where unknown.

    Escapes of a character's number are resolved (ImageJ writes \\u00B5m), and a micro sign that went through the wrong
    encoding is accepted.
    """
    text = _ESCAPE.sub(lambda found: chr(int(found[1], 16)), html.unescape(unit))
    text = unicodedata.normalize("NFKC", text.replace("\u00c2\u00b5", "\u00b5")).casefold().strip(" .\0")
    return _LENGTHS.get(unicodedata.normalize("NFC", text))


def in_millimetres(sizes: Sequence[float], units: Sequence[str]) -> tuple[Spacing3, tuple[Remark, ...]]:
    """(z, y, x); a size of 0 is not known and taken to be the least of the others, or 1 mm where none is known."""
    factors = [millimetres(unit) for unit in units]
    known = [size * (factor or 1.0) for size, factor in zip(sizes, factors, strict=True)]
    unknown = [unit for unit, size, factor in zip(units, sizes, factors, strict=True) if factor is None and size]
    remarks: tuple[Remark, ...] = ()
    remedy = 'Give the spacing in a file of the same name, {"spacing": [z, y, x]} in mm, or correct its metadata'
    if unknown and any(size not in (0, 1) for size in sizes):
        shown = " x ".join(f"{size:g}" for size in sizes)
        text = f"gives voxels of {shown} {unknown[0][:20]!r} (z, y, x), no unit of length; mm were taken"
        remarks += (Remark(UNKNOWN_UNIT, text, remedy),)
    least = min((size for size in known if size), default=1.0)
    if any(known) and not all(known):
        axes = " and ".join(axis for axis, size in zip("zyx", known, strict=True) if not size)
        text = f"does not give the size of its voxels along {axes}; {least:g} mm were taken, as along the other axes"
        remarks += (Remark(UNKNOWN_SPACING, text, remedy),)
    z, y, x = (size or least for size in known)
    return (z, y, x), remarks


def damaged(path: Path, problem: str) -> FileError:
    """The error for a file whose content contradicts itself."""
    return FileError(path, f"is damaged: {problem}", COPY_AGAIN)


def make_geometry(
    path: Path,
    kind: str,
    size: Sequence[int],
    spacing: Sequence[float],
    origin: Sequence[float],
    direction: np.ndarray,
    nifti: NiftiTransforms | None = None,
) -> Geometry:
    """Geometry of 2 or 3 axes: size, spacing and origin as (x, y[, z]), direction with the axes in its columns.

    Raises DataError for anything that no image can have.
    """
    axes = len(size)
    if min(size) < 1:
        raise FileError(path, "holds no voxels", COPY_AGAIN)
    if not all(math.isfinite(value) and 0 < value < MAX_MILLIMETRES for value in spacing):
        raise damaged(path, f"its spacing is {tuple(map(float, spacing))}")
    if not all(math.isfinite(value) and abs(value) < MAX_MILLIMETRES for value in origin):
        raise damaged(path, f"its origin is {tuple(map(float, origin))}")
    if not np.isfinite(direction).all() or np.abs(direction.T @ direction - np.eye(axes)).max() > MAX_SKEW:
        raise FileError(
            path,
            "cannot be read: its axes are not at right angles (sheared or inexact direction matrix)",
            "Resample it to a rectangular grid",
        )
    full = np.eye(3)
    full[:axes, :axes] = direction
    x, y, z = [*map(int, size), 1][:3]
    dx, dy, dz = [*map(float, spacing), 1.0][:3]
    ox, oy, oz = [*map(float, origin), 0.0][:3]
    return Geometry(
        shape=(z, y, x),
        spacing=(dz, dy, dx),
        origin=(ox, oy, oz),
        direction=tuple(full.ravel().tolist()),  # type: ignore[arg-type]
        kind=kind,
        dimension=axes,
        nifti=nifti,
    )


def transform_remarks(geometry: Geometry) -> tuple[Remark, ...]:
    """What is to be said of axes that are off right angles, and of the two places of spacing and axes in NIfTI."""
    header = geometry.nifti
    if header is not None and header.distances != header.pixdim[1:4]:
        stored, read = (
            " x ".join(f"{each:.4g}" for each in values) for values in (header.pixdim[1:4], header.distances)
        )
        text = f"has a pixdim of {stored} that its sform contradicts: {read} (x, y, z) was read, as NIfTI asks"
        return (Remark("pixdim", text, "Check the spacing, and store the file again with a program that writes both"),)
    if geometry.skew > LEAST_TOLD_SKEW:
        text = f"has axes that are off right angles by {geometry.skew:.4f} (scalar product), and was read as it is"
        return (Remark(SKEWED_AXES, text, f"Nothing needs to be done; beyond {MAX_SKEW:g} it would be refused"),)
    others = [each.skew for each in placements(geometry) if each.skew > LEAST_TOLD_SKEW]
    if not others:
        return ()
    text = f"has an sform whose axes are off right angles by {max(others):.4f}, so that its qform was read"
    remedy = "Check that the distances are right by the qform; resample the image to a rectangular grid if not"
    return (Remark(SKEWED_AXES, text, remedy),)


def take_voxels(path: Path, data: bytes, number: np.dtype, shape: Sequence[int]) -> np.ndarray:
    """The voxels of a file, `shape` from the slowest axis to the fastest.

    Raises DataError when there are too few bytes, or more than the header says (padding by zeros is accepted).
    """
    expected = math.prod(shape) * number.itemsize
    if len(data) < expected:
        raise FileError(path, f"is truncated: {len(data)} of {expected} bytes of voxels are there", COPY_AGAIN)
    if data[expected:].strip(b"\0"):
        raise damaged(path, f"its header says {expected} bytes of voxels, and {len(data)} are there")
    return np.frombuffer(data, number, math.prod(shape)).reshape(tuple(shape))


def require_memory(path: Path, voxels: int, item_bytes: int) -> None:
    """Raises FileError where a header promises more than may be used: a file of a megabyte may say terabytes.

    As float32 or as stored, whichever is more.
    """
    needed, free = voxels * max(4, item_bytes), available_memory()
    if needed > free:
        text = f"would take {format_size(needed)} of memory by its header, and {format_size(free)} are free"
        raise FileError(path, text, "Check its size; a damaged header may say any")


DEFLATED = b"1.2.840.10008.1.2.1.99"
"""DICOM's transfer syntax whose elements are compressed together (PS3.5, A.5)"""
META_LENGTH = b"\2\0\0\0UL\4\0"
"""the element (0002,0000), behind 128 bytes and `DICM`: bytes of the elements that are not compressed (PS3.10, 7.1)"""
MOST_INFLATED = 2**30
"""bytes of them: a file of a megabyte can hold a thousand, and nothing says how many before they are decompressed"""


def require_inflatable(path: Path, content: bytes) -> bytes:
    """`content`. Raises FileError for a DICOM file whose compressed elements would fill more than `MOST_INFLATED`."""
    if DEFLATED not in content:
        return content
    if content[132:140] != META_LENGTH:
        raise damaged(path, "it is compressed, and does not say where its elements begin")
    rest = content[144 + int.from_bytes(content[140:144], "little") :]
    stream, size = zlib.decompressobj(-zlib.MAX_WBITS), 0
    while rest and size <= MOST_INFLATED and not stream.eof:
        size += len(stream.decompress(rest, 2**20))
        rest = stream.unconsumed_tail
    if size > MOST_INFLATED:
        raise damaged(path, f"its compressed elements hold more than {format_size(MOST_INFLATED)}")
    return content


def gunzip(path: Path, content: bytes, limit: int) -> bytes:
    """All members of a gzip file, checksums verified; padding by zeros is allowed behind them.

    Raises DataError, also for more than `limit` bytes and `PADDING`, of all members together: a small file can claim
    all memory.
    """
    parts: list[bytes] = []
    while content:
        stream = zlib.decompressobj(wbits=31)
        parts.append(inflate(path, stream, content, limit - sum(map(len, parts))))
        content = stream.unused_data.lstrip(b"\0")
    return parts[0] if len(parts) == 1 else b"".join(parts)


def inflate(path: Path, stream: zlib._Decompress, content: bytes, limit: int) -> bytes:
    """What a zlib stream holds, to its end.

    Raises DataError when it is damaged, ends early, or holds more than `limit` bytes and `PADDING`.
    """
    most = max(0, min(limit, sys.maxsize // 2) + PADDING)
    try:
        data = stream.decompress(content, most + 1)
    except zlib.error as error:
        raise damaged(path, str(error)) from None
    if len(data) > most:
        raise damaged(path, f"its header says {limit} bytes, and its compressed data hold more")
    if not stream.eof:
        raise FileError(path, f"is truncated: its compressed data end early, after {len(data)} bytes", COPY_AGAIN)
    return data


def components_last(array: np.ndarray, geometry: Geometry) -> np.ndarray:
    """(C, Z, Y, X) with the components of a voxel side by side, without the axes C of one channel and Z of 2-D."""
    moved = array[0] if len(array) == 1 else np.moveaxis(array, 0, -1)
    return moved[0] if geometry.dimension == 2 else moved


def spelt(values: Iterable[float]) -> str:
    """Numbers for a text header: all digits, and a decimal point in every locale, unlike those of C's functions."""
    return " ".join(f"{value + 0.0:.17g}" for value in values)


def deflated(array: np.ndarray, wbits: int, before: bytes = b"") -> Iterator[bytes]:
    """`before` and the numbers of an array, little-endian in C order, as a zlib (`wbits` 15) or gzip (31) stream."""
    stream = zlib.compressobj(wbits=wbits)
    yield stream.compress(before)
    for part in little_endian(array):
        yield stream.compress(part)
    yield stream.flush()


def little_endian(array: np.ndarray) -> Iterator[bytes]:
    """The bytes of an array in C order, in parts that stay small."""
    number = array.dtype.newbyteorder("<")
    for plane in array:
        yield np.ascontiguousarray(plane, number).tobytes()


def itk_reader(path: Path, name: str) -> sitk.ImageFileReader:
    """A reader of one format by ITK's name for it, which says nothing on the terminal."""
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    reader = sitk.ImageFileReader()
    reader.SetImageIO(name)
    reader.SetFileName(str(path))
    return reader


def itk_reason(error: RuntimeError) -> str:
    """The last line of ITK's report without the address of an object: what went wrong, not where in ITK."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return _ITK_PLACE.sub("", lines[-1]).rstrip(".") if lines else "ITK gives no reason"

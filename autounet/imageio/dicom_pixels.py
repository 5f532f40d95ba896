"""The pixels of one DICOM slice. Standard: DICOM PS3.5 section 8, PS3.3 C.7.6.3 (pixels) and C.11.1 (rescaling)."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..schema.errors import DataError
from .headers import AGAIN, damaged

IMPLICIT, EXPLICIT, DEFLATED, BIG = (
    "1.2.840.10008.1.2",
    "1.2.840.10008.1.2.1",
    "1.2.840.10008.1.2.1.99",
    "1.2.840.10008.1.2.2",
)
NATIVE = frozenset({IMPLICIT, EXPLICIT, DEFLATED, BIG})
"""transfer syntaxes whose pixels are not compressed"""
PIXELS = (0x7FE0, 0x0010)
_LONG = frozenset({b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"})
"""value representations with a length of four bytes"""
_SHARED, _PER_FRAME = (0x5200, 0x9229), (0x5200, 0x9230)
"""functional groups of all frames, and of each (PS3.3 C.7.6.16)"""
_MACROS = frozenset({(0x28, 0x9110), (0x20, 0x9113), (0x20, 0x9116), (0x28, 0x9145)})
"""of them: pixel measures, plane position, plane orientation, pixel value transformation"""
_UNKNOWN = 0xFFFFFFFF
_DEEPEST = 16
"""levels of nested sequences"""


class Elements(NamedTuple):
    syntax: str
    values: dict[tuple[int, int], bytes]
    """(group, element) -> value, of the first level; of sequences only functional groups, with their items' headers"""
    big: bool

    def text(self, group: int, element: int) -> str:
        return self.values.get((group, element), b"").decode("latin-1").strip(" \0")

    def numbers(self, group: int, element: int) -> list[float]:
        """Of a decimal or integer string. Raises ValueError."""
        text = self.text(group, element)
        return [float(part) for part in text.split("\\")] if text else []

    def short(self, group: int, element: int) -> int | None:
        value = self.values.get((group, element), b"")
        return struct.unpack(">H" if self.big else "<H", value[:2])[0] if len(value) >= 2 else None


class _Reader:
    """Walks the elements of a data set; positions are bytes in `content`."""

    def __init__(self, path: Path, content: bytes, explicit: bool, big: bool) -> None:
        self.path, self.content, self.explicit = path, content, explicit
        self.order = ">" if big else "<"

    def header(self, position: int) -> tuple[tuple[int, int], bytes, int, int]:
        """(tag, representation, length, position of the value)."""
        group, element = self.unpack("HH", position)
        tag = (group, element)
        if tag[0] == 0xFFFE or not self.explicit:
            return tag, b"", self.unpack("I", position + 4)[0], position + 8
        kind = self.content[position + 4 : position + 6]
        if not (kind.isalpha() and kind.isupper()):
            raise damaged(self.path, f"element {tag[0]:04x},{tag[1]:04x} has no representation")
        if kind in _LONG:
            return tag, kind, self.unpack("I", position + 8)[0], position + 12
        return tag, kind, self.unpack("H", position + 6)[0], position + 8

    def unpack(self, form: str, position: int) -> tuple[int, ...]:
        if position + struct.calcsize(self.order + form) > len(self.content):
            raise DataError(f"{self.path} is truncated: it ends within an element. {AGAIN}")
        return struct.unpack_from(self.order + form, self.content, position)

    def end_of(self, position: int, length: int) -> int:
        if position + length > len(self.content):
            raise DataError(f"{self.path} is truncated: {len(self.content)} of {position + length} bytes. {AGAIN}")
        return position + length

    def skip_items(self, position: int, fragments: bool, depth: int) -> int:
        """The end of a sequence, or of compressed pixels, whose length is not given."""
        if depth > _DEEPEST:
            raise damaged(self.path, "its sequences are nested too deeply")
        while True:
            tag, _, length, start = self.header(position)
            if tag == (0xFFFE, 0xE0DD):
                return start
            if tag != (0xFFFE, 0xE000):
                raise damaged(self.path, f"a sequence holds the element {tag[0]:04x},{tag[1]:04x}")
            if length != _UNKNOWN:
                position = self.end_of(start, length)
            elif fragments:
                raise damaged(self.path, "a part of its pixels has no length")
            else:
                position = self.skip_elements(start, depth + 1)

    def skip_elements(self, position: int, depth: int) -> int:
        """The end of an item whose length is not given."""
        while True:
            tag, kind, length, start = self.header(position)
            if tag == (0xFFFE, 0xE00D):
                return start
            position = self.value_end(tag, kind, length, start, depth)

    def value_end(self, tag: tuple[int, int], kind: bytes, length: int, start: int, depth: int) -> int:
        if length != _UNKNOWN:
            return self.end_of(start, length)
        if kind == b"UN":  # PS3.5 6.2.2: a sequence in implicit little endian
            return _Reader(self.path, self.content, False, False).skip_items(start, False, depth)
        return self.skip_items(start, tag == PIXELS, depth)

    def elements(self, position: int, end: int) -> Iterator[tuple[tuple[int, int], int, int]]:
        """(tag, start and end of the value) of each element between two positions, or to the end of the item."""
        while position < end:
            tag, kind, length, start = self.header(position)
            if tag == (0xFFFE, 0xE00D):
                return
            position = self.value_end(tag, kind, length, start, 0)
            if position > end:
                raise damaged(self.path, f"element {tag[0]:04x},{tag[1]:04x} is longer than what it is part of")
            yield tag, start, position

    def items(self, position: int, end: int) -> Iterator[tuple[int, int]]:
        """Start and end of the content of each item of a sequence."""
        while position < end:
            tag, _, length, start = self.header(position)
            if tag == (0xFFFE, 0xE0DD):
                return
            if tag != (0xFFFE, 0xE000):
                raise damaged(self.path, f"a sequence holds the element {tag[0]:04x},{tag[1]:04x}")
            position = self.end_of(start, length) if length != _UNKNOWN else self.skip_elements(start, 0)
            yield start, position

    def macros(self, start: int, end: int) -> dict[tuple[int, int], bytes]:
        """What one item of functional groups says in those of its sequences that an image needs."""
        found: dict[tuple[int, int], bytes] = {}
        for tag, first, last in self.elements(start, end):
            if tag in _MACROS:
                for item in self.items(first, last):
                    found |= {each: self.content[a:b] for each, a, b in self.elements(*item)}
        return found


def frames_of(path: Path, elements: Elements, count: int) -> list[Elements] | None:
    """The elements of each of `count` frames: those of the file, and over them what its functional groups say of all
    frames and of this one. None where there are no such groups. Raises DataError."""
    groups = []
    for tag in (_SHARED, _PER_FRAME):
        content = elements.values.get(tag, b"")
        reader = _Reader(path, content, elements.syntax != IMPLICIT, elements.big)
        groups.append([reader.macros(start, end) for start, end in reader.items(0, len(content))])
    shared, own = groups
    if not own:
        return None
    if len(own) != count or len(shared) > 1:
        raise damaged(path, f"it has {count} frames and tells of {len(own)}")
    common = {**elements.values, **(shared[0] if shared else {})}
    return [elements._replace(values={**common, **frame}) for frame in own]


def is_dicom(path: Path) -> bool:
    """By the four letters after the preamble."""
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def read_elements(path: Path) -> Elements:
    """Every element of the first level, the pixels among them (b"" when they are compressed). Raises DataError."""
    content = path.read_bytes()
    if content[128:132] != b"DICM":
        raise DataError(f"{path} is not a DICOM file: it does not say DICM after the preamble. {AGAIN}")
    meta, position = _group(_Reader(path, content, True, False), 132, 2)
    syntax = Elements("", meta, False).text(2, 0x10)
    if not syntax.startswith("1.2.840.10008.1.2") or syntax.strip("0123456789."):
        raise damaged(path, f"its transfer syntax is {syntax[:40]!r}")
    if syntax == DEFLATED:
        stream = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            content, position = stream.decompress(content[position:]), 0
        except zlib.error as error:
            raise damaged(path, str(error)) from None
        if not stream.eof:
            raise DataError(f"{path} is truncated: its compressed data end early. {AGAIN}")
    reader = _Reader(path, content, syntax != IMPLICIT, syntax == BIG)
    values, _ = _group(reader, position, None)
    return Elements(syntax, values, syntax == BIG)


def _group(reader: _Reader, position: int, group: int | None) -> tuple[dict[tuple[int, int], bytes], int]:
    """Elements from a position to the end of a group, or to the end of the file."""
    found: dict[tuple[int, int], bytes] = {}
    last = (0, 0)
    while position < len(reader.content):
        if group is not None and reader.unpack("H", position)[0] != group:
            break
        tag, kind, length, start = reader.header(position)
        if tag <= last:
            raise damaged(reader.path, f"element {tag[0]:04x},{tag[1]:04x} comes after {last[0]:04x},{last[1]:04x}")
        position = reader.value_end(tag, kind, length, start, 0)
        if tag in (_SHARED, _PER_FRAME) or (length != _UNKNOWN and kind != b"SQ"):
            found[tag] = reader.content[start:position]
        elif tag == PIXELS:
            found[tag] = b""
        last = tag
    return found, position


class Slice(NamedTuple):
    path: Path
    elements: Elements
    series: str
    shape: tuple[int, int]
    """(rows, columns)"""
    samples: int
    """1 grey, 3 colours"""
    spacing: tuple[float, float]
    """(between rows, between columns) mm"""
    thickness: float
    position: np.ndarray | None
    """(3,) mm, of the first pixel"""
    axes: np.ndarray | None
    """(2, 3) directions along a row and along a column"""
    frame: int = 0
    frames: int = 1
    """how many the file holds, and which of them this is"""

    @property
    def name(self) -> str:
        """For messages."""
        return self.path.name if self.frames == 1 else f"frame {self.frame + 1} of {self.path.name}"


def read_pixels(each: Slice) -> np.ndarray:
    """(C, Y, X) of one slice, rescale slope and intercept applied. Raises DataError."""
    if each.elements.syntax not in NATIVE:
        if each.frames > 1:
            raise DataError(
                f"{each.path} has {each.frames} compressed frames in one file. Convert it to NIfTI, or decompress it "
                "(for example with dcmdjpeg or gdcmconv --raw)"
            )
        return _decoded(each)
    raw = _native(each)
    try:
        slope = (each.elements.numbers(0x28, 0x1053) or [1.0])[0]
        intercept = (each.elements.numbers(0x28, 0x1052) or [0.0])[0]
    except ValueError as error:
        raise damaged(each.path, str(error)) from None
    if not np.isfinite([slope, intercept]).all() or slope == 0 or each.samples > 1:
        if each.samples > 1:
            return raw
        raise damaged(each.path, f"its rescale slope is {slope}, its intercept {intercept}")
    if slope == 1 and intercept == int(intercept) and abs(intercept) < 2**30 and raw.dtype.itemsize < 4:
        return raw.astype(np.int32) + np.int32(intercept)
    return (raw * slope + intercept).astype(np.float32)


def _native(each: Slice) -> np.ndarray:
    elements, path = each.elements, each.path
    allocated, stored = elements.short(0x28, 0x100), elements.short(0x28, 0x101)
    signed = elements.short(0x28, 0x103) == 1
    photometric = elements.text(0x28, 4)
    grey = photometric in ("MONOCHROME1", "MONOCHROME2") and each.samples == 1
    if not grey and not (photometric == "RGB" and each.samples == 3):
        raise DataError(f"{path} has pixels of kind {photometric[:20]!r}. Convert it to grey values or RGB")
    if allocated not in (8, 16, 32) or stored is None or not 1 <= stored <= allocated:
        raise damaged(path, f"its pixels have {stored} bits in {allocated}")
    number = np.dtype((">" if elements.big else "<") + ("i" if signed else "u") + str(allocated // 8))
    rows, columns = each.shape
    data, count = elements.values[PIXELS], rows * columns * each.samples
    size = count * number.itemsize
    if len(data) < size * each.frames:
        raise DataError(f"{path} is truncated: {len(data)} of {size * each.frames} bytes of pixels. {AGAIN}")
    if len(data) > size * each.frames + 1:  # values have an even length
        pixels = f"{rows}x{columns} pixels" + (f" in {each.frames} frames" if each.frames > 1 else "")
        raise damaged(path, f"its header tells of {pixels}, and it holds more")
    values = np.frombuffer(data, number, count, offset=size * each.frame)
    if stored < allocated:  # bits above those stored may hold anything (PS3.5 8.1.1)
        shift = allocated - stored
        values = (values << shift) >> shift
    if each.samples == 1:
        return values.reshape(1, rows, columns)
    if elements.short(0x28, 6) == 1:  # colours plane by plane
        return values.reshape(3, rows, columns)
    return np.moveaxis(values.reshape(rows, columns, 3), -1, 0)


def _decoded(each: Slice) -> np.ndarray:
    """Compressed pixels, by GDCM, which applies slope and intercept."""
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(each.path))
    try:
        array = sitk.GetArrayFromImage(reader.Execute())
    except RuntimeError as error:
        line = [line for line in str(error).splitlines() if line.strip()][-1].split("): ")[-1].strip()
        raise DataError(f"{each.path} cannot be decoded: {line}. {AGAIN}") from None
    array = array.reshape(1, *each.shape) if each.samples == 1 else np.moveaxis(array.reshape(*each.shape, -1), -1, 0)
    return array

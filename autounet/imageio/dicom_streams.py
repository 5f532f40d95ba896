"""Compressed pixels of DICOM, looked at before they are decoded: they say once more how large they are.

Decoders believe them, and not what the file's own elements say: a forged size fills the memory, and some markers that
contradict each other keep a decoder busy for ever. Sources: ISO/IEC 15444-1 annex A (JPEG 2000), 10918-1 annex B
(JPEG), 14495-1 annex C (JPEG-LS), DICOM PS3.5 annex G (RLE).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from .image_format import damaged

if TYPE_CHECKING:
    from pydicom import Dataset


class StreamSize(NamedTuple):
    """What a compressed image says of itself."""

    rows: int
    columns: int
    samples: int


_JPEG_FRAMES = frozenset({*range(0xC0, 0xD0), 0xF7}) - {0xC4, 0xC8, 0xCC}
"""markers that begin a frame: SOF0 to SOF15, and that of JPEG-LS; the others are tables"""
_J2K_HEADER = frozenset({0x50, 0x52, 0x53, 0x55, 0x57, 0x59, 0x5C, 0x5D, 0x5E, 0x5F, 0x60, 0x63, 0x64})
"""markers of a main header behind SIZ"""
_SOT, _SOS = 0x90, 0xDA
_UNDEFINED = 0xFFFFFFFF
"""length of an element that ends with a mark"""
_MOST_SEGMENTS = 15
"""of RLE"""


def require_sound(path: Path, dataset: Dataset, pixels: object, wanted: StreamSize) -> None:
    """Raises FileError where compressed pixels are of another size than `wanted`, or contradict themselves.

    And where an element of the file says that it is longer than what is there.
    """
    from pydicom.encaps import generate_frames

    _require_whole_elements(path, dataset)
    try:
        stream = next(iter(generate_frames(pixels if isinstance(pixels, bytes) else b"", number_of_frames=1)), b"")
        found = _size(stream, wanted)
    except (ValueError, struct.error, IndexError) as error:
        raise damaged(path, f"its compressed pixels cannot be read ({str(error)[:80]})") from None
    if found != wanted:
        sizes = " and ".join(f"{each.rows}x{each.columns} pixels of {each.samples} samples" for each in (wanted, found))
        raise damaged(path, f"its elements and its compressed pixels give different sizes: {sizes}")


def _require_whole_elements(path: Path, dataset: Dataset) -> None:
    """GDCM gives each element the memory that it says to need."""
    from pydicom.dataelem import RawDataElement
    from pydicom.valuerep import STANDARD_VR

    waiting = [dataset, getattr(dataset, "file_meta", dataset)]
    while waiting:
        inside = waiting.pop()
        for each in list(inside.values()):
            if isinstance(each, RawDataElement):
                if each.VR is not None and each.VR not in STANDARD_VR:
                    raise damaged(path, f"the element {each.tag} is of the unknown kind {each.VR!a}")
                if each.length not in (_UNDEFINED, len(each.value or b"")):
                    raise damaged(path, f"the element {each.tag} says that it has {each.length} bytes, and has others")
            if each.VR == "SQ":
                try:
                    waiting += inside[each.tag].value
                except Exception as error:  # pydicom lets struct, value, key and recursion errors through
                    raise damaged(path, f"its elements cannot be read ({str(error)[:80]})") from None


def _size(stream: bytes, wanted: StreamSize) -> StreamSize:
    if stream[:2] == b"\xff\xd8":
        return _jpeg_size(stream)
    start = stream.find(b"\xff\x4f\xff\x51")  # in a file of its own, behind its boxes
    if start >= 0:
        return _jpeg_2000_size(stream[start:])
    offsets = struct.unpack_from("<16I", stream)  # RLE says nothing of its size, which its segments are held to
    used = offsets[1 : offsets[0] + 1]
    if not 1 <= offsets[0] <= _MOST_SEGMENTS or used[0] != 64 or list(used) != sorted(set(used)):
        raise ValueError("of no known kind")
    if used[-1] >= len(stream):
        raise ValueError("a segment begins behind their end")
    return wanted


def _segments(stream: bytes, place: int) -> Iterator[tuple[int, bytes]]:
    """(marker, content) of each segment from `place` on. Raises ValueError where one is none."""
    while True:
        while stream[place] == 0xFF and stream[place + 1] == 0xFF:  # fill bytes
            place += 1
        if stream[place] != 0xFF:
            raise ValueError("a marker is missing")
        length = int.from_bytes(stream[place + 2 : place + 4], "big")
        if length < 2 or place + 2 + length > len(stream):
            raise ValueError("a segment is longer than they are")
        yield stream[place + 1], stream[place + 4 : place + 2 + length]
        place += 2 + length


def _jpeg_size(stream: bytes) -> StreamSize:
    for marker, content in _segments(stream, 2):
        if marker in _JPEG_FRAMES:
            _, rows, columns, samples = struct.unpack_from(">BHHB", content)
            return StreamSize(rows, columns, samples)
        if marker == _SOS:
            break
    raise ValueError("they have no frame")


def _jpeg_2000_size(stream: bytes) -> StreamSize:
    segments = _segments(stream, 2)
    _, content = next(segments)
    _, right, bottom, left, top, width, height, tile_left, tile_top, samples = struct.unpack_from(">H8IH", content)
    parts = [struct.unpack_from(">BBB", content, 36 + 3 * index) for index in range(samples)]
    if any((depth & 0x7F) > 37 or across not in (1, 2) or down not in (1, 2) for depth, across, down in parts):
        raise ValueError("their samples have an impossible depth or distance")
    if not (tile_left <= left < tile_left + width and tile_top <= top < tile_top + height):
        raise ValueError("their tiles do not begin where they do")
    for marker, content in segments:
        if marker == _SOT:
            return StreamSize(bottom - top, right - left, samples)
        if marker not in _J2K_HEADER:
            raise ValueError(f"they hold the unknown marker {marker:#x}")
        if marker == 0x52 and (content[5] > 32 or max(content[6], content[7]) > 8 or content[6] + content[7] > 8):
            raise ValueError("their blocks have an impossible size")
    raise ValueError("they hold no tile")

"""Whether a TIFF file is whole. Format: TIFF 6.0, sections 2 and 8, and BigTIFF.

tifffile reads what it can of a damaged file: of a stack whose later pages are missing, the first page alone.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

from autounet.images.headers import AGAIN, damaged
from autounet.schema.errors import DataError

_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
"""bytes of a value of each type"""
_WHOLE = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}
_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _SAMPLES, _ROWS, _PLANAR = 256, 257, 258, 259, 277, 278, 284
_TILE_WIDTH, _TILE_HEIGHT, _DEPTH = 322, 323, 32997
_OFFSETS, _COUNTS = (273, 324), (279, 325)
"""of strips and of tiles"""
_READ = frozenset({_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _SAMPLES, _ROWS, _PLANAR, _TILE_WIDTH, _TILE_HEIGHT, _DEPTH,
                   *_OFFSETS, *_COUNTS})  # fmt: skip
_DENSEST = 100_000
"""bytes of pixels that a compressed byte can stand for at most; deflate and LZW reach about 1,000"""


class _File:
    def __init__(self, path: Path, content: bytes) -> None:
        self.path, self.content = path, content
        self.order = {b"II": "<", b"MM": ">"}.get(content[:2], "")
        version = self.unpack("H", 2)[0] if self.order else 0
        if version not in (42, 43):
            raise DataError(f"{path} cannot be read: it is not a TIFF file. {AGAIN}")
        self.big = version == 43
        self.first = self.unpack("Q", 8)[0] if self.big else self.unpack("I", 4)[0]

    def unpack(self, form: str, offset: int) -> tuple[int, ...]:
        if offset + struct.calcsize("<" + form) > len(self.content):
            raise DataError(f"{self.path} is truncated: it ends before what its header points to. {AGAIN}")
        return struct.unpack_from(self.order + form, self.content, offset)


def require_whole(path: Path) -> int:
    """The number of pages, all of whose pixels lie within the file. Raises DataError."""
    file = _File(path, path.read_bytes())
    offset, seen = file.first, set[int]()
    while offset:
        if offset in seen:
            raise damaged(path, "its list of pages runs in a circle")
        seen.add(offset)
        offset = _page(file, offset)
    if not seen:
        raise damaged(path, "it has no page")
    return len(seen)


def _page(file: _File, offset: int) -> int:
    """Checks one page; the offset of the next, 0 after the last."""
    (count,) = file.unpack("Q" if file.big else "H", offset)
    start, size = (offset + 8, 20) if file.big else (offset + 2, 12)
    if count > 4096:
        raise damaged(file.path, f"a page has {count} tags")
    (following,) = file.unpack("Q" if file.big else "I", start + count * size)
    tags = dict(_tag(file, start + index * size) for index in range(count))
    _require_pixels(file, tags)
    return following


def _tag(file: _File, offset: int) -> tuple[int, Sequence[int]]:
    """(tag, its values) of whole numbers; other tags are only checked to lie within the file."""
    tag, kind = file.unpack("HH", offset)
    (count,) = file.unpack("Q" if file.big else "I", offset + 4)
    place, room, form = (offset + 12, 8, "Q") if file.big else (offset + 8, 4, "I")
    length = count * _SIZES.get(kind, 1)
    if length > room:
        (place,) = file.unpack(form, place)
    if place + length > len(file.content):
        raise DataError(f"{file.path} is truncated: it ends before the values of tag {tag}. {AGAIN}")
    if kind not in _WHOLE or tag not in _READ:
        return tag, ()
    return tag, file.unpack(f"{count}{_WHOLE[kind]}", place)


def _require_pixels(file: _File, tags: dict[int, Sequence[int]]) -> None:
    """Every strip or tile lies within the file; what is not compressed has as many bytes as its size tells."""
    offsets, counts = (next((tags[tag] for tag in pair if tag in tags), ()) for pair in (_OFFSETS, _COUNTS))
    width, height = _one(tags, _WIDTH, 0), _one(tags, _HEIGHT, 0)
    samples, bits = _one(tags, _SAMPLES, 1), _one(tags, _BITS, 1)
    parts = _parts(tags, width, height, samples)
    if not min(width, height, samples, bits) or not len(offsets) == len(counts) == parts:
        raise damaged(file.path, f"a page of {width}x{height} pixels has {len(offsets)} parts")
    for offset, length in zip(offsets, counts, strict=True):
        if offset + length > len(file.content):
            raise DataError(f"{file.path} is truncated: its pixels end after {len(file.content)} bytes. {AGAIN}")
    plain = _one(tags, _COMPRESSION, 1) == 1 and _OFFSETS[0] in tags
    expected = (width * samples * bits + 7) // 8 * height
    found = sum(counts)
    if expected > _DENSEST * found:
        raise damaged(file.path, f"a page of {width}x{height} pixels has {found} bytes")
    several = found % expected == 0 and found > 0  # ImageJ: the strip of the first page spans the whole stack
    if plain and not (0 <= found - expected <= len(counts) or several):
        raise damaged(file.path, f"a page of {width}x{height} pixels has {found} bytes, not {expected}")


def _one(tags: dict[int, Sequence[int]], tag: int, default: int) -> int:
    return next(iter(tags.get(tag, ())), default)


def _parts(tags: dict[int, Sequence[int]], width: int, height: int, samples: int) -> int:
    """The number of strips or tiles that a page needs; tifffile takes those that are missing for zeros."""
    planes = samples if _one(tags, _PLANAR, 1) == 2 else 1
    if _OFFSETS[1] not in tags:
        return -(-height // max(1, _one(tags, _ROWS, height))) * planes
    across, down = max(1, _one(tags, _TILE_WIDTH, width)), max(1, _one(tags, _TILE_HEIGHT, height))
    return -(-width // across) * -(-height // down) * _one(tags, _DEPTH, 1) * planes

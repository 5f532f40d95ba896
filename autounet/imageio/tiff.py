"""TIFF images and stacks through tifffile."""

from __future__ import annotations

import logging
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import numpy as np

from ..schema.errors import FileError
from ..schema.geometry import Geometry, Spacing3
from .image_format import COPY_AGAIN, ImageFormat, ImageHeader, damaged, make_geometry

if TYPE_CHECKING:
    from tifffile import TiffFile

_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
"""bytes of a value of each type"""
_WHOLE = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}
_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _SAMPLES, _ROWS, _PLANAR = 256, 257, 258, 259, 277, 278, 284
_TILE_WIDTH, _TILE_HEIGHT, _DEPTH = 322, 323, 32997
_OFFSETS, _COUNTS = (273, 324), (279, 325)
"""of strips and of tiles"""
_READ = frozenset({_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _SAMPLES, _ROWS, _PLANAR, _TILE_WIDTH, _TILE_HEIGHT, _DEPTH,
                   *_OFFSETS, *_COUNTS})  # fmt: skip
_MAX_COMPRESSION = 100_000
"""bytes of pixels that a compressed byte can stand for at most; deflate and LZW reach about 1,000"""


class _TiffFile:
    """Numbers of a TIFF file by their offsets, checked to lie within it."""

    def __init__(self, path: Path, content: bytes) -> None:
        self.path, self.content = path, content
        self.order = {b"II": "<", b"MM": ">"}.get(content[:2], "")
        version = self.unpack("H", 2)[0] if self.order else 0
        if version not in (42, 43):
            raise FileError(path, "cannot be read: it is not a TIFF file", COPY_AGAIN)
        self.big = version == 43
        self.first = self.unpack("Q", 8)[0] if self.big else self.unpack("I", 4)[0]

    def unpack(self, form: str, offset: int) -> tuple[int, ...]:
        if offset + struct.calcsize("<" + form) > len(self.content):
            raise FileError(self.path, "is truncated: it ends before what its header points to", COPY_AGAIN)
        return struct.unpack_from(self.order + form, self.content, offset)


def require_whole(path: Path) -> int:
    """The number of pages, all of whose pixels lie within the file. Raises DataError."""
    file = _TiffFile(path, path.read_bytes())
    offset, seen = file.first, set[int]()
    while offset:
        if offset in seen:
            raise damaged(path, "its list of pages runs in a circle")
        seen.add(offset)
        offset = _page(file, offset)
    if not seen:
        raise damaged(path, "it has no page")
    return len(seen)


def _page(file: _TiffFile, offset: int) -> int:
    """Checks one page; the offset of the next, 0 after the last."""
    (count,) = file.unpack("Q" if file.big else "H", offset)
    start, size = (offset + 8, 20) if file.big else (offset + 2, 12)
    if count > 4096:
        raise damaged(file.path, f"a page has {count} tags")
    (following,) = file.unpack("Q" if file.big else "I", start + count * size)
    tags = dict(_tag(file, start + index * size) for index in range(count))
    _require_pixels(file, tags)
    return following


def _tag(file: _TiffFile, offset: int) -> tuple[int, Sequence[int]]:
    """(tag, its values) of whole numbers; other tags are only checked to lie within the file."""
    tag, kind = file.unpack("HH", offset)
    (count,) = file.unpack("Q" if file.big else "I", offset + 4)
    place, room, form = (offset + 12, 8, "Q") if file.big else (offset + 8, 4, "I")
    length = count * _SIZES.get(kind, 1)
    if length > room:
        (place,) = file.unpack(form, place)
    if place + length > len(file.content):
        raise FileError(file.path, f"is truncated: it ends before the values of tag {tag}", COPY_AGAIN)
    if kind not in _WHOLE or tag not in _READ:
        return tag, ()
    return tag, file.unpack(f"{count}{_WHOLE[kind]}", place)


def _require_pixels(file: _TiffFile, tags: dict[int, Sequence[int]]) -> None:
    """Every strip or tile lies within the file; what is not compressed has as many bytes as its size tells."""
    offsets, counts = (next((tags[tag] for tag in pair if tag in tags), ()) for pair in (_OFFSETS, _COUNTS))
    width, height = _one(tags, _WIDTH, 0), _one(tags, _HEIGHT, 0)
    samples, bits = _one(tags, _SAMPLES, 1), _one(tags, _BITS, 1)
    parts = _parts(tags, width, height, samples)
    if not min(width, height, samples, bits) or not len(offsets) == len(counts) == parts:
        raise damaged(file.path, f"a page of {width}x{height} pixels has {len(offsets)} parts")
    for offset, length in zip(offsets, counts, strict=True):
        if offset + length > len(file.content):
            raise FileError(file.path, f"is truncated: its pixels end after {len(file.content)} bytes", COPY_AGAIN)
    plain = _one(tags, _COMPRESSION, 1) == 1 and _OFFSETS[0] in tags
    expected = (width * samples * bits + 7) // 8 * height
    stored = sum(counts)
    if expected > _MAX_COMPRESSION * stored:
        raise damaged(file.path, f"a page of {width}x{height} pixels has {stored} bytes")
    several = stored % expected == 0 and stored > 0  # ImageJ: the strip of the first page spans the whole stack
    if plain and not (0 <= stored - expected <= len(counts) or several):
        raise damaged(file.path, f"a page of {width}x{height} pixels has {stored} bytes, not {expected}")


def _one(tags: dict[int, Sequence[int]], tag: int, default: int) -> int:
    return next(iter(tags.get(tag, ())), default)


def _parts(tags: dict[int, Sequence[int]], width: int, height: int, samples: int) -> int:
    """The number of strips or tiles that a page needs; tifffile takes those that are missing for zeros."""
    planes = samples if _one(tags, _PLANAR, 1) == 2 else 1
    if _OFFSETS[1] not in tags:
        return -(-height // max(1, _one(tags, _ROWS, height))) * planes
    across, down = max(1, _one(tags, _TILE_WIDTH, width)), max(1, _one(tags, _TILE_HEIGHT, height))
    return -(-width // across) * -(-height // down) * _one(tags, _DEPTH, 1) * planes


_MILLIMETRES = {
    "nm": 1e-6, "um": 1e-3, "µm": 1e-3, "\\u00b5m": 1e-3, "μm": 1e-3, "micron": 1e-3, "microns": 1e-3,
    "mm": 1.0, "cm": 10.0, "inch": 25.4, "m": 1000.0,
}  # fmt: skip


def read_tiff(path: Path) -> tuple[np.ndarray, ImageHeader]:
    """Array (C, Z, Y, X) in the file's own number type. Pages are slices; samples and OME channels are channels.

    A single page is a photograph with spacing 1; a stack takes its spacing from OME or ImageJ metadata. Time points of
    stacks come along C. Transparency is dropped. Raises DataError.
    """
    import tifffile

    logging.getLogger("tifffile").setLevel(logging.CRITICAL)
    pages = require_whole(path)
    try:
        with tifffile.TiffFile(path) as file:
            array = file.series[0].asarray()
            page: Any = file.pages[0]
            if page.photometric == tifffile.PHOTOMETRIC.PALETTE and page.colormap is not None:
                array = _grey_palette(array, np.asarray(page.colormap))
            axes, spacing = file.series[0].axes, _spacing(file)
            metadata = file.imagej_metadata or {}
    except Exception as error:  # tifffile lets struct, zlib, key and codec errors through
        raise FileError(path, f"cannot be read: {_reason(error)}", COPY_AGAIN) from None
    if array.ndim != len(axes):
        raise damaged(path, f"its pages are not of the sizes of its axes {axes}")
    _require_all(path, array, pages, metadata)
    array, frames = _order(path, array, axes)
    if not array.size:
        raise FileError(path, "holds no pixels", COPY_AGAIN)
    used = 2 if array.shape[1] == 1 else 3
    if used == 2:
        spacing = (1.0, 1.0, 1.0)
    geometry = make_geometry(path, "tiff", array.shape[:0:-1][:used], spacing[::-1][:used], [0.0] * used, np.eye(used))
    return array, ImageHeader(geometry, array.shape[0] // frames, frames)


def _require_all(path: Path, array: np.ndarray, pages: int, metadata: dict[str, Any]) -> None:
    """ImageJ says how many images a stack has. Raises DataError when there are fewer."""
    count = metadata.get("images", 1)
    if isinstance(count, int) and pages < count and array.size < count * array.shape[-1] * array.shape[-2]:
        raise FileError(path, f"is truncated: its header says {count} images, and {pages} are there", COPY_AGAIN)


def _reason(error: Exception) -> str:
    """tifffile's first line."""
    return str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__


def _grey_palette(indices: np.ndarray, colormap: np.ndarray) -> np.ndarray:
    """Greys of a palette of greys (colormap (3, N), 16 bits scaled from 8); other palettes stay indices."""
    used = colormap[:, np.unique(indices)]
    return (colormap[0][indices] >> 8).astype(np.uint8) if (used == used[:1]).all() else indices


def _order(path: Path, array: np.ndarray, axes: str) -> tuple[np.ndarray, int]:
    """Bring any of tifffile's axes (Z, I and Q slices, C and S channels, T time, Y, X) to (C, Z, Y, X).

    Also the number of time points along C; without an axis of slices, T is one.
    """
    for index in reversed([i for i, axis in enumerate(axes) if axis not in "YXS" and array.shape[i] == 1]):
        array, axes = array.squeeze(index), axes[:index] + axes[index + 1 :]
    slices = [i for i, axis in enumerate(axes) if axis not in "YXSC"]
    channels = [i for i, axis in enumerate(axes) if axis in "SC"]
    frames = 1
    if "T" in axes and len(slices) == 2 and not channels:
        channels, slices = [axes.index("T")], [i for i in slices if axes[i] != "T"]
        frames = array.shape[channels[0]]
    if len(slices) > 1 or len(channels) > 1 or not {"Y", "X"} <= set(axes):
        raise FileError(path, f"has the axes {axes}", "Store one volume per file, with one axis of slices")
    if channels and axes[channels[0]] == "S" and array.shape[channels[0]] in (2, 4):
        array = np.take(array, range(array.shape[channels[0]] - 1), axis=channels[0])
    order = [*channels, *slices, axes.index("Y"), axes.index("X")]
    array = array.transpose(order)
    if not channels:
        array = array[None]
    return (array if slices else array[:, None]), frames


def _spacing(file: TiffFile) -> Spacing3:
    """(z, y, x) mm from OME-XML, or from ImageJ's `spacing` and the resolution tags; 1 where nothing is said."""
    if file.is_ome and file.ome_metadata:
        pixels = next((e for e in ElementTree.fromstring(file.ome_metadata).iter() if e.tag.endswith("Pixels")), None)
        if pixels is not None:
            z, y, x = (
                float(pixels.get(f"PhysicalSize{axis}", 0))
                * _MILLIMETRES.get(pixels.get(f"PhysicalSize{axis}Unit", "µm"), 1.0)
                for axis in "ZYX"
            )
            return (z or 1.0, y or 1.0, x or 1.0)
    metadata = file.imagej_metadata or {}
    if "spacing" not in metadata:
        return (1.0, 1.0, 1.0)
    scale = _MILLIMETRES.get(str(metadata.get("unit", "mm")), 1.0)
    sizes = []
    page: Any = file.pages[0]
    for name in ("YResolution", "XResolution"):
        tag = page.tags.get(name)
        numerator, denominator = tag.value if tag is not None else (1, 1)
        sizes.append(denominator / numerator * scale if numerator and denominator else 1.0)
    return (abs(float(metadata["spacing"])) * scale or 1.0, sizes[0], sizes[1])


def write_tiff(path: Path, array: np.ndarray, geometry: Geometry) -> None:
    """Write (C, Z, Y, X) losslessly compressed; a stack keeps its spacing as ImageJ metadata where those can."""
    import tifffile

    photometric = "rgb" if array.shape[0] == 3 and array.dtype in (np.uint8, np.uint16) else "minisblack"
    pixels = np.moveaxis(array, 0, -1) if photometric == "rgb" else array
    if photometric != "rgb" and array.shape[0] > 1:
        tifffile.imwrite(path, array, photometric=photometric, compression="zlib", metadata={"axes": "CZYX"}, ome=True)
        return
    pixels = pixels if photometric == "rgb" else pixels[0]
    stack = geometry.shape[0] > 1 and array.dtype in (np.uint8, np.uint16, np.float32)
    if not stack:
        tifffile.imwrite(
            path, pixels if geometry.shape[0] > 1 else pixels[0], photometric=photometric, compression="zlib"
        )
        return
    z, y, x = geometry.spacing
    axes = "ZYXS" if photometric == "rgb" else "ZYX"
    metadata = {"axes": axes, "spacing": z, "unit": "mm"}
    tifffile.imwrite(path, pixels, imagej=True, photometric=photometric, resolution=(1 / x, 1 / y), metadata=metadata)


TIFF = ImageFormat(
    (".ome.tif", ".ome.tiff", ".tif", ".tiff"),
    read_tiff,
    lambda path: read_tiff(path)[1],
    write_tiff,
    written_as={".ome.tif": ".tif", ".ome.tiff": ".tif"},
)

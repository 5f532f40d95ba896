"""TIFF images and stacks through tifffile."""

from __future__ import annotations

import logging
import math
import struct
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import numpy as np

from ..schema.errors import FileError
from ..schema.geometry import Spacing3
from .axes import clean_names, order_axes
from .image_format import (
    COPY_AGAIN,
    ImageFormat,
    ImageHeader,
    Remark,
    damaged,
    in_millimetres,
    make_geometry,
    millimetres,
    require_memory,
)  # fmt: skip
from .pictures import ORIENTATION, upright
from .pixel_streams import is_lzw
from .stored_values import (
    BIT_COLOURS,
    LOOK_UP_TABLE,
    OTHER_IMAGES,
    WHITE_ZERO,
    Pixels,
    apply_palette,
    profile_remarks,
    to_rgb,
    without_alpha,
)  # fmt: skip
from .tiff_writing import write_tiff, write_tiff_rows

if TYPE_CHECKING:
    from tifffile import TiffFile

_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
"""bytes of a value of each type"""
_WHOLE = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}
_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _SAMPLES, _ROWS, _PLANAR = 256, 257, 258, 259, 277, 278, 284
_TILE_WIDTH, _TILE_HEIGHT, _DEPTH, _FILL_ORDER = 322, 323, 32997, 266
_LZW = 5
_TURNED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
"""of each byte: its bits from the last to the first"""
_OFFSETS, _COUNTS = (273, 324), (279, 325)
"""of strips and of tiles"""
_READ = frozenset({_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _SAMPLES, _ROWS, _PLANAR, _TILE_WIDTH, _TILE_HEIGHT, _DEPTH,
                   _FILL_ORDER, *_OFFSETS, *_COUNTS})  # fmt: skip
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
    if _one(tags, _COMPRESSION, 1) == _LZW:
        for offset, length in zip(offsets, counts, strict=True):
            strip = file.content[offset : offset + length]
            if not is_lzw(strip.translate(_TURNED) if _one(tags, _FILL_ORDER, 1) == 2 else strip):
                raise damaged(file.path, "its LZW codes are none, or those from before TIFF 5")
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


_NOT_SHOWN = {8: "CIELAB", 9: "CIELAB", 10: "CIELAB", 32803: "raw camera", 32844: "LogL", 32845: "LogLuv"}
"""photometric interpretations whose values are neither greys nor red, green and blue"""
_MIN_IS_WHITE, _MIN_IS_BLACK, _RGB, _PALETTE, _SEPARATED, _YCBCR = 0, 1, 2, 3, 5, 6
_DECODED_TO_RGB = (6, 7, 33003, 33004, 33005, 34712, 34892, 34933, 34934, 50001, 50002)
"""compressions of colours (JPEG, JPEG 2000, WebP, JPEG XL, JPEG XR), whose decoders turn YCbCr into RGB"""
_ICC_PROFILE = 34675


def read_tiff(path: Path, as_indices: bool = False, decode: bool = True) -> tuple[np.ndarray, ImageHeader]:
    """Array (C, Z, Y, X) in the file's own number type. Pages are slices; samples and OME channels are channels.

    A single page is a photograph with spacing 1, read as a viewer shows it; a stack takes its spacing from OME or
    ImageJ metadata. Time points of stacks come along C. Transparency is left out. `as_indices`: labels, of which
    a palette or fewer than 8 bits give numbers. `decode` False: for the header; values are 0 if there is no palette.
    Channels that are no samples of a colour are named as the file names them.
    Raises DataError.
    """
    import tifffile

    logging.getLogger("tifffile").setLevel(logging.CRITICAL)
    pages = require_whole(path)
    try:
        with tifffile.TiffFile(path) as file:
            page: Any = file.pages[0]
            series, metadata = file.series[0], file.imagej_metadata or {}
            decode = decode or page.photometric == _PALETTE
            if decode:
                require_memory(path, math.prod(series.shape), series.dtype.itemsize)
            array = series.asarray() if decode else np.broadcast_to(np.zeros((), series.dtype), series.shape)
            if array.ndim != len(series.axes):
                raise damaged(path, f"its pages are not of the sizes of its axes {series.axes}")
            _require_all(path, array, pages, metadata)
            pixels, axes = _interpret(path, page, array, series.axes, file.is_imagej, as_indices)
            spacing, remarks = _spacing(file)
            others = (OTHER_IMAGES,) if len(file.series) > 1 else ()
            count = int(np.prod([array.shape[index] for index, axis in enumerate(series.axes) if axis in "CS"]))
            measured = "C" in series.axes or int(page.photometric) in (_MIN_IS_WHITE, _MIN_IS_BLACK)
            names = _channel_names(file, count) if count > 1 and measured else ()
            orientation, profile = (page.tags.get(tag) for tag in (ORIENTATION, _ICC_PROFILE))
            orientation, profile = getattr(orientation, "value", 1), getattr(profile, "value", None)
    except (FileError, MemoryError):
        raise
    except Exception as error:  # tifffile lets struct, zlib, key and codec errors through
        raise FileError(path, f"cannot be read: {_reason(error)}", COPY_AGAIN) from None
    array, frames = order_axes(path, pixels.array, axes)
    if not array.size:
        raise FileError(path, "holds no pixels", COPY_AGAIN)
    used = 2 if array.shape[1] == 1 else 3
    if used == 2:
        spacing, remarks = (1.0, 1.0, 1.0), ()
        array = upright(array, orientation if orientation in range(1, 9) else 1)
        remarks += () if as_indices or not isinstance(profile, bytes) else profile_remarks(profile, array.shape[0])
    elif orientation in range(2, 9):
        text = f"has the orientation {orientation} of a turned photograph, which is not applied to stacks"
        remarks += (Remark("not-as-shown", text, "Turn it in a viewer and save it again, if it lies wrong"),)
    geometry = make_geometry(path, "tiff", array.shape[:0:-1][:used], spacing[::-1][:used], [0.0] * used, np.eye(used))
    header = ImageHeader(geometry, array.shape[0] // frames, frames, remarks=pixels.remarks + remarks + others)
    measured = measured and count == header.components > 1
    return array, header._replace(colours=pixels.colours, measured=measured, names=names if measured else ())


def _require_all(path: Path, array: np.ndarray, pages: int, metadata: dict[str, Any]) -> None:
    """ImageJ says how many images a stack has. Raises DataError when there are fewer."""
    count = metadata.get("images", 1)
    if isinstance(count, int) and pages < count and array.size < count * array.shape[-1] * array.shape[-2]:
        raise FileError(path, f"is truncated: its header says {count} images, and {pages} are there", COPY_AGAIN)


def _reason(error: Exception) -> str:
    """tifffile's first line."""
    return str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__


def _interpret(
    path: Path, page: Any, array: np.ndarray, axes: str, imagej: bool, as_indices: bool
) -> tuple[Pixels, str]:
    """The stored values as grey values, colours or labels, and their axes. Raises DataError where they are neither."""
    photometric, bits = int(page.photometric), int(np.max(page.bitspersample))
    if photometric in _NOT_SHOWN:
        raise FileError(path, f"stores its pixels as {_NOT_SHOWN[photometric]}", "Convert it to RGB or grey values")
    if photometric == _PALETTE and page.colormap is not None:
        stack = array.size > array.shape[axes.index("Y")] * array.shape[axes.index("X")]
        return _with_palette(array, np.asarray(page.colormap), axes, imagej or stack, as_indices)
    if photometric == _SEPARATED:
        return Pixels(*to_rgb(path, array, axes, "CMYK")), axes
    if photometric == _YCBCR and page.compression not in _DECODED_TO_RGB:
        return Pixels(*to_rgb(path, array, axes, "YCbCr")), axes
    whole = array.dtype.kind in "ub"
    inverted = photometric == _MIN_IS_WHITE and whole and bits <= (1 if as_indices else 16)
    remarks: tuple[Remark, ...] = (WHITE_ZERO,) if photometric == _MIN_IS_WHITE and not inverted else ()
    array = array.astype(np.uint8) if bits < 8 and whole else array
    largest = (1 << bits) - 1
    array = array.dtype.type(largest) - array if inverted else array
    if bits < 8 and whole:
        shown = array if as_indices else np.rint(array * (255 / largest)).astype(np.uint8)
        return Pixels(shown, remarks, BIT_COLOURS if bits == 1 else ()), axes
    count = array.shape[axes.index("S")] if "S" in axes else 1
    is_alpha = [int(kind) in (1, 2) for kind in page.extrasamples][-1:] == [True] and count in (2, 4)
    if is_alpha or (photometric == _RGB and count == 4):
        array, transparency = without_alpha(array, axes)
        remarks += transparency
    return Pixels(array, remarks), axes


def _with_palette(
    indices: np.ndarray, colormap: np.ndarray, axes: str, only_display: bool, as_indices: bool
) -> tuple[Pixels, str]:
    """By a colormap (3, N) of 16 bits scaled from 8. Those of ImageJ and of stacks `only_display` values."""
    palette = (colormap.T >> 8).astype(np.uint8)
    pixels = apply_palette(indices, palette, as_indices)
    if len(pixels.array) == 3:
        return (Pixels(indices, (LOOK_UP_TABLE,)), axes) if only_display else (pixels, "S" + axes)
    return Pixels(pixels.array[0], (), () if only_display else pixels.colours), axes


def _channel_names(file: TiffFile, count: int) -> tuple[str, ...]:
    """Of OME-XML, or of the labels that ImageJ gives to the images of a stack, channel after channel; or none."""
    if file.is_ome and (pixels := _ome_pixels(file)) is not None:
        return clean_names([each.get("Name") or "" for each in pixels if each.tag.endswith("Channel")], count)
    labels = (file.imagej_metadata or {}).get("Labels") or []
    own = [set(labels[channel::count]) for channel in range(count)]
    return clean_names([each.pop() for each in own], count) if all(len(each) == 1 for each in own) else ()


def _ome_pixels(file: TiffFile) -> ElementTree.Element | None:
    elements = ElementTree.fromstring(file.ome_metadata).iter() if file.ome_metadata else ()
    return next((each for each in elements if each.tag.endswith("Pixels")), None)


def _spacing(file: TiffFile) -> tuple[Spacing3, tuple[Remark, ...]]:
    """(z, y, x) mm from OME-XML, or from ImageJ's `spacing`, `unit` and resolution tags; 1 where nothing is said."""
    if file.is_ome and (pixels := _ome_pixels(file)) is not None:
        sizes = [float(pixels.get(f"PhysicalSize{axis}") or 0) for axis in "ZYX"]
        units = [pixels.get(f"PhysicalSize{axis}Unit") or "µm" for axis in "ZYX"]
        return in_millimetres(sizes, units)
    metadata = file.imagej_metadata or {}
    unit = str(metadata.get("unit") or "")
    if "spacing" not in metadata and millimetres(unit) is None:
        return (1.0, 1.0, 1.0), ()
    page: Any = file.pages[0]
    resolution = page.tags.get("ResolutionUnit")
    unit = unit or {2: "inch", 3: "cm"}.get(int(resolution.value) if resolution is not None else 1, "mm")
    sizes = [abs(float(metadata.get("spacing", 1.0))) or 1.0]
    for name in ("YResolution", "XResolution"):
        tag = page.tags.get(name)
        numerator, denominator = tag.value if tag is not None else (1, 1)
        sizes.append(denominator / numerator if numerator and denominator else 1.0)
    return in_millimetres(sizes, [str(metadata.get("zunit", unit)), str(metadata.get("yunit", unit)), unit])


TIFF = ImageFormat(
    (".ome.tif", ".ome.tiff", ".tif", ".tiff"),
    read_tiff,
    lambda path: read_tiff(path, decode=False)[1]._replace(remarks=()),
    write_tiff,
    write_tiff_rows,
    read_indices=partial(read_tiff, as_indices=True),
    written_as={".ome.tif": ".tif", ".ome.tiff": ".tif"},
)

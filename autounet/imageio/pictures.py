"""PNG, GIF, JPEG and BMP through Pillow. Photographs have spacing 1."""

from __future__ import annotations

import struct
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..schema.errors import FileError
from ..schema.geometry import Geometry
from .image_format import COPY_AGAIN, ImageFormat, ImageHeader

if TYPE_CHECKING:
    from PIL import Image


def read_picture(path: Path, kind: str, as_indices: bool = False) -> tuple[np.ndarray, ImageHeader]:
    """Array (C, 1, Y, X) with C 1 or 3 in the file's own number type; transparency is dropped.

    A palette of greys gives the greys. Any other palette gives its colours, or the indices with `as_indices`, as
    labels are stored (Pascal VOC's convention). Raises DataError.
    """
    from PIL import Image

    if kind == "bmp":
        _require_whole_bitmap(path)
    try:
        with Image.open(path) as image:
            frames = getattr(image, "n_frames", 1)
            if frames > 1:
                raise FileError(path, f"has {frames} frames", "Store one image per file")
            image.load()
            array = _array(image, as_indices)
    except FileError:
        raise
    except Exception as error:  # Pillow's decoders let struct, index, type and memory errors through
        raise _unreadable(path, error) from None
    channels = array[None] if array.ndim == 2 else np.moveaxis(array, -1, 0)
    height, width = channels.shape[1:]
    return channels[:, None], _header(kind, height, width, channels.shape[0])


def read_picture_header(path: Path, kind: str) -> ImageHeader:
    """Without reading the pixels unless there is a palette to look at. Raises DataError."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            mode, (width, height) = image.mode, image.size
    except Exception as error:  # as above
        raise _unreadable(path, error) from None
    if mode in ("P", "PA"):
        return read_picture(path, kind)[1]
    grey = mode in ("1", "L", "LA", "I", "F") or mode.startswith("I;16")
    return _header(kind, height, width, 1 if grey else 3)


def _header(kind: str, height: int, width: int, channels: int) -> ImageHeader:
    return ImageHeader(Geometry(shape=(1, height, width), kind=kind, dimension=2), channels, 1)


def _require_whole_bitmap(path: Path) -> None:
    """Rows that are not compressed fill the file to its end: the only check that the format allows."""
    content = path.read_bytes()
    if content[:2] != b"BM" or len(content) < 34:
        raise FileError(path, "cannot be read: it is not an image", COPY_AGAIN)
    offset, header, width, height = struct.unpack_from("<IIii", content, 10)
    bits, compression = struct.unpack_from("<HI", content, 28)
    if header < 40 or compression not in (0, 3):
        return
    expected = offset + (abs(width) * bits + 31) // 32 * 4 * abs(height)
    if not 0 <= len(content) - expected <= 3:
        what = "truncated" if len(content) < expected else "damaged"
        raise FileError(path, f"is {what}: {len(content)} bytes, not {expected}", COPY_AGAIN)


def _unreadable(path: Path, error: Exception) -> FileError:
    from PIL import UnidentifiedImageError

    unknown = isinstance(error, UnidentifiedImageError)
    reason = "it is not an image" if unknown else str(error) or type(error).__name__
    return FileError(path, f"cannot be read: {reason}", COPY_AGAIN)


def _array(image: Image.Image, as_indices: bool) -> np.ndarray:
    if image.mode == "P":
        indices = np.asarray(image)
        palette = np.asarray(image.getpalette("RGB"), dtype=np.uint8).reshape(-1, 3)
        if indices.size and indices.max() >= len(palette):
            raise ValueError(f"its pixels use colour {indices.max()} of a palette of {len(palette)}")
        used = palette[np.unique(indices)]
        if (used == used[:, :1]).all():
            return palette[indices, 0]
        return indices if as_indices else palette[indices]
    if image.mode in ("LA", "PA", "RGBA", "RGBa", "La", "RGBX", "CMYK", "YCbCr", "HSV", "LAB"):
        image = image.convert("L" if image.mode in ("LA", "La") else "RGB")
    array = np.asarray(image)
    return array.astype(np.uint8) if array.dtype == bool else array


def write_picture(path: Path, array: np.ndarray, _: Geometry) -> None:
    """Write (C, 1, Y, X) of uint8, or uint16 with one channel, C 1 or 3. Raises OSError."""
    from PIL import Image

    pixels = array[0, 0] if array.shape[0] == 1 else np.moveaxis(array[:, 0], 0, -1)
    Image.fromarray(np.ascontiguousarray(pixels)).save(path)


def _format(kind: str, endings: tuple[str, ...], limit: int, written_as: str | None = None) -> ImageFormat:
    """`limit`: the largest label value. Lossy pictures, and those bound to a palette, have labels of another format."""
    return ImageFormat(
        endings,
        read=partial(read_picture, kind=kind),
        read_header=partial(read_picture_header, kind=kind),
        write=write_picture,
        read_indices=partial(read_picture, kind=kind, as_indices=True),
        written_as=dict.fromkeys(endings, written_as) if written_as else {},
        is_picture=True,
        label_limits=(0, limit),
    )


PNG = _format("png", (".png",), 65_535)
GIF = _format("gif", (".gif",), 255, written_as=".png")
JPEG = _format("jpeg", (".jpg", ".jpeg"), 255, written_as=".png")
BMP = _format("bmp", (".bmp",), 255)

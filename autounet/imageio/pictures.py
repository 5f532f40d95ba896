"""PNG, GIF, JPEG and BMP through Pillow, read as a viewer shows them. Photographs have spacing 1."""

from __future__ import annotations

import re
import struct
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..schema.errors import FileError
from ..schema.geometry import Geometry
from .image_format import COPY_AGAIN, ImageFormat, ImageHeader, Remark, require_memory
from .pixel_streams import png_pixels
from .stored_values import BIT_COLOURS, CMYK, Pixels, alpha_remarks, apply_palette, profile_remarks

if TYPE_CHECKING:
    from PIL import Image

ORIENTATION = 274
"""tag of EXIF and TIFF (Exif 2.32, 4.6.4): 1 as stored, 2 to 8 mirrored or turned"""
_XMP_ORIENTATION = re.compile(rb"tiff:Orientation(?:=[\"']|>)\s*([1-8])")
_PNG_GREYS = (0, 4)
"""colour types of PNG: grey, and grey with alpha"""
_PNG_DEEP_COLOURS = (2, 4, 6)
"""colour types of PNG of which Pillow reads 8 bits alone: RGB, grey with alpha, RGB with alpha"""


def read_picture(path: Path, kind: str, as_indices: bool = False) -> tuple[np.ndarray, ImageHeader]:
    """Array (C, 1, Y, X) with C 1 or 3 in the file's own number type, as a viewer shows it but for transparency.

    A palette of greys gives the greys. Any other palette gives its colours, or the indices with `as_indices`, as
    labels are stored (Pascal VOC's convention). One bit is 0 and 255, with `as_indices` 0 and 1. Raises DataError.
    """
    from PIL import Image

    if kind == "bmp":
        _require_whole_bitmap(path)
    try:
        with Image.open(path) as image:
            frames = getattr(image, "n_frames", 1)
            if frames > 1 and image.format != "MPO":  # telephones append previews to JPEG; the first is the photograph
                raise FileError(path, f"has {frames} frames", "Store one image per file")
            require_memory(path, image.width * image.height * len(image.getbands()), 1)
            if kind == "png":
                _require_whole_png(path)
            image.load()
            pixels = _deep_colours(path) if kind == "png" else None
            pixels = pixels or _pixels(image, as_indices)
            orientation, remarks = _orientation(image)
            if not as_indices:
                remarks += profile_remarks(image.info.get("icc_profile"), pixels.array.shape[0])
    except (FileError, MemoryError):
        raise
    except Exception as error:  # Pillow's decoders let struct, index and type errors through
        raise _unreadable(path, error) from None
    channels = upright(pixels.array, orientation)
    height, width = channels.shape[1:]
    header = _header(kind, height, width, channels.shape[0])
    return channels[:, None], header._replace(remarks=pixels.remarks + remarks, colours=pixels.colours)


def read_picture_header(path: Path, kind: str) -> ImageHeader:
    """Without reading the pixels unless there is a palette to look at. Raises DataError."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            mode, (width, height) = image.mode, image.size
            grey = mode in ("1", "L", "LA", "I", "F") or mode.startswith("I;16")
            if kind == "png":
                content = path.read_bytes()
                grey = content[25] in _PNG_GREYS
                if b"eXIf" in content or b"Raw profile type" in content:  # it may follow the pixels
                    image.load()
            orientation, _ = _orientation(image)
    except Exception as error:  # as above
        raise _unreadable(path, error) from None
    if mode in ("P", "PA"):
        return read_picture(path, kind)[1]
    if orientation >= 5:
        width, height = height, width
    return _header(kind, height, width, 1 if grey else 3)


def _header(kind: str, height: int, width: int, channels: int) -> ImageHeader:
    return ImageHeader(Geometry(shape=(1, height, width), kind=kind, dimension=2), channels, 1)


def _require_whole_png(path: Path) -> None:
    found, expected = png_pixels(path.read_bytes())
    if found < expected:
        raise FileError(path, f"is truncated or damaged: {found} of {expected} bytes of pixels are there", COPY_AGAIN)


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


def _deep_colours(path: Path) -> Pixels | None:
    """Colours and transparency of 16 bits, of which Pillow reads the upper 8; None for other files."""
    with path.open("rb") as file:
        start = file.read(26)
    if len(start) < 26 or start[24] != 16 or start[25] not in _PNG_DEEP_COLOURS:
        return None
    import imagecodecs

    array = imagecodecs.png_decode(path.read_bytes())
    colours = array.shape[-1] - (array.shape[-1] in (2, 4))
    channels = np.moveaxis(array, -1, 0)
    transparency = alpha_remarks(channels[-1]) if colours < len(channels) else ()
    return Pixels(channels[:colours], transparency)


def _pixels(image: Image.Image, as_indices: bool) -> Pixels:
    transparent = image.info.get("transparency")
    if image.mode == "P":
        return _palette_pixels(image, transparent, as_indices)
    if image.mode == "1":
        bits = np.asarray(image).astype(np.uint8)[None]
        return Pixels(bits, (), BIT_COLOURS) if as_indices else Pixels(bits * np.uint8(255))
    if image.mode == "CMYK":
        return Pixels(np.moveaxis(np.asarray(image.convert("RGB")), -1, 0), (CMYK,))
    if image.mode in ("LA", "PA", "RGBA", "RGBa", "La"):
        alpha = np.asarray(image.getchannel("A" if "A" in image.getbands() else "a"))
        colours = np.asarray(image.convert("L" if image.mode in ("LA", "La") else "RGB"))
        return Pixels(_channels_first(colours), alpha_remarks(alpha))
    if image.mode in ("RGBX", "YCbCr", "HSV", "LAB"):
        image = image.convert("RGB")
    array = _channels_first(np.asarray(image))
    if transparent is None or as_indices:
        return Pixels(array)
    hidden = (array == np.reshape(transparent, (-1, 1, 1))).all(axis=0)
    return Pixels(array, alpha_remarks(np.where(hidden, 0, 255)) if hidden.any() else ())


def _channels_first(array: np.ndarray) -> np.ndarray:
    return array[None] if array.ndim == 2 else np.moveaxis(array, -1, 0)


def _palette_pixels(image: Image.Image, transparent: bytes | int | None, as_indices: bool) -> Pixels:
    indices = np.asarray(image)
    palette = np.asarray(image.getpalette("RGB"), dtype=np.uint8).reshape(-1, 3)
    pixels = apply_palette(indices, palette, as_indices)
    if as_indices or transparent is None:
        return pixels
    opacity = np.full(256, 255, np.uint8)
    if isinstance(transparent, bytes):
        opacity[: len(transparent)] = np.frombuffer(transparent[:256], np.uint8)
    else:
        opacity[transparent] = 0
    alpha = opacity[indices]
    return pixels._replace(remarks=alpha_remarks(alpha) if alpha.min() < 255 else ())


def _orientation(image: Image.Image) -> tuple[int, tuple[Remark, ...]]:
    """1 to 8, by the EXIF data of a JPEG or PNG."""
    exif = image.info.get("exif")
    hexadecimal = image.info.get("Raw profile type exif")  # how ImageMagick stored it in PNG before there was eXIf
    try:
        if not exif and hexadecimal:
            exif = bytes.fromhex("".join(hexadecimal.split("\n")[3:]))
        found = _exif_orientation(exif) if exif else None
    except (struct.error, ValueError):
        text = "has damaged EXIF data, so that nobody knows whether it is shown turned; it was read as stored"
        return 1, (Remark("not-as-shown", text, "Open it in a viewer and save it again"),)
    if found is not None:
        return found if 1 <= found <= 8 else 1, ()
    xmp = image.info.get("xmp") or image.info.get("XML:com.adobe.xmp") or b""
    turned = _XMP_ORIENTATION.search(xmp if isinstance(xmp, bytes) else xmp.encode(errors="replace"))
    if turned is None or turned[1] == b"1":
        return 1, ()
    text = (
        f"says only in XMP that it is turned (orientation {turned[1].decode()}), which few viewers heed; read as stored"
    )
    return 1, (Remark("not-as-shown", text, "Open it in a viewer and save it again"),)


def _exif_orientation(exif: bytes) -> int | None:
    """The orientation in the first directory of EXIF data, if there. Raises struct.error or ValueError."""
    content = exif.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(content[:2])
    if order is None:
        raise ValueError("EXIF data begin with their byte order")
    (start,) = struct.unpack_from(order + "I", content, 4)
    (count,) = struct.unpack_from(order + "H", content, start)
    for place in range(start + 2, start + 2 + 12 * count, 12):
        tag, kind = struct.unpack_from(order + "HH", content, place)
        if tag == ORIENTATION:
            return int(struct.unpack_from(order + {1: "B", 4: "I"}.get(kind, "H"), content, place + 8)[0])
    return None


def upright(array: np.ndarray, orientation: int) -> np.ndarray:
    """(..., Y, X) as a viewer shows what is stored with this orientation (1 to 8)."""
    if orientation >= 5:
        array = array.swapaxes(-1, -2)
    rows, columns = (-1 if orientation in flipped else 1 for flipped in ((3, 4, 7, 8), (2, 3, 6, 7)))
    return array[..., ::rows, ::columns]


def write_picture(path: Path, array: np.ndarray, _: Geometry) -> None:
    """Write (C, 1, Y, X) of uint8 or uint16, C 1 or 3. Raises OSError."""
    from PIL import Image

    pixels = np.ascontiguousarray(array[0, 0] if array.shape[0] == 1 else np.moveaxis(array[:, 0], 0, -1))
    if pixels.ndim == 3 and pixels.dtype == np.uint16:
        import imagecodecs

        path.write_bytes(imagecodecs.png_encode(pixels))
    else:
        Image.fromarray(pixels).save(path)


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

"""Zarr folders through the library zarr: images and labels of OME-Zarr by their addresses, and plain arrays."""

from __future__ import annotations

import bz2
import lzma
import math
import os
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..schema.errors import FileError
from .containers import METADATA, ZARR_ENDINGS, arranged, require_extra, split_address
from .image_format import ImageFormat, ImageHeader, damaged, require_memory
from .zarr_metadata import Shards, ZarrArray, ZarrImage, find_image, inside

KIND = "zarr"
_DECODERS: dict[str, Callable[[], Any]] = {
    "zlib": zlib.decompressobj,
    "gzip": lambda: zlib.decompressobj(wbits=31),
    "bz2": bz2.BZ2Decompressor,
    "lzma": lzma.LZMADecompressor,
}
"""of codecs whose frames do not say what they hold"""
MOST_ASKED = 10_000
"""chunks that the library is asked for where most are not there; each takes it a tenth of a millisecond, and there may
be 10^9: then only those that are there are read"""


def read_zarr(path: Path, decode: bool = True) -> tuple[np.ndarray, ImageHeader]:
    """Array (C, Z, Y, X) of an image: the finest level, or what the address behind the folder's name says.

    `decode` False: for the header; values are 0. Raises DataError.
    """
    require_extra("zarr", path)
    image = image_at(path)
    array = image.array
    if decode:
        _require_memory(path, array)
        values = _voxels(path, array)
    else:
        values = np.broadcast_to(np.zeros((), array.dtype), array.shape)
    return arranged(path, KIND, values, image.axes, image.sizes, image.units, image.names)


def image_at(path: Path) -> ZarrImage:
    """What the metadata say of the image that a path means. Raises DataError."""
    container, address = split_address(path)
    if not container.is_dir():
        raise FileError(path, "is no folder", "Unpack it where it is a zip, or export it as a folder")
    return find_image(path, inside(path, container, address) if address else container)


def zarr_files(path: Path) -> list[Path]:
    """The files that an image depends on: those of its array, and the metadata of the groups above."""
    container, _ = split_address(path)
    try:
        folder = image_at(path).array.folder
    except FileError:
        folder = container
    above = [each for each in (folder, *folder.parents) if each.is_relative_to(container)]
    metadata = [each / name for each in above for name in sorted(METADATA) if (each / name).is_file()]
    return [*metadata, *(file for file in _chunk_files(folder))]


_PLACE = re.compile(r"(?:c[./])?(\d{1,12}(?:[./]\d{1,12})*)")
"""name of a chunk's file within the folder of its array"""


def _place_text(folder: Path, file: Path) -> str:
    """Empty for what is no chunk, as files that systems leave in folders."""
    match = _PLACE.fullmatch(file.relative_to(folder).as_posix())
    return match[1] if match else ""


def _chunk_files(folder: Path) -> Iterator[Path]:
    for place, inner, files in sorted(os.walk(folder)):
        inner.sort()
        yield from (file for name in sorted(files) if _place_text(folder, file := Path(place, name)))


def _require_memory(path: Path, array: ZarrArray) -> None:
    """Raises FileError for an image larger than the free memory: it is read as a whole."""
    try:
        require_memory(path, math.prod(array.shape), array.dtype.itemsize + 4)  # as stored, and as float32
    except FileError as error:
        container, _ = split_address(path)
        remedy = (
            f"Give a coarser level, if the model was trained on one ({container.name}/1), or cut the image into parts"
        )
        raise FileError(path, error.finding, remedy) from None


def _voxels(path: Path, array: ZarrArray) -> np.ndarray:
    """The array as stored. Raises FileError as `require_sound_array`."""
    places = require_sound_array(path, array)
    stored = opened_array(array)
    if chunks_of(array) > MOST_ASKED and 2 * len(places) < chunks_of(array):
        values = np.full(array.shape, 0 if stored.fill_value is None else stored.fill_value, stored.dtype)
        for place in places:
            part = tuple(
                slice(index * step, (index + 1) * step) for index, step in zip(place, array.chunks, strict=True)
            )
            values[part] = stored[part]
    else:
        values = np.asarray(stored[...])
    return values.astype(np.uint8) if values.dtype == bool else values


def chunks_of(array: ZarrArray) -> int:
    """That the array has room for; those of nothing but its fill value are mostly not there."""
    return math.prod(-(-size // step) for size, step in zip(array.shape, array.chunks, strict=True))


def opened_array(array: ZarrArray) -> Any:
    """Of the library zarr, to be sliced."""
    import zarr

    return zarr.open_array(str(array.folder), mode="r", zarr_format=array.version)  # type: ignore[arg-type]


def require_sound_array(path: Path, array: ZarrArray) -> list[tuple[int, ...]]:
    """The places of the chunks (of Zarr 3: of the shards) that are there, in steps of their size.

    Raises FileError where one holds more than it says.
    """
    chunk = math.prod(array.chunks) * max(8, array.dtype.itemsize)
    require_memory(path, math.prod(array.chunks), array.dtype.itemsize)
    places = []
    for file in _chunk_files(array.folder):
        place = tuple(map(int, re.split("[./]", _place_text(array.folder, file))))
        room = len(place) == len(array.shape)
        if room and all(
            index * step < size for index, step, size in zip(place, array.chunks, array.shape, strict=True)
        ):
            _require_sound_chunk(path, file, array, chunk)
            places.append(place)
    return places


def _require_sound_chunk(path: Path, file: Path, array: ZarrArray, expected: int) -> None:
    """Raises FileError for a file of chunks that is larger, or holds more, than its size tells, or is cut off."""
    size = file.stat().st_size
    if size > 2 * expected + (1 << 20):
        raise damaged(path, f"the chunk {file.name} has {size} bytes, for {expected} of voxels")
    with file.open("rb") as stream:
        if array.shards is None:
            _require_sound_frame(path, file, stream, size, array.codecs, expected)
            return
        inner = math.prod(array.shards.chunks) * max(8, array.dtype.itemsize)
        for begin, length in _places_in_shard(path, file, stream, size, array.shards):
            stream.seek(begin)
            _require_sound_frame(path, file, stream, length, array.shards.codecs, inner)


def _places_in_shard(path: Path, file: Path, stream: BinaryIO, size: int, shards: Shards) -> Iterator[tuple[int, int]]:
    """Where each chunk that is there begins, and its bytes. Raises FileError where they cannot be there."""
    width = 16 * shards.per_file + 4 * shards.checked
    if size < width:
        raise damaged(path, f"the shard {file.name} is truncated: its index has {width} bytes, and {size} are there")
    stream.seek(0 if shards.index_first else size - width)
    index = np.frombuffer(stream.read(16 * shards.per_file), "<u8").reshape(-1, 2)
    for begin, length in index[(index != np.iinfo(np.uint64).max).any(axis=1)].tolist():
        if begin + length > size:
            raise damaged(
                path, f"the shard {file.name} is truncated: a chunk ends at {begin + length}, of {size} bytes"
            )
        yield begin, length


def _require_sound_frame(
    path: Path, file: Path, stream: BinaryIO, size: int, codecs: Sequence[str], expected: int
) -> None:
    """Of one chunk, `size` bytes of the stream from where it is."""
    codecs = [each.removeprefix("numcodecs.") for each in codecs]
    checked = bool(codecs) and codecs[-1] in ("crc32c", "crc32", "adler32")
    last = next(reversed(codecs[:-1] if checked else codecs), "")
    if last in _DECODERS:
        try:
            found = len(_DECODERS[last]().decompress(stream.read(size), 2 * expected + 1))
        except (OSError, ValueError, EOFError, zlib.error, lzma.LZMAError) as error:
            raise damaged(path, f"the chunk {file.name} cannot be decompressed ({error})") from None
    else:
        head = stream.read(min(32, size))
        if last == "blosc":
            _require_whole_frame(path, file, head, size - 4 * checked)
        found = _declared_size(last, head)
    if found > 2 * expected:
        raise damaged(path, f"the chunk {file.name} holds more than {expected} bytes of voxels")


def _require_whole_frame(path: Path, file: Path, head: bytes, size: int) -> None:
    """Raises FileError for a frame of blosc that is shorter than it says: its decoder would read behind the end."""
    said = int.from_bytes(head[12:16], "little")
    if size < 16 or size < said:
        raise damaged(path, f"the chunk {file.name} is truncated: {size} of {max(16, said)} bytes are there")


def _declared_size(codec: str, head: bytes) -> int:
    """Bytes that the frame of a codec says it holds; 0 where it does not say."""
    if codec == "blosc" and len(head) >= 16:
        return int.from_bytes(head[4:8], "little")
    if codec == "lz4" and len(head) >= 4:
        return int.from_bytes(head[:4], "little")
    if codec == "zstd" and len(head) >= 6:  # RFC 8878, 3.1.1.1
        flags = head[4]
        single, width = bool(flags & 32), (0, 2, 4, 8)[flags >> 6]
        width = 1 if single and not width else width
        start = 5 + (not single) + (0, 1, 2, 4)[flags & 3]
        size = int.from_bytes(head[start : start + width], "little")
        return size + 256 if width == 2 else size
    return 0


OME_ZARR = ImageFormat(
    ZARR_ENDINGS,
    read_zarr,
    lambda path: read_zarr(path, decode=False)[1],
    written_as=dict.fromkeys(ZARR_ENDINGS, ".tif"),
    is_folder=True,
)

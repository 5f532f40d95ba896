"""What the JSON of a Zarr folder says, read without opening it: arrays, their codecs, and the images of OME-Zarr.

Zarr formats 2 and 3; OME-NGFF 0.1 to 0.5 (https://ngff.openmicroscopy.org). Codecs are checked against a list: others
are programs that the library would look for, and one of them (pickle) runs what a file says.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..schema.errors import FileError
from .axes import clean_names, guess_axes
from .containers import LARGEST_JSON, MOST_LISTED, the_only_one
from .image_format import damaged

_CODECS = frozenset({
    "blosc", "zlib", "gzip", "zstd", "lz4", "bz2", "lzma", "delta", "shuffle", "fixedscaleoffset", "quantize",
    "bitround", "packbits", "astype", "crc32", "crc32c", "adler32", "fletcher32", "jenkins_lookup3", "bytes", "endian",
    "transpose", "sharding_indexed",
})  # fmt: skip
SHARDED = "sharding_indexed"
_NUMBERS = re.compile(r"[<>|][iufb][1248]")
_NUMBER_NAMES = frozenset({
    "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32", "float64",
})  # fmt: skip
_AXES_REMEDY = "Store it as OME-Zarr, which names its axes, or write dimension_names (Zarr 3) or _ARRAY_DIMENSIONS"


class Shards(NamedTuple):
    """How a file of Zarr 3 holds several chunks, with an index of where each begins."""

    chunks: tuple[int, ...]
    per_file: int
    """chunks"""
    codecs: tuple[str, ...]
    """of each chunk"""
    index_first: bool
    """before the chunks, and not behind them"""
    checked: bool
    """whether a checksum of 4 bytes follows the index"""


class ZarrArray(NamedTuple):
    """An array, as its metadata describe it."""

    folder: Path
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    """of a file; with shards theirs"""
    dtype: np.dtype
    codecs: tuple[str, ...]
    """in the order of encoding; the last one makes the bytes of a file"""
    axes: str
    """letters, "" where they are not named"""
    version: int
    shards: Shards | None = None


class ZarrImage(NamedTuple):
    """One resolution level of an image, or a plain array."""

    array: ZarrArray
    axes: str
    sizes: Sequence[float]
    """of a voxel (z, y, x) in `units`; 0 where not known"""
    units: Sequence[str]
    names: tuple[str, ...]
    """of its channels, where it says so"""


def read_json(path: Path) -> dict[str, Any]:
    """{} where there is no such file. Raises FileError."""
    if not path.is_file():
        return {}
    if path.stat().st_size > LARGEST_JSON:
        raise damaged(path, f"it has {path.stat().st_size} bytes, for metadata")
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise damaged(path, f"it is not readable JSON: {error}") from None
    if not isinstance(content, dict):
        raise damaged(path, "it is no JSON object")
    return content


def attributes(folder: Path) -> dict[str, Any]:
    """Of a group or an array; those of OME-Zarr 0.5 as the earlier ones."""
    content = read_json(folder / "zarr.json").get("attributes") or read_json(folder / ".zattrs")
    if not isinstance(content, dict):
        raise damaged(folder, "its attributes are no JSON object")
    ome = content.get("ome")
    return {**content, **ome} if isinstance(ome, dict) else content


def is_array(folder: Path) -> bool:
    return (folder / ".zarray").is_file() or read_json(folder / "zarr.json").get("node_type") == "array"


def inside(path: Path, folder: Path, address: object) -> Path:
    """A place below a folder. Raises FileError for one that leads out of it."""
    parts = str(address).strip("/").split("/")
    if not isinstance(address, str | int) or any(part in ("", ".", "..") or "\\" in part for part in parts):
        raise damaged(path, f"its metadata point to {str(address)[:80]!r}")
    return folder.joinpath(*parts)


def read_array(path: Path, folder: Path) -> ZarrArray:
    """Raises FileError for arrays of anything but plain numbers, and for codecs that are not known."""
    old, new = read_json(folder / ".zarray"), read_json(folder / "zarr.json")
    try:
        if old:
            array = _array_of_version_2(folder, old)
        elif new.get("node_type") == "array":
            array = _array_of_version_3(folder, new)
        else:
            raise FileError(path, f"has no array at {folder.name}", "Check the address, and that the folder is whole")
    except (KeyError, TypeError, ValueError, AttributeError):
        raise damaged(path, f"the metadata of the array {folder.name} lack what an array needs") from None
    if unknown := [each for each in array.codecs if each.removeprefix("numcodecs.") not in _CODECS]:
        finding = f"is stored with the codec {unknown[0][:40]!r}, which is not read"
        raise FileError(path, finding, "Store it with blosc, zstd or gzip")
    sizes = (*array.shape, *array.chunks)
    if not 2 <= len(array.shape) == len(array.chunks) <= 5 or min(sizes) < 1 or max(sizes) > 1 << 40:
        raise FileError(path, f"has an array of the shape {array.shape} in chunks of {array.chunks}: no image")
    return array


def _array_of_version_2(folder: Path, content: Mapping[str, Any]) -> ZarrArray:
    dtype = str(content["dtype"])
    if not _NUMBERS.fullmatch(dtype):
        raise FileError(folder, f"holds {dtype[:40]!r}, and no plain numbers", "Store it as integers or floats")
    every = [*(content.get("filters") or ()), *filter(None, [content.get("compressor")])]
    codecs = tuple(str(each["id"]) for each in every)
    shape, chunks = (tuple(int(length) for length in content[key]) for key in ("shape", "chunks"))
    names = attributes(folder).get("_ARRAY_DIMENSIONS") or ()
    return ZarrArray(folder, shape, chunks, np.dtype(dtype), codecs, _letters(names, len(shape)), 2)


def _array_of_version_3(folder: Path, content: Mapping[str, Any]) -> ZarrArray:
    dtype = content["data_type"]
    if dtype not in _NUMBER_NAMES:
        raise FileError(folder, f"holds {str(dtype)[:40]!r}, and no plain numbers", "Store it as integers or floats")
    grid = content["chunk_grid"]
    if grid["name"] != "regular":
        raise FileError(folder, f"has chunks on a {str(grid['name'])[:40]} grid", "Store it in chunks of one size")
    shape = tuple(int(length) for length in content["shape"])
    chunks = tuple(int(length) for length in grid["configuration"]["chunk_shape"])
    codecs = tuple(_codec_names(content["codecs"]))
    names = content.get("dimension_names") or ()
    shards = _shards(folder, content["codecs"][-1]["configuration"], chunks) if SHARDED in codecs else None
    return ZarrArray(folder, shape, chunks, np.dtype(dtype), codecs, _letters(names, len(shape)), 3, shards)


def _shards(folder: Path, written: Mapping[str, Any], file: tuple[int, ...]) -> Shards:
    """Raises FileError for shards in shards, and for codecs behind them or of their index, which no program writes."""
    inner, index = ([str(each["name"]) for each in written[key]] for key in ("codecs", "index_codecs"))
    chunks = tuple(int(length) for length in written["chunk_shape"])
    little = written["index_codecs"][0].get("configuration", {}).get("endian", "little") == "little"
    if SHARDED in inner or index not in (["bytes"], ["bytes", "crc32c"]) or not little or min(chunks) < 1:
        raise FileError(folder, "has shards of a kind that is not read", "Store it without shards")
    if any(length % part for length, part in zip(file, chunks, strict=True)):
        raise damaged(folder, f"its shards {file} are no multiple of their chunks {chunks}")
    count = math.prod(length // part for length, part in zip(file, chunks, strict=True))
    return Shards(chunks, count, tuple(inner), written.get("index_location") == "start", len(index) > 1)


def _codec_names(codecs: Sequence[Any]) -> Iterator[str]:
    for each in codecs:
        name = each if isinstance(each, str) else str(each["name"])
        own = {} if isinstance(each, str) else each.get("configuration") or {}
        for inner in (own.get("codecs") or (), own.get("index_codecs") or ()):
            yield from _codec_names(inner)
        yield name


def _letters(names: Sequence[object], count: int) -> str:
    """Of axes that are called by words; "" where they are not those of an image."""
    found = "".join({"CHANNEL": "C", "TIME": "T"}.get(str(each).upper(), str(each).upper()) for each in names)
    return found if len(found) == count == len(set(found)) and set(found) <= set("TCZYX") else ""


def find_image(path: Path, folder: Path) -> ZarrImage:
    """The image at a place in a container: the finest level of a multiscale, one level, or an array.

    Of a group that holds one image alone that one. Raises FileError.
    """
    if is_array(folder):
        above = folder.parent
        for scales in _multiscales(path, above):
            if level := _level(path, above, scales, folder):
                return level
        array = read_array(path, folder)
        return ZarrImage(array, array.axes or guess_axes(path, array.shape, _AXES_REMEDY), (0, 0, 0), ("",) * 3, ())
    own = attributes(folder)
    if "plate" in own:
        wells = ", ".join(list(images_in_group(path, folder))[:4])
        finding = f"is a plate of many wells; its images are {wells}, ..."
        raise FileError(path, finding, "Give the images of the wells, each with its address behind the folder's name")
    for scales in _multiscales(path, folder):
        first = next(iter(scales.get("datasets") or ()), None)
        if not isinstance(first, dict) or "path" not in first:
            raise damaged(path, "its multiscales name no data sets")
        if level := _level(path, folder, scales, inside(path, folder, first["path"])):
            return level
    if not (folder / ".zgroup").is_file() and not (folder / "zarr.json").is_file():
        raise FileError(path, "is no Zarr folder, or has no image at this address", "Check what was copied")
    address = the_only_one(path, images_in_group(path, folder))
    return find_image(path, inside(path, folder, address))


def images_in_group(path: Path, folder: Path, depth: int = 0) -> dict[str, str]:
    """Address and shape of the images below a group; of a multiscale its finest level. Labels of images are none."""
    found: dict[str, str] = {}
    for inner in sorted(each for each in folder.iterdir() if each.is_dir() and each.name != "labels"):
        if len(found) > MOST_LISTED or depth > 3:
            break
        if is_array(inner):
            array = read_array(path, inner)
            found[inner.name] = f"{' x '.join(map(str, array.shape))} {array.dtype}"
        elif _multiscales(path, inner):
            found[inner.name] = "image"
        else:
            below = images_in_group(path, inner, depth + 1)
            found |= {f"{inner.name}/{address}": what for address, what in below.items()}
    return found


def _multiscales(path: Path, folder: Path) -> list[dict[str, Any]]:
    found = attributes(folder).get("multiscales") or []
    if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
        raise damaged(path, "its multiscales are no list of objects")
    return found[:1]


def _level(path: Path, group: Path, scales: Mapping[str, Any], folder: Path) -> ZarrImage | None:
    """The level of a multiscale that lies in a folder; None where it is none of them."""
    levels = [each for each in scales.get("datasets") or () if isinstance(each, dict) and "path" in each]
    own = next((each for each in levels if inside(path, group, each["path"]) == folder), None)
    if own is None:
        return None
    array = read_array(path, folder)
    declared = scales.get("axes") or list("tczyx"[-len(array.shape) :])
    axes = [each if isinstance(each, dict) else {"name": each} for each in declared]
    letters = _letters([each.get("name") for each in axes], len(array.shape))
    if not letters:
        shown = ", ".join(str(each.get("name"))[:20] for each in axes)
        raise FileError(path, f"has the axes {shown} for an array of {len(array.shape)}", "Store it as t, c, z, y, x")
    factors = _scale(path, own, len(letters)) * _scale(path, scales, len(letters))
    known = dict(zip(letters, factors.tolist(), strict=True))
    units = {letter: str(each.get("unit") or "") for letter, each in zip(letters, axes, strict=True)}
    told = any("scale" in each for place in (own, scales) for each in place.get("coordinateTransformations") or ())
    sizes = [known.get(letter, 0.0) if told else 0.0 for letter in "ZYX"]
    count = array.shape[letters.index("C")] if "C" in letters else 1
    return ZarrImage(
        array,
        letters,
        sizes,
        tuple(units.get(letter, "") for letter in "ZYX"),
        _omero(group, count),  # type: ignore[arg-type]
    )


def _scale(path: Path, place: Mapping[str, Any], count: int) -> np.ndarray:
    """Factors of all scale transformations of a level or of all levels. Raises FileError."""
    factors = np.ones(count)
    for each in place.get("coordinateTransformations") or ():
        if isinstance(each, dict) and "scale" in each:
            try:
                own = np.array(each["scale"], float)
            except (TypeError, ValueError):
                own = np.zeros(0)
            if own.shape != (count,) or not np.isfinite(own).all() or (own <= 0).any():
                raise damaged(path, f"its scale is {str(each['scale'])[:80]}")
            factors = factors * own
    return factors


def _omero(group: Path, count: int) -> tuple[str, ...]:
    channels = (attributes(group).get("omero") or {}).get("channels") or ()
    return clean_names([each.get("label") or "" for each in channels if isinstance(each, dict)], count)


def label_names(folder: Path) -> list[str]:
    """Of the label images that an OME-Zarr image has beside its levels."""
    listed = attributes(folder / "labels").get("labels") or []
    names = [str(each) for each in listed] if isinstance(listed, list) else []
    if not names and (folder / "labels").is_dir():
        names = sorted(each.name for each in (folder / "labels").iterdir() if each.is_dir())
    return [each for each in names if (folder / "labels" / each).is_dir()]


def level_of_shape(path: Path, folder: Path, shape: Sequence[int]) -> str | None:
    """The address of the level of an image whose slices, rows and columns are `shape`; None where there is none."""
    for scales in _multiscales(path, folder):
        for each in scales.get("datasets") or ():
            level = _level(path, folder, scales, inside(path, folder, each["path"]))
            if level is not None and plane_shape(level) == tuple(shape):
                return str(each["path"])
    return None


def plane_shape(image: ZarrImage) -> tuple[int, ...]:
    """Lengths of z (1 where there is none), y and x."""
    known = dict(zip(image.axes, image.array.shape, strict=True))
    return tuple(known.get(letter, 1) for letter in "ZYX")

"""HDF5 files through h5py: data sets of ilastik and of others, by their names.

Axes: the attribute `axistags` (vigra, ilastik), else the labels of dimensions, else the rule of `axes.guess_axes`.
Voxel sizes: `element_size_um` (z, y, x), as the HDF5 plug-in of Fiji writes it.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ..schema.errors import FileError
from ..schema.geometry import Geometry
from .axes import guess_axes
from .containers import HDF5_ENDINGS, MOST_LISTED, arranged, require_extra, split_address, the_only_one
from .image_format import ImageFormat, ImageHeader, components_last, damaged, inflate, require_memory
from .label_rows import LabelRows

EXPORTED = "exported_data"
"""what ilastik calls the data set of its results"""
KIND = "hdf5"
_OTHERS = "Copy the voxels into the file (h5repack, or ilastik's data export)"
_AXES_REMEDY = (
    'Write them as the attribute axistags of the data set, {"axes": [{"key": "z"}, {"key": "y"}, {"key": "x"}]}, as '
    "ilastik does"
)


def read_hdf5(path: Path, decode: bool = True) -> tuple[np.ndarray, ImageHeader]:
    """Array (C, Z, Y, X) of a data set, `a.h5/name` or the only one of a file. `decode` False: for the header.

    Raises DataError, also for data that lie in other files, and for filters besides those of the HDF5 library.
    """
    with opened_data_set(path) as data:
        if decode:
            require_memory(path, math.prod(data.shape), data.dtype.itemsize + 4)  # as stored, and as float32
            require_sound_chunks(path, data)
            array = data[()]
            array = array.astype(np.uint8) if array.dtype == bool else array
        else:
            array = np.broadcast_to(np.zeros((), data.dtype), data.shape)
        axes = axes_of(path, data)
        sizes = np.ravel(data.attrs.get("element_size_um", (0.0, 0.0, 0.0))).tolist()
        sizes = [float(each) for each in sizes] if len(sizes) == 3 else [0.0] * 3
    return arranged(path, KIND, array, axes, sizes, ["um"] * 3)


@contextmanager
def opened_data_set(path: Path) -> Iterator[Any]:
    """The data set that a path means. Raises DataError."""
    with _opened(path) as file:
        yield _data_set(path, file, _address(path, file))


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    h5py = require_extra("h5py", path)
    container, _ = split_address(path)
    try:
        file = h5py.File(container, "r", locking=False)
    except OSError as error:
        raise damaged(container, f"it is no HDF5 file, or not whole ({' '.join(str(error).split())[:120]})") from None
    with file:
        yield file


def _address(path: Path, file: Any) -> str:
    _, name = split_address(path)
    return name or the_only_one(path, images_of_file(file))


def images_in_hdf5(path: Path) -> dict[str, str]:
    """Name of each data set that can be an image, with its shape and type. Raises DataError."""
    with _opened(path) as file:
        return images_of_file(file)


def images_of_file(file: Any) -> dict[str, str]:
    """As `images_in_hdf5`; links to other files are not followed."""
    found: dict[str, str] = {}
    for name, item in islice(_walked(file), MOST_LISTED):
        shape = getattr(item, "shape", None)
        if shape and 2 <= len(shape) <= 5 and item.dtype.kind in "iufb" and min(shape) > 0:
            found[name] = f"{' x '.join(map(str, shape))} {item.dtype}"
    return found


def _walked(group: Any) -> Iterator[tuple[str, Any]]:
    """All that hard links lead to, once. HDF5's own visit of all objects does not end in damaged groups."""
    import h5py

    seen, open_groups = set[int](), [("", group, iter(group))]
    while open_groups:
        within, group, names = open_groups[-1]
        name = next(names, None)
        if name is None:
            open_groups.pop()
            continue
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            continue
        item = group[name]
        place = h5py.h5o.get_info(item.id).addr
        if place in seen:
            continue
        seen.add(place)
        yield f"{within}{name}", item
        if isinstance(item, h5py.Group):
            open_groups.append((f"{within}{name}/", item, iter(item)))


def _data_set(path: Path, file: Any, name: str) -> Any:
    import h5py

    place = ""
    for part in name.split("/"):
        place = f"{place}/{part}"
        link = file.get(place, getlink=True)
        if isinstance(link, h5py.ExternalLink):
            raise FileError(path, f"refers to another file at {place[1:]}, which is not followed", _OTHERS)
        if link is None or (isinstance(link, h5py.SoftLink) and link.path not in file):
            there = ", ".join(images_of_file(file)) or "none"
            raise FileError(path, f"has no data set {name} in it; it has {there}", "Correct the name behind the file's")
    data = file[name]
    if not isinstance(data, h5py.Dataset):
        inner = {f"{name}/{each}": what for each, what in images_of_file(data).items()}
        return _data_set(path, file, the_only_one(path, inner))
    if data.is_virtual or data.external:
        raise FileError(path, f"has the voxels of {name} in other files, which are not read", _OTHERS)
    if data.dtype.kind not in "iufb" or not data.shape or math.prod(data.shape) == 0:
        raise FileError(path, f"holds no numbers at {name}, but {data.dtype} of shape {data.shape}")
    return data


_FILTERS = {1: "deflate", 2: "shuffle", 3: "fletcher32", 4: "szip", 5: "nbit", 6: "scaleoffset", 32000: "lzf"}
"""of the HDF5 library and of h5py; others are programs that the library would look for and load"""


def require_sound_chunks(path: Path, data: Any) -> None:
    """Raises FileError for filters that are not built in, and for chunks that hold more than they say."""
    properties = data.id.get_create_plist()
    filters = [properties.get_filter(index) for index in range(properties.get_nfilters())]
    for number, _, _, name in filters:
        if number not in _FILTERS:
            shown = name.decode("ascii", "replace") or str(number)
            raise FileError(path, f"is compressed by the filter {shown[:40]}", "Store it with gzip, with h5repack")
    if data.chunks is None or not filters:
        return
    chunk = math.prod(data.chunks) * data.dtype.itemsize
    require_memory(path, math.prod(data.chunks), data.dtype.itemsize)
    numbers = [number for number, *_ in filters]
    for index in range(data.id.get_num_chunks()):
        info = data.id.get_chunk_info(index)
        if info.size > 2 * chunk + 4096:
            raise damaged(path, f"a chunk of {chunk} bytes is stored in {info.size}")
        if 1 in numbers and not info.filter_mask >> numbers.index(1) & 1:
            _, content = data.id.read_direct_chunk(info.chunk_offset)
            content = content[:-4] if 3 in numbers[numbers.index(1) :] else content
            inflate(path, zlib.decompressobj(), bytes(content), 2 * chunk)


def axes_of(path: Path, data: Any) -> str:
    """Letters, by tags or labels, else by the lengths."""
    letters = ""
    if (tags := data.attrs.get("axistags")) is not None:
        try:
            letters = "".join(str(each["key"]) for each in json.loads(tags)["axes"])
        except (ValueError, KeyError, TypeError):
            raise damaged(path, "its axistags are not readable") from None
    elif "DIMENSION_LABELS" in data.attrs:
        letters = "".join(each.label for each in data.dims)
    letters = letters.upper()
    if len(letters) != data.ndim and "axistags" in data.attrs:
        raise damaged(path, f"its axistags name {len(letters)} axes, and it has {data.ndim}")
    if len(letters) == data.ndim and len(set(letters)) == len(letters) and set(letters) <= set("TZCYX"):
        return letters
    return guess_axes(path, data.shape, _AXES_REMEDY)


def write_hdf5(path: Path, array: np.ndarray, geometry: Geometry) -> None:
    """Write (C, Z, Y, X) as `exported_data` with axistags, channels last, compressed by gzip."""
    values = components_last(array, geometry)
    with _new_data_set(path, values.shape, values.dtype, geometry) as data:
        data[...] = values


def write_hdf5_rows(path: Path, labels: LabelRows, number: np.dtype, geometry: Geometry) -> None:
    """The labels as `write_hdf5` writes an array of this number type, piece by piece."""
    with _new_data_set(path, labels.shape[-geometry.dimension :], number, geometry) as data:
        for start, piece in labels.pieces():
            where = (slice(None),) * labels.axis + (slice(start, start + piece.shape[labels.axis]),)
            missing = 3 - data.ndim  # z, of a picture
            data[where[missing:]] = piece[0] if missing else piece


@contextmanager
def _new_data_set(path: Path, shape: tuple[int, ...], number: np.dtype, geometry: Geometry) -> Iterator[Any]:
    h5py = require_extra("h5py", path)
    axes = "zyx"[-geometry.dimension :] + ("c" if len(shape) > geometry.dimension else "")
    tags = {"axes": [{"key": key, "typeFlags": 1 if key == "c" else 2, "resolution": 0, "description": ""}
                     for key in axes]}  # fmt: skip
    with h5py.File(path, "w") as file:
        data = file.create_dataset(EXPORTED, shape, number, compression="gzip", compression_opts=1)
        data.attrs["axistags"] = json.dumps(tags)
        if geometry.dimension == 3:
            data.attrs["element_size_um"] = [each * 1000 for each in geometry.spacing]
        yield data


HDF5 = ImageFormat(HDF5_ENDINGS, read_hdf5, lambda path: read_hdf5(path, decode=False)[1], write_hdf5, write_hdf5_rows)

"""Labels that are not stored as values: colours in pictures, and the named segments of 3D Slicer, in layers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..schema.errors import FileError
from ..schema.geometry import Geometry
from ..schema.labels import LabelCode
from .nrrd import Segment, read_nrrd, read_segments

_MAX_LISTED = 12
"""colours listed in a message"""
_VALUES = 1 << 16
"""label values that 3D Slicer gives stay far below"""


def coded_by_colour(codes: Sequence[LabelCode]) -> bool:
    return any(code.colour is not None for code in codes)


def values_of_colours(path: Path, array: np.ndarray, codes: Sequence[LabelCode]) -> np.ndarray:
    """(1 or 3, Z, Y, X) of uint8 -> (Z, Y, X) int32 by the palette; a grey is the colour of three equal parts.

    Raises DataError listing the colours that the palette lacks, with their number of pixels.
    """
    if array.shape[0] not in (1, 3) or (array.size and not 0 <= array.min() <= array.max() <= 255):
        raise FileError(path, "is no picture with 8 bits a colour, so that no palette fits", "Store it as RGB PNG")
    red, green, blue = array.astype(np.int32) if array.shape[0] == 3 else [array[0].astype(np.int32)] * 3
    packed = (red << 16) | (green << 8) | blue
    colours, inverse, counts = np.unique(packed, return_inverse=True, return_counts=True)
    known = {_pack(code.colour): code.value for code in codes if code.colour is not None}
    lacking = [(colour, count) for colour, count in zip(colours.tolist(), counts.tolist(), strict=True)
               if colour not in known]  # fmt: skip
    if lacking:
        raise FileError(
            path, f"holds colours that the palette does not list: {_listed(lacking)}", "Add them to the palette"
        )
    table = np.array([known[colour] for colour in colours.tolist()], np.int32)
    return table[inverse.reshape(packed.shape)]


def colours_without_palette(path: Path, array: np.ndarray) -> FileError:
    """The error for (3, Z, Y, X) when nothing says which class a colour is; it lists the colours."""
    red, green, blue = np.clip(array, 0, 255).astype(np.int32)
    colours, counts = np.unique((red << 16) | (green << 8) | blue, return_counts=True)
    return FileError(
        path,
        "has 3 channels with different values: it is coded by colour, or no label at all. Its colours: "
        f"{_listed(list(zip(colours.tolist(), counts.tolist(), strict=True)))}",
        'Map them in a palette.json, {"class": [red, green, blue], ...}, or store labels as one channel of integers',
    )


def _pack(colour: tuple[int, int, int]) -> int:
    return (colour[0] << 16) | (colour[1] << 8) | colour[2]


def _listed(colours: list[tuple[int, int]]) -> str:
    """`[255, 0, 0] (120 pixels), ...`, the most frequent first."""
    ordered = sorted(colours, key=lambda entry: -entry[1])
    shown = [
        f"[{code >> 16}, {code >> 8 & 255}, {code & 255}] ({count} pixel{'s' if count != 1 else ''})"
        for code, count in ordered[:_MAX_LISTED]
    ]
    return ", ".join(shown) + (f" and {len(ordered) - _MAX_LISTED} more" if len(ordered) > _MAX_LISTED else "")


def segment_sets(path: Path) -> tuple[np.ndarray, list[frozenset[str]], Geometry]:
    """Which segments meet in each voxel: (Z, Y, X) int32 indices into sets of names, the sets, and the geometry.

    Index 0 is the empty set: no segment. Raises DataError.
    """
    segments = read_segments(path)
    layers, header = read_nrrd(path)
    if not segments:
        raise FileError(path, "describes no segments", "Save it again with 3D Slicer, or as plain .nrrd")
    indices, sets = np.zeros(layers.shape[1:], np.int32), [frozenset[str]()]
    for number, layer in enumerate(layers):
        own = [segment for segment in segments if segment.layer == number]
        table, names = _table(path, layer, own)
        joined = indices * len(names) + table[layer]
        present = np.flatnonzero(np.bincount(joined.ravel(), minlength=1))
        present = np.union1d([0], present)
        sets = [sets[index // len(names)] | names[index % len(names)] for index in present.tolist()]
        renumbered = np.zeros(int(present[-1]) + 1, np.int32)
        renumbered[present] = np.arange(len(present))
        indices = renumbered[joined]
    return indices, sets, header.geometry


def _table(path: Path, layer: np.ndarray, own: Sequence[Segment]) -> tuple[np.ndarray, list[frozenset[str]]]:
    """Label value -> index into sets of names, for one layer; the first set is empty."""
    if not np.issubdtype(layer.dtype, np.integer) or layer.min() < 0 or layer.max() >= _VALUES:
        raise FileError(path, "holds values that no segment can have", "Save it again with 3D Slicer")
    by_value: dict[int, frozenset[str]] = {}
    for segment in own:
        if segment.value:
            by_value[segment.value] = by_value.get(segment.value, frozenset()) | {segment.name}
    table = np.zeros(_VALUES, np.int32)
    for index, value in enumerate(by_value, 1):
        table[value] = index
    present = np.flatnonzero(np.bincount(layer.ravel().astype(np.int64), minlength=1))
    lacking = [value for value in present.tolist() if value and value not in by_value]
    if lacking:
        raise FileError(path, f"holds the value {lacking[0]}, which no segment has", "Save it again with 3D Slicer")
    return table, [frozenset(), *by_value.values()]


def values_of_segments(path: Path, codes: Sequence[LabelCode]) -> tuple[np.ndarray, Geometry]:
    """(Z, Y, X) int32 values of a .seg.nrrd file by the names of its segments. Raises DataError."""
    indices, sets, geometry = segment_sets(path)
    known = {frozenset(code.segments): code.value for code in codes if code.segments}
    values = []
    for names in sets:
        if names and names not in known:
            single = ", ".join(sorted(" ".join(code.segments) for code in codes if len(code.segments) == 1))
            where = "segments that overlap" if len(names) > 1 else "the segment"
            raise FileError(
                path,
                f"has {where} {' and '.join(sorted(names))}, which the data set does not know ({single})",
                "Rename the segment, or declare it",
            )
        values.append(known.get(names, 0))
    return np.array(values, np.int32)[indices], geometry


def plain_segments(path: Path) -> tuple[np.ndarray, Geometry]:
    """(Z, Y, X) values of a .seg.nrrd file as stored, when it has one layer. Raises DataError."""
    layers, header = read_nrrd(path)
    if layers.shape[0] > 1:
        raise FileError(
            path, f"has segments in {layers.shape[0]} layers, whose values repeat", "Read it by the segments' names"
        )
    return layers[0], header.geometry

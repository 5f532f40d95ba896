"""Labels that name their structures, which may overlap: 3D Slicer's segments, and a mask file for each structure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..schema.errors import FileError
from ..schema.geometry import Geometry, geometry_differences
from ..schema.labels import LabelCode
from .formats import VOLUME_KINDS, read_file
from .nrrd import Segment, read_nrrd, read_segments

HEADER_TOLERANCE = 1e-3
"""by which direction cosines of the masks of one case may differ: some programs write three decimals"""


class StructureMap(NamedTuple):
    """Which structures meet in each voxel."""

    indices: np.ndarray
    """(Z, Y, X) int32, into `sets`"""
    sets: list[frozenset[str]]
    """of structures' names; the first is empty: no structure"""
    geometry: Geometry

    @property
    def voxels(self) -> dict[frozenset[str], int]:
        """Of each set that occurs, but the empty one."""
        counts = np.bincount(self.indices.ravel(), minlength=len(self.sets)).tolist()
        return {names: count for names, count in zip(self.sets, counts, strict=True) if names and count}


def sizes_of(voxels: Iterable[tuple[frozenset[str], int]]) -> dict[str, int]:
    """Voxels of each structure, from those of each set in which structures meet."""
    sizes: dict[str, int] = {}
    for names, count in voxels:
        for name in names:
            sizes[name] = sizes.get(name, 0) + count
    return sizes


class NamedMask(NamedTuple):
    name: str
    mask: np.ndarray
    """(Z, Y, X) bool"""


def join_masks(masks: Iterable[NamedMask], geometry: Geometry) -> StructureMap:
    """One map of masks on one grid, drawn one after the other."""
    flat = np.zeros(int(np.prod(geometry.shape)), np.int32)
    numbers: dict[frozenset[str], int] = {frozenset(): 0}
    for name, mask in masks:
        inside = np.flatnonzero(mask)
        before, sets = flat[inside], list(numbers)
        table = np.zeros(len(sets), np.int32)
        for index in np.flatnonzero(np.bincount(before, minlength=1)).tolist():
            table[index] = numbers.setdefault(sets[index] | {name}, len(numbers))
        flat[inside] = table[before]
    return StructureMap(flat.reshape(geometry.shape), list(numbers), geometry)


def read_masks(masks: Sequence[tuple[str, Path]]) -> StructureMap:
    """The structures of files that hold one each, all on the grid of the first.

    Any value but 0 is the structure. Raises DataError where a file holds several values, or lies on other voxels.
    """
    geometry = read_mask(masks[0][1])[1]

    def drawn() -> Iterable[NamedMask]:
        for name, path in masks:
            mask, own = read_mask(path)
            _require_same_grid(path, own, masks[0][1], geometry)
            yield NamedMask(name, mask)

    return join_masks(drawn(), geometry)


def read_mask(path: Path) -> tuple[np.ndarray, Geometry]:
    """(Z, Y, X) bool of a file with one value besides 0. Raises DataError."""
    array, header = read_file(path, as_indices=True)
    if array.shape[0] > 1 and not (array == array[:1]).all():
        raise FileError(path, f"has {array.shape[0]} channels with different values", "Store a mask as one channel")
    mask = array[0] != 0
    values = array[0][mask]
    if values.size and (values != values[0]).any():
        finding = f"is to be the mask of one structure, and holds the values {values.min():g} to {values.max():g}"
        raise FileError(path, finding, "Store 0 and one other value, or name it with --label where it holds classes")
    return mask, header.geometry


def _require_same_grid(path: Path, own: Geometry, first: Path, geometry: Geometry) -> None:
    if own.shape != geometry.shape:
        finding = f"has shape {own.shape}, but {first.name} of the same case has {geometry.shape} (z, y, x)"
        raise FileError(path, finding, "Resample the masks to the grid of the image")
    if own.kind not in VOLUME_KINDS or geometry.kind not in VOLUME_KINDS:
        return
    if found := geometry_differences(own, geometry, HEADER_TOLERANCE):
        finding = f"is not aligned with {first.name}: {'; '.join(map(str, found))}"
        raise FileError(path, finding, "Correct the header that is wrong, or resample the masks to the image's grid")


class CodedStructures(NamedTuple):
    values: np.ndarray
    """(Z, Y, X) int32"""
    shared: dict[frozenset[str], int]
    """voxels in which structures meet that went to one of them alone"""


def structure_values(path: Path, found: StructureMap, codes: Sequence[LabelCode], strict: bool) -> CodedStructures:
    """The values that codes give to structures and to those of their combinations that are classes.

    In any other combination the structure that is smallest in this case has the voxel; `strict`: that is an error.
    `path` is where the label lies. Raises DataError for structures that no code knows.
    """
    known = {frozenset(code.segments): code.value for code in codes if code.segments}
    sizes, table = sizes_of(found.voxels.items()), np.zeros(len(found.sets), np.int32)
    shared: dict[frozenset[str], int] = {}
    voxels = found.voxels
    for index, names in enumerate(found.sets):
        if names not in voxels:
            continue
        if names not in known and (strict or any(frozenset({name}) not in known for name in names)):
            raise _unknown(path, names, codes)
        wanted = frozenset(name for name in names if known.get(frozenset({name})) != 0)
        smallest = min(wanted, key=lambda name: (sizes[name], name), default=None)
        single = known[frozenset({smallest})] if smallest is not None and frozenset({smallest}) in known else 0
        table[index] = known.get(names, known.get(wanted, single))
        if len(wanted) > 1 and table[index] in {known.get(frozenset({name})) for name in wanted}:
            shared[wanted] = shared.get(wanted, 0) + voxels[names]
    return CodedStructures(table[found.indices], shared)


def _unknown(path: Path, names: frozenset[str], codes: Sequence[LabelCode]) -> FileError:
    single = ", ".join(sorted(" ".join(code.segments) for code in codes if len(code.segments) == 1))
    where = "segments that overlap" if len(names) > 1 else "the segment"
    finding = f"has {where} {' and '.join(sorted(names))}, which the data set does not know ({single})"
    return FileError(path, finding, "Rename the segment, or declare it")


# 3D Slicer's segments, in layers

_VALUES = 1 << 16
"""label values that 3D Slicer gives stay far below"""


def segment_sets(path: Path) -> StructureMap:
    """Which segments of a .seg.nrrd file meet in each voxel. Raises DataError."""
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
    return StructureMap(indices, sets, header.geometry)


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


def plain_segments(path: Path) -> tuple[np.ndarray, Geometry]:
    """(Z, Y, X) values of a .seg.nrrd file as stored, when it has one layer. Raises DataError."""
    layers, header = read_nrrd(path)
    if layers.shape[0] > 1:
        raise FileError(
            path, f"has segments in {layers.shape[0]} layers, whose values repeat", "Read it by the segments' names"
        )
    return layers[0], header.geometry

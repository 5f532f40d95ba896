"""Prepared cases and scores on disk.

A case is `<identifier>.image.b2nd`, `.labels.b2nd`, `.locations.b2nd` and `.json`, with checksums of the others. Arrays
are blosc2, ZSTD level 1 with shuffle: 15 times faster to write than npz, and any part can be read alone. Their chunks
are slabs (1, n, Y, X) made of single-slice blocks, so 2-D slices and 3-D patches of every size read little more than
they need, and no plan is written into the data. Each file appears whole under its name, and the JSON last: where it is,
the case is complete.
"""

from __future__ import annotations

import errno
import hashlib
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np

from ..schema.errors import RecordError
from ..schema.geometry import CaseProperties
from ..schema.quantities import format_size
from ..schema.record import Record, named_in_text, replacing
from ..system_memory import available_memory, require_no_lack_of_memory

if TYPE_CHECKING:
    import blosc2  # loaded on first use: commands that open no case need not wait for it

CHUNK_BYTES = 1024**2
"""uncompressed size that a chunk's slices are gathered to"""
SCORES, STAGE_LABELS = "scores.b2nd", "labels.b2nd"
"""how the names of kept scores, and of labels for the next stage of a cascade, end after the case's and a dot"""


class PreparedRecord(Record):
    """`<identifier>.json`."""

    SEALED: ClassVar[bool] = True

    properties: CaseProperties
    channels: int
    counts: dict[int, int]
    """dense foreground class -> how many of the locations, in ascending order, are its"""
    checksums: dict[str, str]
    """ending of a file's name -> blake2b-128 of the file, hex"""


@dataclass(frozen=True)
class StoredArray:
    """The array of a file, read where it is sliced. Slicing raises RecordError where that part is damaged."""

    path: Path
    array: blosc2.NDArray

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.array.shape)

    @property
    def dtype(self) -> np.dtype:
        return self.array.dtype

    def __getitem__(self, part: Any) -> np.ndarray:
        try:
            return np.asarray(self.array[part])
        except RuntimeError as error:
            require_no_lack_of_memory(self.path, error)
            raise RecordError(f"{self.path} is damaged ({error})", MADE_AGAIN) from None


class StoredCase(NamedTuple):
    identifier: str
    properties: CaseProperties
    image: StoredArray
    """(C, *S) float32"""
    labels: StoredArray | None
    """(*S) int8 or int16"""
    locations: dict[int, np.ndarray]
    """dense foreground class -> (N, 3) int32"""


def write_prepared(
    folder: Path,
    properties: CaseProperties,
    image: np.ndarray,
    labels: np.ndarray | None,
    locations: Mapping[int, np.ndarray],
) -> None:
    """Write a case to the folder, over what is there of it. Labels may be None (cases to be predicted)."""
    identifier = properties.identifier
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _file(folder, identifier, "json").unlink(missing_ok=True)  # until the end the case counts as not prepared
    arrays: dict[str, np.ndarray] = {"image.b2nd": np.asarray(image, np.float32)}
    if labels is None:
        _file(folder, identifier, "labels.b2nd").unlink(missing_ok=True)
    else:
        arrays["labels.b2nd"] = labels
    classes = sorted(locations)
    stacked = np.concatenate([np.zeros((0, 3), np.int32), *(locations[label] for label in classes)])
    arrays["locations.b2nd"] = stacked.astype(np.int32, copy=False)
    checksums = {ending: _write(_file(folder, identifier, ending), array) for ending, array in arrays.items()}
    counts = {label: len(locations[label]) for label in classes}
    record = PreparedRecord(properties=properties, channels=len(image), counts=counts, checksums=checksums)
    record.save(_file(folder, identifier, "json"))


def read_properties(folder: Path, identifier: str) -> CaseProperties:
    """What is known of a prepared case, without opening its arrays. Raises RecordError when the case is not there."""
    return _read_record(Path(folder), identifier).properties


def read_class_counts(folder: Path, identifier: str) -> dict[int, int]:
    """Dense foreground class -> how many of its voxels' places are kept, which grows with its size up to a limit.

    Raises as `read_properties`.
    """
    return _read_record(Path(folder), identifier).counts


def _read_record(folder: Path, identifier: str) -> PreparedRecord:
    path = _file(folder, identifier, "json")
    try:
        return PreparedRecord.load(path)
    except RecordError as error:
        if path.exists():
            _require_openable(path)
        raise RecordError(error.message, MADE_AGAIN) from None


def open_prepared(folder: Path, identifier: str) -> StoredCase:
    """A prepared case, which keeps its files open while it exists.

    Raises RecordError when the case is not there, or not completely.
    """
    folder = Path(folder)
    record = _read_record(folder, identifier)
    shape = record.properties.shape
    rows = _read(_file(folder, identifier, "locations.b2nd"), "i", (sum(record.counts.values()), 3))
    locations, start = {}, 0
    for label, count in record.counts.items():
        locations[label] = rows[start : start + count]
        start += count
    labels = _file(folder, identifier, "labels.b2nd")
    return StoredCase(
        identifier,
        record.properties,
        _open(_file(folder, identifier, "image.b2nd"), "f", (record.channels, *shape)),
        _open(labels, "i", shape) if "labels.b2nd" in record.checksums else None,
        locations,
    )


def is_prepared(folder: Path, identifier: str, key: str) -> bool:
    """Whether the case is there, complete, and prepared with this key."""
    try:
        record = PreparedRecord.load(_file(Path(folder), identifier, "json"))
    except RecordError:
        return False
    arrays = all(_file(Path(folder), identifier, ending).exists() for ending in record.checksums)
    return arrays and record.properties.key == key


def forget_damaged(folder: Path, identifier: str, hash_of: Callable[[Path], str | None]) -> bool:
    """Whether a file of a prepared case differs from what was written; such a case then counts as not prepared.

    `hash_of` gives the blake2b-128 of a file in hex digits. A case that is not there is not damaged.
    """
    file = _file(Path(folder), identifier, "json")
    try:
        checksums = PreparedRecord.load(file).checksums
    except RecordError:
        return False
    damaged = any(hash_of(_file(Path(folder), identifier, each)) != checksum for each, checksum in checksums.items())
    if damaged:
        file.unlink()
    return damaged


def write_scores(folder: Path, identifier: str, scores: np.ndarray) -> None:
    """Logits (K, *S) on the prepared grid, kept as float16; what lies beyond its range becomes its largest value."""
    largest = np.finfo(np.float16).max
    rounded = np.empty(scores.shape, np.float16)
    for source, target in zip(scores, rounded, strict=True):
        np.clip(source, -largest, largest, out=target, casting="unsafe")
    Path(folder).mkdir(parents=True, exist_ok=True)
    _write(scores_file(folder, identifier), rounded)


def read_scores(folder: Path, identifier: str, shape: tuple[int, ...] | None = None) -> np.ndarray:
    """(K, *S) float16. Raises RecordError when there are none, or none of the spatial `shape` (None: any)."""
    return _read(scores_file(folder, identifier), "f", None if shape is None else (None, *shape))


def read_scored(
    scores: Path, prepared: Path, identifier: str, dtype: type[np.floating] = np.float32
) -> tuple[np.ndarray, CaseProperties]:
    """Scores (K, *S) and the prepared case that they are of. Raises as both, and where their sizes differ."""
    properties = read_properties(prepared, identifier)
    return read_scores(scores, identifier, properties.shape).astype(dtype, copy=False), properties


def scores_file(folder: Path, identifier: str) -> Path:
    """The file that `write_scores` writes."""
    return _file(Path(folder), identifier, SCORES)


def write_stage_labels(folder: Path, identifier: str, labels: np.ndarray) -> None:
    """Dense labels (*S) of one stage of a cascade for the next, on the next one's prepared grid."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    _write(stage_labels_file(folder, identifier), labels)


def open_stage_labels(folder: Path, identifier: str, shape: tuple[int, ...] | None = None) -> StoredArray:
    """(*S) int8 or int16. Raises RecordError when there are none of this `shape` (None: any)."""
    return _open(stage_labels_file(folder, identifier), "i", shape)


def stage_labels_file(folder: Path, identifier: str) -> Path:
    """The file that `write_stage_labels` writes."""
    return _file(Path(folder), identifier, STAGE_LABELS)


def _file(folder: Path, identifier: str, ending: str) -> Path:
    return folder / f"{identifier}.{ending}"


def _write(path: Path, array: np.ndarray) -> str:
    """Returns the blake2b-128 of the file, in hex digits."""
    import blosc2

    array = np.ascontiguousarray(array)
    sizes = {} if array.size == 0 else _partition(array)
    cparams = {"codec": blosc2.Codec.ZSTD, "clevel": 1, "filters": [blosc2.Filter.SHUFFLE]}
    content = blosc2.asarray(array, cparams=cparams, **sizes).to_cframe()
    with replacing(path) as temporary:
        temporary.write_bytes(content)
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _partition(array: np.ndarray) -> dict[str, tuple[int, ...]]:
    """Chunks of whole slices (the last two axes), as many as fit CHUNK_BYTES, of blocks of one slice each."""
    if array.ndim < 3:
        return {}
    lead, depth, plane = array.ndim - 3, array.shape[-3], array.shape[-2:]
    slices = max(1, min(depth, CHUNK_BYTES // (array.itemsize * plane[0] * plane[1])))
    ones = (1,) * lead
    return {"chunks": (*ones, slices, *plane), "blocks": (*ones, 1, *plane)}


UNQUESTIONED = 2**28
"""bytes of an array for which nobody asks how much memory is free"""
MADE_AGAIN = "Give the same command again: what is missing or damaged is made again"


Shape = tuple[int | None, ...] | None
"""None for all axes: whatever the file says; for one: as much as `MOST_OUTPUTS`"""
MOST_OUTPUTS = 2**15 - 1
"""of a network: labels are int16 at most"""


def _open(path: Path, kind: str, shape: Shape) -> StoredArray:
    """Memory-mapped, with one file kept open, where the system can replace mapped files (not on Windows).

    Raises RecordError for a file that is not there or damaged, and for everything but plain numbers of this `kind`
    (of numpy's dtypes) and `shape`: blosc2 also knows files that are programs or lead to other files.
    """
    import blosc2

    if not path.exists():
        raise RecordError(f"{path} does not exist", MADE_AGAIN)
    try:
        with named_in_text(path) as name:
            found = blosc2.open(str(name), mode="r", mmap_mode=None if os.name == "nt" else "r")
    except Exception as error:  # blosc2 raises whatever a damaged header leads to
        _require_openable(path)
        require_no_lack_of_memory(path, error)
        raise RecordError(f"{path} is damaged ({error})", MADE_AGAIN) from None
    if type(found) is not blosc2.NDArray or found.dtype.kind != kind or not _fits(found.shape, shape):
        raise RecordError(f"{path} is damaged: it does not hold the array that was written", MADE_AGAIN)
    return StoredArray(path, found)


def _fits(shape: tuple[int, ...], expected: Shape) -> bool:
    if expected is None:
        return True
    if len(shape) != len(expected):
        return False
    return all(size <= MOST_OUTPUTS if own is None else size == own for size, own in zip(shape, expected, strict=True))


def _read(path: Path, kind: str, shape: Shape) -> np.ndarray:
    """The whole array. Raises as `_open`, also where the memory has no room for it: a damaged header may say any."""
    stored = _open(path, kind, shape)
    needed = math.prod(stored.shape) * stored.dtype.itemsize
    if needed > UNQUESTIONED and needed > (free := available_memory()):
        what = (
            f"is damaged, or too large: by its header it holds {format_size(needed)}, and {format_size(free)} are free"
        )
        raise RecordError(f"{path} {what}", MADE_AGAIN)
    return stored[...]


def _require_openable(path: Path) -> None:
    """blosc2 does not say why a file did not open: too many open files, or no right to read, are no damage."""
    try:
        path.open("rb").close()
    except OSError as error:
        many = error.errno in (errno.EMFILE, errno.ENFILE)
        remedy = "Allow more open files, for example with: ulimit -n 4096" if many else "Check the rights to read it"
        raise RecordError(f"{path} cannot be opened: {error.strerror}", remedy) from None

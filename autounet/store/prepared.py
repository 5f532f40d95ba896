"""Prepared cases and scores on disk.

A case is `<identifier>.image.b2nd`, `.labels.b2nd`, `.locations.b2nd` and `.json`. Arrays are blosc2, ZSTD level 1 with
shuffle: 15 times faster to write than npz, and any part can be read alone. Their chunks are slabs (1, n, Y, X) made of
single-slice blocks, so 2-D slices and 3-D patches of every size read little more than they need, and no plan is
written into the data. Each file appears whole under its name, and the JSON last: where it is, the case is complete.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import blosc2
import numpy as np

from ..schema.errors import RecordError
from ..schema.geometry import CaseProperties
from ..schema.record import named_in_text, replacing

CHUNK_BYTES = 1024**2
"""uncompressed size that a chunk's slices are gathered to"""
SCORES, STAGE_LABELS = "scores.b2nd", "labels.b2nd"
"""how the names of kept scores, and of labels for the next stage of a cascade, end after the case's and a dot"""


class StoredCase(NamedTuple):
    identifier: str
    properties: CaseProperties
    image: blosc2.NDArray
    """(C, *S) float32, read where it is sliced"""
    labels: blosc2.NDArray | None
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
    _write(_file(folder, identifier, "image.b2nd"), np.asarray(image, np.float32))
    if labels is None:
        _file(folder, identifier, "labels.b2nd").unlink(missing_ok=True)
    else:
        _write(_file(folder, identifier, "labels.b2nd"), labels)
    classes = sorted(locations)
    counts = {str(label): len(locations[label]) for label in classes}
    stacked = np.concatenate([np.zeros((0, 3), np.int32), *(locations[label] for label in classes)])
    _write(_file(folder, identifier, "locations.b2nd"), stacked.astype(np.int32, copy=False), {"counts": counts})
    properties.save(_file(folder, identifier, "json"))


def read_properties(folder: Path, identifier: str) -> CaseProperties:
    """What is known of a prepared case, without opening its arrays. Raises RecordError when the case is not there."""
    path = _file(Path(folder), identifier, "json")
    try:
        return CaseProperties.load(path)
    except RecordError as error:
        if path.exists():
            _require_openable(path)
        raise RecordError(error.message, _prepare_again(Path(folder))) from None


def open_prepared(folder: Path, identifier: str) -> StoredCase:
    """A prepared case, which keeps its files open while it exists.

    Raises RecordError when the case is not there, or not completely.
    """
    folder = Path(folder)
    properties = read_properties(folder, identifier)
    remedy = _prepare_again(folder)
    stacked = _open(_file(folder, identifier, "locations.b2nd"), remedy)
    rows = stacked[...]
    locations, start = {}, 0
    for label, count in stacked.schunk.vlmeta["counts"].items():
        locations[int(label)] = rows[start : start + count]
        start += count
    labels = _file(folder, identifier, "labels.b2nd")
    return StoredCase(
        identifier,
        properties,
        _open(_file(folder, identifier, "image.b2nd"), remedy),
        _open(labels, remedy) if labels.exists() else None,
        locations,
    )


def is_prepared(folder: Path, identifier: str, key: str) -> bool:
    """Whether the case is there, complete, and prepared with this key."""
    try:
        content = json.loads(_file(Path(folder), identifier, "json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    arrays = all(_file(Path(folder), identifier, ending).exists() for ending in ("image.b2nd", "locations.b2nd"))
    return arrays and isinstance(content, dict) and content.get("key") == key


def write_scores(folder: Path, identifier: str, scores: np.ndarray) -> None:
    """Logits (K, *S) on the prepared grid, kept as float16; what lies beyond its range becomes its largest value."""
    largest = np.finfo(np.float16).max
    rounded = np.empty(scores.shape, np.float16)
    for source, target in zip(scores, rounded, strict=True):
        np.clip(source, -largest, largest, out=target, casting="unsafe")
    Path(folder).mkdir(parents=True, exist_ok=True)
    _write(scores_file(folder, identifier), rounded)


def read_scores(folder: Path, identifier: str) -> np.ndarray:
    """(K, *S) float16. Raises RecordError when there are none."""
    remedy = f"Delete the files fold_*.done.json beside {folder}, and the next run predicts its cases again"
    return _open(scores_file(folder, identifier), remedy)[...]


def scores_file(folder: Path, identifier: str) -> Path:
    """The file that `write_scores` writes."""
    return _file(Path(folder), identifier, SCORES)


def write_stage_labels(folder: Path, identifier: str, labels: np.ndarray) -> None:
    """Dense labels (*S) of one stage of a cascade for the next, on the next one's prepared grid."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    _write(stage_labels_file(folder, identifier), labels)


def open_stage_labels(folder: Path, identifier: str) -> blosc2.NDArray:
    """(*S) int8 or int16, read where it is sliced. Raises RecordError when there are none."""
    remedy = f"Delete the files fold_*.done.json in {folder}, and the next run makes them again"
    return _open(stage_labels_file(folder, identifier), remedy)


def stage_labels_file(folder: Path, identifier: str) -> Path:
    """The file that `write_stage_labels` writes."""
    return _file(Path(folder), identifier, STAGE_LABELS)


def _file(folder: Path, identifier: str, ending: str) -> Path:
    return folder / f"{identifier}.{ending}"


def _write(path: Path, array: np.ndarray, details: dict | None = None) -> None:
    array = np.ascontiguousarray(array)
    sizes = {} if array.size == 0 else _partition(array)
    cparams = {"codec": blosc2.Codec.ZSTD, "clevel": 1, "filters": [blosc2.Filter.SHUFFLE]}
    stored = blosc2.asarray(array, cparams=cparams, **sizes)
    for name, value in (details or {}).items():
        stored.schunk.vlmeta[name] = value
    with replacing(path) as temporary:
        temporary.write_bytes(stored.to_cframe())


def _partition(array: np.ndarray) -> dict[str, tuple[int, ...]]:
    """Chunks of whole slices (the last two axes), as many as fit CHUNK_BYTES, of blocks of one slice each."""
    if array.ndim < 3:
        return {}
    lead, depth, plane = array.ndim - 3, array.shape[-3], array.shape[-2:]
    slices = max(1, min(depth, CHUNK_BYTES // (array.itemsize * plane[0] * plane[1])))
    ones = (1,) * lead
    return {"chunks": (*ones, slices, *plane), "blocks": (*ones, 1, *plane)}


def _prepare_again(folder: Path) -> str:
    return f"Delete the folder {folder}, and the next run prepares its cases again"


def _open(path: Path, remedy: str) -> blosc2.NDArray:
    """Memory-mapped, with one file kept open, where the system can replace mapped files (not on Windows)."""
    if not path.exists():
        raise RecordError(f"{path} does not exist", remedy)
    try:
        with named_in_text(path) as name:
            return blosc2.open(str(name), mode="r", mmap_mode=None if os.name == "nt" else "r")
    except (OSError, RuntimeError, ValueError) as error:
        _require_openable(path)
        raise RecordError(f"{path} is damaged ({error})", remedy) from None


def _require_openable(path: Path) -> None:
    """blosc2 does not say why a file did not open: too many open files, or no right to read, are no damage."""
    try:
        path.open("rb").close()
    except OSError as error:
        many = error.errno in (errno.EMFILE, errno.ENFILE)
        remedy = "Allow more open files, for example with: ulimit -n 4096" if many else "Check the rights to read it"
        raise RecordError(f"{path} cannot be opened: {error.strerror}", remedy) from None

"""Reading every case once: what its files hold and what is wrong with them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from autounet.datasets.contents import count_values, sample_intensities
from autounet.images import VOLUME_KINDS, read_image, read_labels
from autounet.ops.crop import nonzero_box
from autounet.schema.dataset import Case, CaseFacts, Dataset, Finding, Severity
from autounet.schema.errors import DataError
from autounet.schema.geometry import Geometry
from autounet.workers import map_parallel

GEOMETRY_TOLERANCE = 1e-3
"""mm, or direction cosine, that image and label may differ by"""


class CaseTask(NamedTuple):
    """What a worker needs to examine one case."""

    root: str
    case: Case
    channels: int
    ignore: int | None
    seed: int
    known: str | None
    """content hash of the facts at hand"""


def examine(
    dataset: Dataset,
    workers: int,
    seed: int = 0,
    on_done: Callable[[CaseFacts | None], None] | None = None,
    known: Mapping[str, CaseFacts] | None = None,
) -> list[CaseFacts]:
    """Facts of every case in the data set's order, files read in parallel; known facts of unchanged files are kept.

    Defects become findings, never exceptions. `on_done` is called once per case (with None for an unchanged one).
    """
    known = known or {}
    tasks = [
        CaseTask(
            root=dataset.root,
            case=case,
            channels=len(dataset.channels),
            ignore=dataset.labels.ignore,
            seed=seed,
            known=known[case.identifier].content_hash if case.identifier in known else None,
        )
        for case in dataset.cases
    ]
    changed = []
    for task in tasks:  # hashing waits for the disk; a pool of processes would cost more than it saves
        if task.known is not None and content_hash(task) == task.known:
            if on_done:
                on_done(None)
        else:
            changed.append(task)
    results = {facts.identifier: facts for facts in map_parallel(examine_case, changed, workers, on_done)}
    return [results.get(case.identifier) or known[case.identifier] for case in dataset.cases]


def examine_case(task: CaseTask) -> CaseFacts:
    """Facts of one case, whatever was known."""
    content = content_hash(task)
    findings: list[Finding] = []
    image, geometry = _read_channels(task, findings)
    values = _read_labels(task, task.case.label, geometry, findings) if task.case.label else None
    if image is None or geometry is None:
        return _unread(task, content, findings, geometry)
    findings += _intensity_findings(task.case, image)
    foreground = None if values is None else values != 0
    if foreground is not None and task.ignore is not None:
        foreground &= values != task.ignore
    return CaseFacts(
        identifier=task.case.identifier,
        content_hash=content,
        geometry=geometry,
        nonzero_box=nonzero_box(image),
        value_counts={} if values is None else count_values(values),
        samples=sample_intensities(image, foreground, task.seed, task.case.identifier),
        findings=tuple(findings),
    )


def _unread(task: CaseTask, content: str, findings: list[Finding], geometry: Geometry | None) -> CaseFacts:
    """Facts of a case whose image gives no array."""
    return CaseFacts(
        identifier=task.case.identifier,
        content_hash=content,
        geometry=geometry or Geometry(shape=(0, 0, 0)),
        nonzero_box=((0, 0), (0, 0), (0, 0)),
        value_counts={},
        samples=(),
        findings=tuple(findings),
    )


def content_hash(task: CaseTask) -> str:
    """32 hex digits over the bytes of the case's files, their order, and what else its facts depend on."""
    state = hashlib.blake2b(digest_size=16)
    state.update(repr((task.channels, task.ignore, task.seed, task.case.label is None)).encode())
    for name in (*task.case.images, *([task.case.label] if task.case.label else [])):
        path = Path(task.root) / name
        if not path.is_file():
            state.update(b"missing")
            continue
        with path.open("rb") as file:
            state.update(hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).digest())
    return state.hexdigest()


def _finding(case: Case, code: str, message: str, remedy: str, severity: Severity = Severity.fatal) -> Finding:
    return Finding(case=case.identifier, code=code, severity=severity, message=message, remedy=remedy)


def unreadable(case: Case, root: Path | str, error: DataError) -> Finding:
    """A case's file that cannot be read."""
    message, _, remedy = str(error).replace(f"{root}/", "").rpartition(". ")
    return _finding(case, "unreadable-file", message or remedy, remedy if message else "Copy or export the file again")


def _read_channels(task: CaseTask, findings: list[Finding]) -> tuple[np.ndarray | None, Geometry | None]:
    """(C, Z, Y, X) and the first file's geometry; None with a finding when they cannot be read or joined."""
    case, parts = task.case, []
    for name in case.images:
        try:
            parts.append(read_image(Path(task.root) / name))
        except DataError as error:
            findings.append(unreadable(case, task.root, error))
    if len(parts) < len(case.images):
        return None, None
    geometry = parts[0][1]
    for name, (_, other) in zip(case.images, parts, strict=True):
        if other.shape != geometry.shape:
            message = f"{name} has shape {other.shape}, but {case.images[0]} has {geometry.shape} (z, y, x)"
            findings.append(_finding(case, "shape-mismatch", message, "Resample the channels to one grid"))
            return None, geometry
        findings += _geometry_findings(case, name, other, geometry)
    image = parts[0][0] if len(parts) == 1 else np.concatenate([array for array, _ in parts])
    if image.shape[0] != task.channels:
        message = f"{', '.join(case.images)} has {image.shape[0]} channels, the data set {task.channels}"
        findings.append(_finding(case, "channel-mismatch", message, "Convert it to the channels of the others"))
        return None, geometry
    return image, geometry


def _read_labels(task: CaseTask, name: str, geometry: Geometry | None, findings: list[Finding]) -> np.ndarray | None:
    """(Z, Y, X) file values; None with a finding when they cannot be read or do not fit the image."""
    case = task.case
    try:
        values, own = read_labels(Path(task.root) / name)
    except DataError as error:
        findings.append(unreadable(case, task.root, error))
        return None
    if own.kind == "jpeg" and len(different := np.unique(values)) > 2:
        message = f"{name} is a JPEG file and holds {len(different)} values: its compression has changed them"
        findings.append(_finding(case, "lossy-label", message, "Draw or export the label again as PNG or TIFF"))
        return None
    if geometry is None:
        return None
    if own.shape != geometry.shape:
        message = f"the image {case.images[0]} has shape {geometry.shape}, its label {name} {own.shape} (z, y, x)"
        remedy = "Give the label that was drawn on this image, or resample it to the image's grid"
        findings.append(_finding(case, "shape-mismatch", message, remedy))
        return None
    findings += _geometry_findings(case, name, own, geometry)
    return values


def _geometry_findings(case: Case, name: str, own: Geometry, image: Geometry) -> list[Finding]:
    """Warnings where a file has another spacing, origin or direction than the first image; arrays are used as is."""
    if own is image or own.kind not in VOLUME_KINDS or image.kind not in VOLUME_KINDS:
        return []
    if own.dimension != image.dimension:
        return []
    different = [
        f"{field} {tuple(round(value, 4) for value in getattr(own, field))} instead of "
        f"{tuple(round(value, 4) for value in getattr(image, field))}"
        for field in ("spacing", "origin", "direction")
        if np.abs(np.subtract(getattr(own, field), getattr(image, field))).max() > GEOMETRY_TOLERANCE
    ]
    if not different:
        return []
    message = f"{name} lies elsewhere than {case.images[0]}: {'; '.join(different)}"
    remedy = f"The image's geometry is used; correct {name} if its voxels do not match the image's one by one"
    return [_finding(case, "geometry-mismatch", message, remedy, Severity.warning)]


def _intensity_findings(case: Case, image: np.ndarray) -> list[Finding]:
    """NaN and infinite voxels (fatal); channels of one value (a warning, fatal when all are)."""
    low, high = image.min(axis=(1, 2, 3)), image.max(axis=(1, 2, 3))
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        nan, infinite = int(np.isnan(image).sum()), int(np.isinf(image).sum())
        counts = [text for number, text in ((nan, f"{nan} NaN"), (infinite, f"{infinite} infinite")) if number]
        code = "nan-voxels" if nan else "infinite-voxels"
        message = f"{', '.join(case.images)} holds {' and '.join(counts)} voxels of {image.size}"
        return [_finding(case, code, message, "Replace them with a valid intensity, or export the image again")]
    constant = [index for index in range(len(low)) if low[index] == high[index]]
    if not constant:
        return []
    which = "the image" if len(low) == 1 else f"channel {', '.join(map(str, constant))}"
    message = f"{which} is {low[constant[0]]:g} everywhere ({', '.join(case.images)})"
    severity = Severity.fatal if len(constant) == len(low) else Severity.warning
    return [_finding(case, "constant-image", message, "Export the image again, or take the case out", severity)]

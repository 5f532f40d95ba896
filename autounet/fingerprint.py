"""Reading every case once: what it holds, what is wrong with it, and the data set's fingerprint for the planner."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from autounet.datasets import label_findings
from autounet.images import VOLUME_KINDS, read_image, read_labels
from autounet.ops.orient import canonical_axes
from autounet.schema.dataset import Case, CaseFacts, Channel, Dataset, Finding, IntensitySample, Severity
from autounet.schema.errors import DataError
from autounet.schema.fingerprint import CaseFingerprint, ChannelFingerprint, Fingerprint
from autounet.schema.geometry import Box3, Geometry
from autounet.workers import map_parallel

SAMPLES = 10_000
"""intensities kept per case and channel"""
GEOMETRY_TOLERANCE = 1e-3
"""mm, or direction cosine, that image and label may differ by"""
FOLDS = 5
_NOWHERE: Box3 = ((0, 0), (0, 0), (0, 0))
_UNREAD = Geometry(shape=(0, 0, 0))
_COUNTED = 1 << 20
"""label values below this are counted by table"""


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
    results = map_parallel(examine_case, tasks, workers, on_done)
    return [facts or known[case.identifier] for facts, case in zip(results, dataset.cases, strict=True)]


def examine_case(task: CaseTask) -> CaseFacts | None:
    """Facts of one case; None when its files are those of `task.known`."""
    content = content_hash(task)
    if content == task.known:
        return None
    findings: list[Finding] = []
    image, geometry = _read_channels(task, findings)
    values = None if task.case.label is None else _read_labels(task, geometry, findings)
    if image is None:
        return _facts(task, content, findings, geometry=geometry or _UNREAD)
    findings += _intensity_findings(task.case, image)
    foreground = None if values is None else values != 0
    if foreground is not None and task.ignore is not None:
        foreground &= values != task.ignore
    return _facts(
        task,
        content,
        findings,
        geometry=geometry,
        nonzero_box=nonzero_box(image),
        value_counts={} if values is None else count_values(values),
        samples=_samples(task, image, foreground),
    )


def _facts(task: CaseTask, content: str, findings: list[Finding], **known: object) -> CaseFacts:
    empty = {"geometry": _UNREAD, "nonzero_box": _NOWHERE, "value_counts": {}, "samples": ()}
    return CaseFacts(identifier=task.case.identifier, content_hash=content, findings=tuple(findings), **(empty | known))


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


def _unreadable(case: Case, root: str, error: DataError) -> Finding:
    message, _, remedy = str(error).replace(f"{root}/", "").rpartition(". ")
    return _finding(case, "unreadable-file", message or remedy, remedy if message else "Copy or export the file again")


def _read_channels(task: CaseTask, findings: list[Finding]) -> tuple[np.ndarray | None, Geometry | None]:
    """(C, Z, Y, X) and the first file's geometry; None with a finding when they cannot be read or joined."""
    case, parts = task.case, []
    for name in case.images:
        try:
            parts.append(read_image(Path(task.root) / name))
        except DataError as error:
            findings.append(_unreadable(case, task.root, error))
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


def _read_labels(task: CaseTask, geometry: Geometry | None, findings: list[Finding]) -> np.ndarray | None:
    case = task.case
    try:
        values, own = read_labels(Path(task.root) / case.label)
    except DataError as error:
        findings.append(_unreadable(case, task.root, error))
        return None
    if geometry is None:
        return None
    if own.shape != geometry.shape:
        message = f"the image {case.images[0]} has shape {geometry.shape}, its label {case.label} {own.shape} (z, y, x)"
        remedy = "Give the label that was drawn on this image, or resample it to the image's grid"
        findings.append(_finding(case, "shape-mismatch", message, remedy))
        return None
    findings += _geometry_findings(case, case.label, own, geometry)
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


def nonzero_box(image: np.ndarray) -> Box3:
    """Half-open box around voxels of (C, Z, Y, X) that are non-zero in any channel; the whole image when all are 0."""
    mask = image[0] != 0
    for channel in image[1:]:
        mask |= channel != 0
    if not mask.any():
        return tuple((0, size) for size in mask.shape)
    plane = mask.any(axis=0)
    lines = (mask.any(axis=(1, 2)), plane.any(axis=1), plane.any(axis=0))
    return tuple((int(line.argmax()), int(line.size - line[::-1].argmax())) for line in lines)


def count_values(values: np.ndarray) -> dict[int, int]:
    """Voxels per value that occurs."""
    low, high = int(values.min()), int(values.max())
    if high - low < _COUNTED:
        counts = np.bincount((values - low).ravel() if low else values.ravel())
        return {int(index) + low: int(counts[index]) for index in np.flatnonzero(counts)}
    found, counts = np.unique(values, return_counts=True)
    return dict(zip(found.tolist(), counts.tolist(), strict=True))


def _samples(task: CaseTask, image: np.ndarray, foreground: np.ndarray | None) -> tuple[IntensitySample, ...]:
    """Up to SAMPLES foreground intensities per channel at the same voxels, drawn from (seed, identifier) alone."""
    where = np.flatnonzero(foreground) if foreground is not None else np.empty(0, np.int64)
    if where.size == 0 or not np.isfinite(image).all():
        return tuple(IntensitySample(values=(), minimum=None, maximum=None) for _ in image)
    key = hashlib.blake2b(f"{task.seed}:{task.case.identifier}".encode(), digest_size=8).digest()
    rng = np.random.default_rng(int.from_bytes(key, "little"))
    chosen = where if where.size <= SAMPLES else np.sort(rng.choice(where, SAMPLES, replace=False, shuffle=False))
    samples = []
    for channel in image:
        flat = channel.ravel()
        inside = flat[where]
        samples.append(
            IntensitySample(values=_short(flat[chosen]), minimum=float(inside.min()), maximum=float(inside.max()))
        )
    return tuple(samples)


def _short(values: np.ndarray) -> tuple[float, ...]:
    """float32 as the shortest decimals that give the same float32 back."""
    if (values == np.rint(values)).all():
        return tuple(values.tolist())
    return tuple(float(text) for text in values.astype(str).tolist())


def build_fingerprint(
    dataset: Dataset, facts: Sequence[CaseFacts], orientation: Literal["canonical", "as_stored"]
) -> Fingerprint:
    """What the planner knows: shapes, spacings and voxel counts per case, foreground intensities per channel.

    The data set's labels must be complete. Each case counts equally in the intensity statistics, whatever its size, as
    in nnU-Net, which draws the same number of foreground voxels from every case (Isensee et al. 2021, supplement).
    """
    facts = sorted(facts, key=lambda fact: fact.identifier)
    cases = tuple(_case_fingerprint(fact, dataset, orientation) for fact in facts)
    return Fingerprint(
        dimension=2 if all(case.shape[0] == 1 for case in cases) else 3,
        orientation=orientation,
        channels=tuple(
            _channel_fingerprint(channel, [fact.samples[index] for fact in facts])
            for index, channel in enumerate(dataset.channels)
        ),
        cases=cases,
    )


def _case_fingerprint(fact: CaseFacts, dataset: Dataset, orientation: str) -> CaseFingerprint:
    geometry = fact.geometry
    axes = (0, 1, 2)
    if orientation == "canonical":
        axes, _ = canonical_axes(geometry.direction, geometry.dimension)
    return CaseFingerprint(
        identifier=fact.identifier,
        content_hash=fact.content_hash,
        shape=tuple(geometry.shape[axis] for axis in axes),
        cropped_shape=tuple(fact.cropped_shape[axis] for axis in axes),
        spacing=tuple(geometry.spacing[axis] for axis in axes),
        voxels=tuple(fact.value_counts.get(value, 0) for value in dataset.labels.values),
    )


def _channel_fingerprint(channel: Channel, samples: Sequence[IntensitySample]) -> ChannelFingerprint:
    used = [sample for sample in samples if sample.values]
    if not used:
        return ChannelFingerprint(name=channel.name, kind=channel.kind)
    values = np.concatenate([np.asarray(sample.values, np.float64) for sample in used])
    weights = np.concatenate([np.full(len(sample.values), 1 / len(sample.values)) for sample in used]) / len(used)
    mean = float(np.average(values, weights=weights))
    low, middle, high = weighted_quantiles(values, weights, (0.005, 0.5, 0.995))
    return ChannelFingerprint(
        name=channel.name,
        kind=channel.kind,
        mean=mean,
        std=float(np.sqrt(np.average((values - mean) ** 2, weights=weights))),
        median=middle,
        minimum=min(sample.minimum for sample in used),
        maximum=max(sample.maximum for sample in used),
        percentile_00_5=low,
        percentile_99_5=high,
    )


def weighted_quantiles(values: np.ndarray, weights: np.ndarray, quantiles: Sequence[float]) -> list[float]:
    """Quantiles of a weighted sample (weights sum to 1); with equal weights those of `np.quantile`."""
    order = np.argsort(values, kind="stable")
    values, weights = values[order], weights[order]
    position = np.cumsum(weights) - weights
    last = position[-1]
    return [float(np.interp(quantile * last, position, values)) for quantile in quantiles]


def check(dataset: Dataset, facts: Sequence[CaseFacts]) -> list[Finding]:
    """Every finding: of each case, then of the data set as a whole."""
    findings = [finding for fact in facts for finding in fact.findings]
    readable = [fact for fact in facts if fact.samples]
    findings += label_findings(dataset, readable)
    flat = {fact.geometry.dimension for fact in readable}
    if len(flat) > 1:
        example = {fact.geometry.dimension: fact.identifier for fact in readable}
        findings.append(
            Finding(
                code="mixed-dimensions",
                message=f"{example[2]} is a 2-D image and {example[3]} a volume",
                remedy="Keep images and volumes in separate data sets",
            )
        )
    return findings + _count_findings(dataset)


def _count_findings(dataset: Dataset) -> list[Finding]:
    groups = {case.group or case.identifier for case in dataset.cases}
    grouped = any(case.group for case in dataset.cases)
    what = "group" if grouped else "case"
    if len(groups) == 1:
        message = f"there is 1 {what}, and cross-validation needs 2"
        remedy = "Add cases; --folds full trains one model without validation"
        return [Finding(code="too-few-cases", severity=Severity.warning, message=message, remedy=remedy)]
    if len(groups) < FOLDS:
        message = f"{len(groups)} {what}s are too few for {FOLDS} folds"
        remedy = f"{len(groups)} folds are made; add cases for a validation worth more"
        return [Finding(code="too-few-cases", severity=Severity.warning, message=message, remedy=remedy)]
    return []

"""Reading every case once: what its files hold and what is wrong with them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from ...imageio import LabelContent, files_of, read_image, read_image_content
from ...imageio.stored_values import BEYOND_32_BITS
from ...ops.masks import nonzero_box
from ...schema.dataset import Case, CaseFacts, ChannelFacts, ComponentFacts, Dataset, Finding, PairFacts, SharedVoxels
from ...schema.errors import FileError
from ...schema.geometry import Geometry
from ...schema.labels import LabelCode, numbers_objects
from ...store.file_hashes import FileHashes
from ...workers import map_parallel
from ..grey_pictures import are_colours, in_channels
from ..structures import read_case_label
from .case_checks import (
    FIX,
    NO_SAMPLE,
    channel_findings,
    count_components,
    count_values,
    describe_channels,
    far_findings,
    finding,
    fractional_label,
    image_hash,
    intensity_findings,
    label_grid_findings,
    lossy_label,
    outside_findings,
    remark_findings,
    sample_intensities,
    unreadable,
)
from .left_right import describe_pairs

__all__ = ["CaseTask", "content_hash", "examine", "examine_case", "unreadable"]

Each = TypeVar("Each")

FACTS_VERSION = 7
"""raised whenever the same files would give other facts"""
SPARSE = 0.5
"""share of ignored voxels from which a label counts as scribbles, whose components mean nothing"""


class CaseTask(NamedTuple):
    """What a worker needs to examine one case."""

    root: str
    case: Case
    channels: int
    colours: bool
    """whether they are those of a photograph"""
    ignore: int | None
    codes: tuple[LabelCode, ...]
    """`Labels.codes`"""
    seed: int
    hashes: FileHashes
    pairs: tuple[tuple[int, int], ...] = ()
    """values of the left and the right class of each pair"""


class Examined(NamedTuple):
    facts: CaseFacts
    hashes: FileHashes


def examine(
    dataset: Dataset,
    workers: int,
    seed: int = 0,
    on_done: Callable[[CaseFacts | None], None] | None = None,
    known: Mapping[str, CaseFacts] | None = None,
    hashes: FileHashes | None = None,
) -> list[CaseFacts]:
    """Facts of every case in the data set's order, files read in parallel; known facts of unchanged files are kept.

    Defects become findings, never exceptions. `on_done` is called once per case (with None for an unchanged one).
    `hashes` of files that have not been touched are not made again; those made are added to it.
    """
    known, hashes = known or {}, FileHashes() if hashes is None else hashes
    labels, changed = dataset.labels, []
    values = {label.name: label.value for label in labels.classes}
    pairs = tuple((values[left], values[right]) for left, right in labels.pairs)
    for case in dataset.cases:
        count, colours = len(dataset.channels), are_colours(dataset.channels)
        task = CaseTask(dataset.root, case, count, colours, labels.ignore, labels.codes, seed, hashes, pairs)
        # hashing a known case waits for the disk; a pool of processes would cost more than it saves
        if case.identifier in known and _still_holds(known[case.identifier], task):
            if on_done:
                on_done(None)
        else:
            changed.append(task._replace(hashes=hashes.part(_paths(task))))

    def on_examined(found: Examined) -> None:
        hashes.update(found.hashes)
        if on_done:
            on_done(found.facts)

    examined = map_parallel(_examine, changed, workers, on_examined)
    results = {found.facts.identifier: found.facts for found in examined}
    return [results.get(case.identifier) or known[case.identifier] for case in dataset.cases]


def _examine(task: CaseTask) -> Examined:
    return Examined(examine_case(task), task.hashes)


def _still_holds(facts: CaseFacts, task: CaseTask) -> bool:
    """Pairs are no part of the hash: what is prepared and trained does not depend on how they lie."""
    pairs = () if task.case.label is None or not facts.samples else task.pairs
    return tuple((each.left, each.right) for each in facts.pairs) == pairs and facts.content_hash == content_hash(task)


def _paths(task: CaseTask) -> list[Path]:
    """Every file that the case's arrays and geometry depend on."""
    named = (*task.case.images, *task.case.label_files)
    return [path for name in named for path in files_of(Path(task.root) / name)]


def content_hash(task: CaseTask) -> str:
    """32 hex digits over the bytes of the case's files, their order, and what else its facts depend on."""
    case = task.case
    depends: list[object] = [
        FACTS_VERSION,
        task.channels,
        task.colours,
        task.ignore,
        task.seed,
        case.label is None,
        case.frame,
        case.present,
        [part.name for part in case.label_parts],
    ]
    depends += [code.model_dump() for code in task.codes]
    state = hashlib.blake2b(repr(depends).encode(), digest_size=16)
    for path in _paths(task):
        state.update((task.hashes.of(path) or "missing").encode())
    return state.hexdigest()


def examine_case(task: CaseTask) -> CaseFacts:
    """Facts of one case, read from its files."""
    case, content = task.case, content_hash(task)
    findings: list[Finding] = []
    image, geometry = _read_channels(task, findings)
    label = _read_labels(task, case.label, geometry, findings) if case.label else None
    values = label.values if label is not None else None
    if image is None or geometry is None:
        return _facts_without_arrays(task, content, findings, geometry)
    box, channels = nonzero_box(image), describe_channels(image)
    spoilt = intensity_findings(case, image, channels)
    findings += spoilt + far_findings(case, image, channels)
    counts: dict[int, int] = {}
    components: dict[int, ComponentFacts] = {}
    foreground = None
    pairs: tuple[PairFacts, ...] = ()
    if values is not None:
        counts = count_values(values)
        pairs = describe_pairs(values, counts, task.pairs, geometry)
        foreground = values != 0
        if task.ignore is not None:
            foreground &= values != task.ignore
        drawn = task.ignore is None or counts.get(task.ignore, 0) < SPARSE * values.size
        if drawn and not numbers_objects(task.codes):
            components = count_components(values, counts, task.ignore)
        if not spoilt:
            findings += outside_findings(case, image, box, values, task.ignore)
    samples = sample_intensities(image, foreground, task.seed, case.identifier)
    return CaseFacts(
        identifier=case.identifier,
        content_hash=content,
        image_hash=image_hash(image, box),
        geometry=geometry,
        nonzero_box=box,
        value_counts=counts,
        label_colours=dict(label.colours) if label is not None else {},
        components=components,
        shared=shared_voxels(label) if label is not None else (),
        pairs=pairs,
        channels=_in_place(task, channels, ChannelFacts()),
        samples=_in_place(task, samples, NO_SAMPLE),
        findings=tuple(findings),
    )


def _in_place(task: CaseTask, own: Sequence[Each], absent: Each) -> tuple[Each, ...]:
    """One entry for each channel of the data set, from those of the channels that the case has."""
    if task.case.present is None:
        return tuple(own)
    found = dict(zip(task.case.present, own, strict=True))
    return tuple(found.get(index, absent) for index in range(task.channels))


def _facts_without_arrays(
    task: CaseTask, content: str, findings: list[Finding], geometry: Geometry | None
) -> CaseFacts:
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


def _read_channels(task: CaseTask, findings: list[Finding]) -> tuple[np.ndarray | None, Geometry | None]:
    """(C, Z, Y, X) and the first file's geometry; None with a finding when they cannot be read or joined."""
    case, parts = task.case, []
    for name in case.images:
        try:
            parts.append(read_image_content(Path(task.root) / name, case.frame))
            findings += remark_findings(case, name, parts[-1].remarks)
        except FileError as error:
            findings.append(unreadable(case, task.root, error))
    if len(parts) < len(case.images):
        return None, None
    geometry = parts[0].geometry
    for name, other in zip(case.images[1:], parts[1:], strict=True):
        findings += channel_findings(case, name, other.geometry, geometry)
    if any(each.geometry.shape != geometry.shape for each in parts):
        return None, geometry
    image = parts[0].array if len(parts) == 1 else np.concatenate([each.array for each in parts])
    wanted = task.channels if case.present is None else len(case.present)
    if len(parts) == 1 and case.present is None:
        image = in_channels(image, geometry.kind, wanted, task.colours)
    if image.shape[0] != wanted:
        channels = "1 channel" if image.shape[0] == 1 else f"{image.shape[0]} channels"
        message = f"{', '.join(case.images)} has {channels}, the data set has {wanted}"
        remedy = "Convert it to the channels of the other cases"
        if {image.shape[0], wanted} == {1, 3} and geometry.dimension == 2:
            remedy = f"Convert all pictures to the same channels, as {FIX} does"
        findings.append(finding(case, "channel-mismatch", message, remedy))
        return None, geometry
    return image, geometry


def shared_voxels(label: LabelContent) -> tuple[SharedVoxels, ...]:
    """Where structures of a label meet."""
    return tuple(SharedVoxels(structures=tuple(sorted(names)), voxels=count) for names, count in label.shared.items())


def _read_labels(task: CaseTask, name: str, geometry: Geometry | None, findings: list[Finding]) -> LabelContent | None:
    """File values; None with a finding when they cannot be read or do not fit the image."""
    case, path = task.case, Path(task.root) / name
    coded = any(code.above is None and not code.level for code in task.codes)
    try:
        content = read_case_label(Path(task.root), case, task.codes)
    except FileError as error:
        grey = not coded and not case.label_parts and BEYOND_32_BITS not in error.message and _is_grey(path)
        make = fractional_label if grey else unreadable
        findings.append(make(case, task.root, error))
        return None
    findings += remark_findings(case, name, content.remarks)
    values, own = content.values, content.geometry
    if own.kind == "jpeg" and len(different := np.unique(values)) > 2:
        findings.append(lossy_label(case, name, len(different)))
        return None
    if geometry is None:
        return None
    findings += label_grid_findings(case, name, own, geometry)
    return content if own.shape == geometry.shape else None


def _is_grey(path: Path) -> bool:
    """Whether a file that is no label file is an image of one channel, with finite numbers that are not whole."""
    try:
        image, _ = read_image(path)
    except FileError:
        return False
    return image.shape[0] == 1 and bool(np.isfinite(image).all())

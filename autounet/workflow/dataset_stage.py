"""From a folder of files to the records that planning starts from."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from ..datasets import complete_labels, examine, make_splits, scan
from ..datasets.checks.set_checks import check_dataset
from ..datasets.colour_masks import palette_of
from ..datasets.reading import read_reference
from ..datasets.repair.dataset_repair import repair_dataset
from ..fingerprint import build_fingerprint
from ..ops.masks import crop, encode, nonzero_box
from ..preprocessing import kept_labels
from ..progress import progress
from ..schema.dataset import CaseFacts, Dataset, Finding, Severity, Splits
from ..schema.errors import DataError, OptionError, RecordError
from ..schema.fingerprint import CheckResult, Fingerprint, RepairResult
from ..schema.geometry import Geometry
from ..schema.labels import Labels, Target, counted_targets, overlapping_targets
from ..schema.names import printable
from ..schema.options import DataOptions, RunOptions
from ..schema.plan import PreprocessSpec
from ..schema.record import write_text
from ..store.file_hashes import FileHashes
from ..store.run_folder import RunFolder
from ..workers import available_cores

KEPT_CASES = 4
"""whose labels are taken to coarser grids; more change little of a mean over classes"""
KEPT_EDGE = {2: 1024, 3: 160}
"""voxels along an axis of the foreground, around its middle, that are taken there at most, by dimension"""
KEPT_MARGIN = 4
"""voxels beside it"""
SHOWN = 10
"""findings of one kind that a person is shown; programs get all of them"""


def finding_lines(findings: Sequence[Finding]) -> list[str]:
    """One line for each, fatal ones first; of many of one kind the first, and how many more there are."""
    kinds: dict[tuple[bool, str], list[Finding]] = {}
    for finding in findings:
        kinds.setdefault((finding.severity is not Severity.fatal, finding.code), []).append(finding)
    lines = []
    for (_, code), found in sorted(kinds.items(), key=lambda item: item[0][0]):
        shown = found if len(found) <= SHOWN + 1 else found[:SHOWN]
        lines += [str(finding) for finding in shown]
        if len(found) > len(shown):
            lines.append(f"and {len(found) - len(shown)} more with the code {code}; autounet check --json lists all")
    return lines


def has_fatal(found: CheckResult | RepairResult) -> bool:
    """Whether a finding makes training impossible; after a repair, one of the repaired data set."""
    return (found.result if isinstance(found, RepairResult) else found).is_fatal


def result_lines(found: CheckResult | RepairResult) -> list[str]:
    """What `autounet check` prints: repairs if there were any, the layout as understood, and every defect."""
    if isinstance(found, CheckResult):
        return [printable(line) for line in _check_lines(found)]
    lines = [str(repair) for repair in found.repairs] or ["nothing needed repair"]
    return [*lines, f"the repaired data set is in {found.folder} and needs no options:", *_check_lines(found.result)]


def _classes_line(labels: Labels) -> str:
    if labels.objects is not None:
        return f"labels: {labels.classes[0].value} {labels.classes[0].name}, a number for each {labels.objects}"
    return "labels: " + ", ".join(f"{label.value} {label.name}" for label in labels.classes)


def _check_lines(result: CheckResult) -> list[str]:
    lines = [f"layout: {result.layout}, {_counted(len(result.cases), 'case')}"]
    if result.example:
        lines.append(f"first case: {result.example}")
    if result.channels:  # none where the layout is unknown
        lines.append("channels: " + ", ".join(f"{channel.name} ({channel.kind})" for channel in result.channels))
        lines.append(_classes_line(result.labels))
    if result.labels.regions and result.labels.objects is None:
        regions = (f"{region.name} ({', '.join(map(str, region.values))})" for region in result.labels.regions)
        lines.append("regions: " + ", ".join(regions))
    if result.labels.pairs:
        lines.append("left/right pairs: " + ", ".join(f"{left} and {right}" for left, right in result.labels.pairs))
    if result.labels.ignore is not None:
        lines.append(f"ignored label value: {result.labels.ignore}")
    for severity in (Severity.fatal, Severity.warning):
        lines += [
            f"{severity}: {line}" for line in finding_lines([f for f in result.findings if f.severity is severity])
        ]
    fatal = sum(finding.severity is Severity.fatal for finding in result.findings)
    counts = [(fatal, "fatal problem"), (len(result.findings) - fatal, "warning")]
    lines.append(", ".join(_counted(*count) for count in counts if count[0]) or "no problems found")
    return lines


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


log = logging.getLogger(__name__)


class DataRecords(NamedTuple):
    """The records that planning and training start from."""

    dataset: Dataset
    facts: list[CaseFacts]
    splits: Splits
    fingerprint: Fingerprint


class KeptLabels:
    """What coarser grids keep of a few cases' labels: mean Dice over targets and cases after the way there and back.

    A background that a person has named, such as the membranes between cells, counts as well.
    """

    def __init__(self, data: DataRecords, spec: PreprocessSpec) -> None:
        self.dataset, self.facts, self.spec = data.dataset, data.facts, spec
        self._known: dict[float, float] = {}

    def __call__(self, scale: float) -> float:
        """On a grid `scale` times coarser than the finest axis of the spec's, relative to the spec's own.

        0 where no case shows a target: then nothing is known to be kept.
        """
        if scale not in self._known:
            own, coarse = self._own, self._dice(scale)
            shares = [min(1.0, coarse[each] / own[each]) for each in own if own[each] > 0]
            self._known[scale] = sum(shares) / len(shares) if shares else 0.0
        return self._known[scale]

    @cached_property
    def _own(self) -> dict[tuple[str, str], float]:
        return self._dice(1.0)

    def _dice(self, scale: float) -> dict[tuple[str, str], float]:
        """By case and target, of those that occur."""
        found = {}
        for case, (labels, geometry) in self._labels.items():
            kept = kept_labels(labels, geometry, self.spec, scale)
            for target in self._targets:
                before, after = np.isin(labels, target.members), np.isin(kept, target.members)
                if before.any():
                    found[case, target.name] = 2 * float((before & after).sum()) / float(before.sum() + after.sum())
        return found

    @cached_property
    def _targets(self) -> tuple[Target, ...]:
        labels = self.dataset.labels
        background = (Target(labels.classes[0].name, (0,), 0),) if labels.background_named else ()
        return (*background, *(counted_targets(labels) if labels.objects is None else overlapping_targets(labels)))

    @cached_property
    def _labels(self) -> dict[str, tuple[np.ndarray, Geometry]]:
        """Dense, the middle of the foreground, with the geometry of the case."""
        cut = {}
        for name in telling_cases(self.facts, KEPT_CASES):
            values, geometry = read_reference(self.dataset, self.dataset.case(name))
            dense, most = encode(values, self.dataset.labels), KEPT_EDGE[geometry.dimension] // 2
            box = []
            for start, stop in nonzero_box((dense > 0)[None]):
                middle = (start + stop) // 2
                box.append((max(0, start - KEPT_MARGIN, middle - most), min(stop + KEPT_MARGIN, middle + most)))
            cut[name] = crop(dense, (box[0], box[1], box[2])), geometry
        return cut


def telling_cases(facts: Sequence[CaseFacts], most: int) -> list[str]:
    """So many cases at most that show as many label values as they can, each adding most; spread over the set."""
    step = max(1, len(facts) // most)
    spread = [each for start in range(step) for each in facts[start::step]]
    left = [each for each in spread if any(each.value_counts)]
    chosen: list[str] = []
    seen: set[int] = {0}
    while left and len(chosen) < most:
        best = max(left, key=lambda each: len(each.value_counts.keys() - seen))
        left.remove(best)
        chosen.append(best.identifier)
        seen |= best.value_counts.keys()
    return chosen


def read_data(
    data: Path, folder: RunFolder, options: RunOptions, orientation: Literal["ras", "as_stored"], workers: int
) -> DataRecords:
    """Scan, read every case once, check, split; each record is saved in `folder`, and the palette of coloured labels.

    Raises DataError with every finding.
    Facts of cases whose files have not changed are taken from its `facts`, hashes of files that have not been touched
    from its `hashes.json`.
    """
    findings: list[Finding] = []
    scanned = scan(data, options.data, findings)
    facts = _examine(scanned, folder, workers)
    findings += _checked(scanned, facts, options.data, findings)
    fatal = [finding for finding in findings if finding.severity is Severity.fatal]
    if fatal:
        raise DataError.of(fatal)
    for line in finding_lines(findings):
        log.warning("%s", line)
    dataset = complete_labels(scanned, facts)
    splits = _split(dataset, facts, options, folder.splits)
    fingerprint = build_fingerprint(dataset, facts, orientation)
    _result(dataset, findings).save(folder.findings)
    dataset.save(folder.dataset)
    if palette := palette_of(dataset.labels):
        write_text(folder.palette, json.dumps(palette) + "\n")
    splits.save(folder.splits)
    fingerprint.save(folder.fingerprint)
    return DataRecords(dataset, facts, splits, fingerprint)


def check_data(data: Path, options: DataOptions) -> CheckResult:
    """Everything that `autounet check` finds; nothing is written."""
    findings: list[Finding] = []
    try:
        dataset = scan(data, options, findings)
    except DataError as error:
        return _unscanned(error)
    facts = _examined(dataset)
    findings += [*_checked(dataset, facts, options, findings), *_split_findings(dataset, facts, options)]
    if not any(finding.severity is Severity.fatal for finding in findings):
        dataset = complete_labels(dataset, facts)
    return _result(dataset, findings)


def fix_data(data: Path, options: DataOptions, folder: Path) -> RepairResult:
    """Everything that can be repaired, repaired into a new `folder`, which is then checked without any option.

    Raises DataError when the files cannot be put in order or too few cases can be kept, OptionError for a folder that
    is not new.
    """
    missing: list[Finding] = []
    dataset = scan(data, options, missing)
    missing = [each for each in missing if each.severity is Severity.fatal]
    contradictory = [each for each in missing if not each.code.startswith("missing")]
    if contradictory:  # lists of cases, which only a person can correct
        raise DataError.of(contradictory)
    facts = _examined(dataset)
    with progress("repairing", len(dataset.cases)) as meter:
        repairs = repair_dataset(dataset, facts, missing, folder, available_cores(), on_done=lambda _: meter.advance())
    found = RepairResult(folder=str(folder), repairs=tuple(repairs), result=check_data(folder, DataOptions()))
    found.save(Path(folder) / "repairs.json")
    return found


def _checked(
    dataset: Dataset, facts: Sequence[CaseFacts], options: DataOptions, missing: Sequence[Finding]
) -> list[Finding]:
    """What `check` finds; too few cases are no finding where others lack files, or the folds are given."""
    known = missing or _has_folds(dataset, options)
    return [finding for finding in check_dataset(dataset, facts) if not (known and finding.code == "too-few-cases")]


def _has_folds(dataset: Dataset, options: DataOptions) -> bool:
    """Whether an option or a table says what they are."""
    return bool(options.splits) or any(case.fold for case in dataset.cases)


def _examined(dataset: Dataset) -> list[CaseFacts]:
    with progress("reading", len(dataset.cases)) as meter:
        return examine(dataset, available_cores(), on_done=lambda _: meter.advance())


def _split_findings(dataset: Dataset, facts: Sequence[CaseFacts], options: DataOptions) -> list[Finding]:
    """Given folds that do not fit the cases."""
    if not _has_folds(dataset, options):
        return []
    try:
        make_splits(dataset, facts, options)
    except (DataError, OptionError) as error:
        return [Finding(code="splits", message=error.message, remedy=error.remedy)]
    return []


def _examine(dataset: Dataset, folder: RunFolder, workers: int) -> list[CaseFacts]:
    known = {facts.identifier: facts for facts in _load_facts(folder.facts)}
    hashes = FileHashes.load(folder.hashes)
    with progress("reading", len(dataset.cases)) as meter:

        def on_done(facts: CaseFacts | None) -> None:
            if facts is not None:  # saved at once: an interrupted reading continues
                facts.save(folder.facts / f"{facts.identifier}.json")
            meter.advance()

        found = examine(dataset, workers, known=known, on_done=on_done, hashes=hashes)
    hashes.save(folder.hashes)
    return found


def _load_facts(folder: Path) -> list[CaseFacts]:
    facts = []
    for file in sorted(folder.rglob("*.json")):  # a case's name may hold a slash
        try:
            facts.append(CaseFacts.load(file))
        except RecordError:
            log.warning("%s is damaged: the case is read again", file)
    return facts


def _split(dataset: Dataset, facts: Sequence[CaseFacts], options: RunOptions, file: Path) -> Splits:
    """`--folds full` has folds too, for the first stage of a cascade."""
    try:
        existing = Splits.load(file)
    except RecordError as error:
        if file.exists():
            log.warning("%s: the cases are split anew", error)
        existing = None
    return make_splits(dataset, facts, options.data, options.seed or 0, existing)


def _result(dataset: Dataset, findings: Sequence[Finding]) -> CheckResult:
    return CheckResult(
        layout=dataset.layout,
        channels=dataset.channels,
        labels=dataset.labels,
        cases=tuple(case.identifier for case in dataset.cases),
        example=_example(dataset),
        findings=tuple(findings),
    )


def _example(dataset: Dataset) -> str:
    """How the files of the first case were paired: of a pattern that matched other files than meant, this tells."""
    if not dataset.cases:
        return ""
    case = dataset.cases[0]
    label = f", label {case.label}" if case.label else ", without a label"
    return f"{case.identifier}: {', '.join(case.images)}{label}"


def _unscanned(error: DataError) -> CheckResult:
    """The layout could not be determined, so that no case was read."""
    whole = Finding(
        code="layout", message=error.message, remedy=error.remedy or "Correct this; then every case is read"
    )
    return CheckResult(layout="unknown", channels=(), labels=Labels(), cases=(), findings=error.findings or (whole,))

"""Repair of a data set into a new folder, in nnU-Net's layout with every file listed, so that it needs no options.

NEW/dataset.json   channels with their kinds, classes, regions, the ignore value, and the files of each case
NEW/cases.csv      groups, folds and annotated classes, where there are any
NEW/imagesTr, NEW/labelsTr"""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ...imageio import suffix
from ...schema.dataset import CaseFacts, Dataset, Finding, Severity
from ...schema.errors import DataError, OptionError
from ...schema.fingerprint import Repair
from ...schema.record import new_folder, write_text
from ...workers import map_parallel
from ..checks.set_checks import duplicates
from .case_repair import RepairedCase, RepairTask, repair_case

LEAST_KEPT = 0.5
"""share of the cases that must be left; where fewer can be kept, something is wrong with all of them"""


def repair_dataset(
    dataset: Dataset,
    facts: Sequence[CaseFacts],
    missing: Sequence[Finding],
    folder: Path,
    workers: int,
    on_done: Callable[[object], None] | None = None,
) -> list[Repair]:
    """Write the repaired data set into a new `folder`. Returns what was done with which case.

    `missing` are the findings of scanning, about cases that `dataset` lacks. The folder appears when all is written.
    Raises OptionError for a folder that holds something, DataError when fewer than half of the cases could be kept.
    """
    folder = Path(folder).absolute()
    root = Path(dataset.root)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OptionError(f"--out {folder} exists", "Give a new folder for the repaired data")
    if folder == root or root in folder.parents:
        raise OptionError(f"--out {folder} lies in the data folder", "Give a folder elsewhere")
    unrepairable = _unrepairable(dataset, facts)
    temporary = new_folder(folder)
    try:
        declared = (*dataset.labels.values, *((dataset.labels.ignore,) if dataset.labels.ignore is not None else ()))
        tasks = [
            RepairTask(dataset.root, case, len(dataset.channels), declared, dataset.labels.codes, temporary)
            for case in dataset.cases
            if case.identifier not in unrepairable
        ]
        found = map_parallel(repair_case, tasks, workers, on_done)
        repairs = [*_dropped(missing), *(Repair(case=name, dropped=why) for name, why in unrepairable.items())]
        repairs += [Repair(case=each.case.identifier, done=each.done, dropped=each.problem) for each in found]
        kept = [each for each in found if each.problem is None]
        _require_enough(len(kept), len(dataset.cases) + len(_dropped(missing)), repairs)
        _describe(dataset, kept, temporary)
        if folder.exists():
            folder.rmdir()
        temporary.rename(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return sorted((each for each in repairs if each.done or each.dropped), key=lambda each: each.case)


def _unrepairable(dataset: Dataset, facts: Sequence[CaseFacts]) -> dict[str, str]:
    """Cases that nothing repairs, and why."""
    known = {*dataset.labels.values, dataset.labels.ignore}
    found = {}
    broken = {fact.identifier for fact in facts if any(each.severity is Severity.fatal for each in fact.findings)}
    for names in duplicates(facts):
        first, *others = sorted(names, key=lambda name: name in broken)
        found.update({name: f"its image is identical to that of {first}" for name in others})
    for fact in facts:
        strange = sorted(set(fact.value_counts) - known) if dataset.labels_declared else []
        if strange:
            found[fact.identifier] = f"its label holds the value {strange[0]}, which is not declared"
    return found


def _dropped(missing: Sequence[Finding]) -> list[Repair]:
    found = {each.case: each.message for each in missing if each.case is not None and each.severity is Severity.fatal}
    return [Repair(case=name, dropped=message) for name, message in found.items()]


def _require_enough(kept: int, total: int, repairs: Sequence[Repair]) -> None:
    if kept >= LEAST_KEPT * total and kept:
        return
    lines = [f"case {each.case}: {each.dropped}" for each in repairs if each.dropped]
    shown = lines[:10] + ([f"and {len(lines) - 10} more"] if len(lines) > 10 else [])
    raise DataError(
        "\n".join([f"{total - kept} of {total} cases cannot be repaired, and nothing was written:", *shown]),
        "Correct what these cases have in common first",
    )


def _describe(dataset: Dataset, kept: Sequence[RepairedCase], folder: Path) -> None:
    cases = [each.case for each in kept]
    write_text(folder / "dataset.json", json.dumps(_description(dataset, kept), indent=1, ensure_ascii=False) + "\n")
    columns = {
        "group": {case.identifier: case.group for case in cases if case.group},
        "fold": {case.identifier: case.fold for case in cases if case.fold},
        "annotated": {
            case.identifier: ";".join(map(str, case.annotated or (0,))) for case in cases if case.annotated is not None
        },
    }
    used = {name: entries for name, entries in columns.items() if entries}
    if used:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["case", *used])
        writer.writerows([case.identifier, *(used[name].get(case.identifier, "") for name in used)] for case in cases)
        write_text(folder / "cases.csv", text.getvalue())


def _description(dataset: Dataset, kept: Sequence[RepairedCase]) -> dict[str, Any]:
    labels = dataset.labels
    described = {} if labels.objects is None else {"objects": labels.objects}
    named = {label.value: label.name for label in labels.classes}
    for value in sorted({value for each in kept for value in each.values}):
        if value != labels.ignore:
            named.setdefault(value, f"label_{value}")
    values: dict[str, Any] = {name: value for value, name in named.items()} if not described else {"background": 0}
    if labels.ignore is not None:
        values["ignore"] = labels.ignore
    files = {each.case.identifier: {"images": list(each.case.images), "label": each.case.label} for each in kept}
    return {
        "name": dataset.name,
        "channel_names": {str(index): channel.name for index, channel in enumerate(dataset.channels)},
        "kinds": {channel.name: str(channel.kind) for channel in dataset.channels},
        "labels": values,
        "regions": {region.name: list(region.values) for region in labels.regions} if not described else {},
        **described,
        "numTraining": len(kept),
        "file_ending": suffix(kept[0].case.images[0]),
        "missing_channels": any(each.case.present is not None for each in kept),
        "dataset": files,
    }

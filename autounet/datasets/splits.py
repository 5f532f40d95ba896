"""Cases into folds: even by class, groups together, or as nnU-Net or a file says."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from autounet.schema.dataset import CaseFacts, Dataset, Splits
from autounet.schema.errors import DataError, OptionError
from autounet.schema.options import DataOptions

log = logging.getLogger(__name__)

NNUNET_SEED = 12345
"""nnU-Net v2, run/run_training: seed of its 5-fold split"""
NNUNET_FOLDS = 5


def make_splits(
    dataset: Dataset,
    facts: Sequence[CaseFacts],
    options: DataOptions,
    seed: int = 0,
    existing: Splits | None = None,
    folds: int = 5,
) -> Splits:
    """Which fold validates which case.

    By default stratified by the classes present, groups kept together; an existing split is kept, cases that are new
    join it and cases that are gone leave it. Fewer groups than folds: as many folds as groups.
    Raises DataError when there is a single case or group, OptionError when a splits file does not fit the cases.
    """
    identifiers = sorted(case.identifier for case in dataset.cases)
    if options.splits == "nnunet":
        return Splits(source="nnunet", folds=nnunet_folds(identifiers))
    if options.splits:
        return Splits(source=options.splits, folds=_from_file(Path(options.splits), identifiers))
    groups = {case.identifier: case.group or case.identifier for case in dataset.cases}
    count = len(set(groups.values()))
    if count < 2:
        what = "group" if len(identifiers) > 1 else "case"
        raise DataError(f"there is 1 {what}, and cross-validation needs 2. Add cases, or use --folds full")
    if count < folds:
        log.warning("%d groups of cases are too few for %d folds: %d folds are made", count, folds, count)
    presence = {fact.identifier: _classes(fact, dataset) for fact in facts}
    start: list[list[str]] = [[] for _ in range(min(folds, count))]
    if existing is not None and existing.source == "automatic" and len(existing.folds) == len(start):
        kept = [[name for name in fold if name in groups] for fold in existing.folds]
        if all(kept) and _groups_whole(kept, groups):
            start = kept
    return Splits(source="automatic", folds=_stratify(start, groups, presence, seed))


def _classes(fact: CaseFacts, dataset: Dataset) -> frozenset[int]:
    return frozenset(value for value in fact.value_counts if value not in (0, dataset.labels.ignore))


def _groups_whole(folds: Sequence[Sequence[str]], groups: Mapping[str, str]) -> bool:
    seen = [group for fold in folds for group in {groups[name] for name in fold}]
    return len(set(seen)) == len(seen)


def _stratify(
    start: Sequence[Sequence[str]], groups: Mapping[str, str], presence: Mapping[str, frozenset[int]], seed: int
) -> tuple[tuple[str, ...], ...]:
    """Greedy: groups with the rarest class first, each to the fold with fewest cases of that class, then fewest cases.

    After Sechidis et al. 2011 (iterative stratification), with the order of equals drawn from the seed.
    """
    folds = [list(fold) for fold in start]
    fold_of_group = {groups[name]: index for index, fold in enumerate(folds) for name in fold}
    members: dict[str, list[str]] = {}
    for name in sorted(groups):
        members.setdefault(groups[name], []).append(name)
    frequency = Counter(value for name in groups for value in presence.get(name, ()))
    per_fold = [Counter(value for name in fold for value in presence.get(name, ())) for fold in folds]
    placed = {name for fold in folds for name in fold}

    def rarest(group: str) -> int | None:
        values = {value for name in members[group] for value in presence.get(name, ())}
        return min(values, key=lambda value: (frequency[value], value)) if values else None

    ranks = dict(zip(members, np.random.default_rng(seed).permutation(len(members)).tolist(), strict=True))
    rare = {group: rarest(group) for group in members}

    def urgency(group: str) -> tuple[int, int, int]:
        value = rare[group]
        return len(groups) if value is None else frequency[value], -len(members[group]), ranks[group]

    order = sorted(members, key=urgency)
    for group in order:
        new = [name for name in members[group] if name not in placed]
        if not new:
            continue
        value = rare[group]
        chosen = fold_of_group.get(
            group,
            min(
                range(len(folds)),
                key=lambda index: (per_fold[index][value] if value is not None else 0, len(folds[index]), index),
            ),
        )
        folds[chosen] += new
        per_fold[chosen].update(value for name in new for value in presence.get(name, ()))
    return tuple(tuple(sorted(fold)) for fold in folds)


def nnunet_folds(identifiers: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """nnU-Net's five folds: scikit-learn's KFold(5, shuffle=True, random_state=12345) over the sorted identifiers."""
    names = sorted(identifiers)
    if len(names) < NNUNET_FOLDS:
        raise DataError(f"--splits nnunet needs {NNUNET_FOLDS} cases, and there are {len(names)}. Leave it out")
    indices = np.arange(len(names))
    np.random.RandomState(NNUNET_SEED).shuffle(indices)
    return tuple(tuple(names[index] for index in sorted(part)) for part in np.array_split(indices, NNUNET_FOLDS))


def _from_file(path: Path, identifiers: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """`{"folds": [[case, ...], ...]}` or nnU-Net's splits_final.json `[{"train": [...], "val": [...]}, ...]`."""
    if not path.is_file():
        raise OptionError(f"--splits {path}: there is no such file. Give nnunet, or a JSON file with the folds")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise OptionError(f"--splits {path} is not readable JSON: {error}") from None
    folds = _fold_lists(content, path)
    flat = [name for fold in folds for name in fold]
    problems = {
        "are no cases of the data set": sorted(set(flat) - set(identifiers)),
        "are in no fold": sorted(set(identifiers) - set(flat)),
        "are in several folds": sorted(name for name, times in Counter(flat).items() if times > 1),
    }
    for problem, names in problems.items():
        if names:
            shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
            raise OptionError(f"--splits {path}: {shown} {problem}. Each case is validated in exactly one fold")
    if len(folds) < 2 or not all(folds):
        raise OptionError(f"--splits {path}: at least two folds with cases are needed")
    return tuple(tuple(fold) for fold in folds)


def _fold_lists(content: Any, path: Path) -> list[list[str]]:
    if isinstance(content, dict):
        content = content.get("folds")
    if isinstance(content, list) and content:
        folds: list[Any] = [entry.get("val") if isinstance(entry, dict) else entry for entry in content]
        if all(isinstance(fold, list) and all(isinstance(name, str) for name in fold) for fold in folds):
            return folds
    raise OptionError(f'--splits {path}: expected {{"folds": [[case, ...], ...]}} or nnU-Net\'s splits_final.json')

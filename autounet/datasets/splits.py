"""Cross-validation folds: stratified by class with groups kept together, or as nnU-Net, a table or a file says."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..schema.dataset import Case, CaseFacts, Dataset, Splits
from ..schema.errors import DataError, OptionError, UsageError, nearest
from ..schema.options import DataOptions
from .checks.set_checks import duplicates
from .layouts.case_table import table_folds
from .layouts.files import unicode_text

log = logging.getLogger(__name__)

NNUNET = "nnunet"
NNUNET_SEED = 12345
"""nnU-Net v2, run/run_training: seed of its 5-fold split"""
NNUNET_FOLDS = 5
EARLIER = "splits.json in the output folder no longer fits the data"
SPLIT_ANEW = "Delete it to split anew; folds that were trained with it are then moved aside"


def make_splits(
    dataset: Dataset,
    facts: Sequence[CaseFacts],
    options: DataOptions,
    seed: int = 0,
    existing: Splits | None = None,
    folds: int = 5,
) -> Splits:
    """Which fold validates which case.

    As `--splits` says, else as a table or data list does, and then `source` is table or the list's name. By default
    stratified by the classes present, groups and cases with the same image kept together; an existing split is kept,
    cases that are new join it and cases that are gone leave it. Fewer groups than folds: as many folds as groups; of a
    single one `source` is full and nothing is validated. Raises OptionError when an existing split or a splits file
    does not fit the cases.
    """
    identifiers = sorted(case.identifier for case in dataset.cases)
    groups = {case.identifier: case.group or case.identifier for case in dataset.cases}
    if options.splits:
        if dataset.fold_source:
            log.warning("the folds of the %s are not used: --splits is given", dataset.fold_source)
        return _given_splits(options.splits, identifiers, groups, existing)
    source = dataset.fold_source or "table"
    given = table_folds(dataset.cases, "the table" if source == "table" else source)
    if given is not None:
        return Splits(source=source, folds=given)
    start = _kept(existing, groups)
    if len(set(groups.values())) < 2:
        what = "group" if len(identifiers) > 1 else "case"
        log.warning("there is 1 %s, which cannot be split: it is used for training, and there is no validation", what)
        return Splits(source="full", folds=(tuple(identifiers),))
    together = _with_duplicates(groups, duplicates(facts))
    count = len(set(together.values()))
    if start is None:
        if count < folds:
            log.warning("%d groups of cases are too few for %d folds: %d folds are made", count, folds, max(2, count))
        start = [[] for _ in range(max(2, min(folds, count)))]
        together = together if count > 1 else groups
    classes_in = {fact.identifier: _classes(fact, dataset) for fact in facts}
    return Splits(source="automatic", folds=_stratify(start, together, classes_in, seed))


def _given_splits(
    source: str, identifiers: Sequence[str], groups: Mapping[str, str], existing: Splits | None
) -> Splits:
    """`--splits`: nnU-Net's rule or a file. Raises OptionError where it splits a group, or would move cases."""
    found = nnunet_folds(identifiers) if source == NNUNET else _from_file(Path(source), identifiers)
    splits = Splits(source=source, folds=found)
    divided = _divided_groups(splits.folds, groups)
    if divided:
        raise OptionError(f"--splits {source} splits groups: {divided}", "Correct it, or leave --group out")
    if source == NNUNET and existing is not None and existing.source == source and existing != splits:
        old, new = _fold_of(existing.folds), _fold_of(splits.folds)
        moved = sorted(name for name in old if name in new and old[name] != new[name])
        changes = {
            "new": sorted(set(new) - set(old)),
            "gone": sorted(set(old) - set(new)),
            "in another fold by nnU-Net's rule": moved,
        }
        raise OptionError(f"{EARLIER}: {_listed(changes)}", SPLIT_ANEW)
    return splits


def _kept(existing: Splits | None, groups: Mapping[str, str]) -> list[list[str]] | None:
    """The folds of an earlier automatic split without the cases that are gone. Raises OptionError with what differs."""
    if existing is None or existing.source != "automatic":
        return None
    kept = [[name for name in fold if name in groups] for fold in existing.folds]
    problems = [
        f"fold {index} has no case left ({_some(fold)} gone)"
        for index, fold in enumerate(existing.folds)
        if not kept[index]
    ]
    divided = _divided_groups(kept, groups)
    if divided:
        problems.append(f"groups lie in several folds: {divided}")
    if problems:
        raise OptionError(f"{EARLIER}: {'; '.join(problems)}", SPLIT_ANEW)
    return kept


def _divided_groups(folds: Sequence[Sequence[str]], groups: Mapping[str, str]) -> str:
    """The groups that lie in several folds, in words; empty when there are none."""
    places: dict[str, dict[int, list[str]]] = {}
    for index, fold in enumerate(folds):
        for name in fold:
            places.setdefault(groups[name], {}).setdefault(index, []).append(name)
    found = [
        f"{group} (" + ", ".join(f"{_some(names)} in fold {index}" for index, names in of_fold.items()) + ")"
        for group, of_fold in sorted(places.items())
        if len(of_fold) > 1
    ]
    return _some(found)


def _with_duplicates(groups: Mapping[str, str], same: Sequence[Sequence[str]]) -> dict[str, str]:
    """Groups joined where cases of them have the same image."""
    joined = dict(groups)
    for names in same:
        present = {joined[name] for name in names if name in joined}
        for name, group in joined.items():
            if group in present:
                joined[name] = min(present)
    return joined


def _fold_of(folds: Sequence[Sequence[str]]) -> dict[str, int]:
    return {name: index for index, fold in enumerate(folds) for name in fold}


def _listed(changes: Mapping[str, Sequence[str]]) -> str:
    return "; ".join(f"{what}: {_some(names)}" for what, names in changes.items() if names)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _classes(fact: CaseFacts, dataset: Dataset) -> frozenset[int]:
    return frozenset(value for value in fact.value_counts if value not in (0, dataset.labels.ignore))


def _stratify(
    start: Sequence[Sequence[str]], groups: Mapping[str, str], classes_in: Mapping[str, frozenset[int]], seed: int
) -> tuple[tuple[str, ...], ...]:
    """Greedy: groups with the rarest class first, each to the fold with fewest cases of that class, then fewest cases.

    After Sechidis et al. 2011 (iterative stratification), with the order of equals drawn from the seed.
    """
    folds = [list(fold) for fold in start]
    fold_of_group = {groups[name]: index for index, fold in enumerate(folds) for name in fold}
    members: dict[str, list[str]] = {}
    for name in sorted(groups):
        members.setdefault(groups[name], []).append(name)
    frequency = Counter(value for name in groups for value in classes_in.get(name, ()))
    per_fold = [Counter(value for name in fold for value in classes_in.get(name, ())) for fold in folds]
    placed = {name for fold in folds for name in fold}

    def rarest(group: str) -> int | None:
        values = {value for name in members[group] for value in classes_in.get(name, ())}
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
        per_fold[chosen].update(value for name in new for value in classes_in.get(name, ()))
    return tuple(tuple(sorted(fold)) for fold in folds)


def nnunet_folds(identifiers: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """nnU-Net's five folds: scikit-learn's KFold(5, shuffle=True, random_state=12345) over the sorted identifiers."""
    names = sorted(identifiers)
    if len(names) < NNUNET_FOLDS:
        raise DataError(f"--splits nnunet needs {NNUNET_FOLDS} cases, and there are {len(names)}", "Leave it out")
    indices = np.arange(len(names))
    np.random.RandomState(NNUNET_SEED).shuffle(indices)
    return tuple(tuple(names[index] for index in sorted(part)) for part in np.array_split(indices, NNUNET_FOLDS))


def require_splits(source: str) -> None:
    """Raises UsageError where `--splits` names neither nnunet nor a file, OptionError where that holds no folds."""
    if source != NNUNET:
        read_folds(Path(source))


def read_folds(path: Path) -> list[list[str]]:
    """`{"folds": [[case, ...], ...]}` or nnU-Net's splits_final.json `[{"train": [...], "val": [...]}, ...]`.

    Raises OptionError, and UsageError where there is no such file.
    """
    if not path.is_file():
        meant = "" if path.suffix else nearest(path.name, [NNUNET])
        remedy = f"{meant}Give {NNUNET}, or a JSON file with the folds"
        raise UsageError(f"--splits {path}: there is no such file", remedy)
    try:
        content = json.loads(unicode_text(path))
    except (OSError, ValueError, RecursionError) as error:
        raise OptionError(f"--splits {path} is not readable JSON: {error}", "Correct it") from None
    if isinstance(content, dict):
        content = content.get("folds")
    if isinstance(content, list) and content:
        folds: list[Any] = [entry.get("val") if isinstance(entry, dict) else entry for entry in content]
        if all(isinstance(fold, list) and all(isinstance(name, str) for name in fold) for fold in folds):
            return folds
    raise OptionError(
        f"--splits {path} holds no folds", 'Write {"folds": [[case, ...], ...]}, or give nnU-Net\'s splits_final.json'
    )


def _from_file(path: Path, identifiers: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """The folds of a file, each case in one of them. Raises OptionError."""
    folds = read_folds(path)
    flat = [name for fold in folds for name in fold]
    problems = {
        "are no cases of the data set": sorted(set(flat) - set(identifiers)),
        "are in no fold": sorted(set(identifiers) - set(flat)),
        "are in several folds": sorted(name for name, times in Counter(flat).items() if times > 1),
    }
    for problem, names in problems.items():
        if names:
            raise OptionError(
                f"--splits {path}: {_some(names)} {problem}", "Each case is validated in exactly one fold"
            )
    if len(folds) < 2 or not all(folds):
        raise OptionError(f"--splits {path} has fewer than two folds with cases", "Give at least two")
    return tuple(tuple(fold) for fold in folds)


GROUP_SECONDS = 30.0
"""for an expression to look at all cases, which takes milliseconds; some backtrack for longer than anybody waits"""
_CAPTURE = """
import json, re, sys
pattern, names = json.load(sys.stdin)
json.dump([match and match[1] for match in (re.search(pattern, name) for name in names)], sys.stdout)
"""


def with_groups(cases: list[Case], pattern: str | None) -> list[Case]:
    """With the group that the first capture of a regular expression says.

    Python cannot end an expression that backtracks for ever, so a process of its own evaluates it. Raises OptionError.
    """
    if pattern is None:
        return cases
    given = json.dumps([pattern, [case.identifier for case in cases]])
    try:
        command = [sys.executable, "-I", "-S", "-c", _CAPTURE]
        found = subprocess.run(command, input=given, capture_output=True, text=True, timeout=GROUP_SECONDS, check=True)
    except subprocess.TimeoutExpired:
        message = f"--group {pattern!r} takes longer than {GROUP_SECONDS:g} s: it tries too many ways to match a name"
        raise OptionError(message, "Write it without repetitions inside of repetitions") from None
    except subprocess.CalledProcessError as error:
        reason = (error.stderr.splitlines() or ["unknown"])[-1]
        raise OptionError(f"--group {pattern!r} cannot be used: {reason}", "Correct it") from None
    captures = json.loads(found.stdout)
    for case, group in zip(cases, captures, strict=True):
        if group is None:
            raise OptionError(
                f"--group {pattern!r} captures nothing in {case.identifier!r}",
                "Write one group in parentheses, (...), that matches every case",
            )
    return [case.model_copy(update={"group": group}) for case, group in zip(cases, captures, strict=True)]

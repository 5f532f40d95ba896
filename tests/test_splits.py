"""Folds: every case in one, classes spread, groups whole, nnU-Net's reproduced."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autounet.datasets import make_splits, nnunet_folds
from autounet.schema.dataset import Case, CaseFacts, Channel, Dataset, Splits
from autounet.schema.errors import DataError, OptionError
from autounet.schema.geometry import Geometry
from autounet.schema.labels import Labels
from autounet.schema.options import DataOptions

NONE = DataOptions()


def dataset_of(groups: list[str | None]) -> Dataset:
    return Dataset(
        root="/nowhere",
        name="x",
        layout="pairs",
        channels=(Channel(name="image"),),
        labels=Labels(),
        labels_declared=False,
        cases=tuple(
            Case(identifier=f"case_{index:03d}", images=("a",), group=group) for index, group in enumerate(groups)
        ),
        image_pattern="*",
        file_kind="nifti",
        suffix=".nii.gz",
    )


def facts_of(classes: list[set[int]]) -> list[CaseFacts]:
    return [
        CaseFacts(
            identifier=f"case_{index:03d}",
            content_hash="0",
            geometry=Geometry(shape=(1, 1, 1)),
            nonzero_box=((0, 1),) * 3,
            value_counts={0: 1, **dict.fromkeys(present, 1)},
            samples=(),
        )
        for index, present in enumerate(classes)
    ]


@given(st.integers(2, 60), st.integers(0, 5))
def test_folds_are_even_and_complete(count: int, seed: int) -> None:
    splits = make_splits(dataset_of([None] * count), facts_of([{1, 2}] * count), NONE, seed)
    sizes = [len(fold) for fold in splits.folds]
    assert len(sizes) == min(5, count)
    assert max(sizes) - min(sizes) <= 1
    assert sorted(name for fold in splits.folds for name in fold) == [f"case_{index:03d}" for index in range(count)]
    assert make_splits(dataset_of([None] * count), facts_of([{1, 2}] * count), NONE, seed) == splits


@given(st.lists(st.sets(st.integers(1, 3)), min_size=5, max_size=40))
def test_the_rarest_class_is_spread(classes: list[set[int]]) -> None:
    splits = make_splits(dataset_of([None] * len(classes)), facts_of(classes), NONE)
    totals = {value: sum(value in present for present in classes) for value in (1, 2, 3)}
    present = {value: total for value, total in totals.items() if total}
    if present:
        rarest = min(present, key=lambda value: (present[value], value))
        counts = [sum(rarest in classes[int(name[-3:])] for name in fold) for fold in splits.folds]
        assert max(counts) - min(counts) <= 1


@given(st.lists(st.sampled_from("abcdefgh"), min_size=6, max_size=30).filter(lambda groups: len(set(groups)) > 1))
def test_groups_stay_together(groups: list[str]) -> None:
    splits = make_splits(dataset_of(list(groups)), facts_of([{1}] * len(groups)), NONE)
    seen = [group for fold in splits.folds for group in {groups[int(name[-3:])] for name in fold}]
    assert len(seen) == len(set(seen)) == len(set(groups))
    assert all(splits.folds)


@given(st.integers(5, 30), st.integers(0, 8))
def test_cases_that_are_added_join_kept_folds(count: int, more: int) -> None:
    before = make_splits(dataset_of([None] * count), facts_of([{1}] * count), NONE)
    total = count + more
    after = make_splits(dataset_of([None] * total), facts_of([{1}] * total), NONE, 0, before)
    assert all(set(old) <= set(new) for old, new in zip(before.folds, after.folds, strict=True))
    assert make_splits(dataset_of([None] * total), facts_of([{1}] * total), NONE, 7, after) == after
    back = make_splits(dataset_of([None] * count), facts_of([{1}] * count), NONE, 0, after)
    assert back == before


def test_nnunet_folds_are_those_of_scikit_learn() -> None:
    model_selection = pytest.importorskip("sklearn.model_selection")
    names = [f"case_{index:03d}" for index in range(23)]
    folds = model_selection.KFold(5, shuffle=True, random_state=12345).split(names)
    assert nnunet_folds(names[::-1]) == tuple(tuple(names[index] for index in test) for _, test in folds)


def test_nnunet_folds_of_ten_cases() -> None:
    """From scikit-learn 1.9.1: KFold(5, shuffle=True, random_state=12345) over ten samples."""
    found = make_splits(dataset_of([None] * 10), facts_of([{1}] * 10), DataOptions(splits="nnunet"))
    assert found.source == "nnunet"
    assert [[int(name[-3:]) for name in fold] for fold in found.folds] == [[0, 7], [3, 9], [4, 6], [1, 8], [2, 5]]
    with pytest.raises(DataError, match="needs 5 cases, and there are 4"):
        nnunet_folds(list("abcd"))


@pytest.mark.parametrize("style", ["folds", "nnunet", "record"])
def test_folds_from_a_file(tmp_path: Path, style: str) -> None:
    folds = [["case_000", "case_002"], ["case_001"]]
    every = ["case_000", "case_001", "case_002"]
    content = {
        "folds": {"folds": folds},
        "nnunet": [{"train": [name for name in every if name not in fold], "val": fold} for fold in folds],
        "record": {"format_version": 1, "source": "automatic", "folds": folds},
    }[style]
    file = tmp_path / "splits.json"
    file.write_text(json.dumps(content))
    splits = make_splits(dataset_of([None] * 3), facts_of([{1}] * 3), DataOptions(splits=str(file)))
    assert splits == Splits(source=str(file), folds=folds)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not readable JSON"),
        ("3", "holds no folds"),
        ('{"folds": [["case_000"], ["case_001"]]}', "case_002 are in no fold"),
        ('{"folds": [["case_000", "case_001"], ["case_001", "case_002"]]}', "case_001 are in several folds"),
        ('{"folds": [["case_000", "case_001"], ["case_002", "other"]]}', "other are no cases"),
        ('{"folds": [["case_000", "case_001", "case_002"]]}', "fewer than two folds"),
    ],
)
def test_files_that_do_not_fit(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "splits.json"
    file.write_text(content)
    with pytest.raises(OptionError, match=message):
        make_splits(dataset_of([None] * 3), facts_of([{1}] * 3), DataOptions(splits=str(file)))


def test_one_case_or_group_is_trained_on_without_validation(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        alone = make_splits(dataset_of([None]), facts_of([{1}]), NONE)
        group = make_splits(dataset_of(["p", "p"]), facts_of([{1}] * 2), NONE)
    assert alone == Splits(source="full", folds=(("case_000",),))
    assert group == Splits(source="full", folds=(("case_000", "case_001"),))
    assert "there is 1 case, which cannot be split: it is used for training" in caplog.text
    assert "there is 1 group, which cannot be split" in caplog.text


@pytest.mark.parametrize("count", [2, 3, 4])
def test_few_cases_make_as_many_folds(caplog: pytest.LogCaptureFixture, count: int) -> None:
    with caplog.at_level(logging.WARNING):
        splits = make_splits(dataset_of([None] * count), facts_of([{1}] * count), NONE)
    assert [len(fold) for fold in splits.folds] == [1] * count
    assert f"{count} groups of cases are too few for 5 folds: {count} folds are made" in caplog.text


def test_few_folds_stay_few_when_cases_are_added() -> None:
    before = make_splits(dataset_of([None] * 3), facts_of([{1}] * 3), NONE)
    after = make_splits(dataset_of([None] * 9), facts_of([{1}] * 9), NONE, existing=before)
    assert [len(fold) for fold in after.folds] == [3, 3, 3]
    assert all(set(old) <= set(new) for old, new in zip(before.folds, after.folds, strict=True))


# ---- splits that no longer fit -------------------------------------------------------------------------------


def automatic(*folds: list[str]) -> Splits:
    return Splits(source="automatic", folds=folds)


def test_a_fold_that_lost_all_its_cases_is_refused() -> None:
    existing = automatic(["case_000"], ["case_001", "gone_1"], ["gone_2", "gone_3"])
    with pytest.raises(OptionError, match=r"no longer fits the data: fold 2 has no case left \(gone_2, gone_3 gone\)"):
        make_splits(dataset_of([None] * 2), facts_of([{1}] * 2), NONE, existing=existing)


def test_a_split_that_now_divides_a_group_is_refused() -> None:
    existing = automatic(["case_000", "case_001"], ["case_002", "case_003"])
    with pytest.raises(OptionError, match=r"q \(case_001 in fold 0, case_002 in fold 1\).*Delete it to split anew"):
        make_splits(dataset_of(["p", "q", "q", "r"]), facts_of([{1}] * 4), NONE, existing=existing)
    with pytest.raises(OptionError, match=r"p \(case_000, case_001 in fold 0, case_002, case_003 in fold 1\)"):
        make_splits(dataset_of(["p"] * 4), facts_of([{1}] * 4), NONE, existing=existing)


def test_groups_are_never_split_by_a_file_either(tmp_path: Path) -> None:
    file = tmp_path / "splits.json"
    file.write_text('{"folds": [["case_000", "case_001"], ["case_002"]]}')
    options = DataOptions(splits=str(file))
    assert len(make_splits(dataset_of(["p", "p", "q"]), facts_of([{1}] * 3), options).folds) == 2
    with pytest.raises(OptionError, match=r"splits groups: q \(case_001 in fold 0, case_002 in fold 1\)"):
        make_splits(dataset_of(["p", "q", "q"]), facts_of([{1}] * 3), options)


def test_groups_are_never_split_by_a_table_either() -> None:
    dataset = dataset_of(["p", "q", "q"])
    cases = [case.model_copy(update={"fold": fold}) for case, fold in zip(dataset.cases, "001", strict=True)]
    with pytest.raises(DataError, match="the table puts group q into folds 0 and 1"):
        make_splits(dataset.model_copy(update={"cases": tuple(cases)}), facts_of([{1}] * 3), NONE)


def test_nnunet_folds_that_would_move_cases_are_refused() -> None:
    options = DataOptions(splits="nnunet")
    before = make_splits(dataset_of([None] * 10), facts_of([{1}] * 10), options)
    assert make_splits(dataset_of([None] * 10), facts_of([{1}] * 10), options, existing=before) == before
    with pytest.raises(OptionError, match="new: case_010; in another fold by nnU-Net's rule: "):
        make_splits(dataset_of([None] * 11), facts_of([{1}] * 11), options, existing=before)
    other = automatic(["case_000"], ["case_001"])
    assert make_splits(dataset_of([None] * 10), facts_of([{1}] * 10), options, existing=other) == before


# ---- the same image twice ------------------------------------------------------------------------------------


def same_image(facts: list[CaseFacts], *places: int) -> list[CaseFacts]:
    update = {"image_hash": "same"}
    return [each.model_copy(update=update) if index in places else each for index, each in enumerate(facts)]


@given(st.integers(4, 20), st.data())
def test_cases_with_one_image_stay_in_one_fold(count: int, data: st.DataObject) -> None:
    twins = data.draw(st.lists(st.integers(0, count - 1), min_size=2, max_size=3, unique=True))
    splits = make_splits(dataset_of([None] * count), same_image(facts_of([{1}] * count), *twins), NONE)
    names = {f"case_{index:03d}" for index in twins}
    assert sum(bool(names & set(fold)) for fold in splits.folds) == 1
    assert all(splits.folds)


def test_groups_of_one_image_are_joined() -> None:
    groups = ["p", "p", "q", "q", "r", "s"]
    splits = make_splits(dataset_of(list(groups)), same_image(facts_of([{1}] * 6), 1, 2), NONE)
    assert {"case_000", "case_001", "case_002", "case_003"} in [set(fold) for fold in splits.folds]


def test_two_cases_with_one_image_are_split_all_the_same() -> None:
    splits = make_splits(dataset_of([None] * 2), same_image(facts_of([{1}] * 2), 0, 1), NONE)
    assert [len(fold) for fold in splits.folds] == [1, 1]

"""What to try next: each rule on made-up records in which it must speak, and on those in which it must not."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest
from nnunet_exports import CHANNELS, CLASSES, configuration

from autounet.report.advice import find_advice, last_fall, size_in_voxels
from autounet.report.output_records import OutputRecords
from autounet.report.page import _content
from autounet.report.results_section import rank_cases
from autounet.report.shown_cases import _choose_cases
from autounet.schema.dataset import Case, Dataset
from autounet.schema.fingerprint import CaseFingerprint, Fingerprint
from autounet.schema.metrics import CaseMetrics, ClassMetrics, Metrics
from autounet.schema.options import PlannerOptions, RunOptions, TrainOptions
from autounet.schema.plan import Plan
from autounet.schema.run import EpochLog, RunRecord
from autounet.schema.selection import Selection

Dice = Callable[[int, int], tuple[float, float]]
"""fold and number of a case -> Dice of large and small"""


def metrics(dice: Dice, folds: int = 5, cases: int = 8, uncertainty: Mapping[str, float] | None = None) -> Metrics:
    found = []
    for fold in range(folds):
        for number in range(cases):
            large, small = dice(fold, number)
            name = f"f{fold}c{number}"
            own = {"large": ClassMetrics(dice=large), "small": ClassMetrics(dice=small)}
            found.append(
                CaseMetrics(case=name, fold=fold, per_class=own, uncertainty=(uncertainty or {}).get(name, 0.3))
            )
    means = {name: fmean(each.per_class[name].dice or 0.0 for each in found) for name in ("large", "small")}
    return Metrics(
        mean_dice=fmean(means.values()),
        per_class={name: ClassMetrics(dice=value) for name, value in means.items()},
        cases=tuple(found),
    )


def even(level: float) -> Dice:
    """Cases that scatter a little around a level, alike in all folds."""
    return lambda fold, number: (level + 0.01 * (number % 4), level + 0.01 * ((number + 2) % 4))


def run(losses: Sequence[float], fold: int = 0, steps: int = 4000, converged: bool = False, **ends: Any) -> RunRecord:
    last = len(losses) - 1
    curve = [
        EpochLog(
            step=(index + 1) * steps // len(losses), progress=(index + 1) / len(losses), seconds=1.0, learning_rate=1.0,
            loss=loss, step_seconds=1.0, data_wait_seconds=0.0, converged=converged and index == last,
            **(ends if index == last else {}),
        )
        for index, loss in enumerate(losses)
    ]  # fmt: skip
    return RunRecord(
        configuration_name="3d_fullres", configuration="x", fold=fold, options=TrainOptions(), train_cases=(),
        validation_cases=(), device="cpu", steps=steps, seconds=1.0, curve=tuple(curve), parameters=1,
        peak_memory_bytes=None, versions={},
    )  # fmt: skip


FLAT = [1 / (1 + index) + 0.001 * (index % 2) for index in range(80)]
FALLING = [2 - index / 80 + 0.001 * (index % 2) for index in range(80)]


def told(**records: Any) -> list[str]:
    return [str(each) for each in find_advice(OutputRecords(out=Path("out"), **records))]


def test_nothing_is_said_of_a_good_result_or_of_none() -> None:
    assert told() == []
    assert told(runs=[run(FALLING)]) == []
    assert told(metrics=metrics(even(0.93)), runs=[run(FALLING, steps=80)]) == []


@pytest.mark.parametrize(
    ("training", "words"),
    [
        (run(FALLING), ["1 training of 1", "33%"]),
        (run(FLAT, steps=240), ["240 steps"]),
        (run(FALLING, steps=240), ["33%", "240 steps"]),
        (run(FLAT), None),
        (run(FALLING, converged=True), None),
        (run(list(np.random.default_rng(0).normal(1, 0.1, 80))), None),
        (run([1.0, 0.5]), None),
    ],
)
def test_more_time_is_advised_where_the_loss_falls_or_steps_were_few(
    training: RunRecord, words: list[str] | None
) -> None:
    found = told(metrics=metrics(even(0.6)), runs=[training], options=RunOptions(seconds=180))
    assert (found != []) == (words is not None)
    if words is not None:
        assert len(found) == 1
        assert all(word in found[0] for word in (*words, "larger --time (it was"))


def test_the_share_of_the_last_fall_is_that_of_a_line() -> None:
    """From the middle of the first quarter to that of the last are three quarters; one of them is the last."""
    assert last_fall(run([80.0 - index for index in range(400)])) == pytest.approx(1 / 3, abs=0.01)


def test_a_training_far_above_its_validation_needs_cases() -> None:
    def pair(training: float, validation: float) -> RunRecord:
        return run(FLAT, training_dice={"a": training, "b": training}, validation_dice={"a": validation})

    (found,) = told(metrics=metrics(even(0.6)), runs=[pair(0.9, 0.6), pair(0.9, 0.7)])
    assert "Dice 0.90 on patches of training cases, 0.65 on validation patches, at the end of 2 trainings" in found
    assert told(metrics=metrics(even(0.6)), runs=[pair(0.7, 0.65)]) == []
    light = pair(0.9, 0.6).model_copy(update={"options": TrainOptions(augmentation="light")})
    assert "--augmentation full (it was light)" in told(metrics=metrics(even(0.6)), runs=[light])[0]


def test_a_fold_that_is_behind_is_told_with_its_reason() -> None:
    def one(level: float) -> Metrics:
        return metrics(lambda fold, number: even(level if fold == 3 else 0.7)(fold, number))

    (found,) = told(metrics=one(0.5))
    assert found.startswith("Fold 3 is behind: mean Dice 0.515 over 8 cases, 0.715 over the others.")
    assert "--group" in found
    assert told(metrics=one(0.68)) == []
    short = [run(FLAT, fold, 1100 if fold == 3 else 4000) for fold in range(5)]
    assert "trained for 1,100 steps, the others for 4,000 (median)" in told(metrics=one(0.5), runs=short)[0]


def test_one_case_can_be_all_that_is_wrong_with_a_fold() -> None:
    def dice(fold: int, number: int) -> tuple[float, float]:
        return (0.3, 0.3) if (fold, number) == (2, 0) else even(0.8)(fold, number)

    (found,) = told(metrics=metrics(dice, uncertainty={"f2c0": 0.9}))
    assert found.startswith("Fold 2 is behind")
    assert "Without f2c0 (Dice 0.300) it is not." in found
    assert told(metrics=metrics(dice, cases=60, uncertainty={"f2c0": 0.9})) == []
    few = metrics(
        lambda fold, n: (0.3, 0.3) if (fold, n) == (2, 0) else (0.8, 0.81), cases=2, uncertainty={"f2c0": 1.0}
    )
    assert told(metrics=few) == []  # two cases differ by chance


def records_of(small: Dice, voxels: int, spacing: float = 1.0) -> OutputRecords:
    own = configuration(preprocess={"spacing": (spacing, 1.0, 1.0)})
    cases = [
        CaseFingerprint(identifier=f"c{n}", content_hash="", shape=(9, 9, 9), cropped_shape=(9, 9, 9),
                        spacing=(1.0, 1.0, 1.0), voxels=(500, 4000, voxels))
        for n in range(4)
    ]  # fmt: skip
    dataset = Dataset(
        root="", name="d", layout="nnunet", channels=CHANNELS, labels=CLASSES, labels_declared=True,
        cases=(Case(identifier="c0", images=("a",)),), image_pattern="*", file_kind="nifti", suffix=".nii.gz",
    )  # fmt: skip
    return OutputRecords(
        out=Path("out"),
        dataset=dataset,
        metrics=metrics(small),
        fingerprint=Fingerprint(dimension=3, orientation="ras", channels=(), cases=tuple(cases)),
        plan=Plan(configurations={"3d_fullres": own}, options=PlannerOptions(), reasons=(), fingerprint=""),
        selection=Selection(chosen=("3d_fullres",), compared=(), reason=""),
    )


def test_a_class_that_is_behind_is_judged_by_its_size() -> None:
    def behind(fold: int, number: int) -> tuple[float, float]:
        return even(0.85)(fold, number)[0], even(0.5)(fold, number)[1] - 0.04 * (fold == 1 and number == 1)

    found = [str(each) for each in find_advice(records_of(behind, voxels=30))]
    assert len(found) == 1
    assert found[0].startswith("small is behind the others: Dice 0.514, where their mean is 0.865. It is small")
    assert "3.9 voxels across" in found[0]
    assert "f1c1" in found[0]
    large = [str(each) for each in find_advice(records_of(behind, voxels=30_000))]
    assert "Its size does not explain it (39 voxels across)" in large[0]
    assert size_in_voxels(records_of(behind, 30, spacing=3.0), "small") == pytest.approx(3.855 / 3, abs=0.01)
    assert find_advice(records_of(even(0.8), voxels=30)) == []
    unknown = replace(records_of(behind, 30), plan=None)
    assert "small is behind" in str(find_advice(unknown)[0])


def test_labels_that_a_confident_model_contradicts_are_candidates() -> None:
    def wrong(fold: int, number: int) -> tuple[float, float]:
        return (0.2, 0.3) if (fold, number) == (3, 5) else even(0.92)(fold, number)

    sure, unsure = ({"f3c5": value} for value in (0.1, 0.9))
    (found,) = find_advice(OutputRecords(out=Path("out"), metrics=metrics(wrong, uncertainty=sure)))
    assert found.cases == ("f3c5",)
    assert "f3c5 (Dice 0.250)" in found.shown
    assert told(metrics=metrics(wrong, uncertainty=unsure)) == []
    assert told(metrics=metrics(even(0.92), uncertainty={"f3c5": 0.1})) == []

    def poor(fold: int, number: int) -> tuple[float, float]:
        return (0.0, 0.0) if (fold, number) == (3, 5) else even(0.5)(fold, number)

    assert not any("sure of itself" in each for each in told(metrics=metrics(poor, uncertainty=sure)))


def test_a_suspicious_label_is_shown_with_pictures_and_the_advice_on_the_page() -> None:
    def wrong(fold: int, number: int) -> tuple[float, float]:
        return (
            (0.2, 0.3)
            if (fold, number) == (3, 5)
            else (0.1, 0.2)
            if (fold, number) == (1, 1)
            else even(0.92)(fold, number)
        )

    found = metrics(wrong, uncertainty={"f3c5": 0.1, "f1c1": 0.9})
    ranked = rank_cases(found, ["large", "small"])
    chosen = _choose_cases(OutputRecords(out=Path("out"), metrics=found), ranked, ["large", "small"])
    assert {each.case: each.reasons for each in chosen}["f3c5"] == ("label to look at again",)
    content = _content(OutputRecords(out=Path("out"), metrics=found), None)
    assert content["advice"][-1].cases == ("f3c5",)

"""A fold's validation by several processes: the same files and figures as by one."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from quick_runs import (  # noqa: F401 - used by the run here
    narrow,
    no_trials,
    one_probe,
)

from autounet.datasets import synthetic
from autounet.processes import Launch
from autounet.schema.options import RunOptions
from autounet.store import read_scores
from autounet.store.run_folder import CrossvalFolder
from autounet.training import torchrun
from autounet.workflow import stages, validation
from autounet.workflow.pipeline import run_pipeline
from autounet.workflow.shards import validate_side_by_side


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The values of a validation of three cases whose results are there."""
    folder, found = tmp_path_factory.mktemp("run"), []

    def validate(**values: Any) -> object:
        found.append(values)
        return validation.validate(**values)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(synthetic, "SHAPES", ((16, 24, 24),))
        patch.setitem(stages.FUNCTIONS, "validate", validate)
        data = synthetic.make_demo_dataset(folder / "data", cases=15)
        options = RunOptions(
            iterations=2, configurations=("3d_fullres",), folds="0", device="cpu", workers=0, memory_bytes=450 << 20
        )
        run_pipeline(data, folder / "out", options, until="train")
    assert len(found[0]["cases"]) == 3
    return found[0]


def elsewhere(values: dict[str, Any], folder: Path, **changes: Any) -> dict[str, Any]:
    """A validation with nothing done."""
    return {**values, **changes, "folder": CrossvalFolder(folder / values["folder"].path.name)}


def results(values: dict[str, Any]) -> dict[str, Any]:
    """Metrics and scores; the bytes of the latter, and of segmentations, depend on how they were compressed."""
    folder = values["folder"]
    paths = [path for path in folder.path.rglob("*.json") if not path.name.endswith(".done.json")]
    scores = {each.identifier: read_scores(folder.scores, each.identifier).tolist() for each in values["cases"]}
    return scores | {path.relative_to(folder.path).as_posix(): path.read_bytes() for path in paths}


def test_two_devices_give_the_files_of_one(given: dict[str, Any], tmp_path: Path) -> None:
    values = elsewhere(given, tmp_path, devices=("cpu", "cpu"), side_by_side=validate_side_by_side)
    shared = validation.validate(**values)
    assert results(values) == results(given)
    assert [each.case for each in shared.cases] == [each.identifier for each in given["cases"]]
    names = {path.name for path in given["folder"].path.glob("*.nii.gz")}
    assert {path.name for path in values["folder"].path.glob("*.nii.gz")} == names
    assert len(names) == 3


def test_what_is_done_of_a_fold_is_not_shared_out_again(given: dict[str, Any], tmp_path: Path) -> None:
    asked: list[Any] = []
    values = elsewhere(given, tmp_path, devices=("cpu", "cpu"), side_by_side=lambda *given: asked.append(given))
    shutil.copytree(given["folder"].path, values["folder"].path)
    first, second = (values["folder"].case_result(each.identifier) for each in values["cases"][:2])
    first.unlink()
    validation.validate(**values)
    assert not asked
    assert results(values) == results(given)
    first.unlink()
    second.unlink()
    with pytest.raises(KeyError):  # nobody has done them
        validation.validate(**values)
    assert [list(work.keys) for _, work, _ in asked] == [[each.identifier for each in values["cases"][:2]]]


def test_a_launch_hands_its_cases_out_as_json(
    given: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = elsewhere(given, tmp_path, devices=("cpu", "cpu"))
    said: list[int] = []

    def together(
        work: str, device: str, cases: Sequence[str], on_case: Callable[[], object], take_part: torchrun.TakePart
    ) -> None:
        take_part(work, device, cases[:1], on_case)
        take_part(work, device, cases[1:], lambda: said.append(1))  # another process

    monkeypatch.setattr(validation, "launched", lambda: Launch(0, 2, 0, 1))
    monkeypatch.setattr(torchrun, "together", together)
    validation.validate(**values)
    assert results(values) == results(given)
    assert len(said) == 2

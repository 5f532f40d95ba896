"""`autounet.run`, `plan`, `train` and `check`: what they return, and what a notebook or a server needs of them."""

from __future__ import annotations

import inspect
import logging
import re
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Optional, get_type_hints

import numpy as np
import pytest
from quick_runs import narrow, no_trials, one_probe  # noqa: F401 - used by every run here
from safetensors.numpy import load_file

import autounet
from autounet.datasets.synthetic import make_demo_dataset
from autounet.schema.errors import AutoUNetError, OptionError, UsageError
from autounet.schema.option_table import RUN_OPTIONS
from autounet.schema.options import DataKeywords, RunKeywords, RunOptions
from autounet.store.run_folder import RunFolder
from autounet.workflow.read_status import read_status

SHORT: dict[str, Any] = {
    "iterations": 3, "folds": 0, "configurations": "3d_fullres", "device": "cpu", "workers": 0, "memory": "440MB",
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_demo_dataset(tmp_path_factory.mktemp("volumes") / "data", cases=4)


@pytest.fixture(scope="module")
def told() -> list[autounet.Progress]:
    return []


@pytest.fixture(scope="module")
def finished(data: Path, told: list[autounet.Progress], tmp_path_factory: pytest.TempPathFactory) -> autounet.RunResult:
    with pytest.MonkeyPatch.context() as patch:  # the run is shorter than the time between two readings
        patch.setattr("autounet.progress.READ_INTERVAL", 0.0)
        patch.setattr("autounet.progress.UNKNOWN_INTERVAL", 0.0)
        return autounet.run(data, tmp_path_factory.mktemp("run") / "out", on_progress=told.append, **SHORT)


def weights(out: Path) -> dict[str, np.ndarray]:
    return load_file(RunFolder(out).fold("3d_fullres", 0).weights)


def test_a_run_returns_its_records(finished: autounet.RunResult) -> None:
    out = finished.out
    assert finished.plan == autounet.Plan.load(out / "plan.json")
    assert finished.metrics == autounet.Metrics.load(out / "metrics.json")
    assert finished.selection.chosen == ("3d_fullres",)
    (fold,) = finished.folds
    assert (fold.configuration, fold.fold, fold.record.steps) == ("3d_fullres", 0, 3)
    assert fold.metrics is not None
    assert finished.metrics is not None
    assert fold.metrics.mean_dice is not None
    assert finished.report == out / "report.html"
    assert finished.report.exists()
    assert autounet.load(finished.model, device="cpu").bundle.labels.count == 3
    stored = RunOptions.load(out / "options.json")
    assert (stored.iterations, stored.folds, stored.configurations) == (3, "0", ("3d_fullres",))
    assert stored.memory_bytes == 440 * 2**20


def test_the_callback_hears_of_everything_and_of_the_whole_run(
    finished: autounet.RunResult, told: list[autounet.Progress]
) -> None:
    tasks = list(dict.fromkeys(each.task for each in told))
    wanted = ["reading", "preprocessing", "training 3d_fullres fold_0", "validating 3d_fullres fold_0"]
    assert [each for each in tasks if each in wanted] == wanted
    assert all(0 <= each.done <= 1 for each in told)
    trained = [each for each in told if each.task == wanted[2]]
    assert trained[-1].done == 1
    assert trained[-1].text.startswith("loss ")
    assert any(each.run_seconds_left is not None for each in trained)


def test_the_same_call_again_does_nothing_again_and_the_log_keeps_both(
    data: Path, finished: autounet.RunResult
) -> None:
    before = RunFolder(finished.out).fold("3d_fullres", 0).weights.stat().st_mtime_ns
    assert autounet.train(str(data), str(finished.out)).folds == finished.folds
    assert RunFolder(finished.out).fold("3d_fullres", 0).weights.stat().st_mtime_ns == before
    log = (finished.out / "run.log").read_text()
    assert re.findall(r"^[\d-]+ [\d:]+ autounet\.(\w+)\(data=", log, re.MULTILINE)[:2] == ["run", "train"]
    assert "reading: done in" in log
    assert "train 3d_fullres fold_0: already done" in log


def test_a_cancelled_run_continues_as_if_nothing_had_happened(
    data: Path, finished: autounet.RunResult, tmp_path: Path
) -> None:
    steps: list[float] = []

    def watch(progress: autounet.Progress) -> None:
        if progress.task.startswith("training"):
            steps.append(progress.done)

    with pytest.raises(autounet.Cancelled) as raised:
        autounet.run(data, tmp_path, on_progress=watch, cancel=lambda: bool(steps), **SHORT)
    assert isinstance(raised.value, autounet.AutoUNetError)
    assert "The same call continues" in str(raised.value)
    assert read_status(tmp_path).state == "interrupted"
    assert "Error: cancelled" in (tmp_path / "run.log").read_text()
    assert not RunFolder(tmp_path).fold("3d_fullres", 0).record.exists()
    again = autounet.train(data, tmp_path)
    assert any("continued at step 1 " in event for event in again.folds[0].record.events)
    expected = weights(finished.out)
    for name, values in weights(tmp_path).items():
        np.testing.assert_array_equal(values, expected[name])


def test_an_error_of_the_callback_is_raised_as_it_is(data: Path, tmp_path: Path) -> None:
    def fails(progress: autounet.Progress) -> None:
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        autounet.plan(data, tmp_path, on_progress=fails, **SHORT)
    assert "ZeroDivisionError: mine" in (tmp_path / "run.log").read_text()
    with pytest.raises(autounet.Cancelled):
        autounet.check(data, cancel=lambda: True)


def test_two_runs_at_once_in_threads_do_not_hear_each_other(
    data: Path, finished: autounet.RunResult, tmp_path: Path
) -> None:
    heard: dict[str, list[str]] = {"a": [], "b": []}
    start = threading.Barrier(2)

    def serve(name: str) -> autounet.TrainResult:
        start.wait()
        seed = {"a": 0, "b": 1}[name]
        return autounet.train(
            data, tmp_path / name, seed=seed, on_progress=lambda each: heard[name].append(each.task), **SHORT
        )

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(serve, "ab"))
    assert [each.out.name for each in found] == ["a", "b"]
    assert all("training 3d_fullres fold_0" in tasks for tasks in heard.values())
    for name in "ab":
        log = (tmp_path / name / "run.log").read_text()
        assert log.count("training 3d_fullres fold_0: done in") == 1
        assert f"out='{tmp_path / name}'" in log
    expected = weights(finished.out)  # by the same seed, alone
    assert all((weights(tmp_path / "a")[name] == values).all() for name, values in expected.items())
    assert any((weights(tmp_path / "b")[name] != values).any() for name, values in expected.items())
    assert sys.modules["__main__"].__name__ == "__main__"


def test_a_deterministic_run_wants_its_process_for_itself(data: Path, tmp_path: Path) -> None:
    tried: list[str] = []

    def another(progress: autounet.Progress) -> None:
        if not tried:
            for deterministic in (True, False):
                with pytest.raises(OptionError, match="in the same process"):
                    autounet.plan(data, tmp_path / "other", **{**SHORT, "deterministic": deterministic})
                tried.append("refused")

    autounet.plan(data, tmp_path / "out", on_progress=another, **{**SHORT, "deterministic": True})
    assert tried == ["refused"] * 2
    assert not (tmp_path / "other").exists()


def test_check_returns_findings_and_raises_none(data: Path, tmp_path: Path) -> None:
    found = autounet.check(data, classes={"body": 1, "core": 2})
    assert isinstance(found, autounet.CheckResult)
    assert [label.name for label in found.labels.classes] == ["background", "body", "core"]
    assert not found.is_fatal
    (tmp_path / "images").mkdir()
    assert autounet.check(tmp_path).is_fatal


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tiem": "2h"}, "autounet.run(): tiem is unknown. Did you mean time? Choose one of "),
        ({"explain": True}, "explain is unknown"),
        ({"time": "soon"}, "--time: 'soon' is not a time. Write for example 90s"),
        ({"time": [2]}, "--time: [2] cannot be used. Give a text or a number"),
        ({"time": -1}, "--time: '-1s' is not a time"),
        ({"folds": [0, "b"]}, "--folds: [0, 'b'] cannot be used. Give a text or a whole number or a list of whole"),
        ({"folds": "some"}, "--folds some names no folds"),
        ({"seed": True}, "--seed: True cannot be used. Give a whole number"),
        ({"epochs": 0}, "--epochs 0: Input should be greater than or equal to 1"),
        ({"classes": {"a": 1, "b": 1}}, "--class: two classes have the same value"),
        ({"family": "unetr"}, "--family unetr is unknown"),
        ({"init": "a", "pretrained": "b"}, "--init and --pretrained exclude each other"),
        ({"on_progress": 3}, "on_progress 3 cannot be called"),
        ({"data": None}, "data is None. Give a folder"),
        ({"out": 3}, "--out: 3 cannot be used. Give a text or a path"),
    ],
)
def test_wrong_arguments_raise_our_errors_before_anything_is_read(
    options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    given = {"data": tmp_path / "absent", "out": tmp_path / "out", **options}
    with pytest.raises(UsageError, match=re.escape(message)):
        autounet.run(**given)
    assert not list(tmp_path.iterdir())


def test_values_may_be_texts_numbers_lists_and_numpys(data: Path, tmp_path: Path) -> None:
    changes = {"folds": [0, 1], "memory": 2**30, "seed": np.int64(3), "metrics": ["dice", "iou"], "time": None}
    autounet.plan(data, tmp_path, **{**SHORT, **changes})
    stored = RunOptions.load(tmp_path / "options.json")
    assert (stored.folds, stored.memory_bytes, stored.seed, stored.seconds) == ("0,1", 2**30, 3, None)
    assert stored.metrics == ("dice", "iou")


# what is shown, and what is seen


def test_keywords_are_those_of_the_table_with_its_types() -> None:
    for keywords, command, left_out in ((RunKeywords, "run", {"data", "out"}), (DataKeywords, "check", {"data"})):
        table = {option.keyword: option for option in RUN_OPTIONS if command in option.commands}
        assert set(keywords.__annotations__) == table.keys() - left_out
        hints = get_type_hints(keywords)
        assert hints == {name: Optional[table[name].notation.python] for name in hints}  # noqa: UP045


def test_help_and_the_interface_show_every_option_and_nothing_else() -> None:
    parameters = inspect.signature(autounet.run).parameters
    assert list(parameters)[:5] == ["data", "out", "on_progress", "cancel", "verbose"]
    assert set(RunKeywords.__annotations__) <= set(parameters)
    assert "time: The whole command ends within this time" in (inspect.getdoc(autounet.run) or "")
    assert dir(autounet) == sorted([*autounet.__all__, "__version__"])
    assert all(getattr(autounet, name) is not None for name in dir(autounet))
    with pytest.raises(AttributeError, match="no attribute 'fit'"):
        autounet.fit  # noqa: B018
    assert issubclass(autounet.DataError, AutoUNetError)


def test_a_program_sees_the_messages_that_it_asked_for_and_no_others(data: Path, tmp_path: Path) -> None:
    """While a log is kept, too: on the package's logger, on the root, with levels of their own."""
    package, root = logging.getLogger("autounet"), logging.getLogger()
    seen: dict[str, list[logging.LogRecord]] = {"package": [], "root": []}

    class Keep(logging.Handler):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.kept = seen[name]

        def emit(self, record: logging.LogRecord) -> None:
            self.kept.append(record)

    handlers, level = (Keep("package"), Keep("root")), root.level
    package.addHandler(handlers[0])
    root.addHandler(handlers[1])
    try:
        root.setLevel(logging.WARNING)
        before = package.handlers[:], package.level, package.propagate
        autounet.plan(data, tmp_path, **SHORT)
        quiet = {name: {record.levelno for record in records} for name, records in seen.items()}
        assert (package.handlers, package.level, package.propagate) == before
        package.setLevel(logging.INFO)
        autounet.plan(data, tmp_path, **SHORT)
    finally:
        package.setLevel(logging.NOTSET)
        root.setLevel(level)
        package.removeHandler(handlers[0])
        root.removeHandler(handlers[1])
    assert all(levels <= {logging.WARNING} for levels in quiet.values())
    assert all(any("reading: done" in record.getMessage() for record in records) for records in seen.values())
    assert (tmp_path / "run.log").read_text().count("reading: done in") == 2


SCRIPT = """
import sys, threading
import autounet
found = []
def serve():
    found.append(autounet.check({data!r}, verbose=len(sys.argv) > 1))
    try:
        autounet.run({data!r}, {out!r}, deterministic=True)
    except autounet.AutoUNetError as error:
        found.append(error.remedy)
thread = threading.Thread(target=serve)
thread.start()
thread.join()
assert found[1] == "Give --epochs or --iterations", found
"""


def test_a_script_prints_nothing_unless_asked(data: Path, tmp_path: Path) -> None:
    """4 cases are few, which is a warning; Python shows warnings of a package that says nothing about logging."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(data=str(data), out=str(tmp_path / "out")))
    for words, shown in (([], ""), (["verbose"], "reading: done in")):
        done = subprocess.run([sys.executable, script, *words], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (0, ""), done.stderr
        assert shown in done.stderr
        assert words or not done.stderr

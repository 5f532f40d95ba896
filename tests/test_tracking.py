"""Trackers: TensorBoard's files are read back; the other services are played by modules that write down their calls."""

from __future__ import annotations

import json
import logging
import sys
import threading
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from autounet.schema.errors import OptionError
from autounet.schema.metrics import ClassMetrics, Metrics
from autounet.schema.options import RunOptions
from autounet.schema.run import EpochLog
from autounet.tracking import TRACKERS, RunTracker, require_tracker, services, track_run
from autounet.tracking.run_tracking import metric_values
from autounet.tracking.services import BackgroundTracker, TrackedRun

FOLD, RESULTS = TrackedRun("2d fold_0", "abcdef12", "out"), TrackedRun("results", "0123abcd", "out")
LINE = EpochLog(
    step=20, progress=0.5, seconds=9.0, learning_rate=0.1, loss=-0.5, validation_dice={"organ": 0.75}, step_seconds=0.4,
    data_wait_seconds=0.1, peak_memory_bytes=3 * 2**30,
)  # fmt: skip
METRICS = Metrics(mean_dice=0.8, per_class={"organ": ClassMetrics(dice=0.8, undefined={"hd95": "why"})}, cases=())


class Recorder:
    """A tracker that keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple] = []

    def describe(self, *told) -> None:
        self.told.append(("describe", *told))

    def scalars(self, *told) -> None:
        self.told.append(("scalars", *told))

    def file(self, *told) -> None:
        self.told.append(("file", *told))

    def close(self) -> None:
        self.told.append(("close",))


def say_everything(name: str, folder: Path, report: Path) -> None:
    """As a run does: the fold, the results, and the fold again, as when a command is given twice."""
    tracker = TRACKERS[name](folder, "Kidneys")
    tracker.describe(FOLD, {"patch": [8, 8]})
    tracker.scalars(FOLD, {"loss": 1.5, "patch Dice/left kidney <1>": 0.5}, 10)
    tracker.scalars(RESULTS, {"mean Dice": 0.8}, 0)
    tracker.file(RESULTS, report)
    tracker.scalars(FOLD, {"loss": 1.0}, 20)
    tracker.close()


@pytest.fixture
def report(tmp_path) -> Path:
    (tmp_path / "report.html").write_text("<p>well</p>")
    return tmp_path / "report.html"


def test_tensorboard_reads_what_was_written(tmp_path, report):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    say_everything("tensorboard", tmp_path / "tracking", report)
    fold, results = (
        EventAccumulator(str(tmp_path / "tracking" / name)).Reload() for name in ("2d_fold_0_abcdef", "results_0123ab")
    )
    assert [(each.step, each.value) for each in fold.Scalars("loss")] == [(10, 1.5), (20, 1.0)]
    assert results.Scalars("mean Dice")[0].value == pytest.approx(0.8)
    (config,) = fold.Tensors("config/text_summary")
    assert json.loads(config.tensor_proto.string_val[0]) == {"patch": [8, 8]}
    assert str(report).encode() in results.Tensors("report.html/text_summary")[0].tensor_proto.string_val[0]


class FakeRun(SimpleNamespace):
    def __init__(self, calls: list, given: dict) -> None:
        name = given["name"]
        note = lambda word: lambda *told, **named: calls.append((name, word, told, named))  # noqa: E731
        super().__init__(config=SimpleNamespace(update=note("config")), log=note("log"), save=note("save"),
                         define_metric=note("define_metric"), finish=note("finish"))  # fmt: skip
        calls.append((name, "init", (), given))


def test_calls_of_weights_and_biases(tmp_path, report, monkeypatch):
    calls: list = []
    module = ModuleType("wandb")
    module.init = lambda **given: FakeRun(calls, given)
    module.Html = lambda text: ("html", text)
    monkeypatch.setitem(sys.modules, "wandb", module)
    say_everything("wandb", tmp_path / "tracking", report)
    words = [(name, word) for name, word, *_ in calls]
    fold, results = "2d fold_0", "results"
    assert words == [
        (fold, "init"), (fold, "define_metric"), (fold, "config"), (fold, "log"), (fold, "finish"),
        (results, "init"), (results, "define_metric"), (results, "log"), (results, "save"), (results, "log"),
        (results, "finish"), (fold, "init"), (fold, "define_metric"), (fold, "log"), (fold, "finish"),
    ]  # fmt: skip
    given = calls[0][3]
    assert (given["project"], given["group"], given["id"], given["resume"]) == ("Kidneys", "out", "abcdef12", "allow")
    assert calls[2][2] == ({"patch": [8, 8]},)
    assert calls[3][2] == ({"training step": 10, "loss": 1.5, "patch Dice/left kidney <1>": 0.5},)
    assert calls[9][2] == ({"report": ("html", "<p>well</p>")},)


class FakeClient:
    """The runs of one server, found by their tag."""

    def __init__(self) -> None:
        self.calls: list = []
        self.runs: dict[str, str] = {}

    def get_experiment_by_name(self, name):
        return None

    def create_experiment(self, name):
        return f"experiment {name}"

    def search_runs(self, experiments, filter_string, max_results):
        assert experiments == ["experiment Kidneys"]
        found = filter_string.split("'")[1]
        return [SimpleNamespace(info=SimpleNamespace(run_id=self.runs[found]))] if found in self.runs else []

    def create_run(self, experiment, tags, run_name):
        self.runs[tags["autounet.identity"]] = run_name
        return SimpleNamespace(info=SimpleNamespace(run_id=run_name))

    def __getattr__(self, word):
        return lambda *told, **named: self.calls.append((word, *told, *named.values()))


def test_calls_of_mlflow(tmp_path, report, monkeypatch):
    client, module, entities = FakeClient(), ModuleType("mlflow"), ModuleType("mlflow.entities")
    module.MlflowClient = lambda: client
    entities.Metric = lambda key, value, timestamp, step: (key, value, step)
    monkeypatch.setitem(sys.modules, "mlflow", module)
    monkeypatch.setitem(sys.modules, "mlflow.entities", entities)
    say_everything("mlflow", tmp_path, report)
    fold, results = "2d fold_0", "results"
    once = [
        ("log_dict", fold, {"patch": [8, 8]}, "config.json"),
        ("log_batch", fold, [("loss", 1.5, 10), ("patch Dice/left kidney _1_", 0.5, 10)]),
        ("log_batch", results, [("mean Dice", 0.8, 0)]),
        ("log_artifact", results, str(report)),
        ("log_batch", fold, [("loss", 1.0, 20)]),
        ("set_terminated", fold),
        ("set_terminated", results),
    ]
    assert client.calls == once
    say_everything("mlflow", tmp_path, report)
    assert client.calls == once * 2
    assert len(client.runs) == 2


def test_nobody_waits_and_everything_is_said_in_turn():
    recorder = Recorder()
    tracker = BackgroundTracker("wandb", lambda: recorder)
    for step in range(5):
        tracker.scalars(FOLD, {"loss": 1.0}, step)
    tracker.close()
    assert [told[-1] for told in recorder.told[:-1]] == list(range(5))
    assert recorder.told[-1] == ("close",)


def fails() -> Recorder:
    raise ConnectionError("no server")


def test_a_lost_server_is_said_once_and_stops_nothing(caplog):
    with caplog.at_level(logging.WARNING):
        tracker = BackgroundTracker("mlflow", fails)
        for step in range(5):
            tracker.scalars(FOLD, {"loss": 1.0}, step)
        tracker.close()
        tracker.describe(FOLD, {})
    (said,) = caplog.messages
    assert "--track mlflow failed, the run continues without it (ConnectionError: no server)" in said


def test_a_server_that_does_not_answer_is_given_up(caplog):
    answers = threading.Event()
    recorder = Recorder()
    tracker = BackgroundTracker("wandb", lambda: answers.wait() and recorder)
    tracker.scalars(FOLD, {"loss": 1.0}, 1)
    with caplog.at_level(logging.WARNING):
        tracker.close(seconds=0.01)
    answers.set()
    assert "did not answer" in caplog.text


def test_what_a_run_tells(tmp_path, report):
    recorder = Recorder()
    tracked = RunTracker(recorder, tmp_path)
    run = tracked.run("2d fold_0", "key")
    tracked.line(run, LINE)
    tracked.fold(run, METRICS, 40)
    (_, where, values, step), (*_, dice, last) = recorder.told
    assert (where, step, last) == (run, 20, 40)
    assert values == {
        "loss": -0.5, "learning rate": 0.1, "seconds a step": 0.4, "share of time waiting for data": 0.25,
        "peak memory GB": 3.0, "patch Dice/organ": 0.75,
    }  # fmt: skip
    assert dice == metric_values(METRICS) == {"mean Dice": 0.8, "dice/organ": 0.8}
    assert RunTracker(recorder, tmp_path).run("2d fold_0", "key") == run
    assert RunTracker(recorder, tmp_path).run("2d fold_0", "other").identity != run.identity
    assert RunTracker(recorder, tmp_path / "copy").run("2d fold_0", "key").identity != run.identity


def test_without_a_tracker_nothing_is_written(tmp_path):
    for track in (None, "none"):
        with track_run(RunOptions(track=track), tmp_path, "Kidneys") as tracked:
            tracked.line(tracked.run("2d fold_0", "key"), LINE)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_library_is_named_with_its_extra(monkeypatch):
    monkeypatch.setattr(services, "find_spec", lambda name: None)
    for name in TRACKERS:
        with pytest.raises(
            OptionError, match=rf"{name} needs the package {name}. Install it: pip install 'autounet\[track\]'"
        ):
            require_tracker(name)
    with pytest.raises(OptionError, match=r"unknown\. Choose one of tensorboard, wandb, mlflow"):
        require_tracker("notes")

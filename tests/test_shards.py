"""Prediction of a folder by several processes: what one of them did not finish another does, and nothing twice."""

from __future__ import annotations

import errno
import logging
import os
import signal
import threading
from functools import partial
from pathlib import Path
from typing import Any

import faulty_prediction
import numpy as np
import pytest
from test_cluster_parts import state
from test_faults import images, left_behind, written
from test_predict_options import configuration, model

from autounet import api
from autounet.api import Model
from autounet.imageio import read_image, read_labels
from autounet.prediction import folder as prediction_folder
from autounet.prediction.case_records import OutputOptions, Work
from autounet.prediction.predictor import NetworkScores, Predictor
from autounet.schema.errors import Cancelled, DataError, OptionError
from autounet.schema.run import PredictedCase, record_of
from autounet.store import folder_lock
from autounet.store.folder_lock import locked
from autounet.workflow.job_state import job_folder, prediction_jobs, read_attempts
from autounet.workflow.read_status import read_status
from autounet.workflow.shards import predict_job, predict_on


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model(tmp_path_factory.mktemp("model"), {"3d_fullres": configuration("plain", 3)})


@pytest.fixture(scope="module")
def predictor(folder: Path) -> Model:
    return api.load(folder, device="cpu", mirror=False)


def require_equal(out: Path, alone: Path) -> None:
    assert sorted(written(out)) == sorted(written(alone))
    for name in written(alone):
        np.testing.assert_array_equal(read_labels(out / name)[0], read_labels(alone / name)[0])


def test_a_process_that_is_killed_leaves_its_cases_to_another(
    folder: Path,
    predictor: Model,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    source, out, marker = images(tmp_path / "in", 8), tmp_path / "out", tmp_path / "marker"
    (source / "c03.nii").write_bytes(b"no image")
    load = partial(faulty_prediction.killed_at_its_second_case, marker, folder)
    with caplog.at_level(logging.WARNING, "autounet"):
        found = predict_on("cpu,cpu", None, load, source, out, OutputOptions())
    assert (found.predicted, found.kept, len(found.failures)) == (7, 0, 1)
    (told,) = [record.getMessage() for record in caplog.records if "begins again" in record.getMessage()]
    assert "its process was killed by SIGKILL" in told
    assert marker.stat().st_size == 7 + 1, "a case was predicted twice besides the one that was not finished"
    predictor.predict_files(source, tmp_path / "alone")
    require_equal(out, tmp_path / "alone")
    assert left_behind(out) == []


def test_a_case_is_written_while_the_next_one_is_predicted(
    predictor: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    second, predicted, written_ = threading.Event(), [], []
    predict, write = Predictor.predict_scores, prediction_folder.write_prediction

    def noticed(self: Predictor, *given: Any, **more: Any) -> Any:
        predicted.append(self)
        if len(predicted) == 2:
            second.set()
        return predict(self, *given, **more)

    def waits(path: Path, *given: Any) -> None:
        written_.append(path.name)
        assert second.wait(60), "the first was to be written before the second is predicted"
        if path.name.startswith("c01"):
            raise DataError("no such values in this format", "Give another one")
        write(path, *given)

    monkeypatch.setattr(Predictor, "predict_scores", noticed)
    monkeypatch.setattr(prediction_folder, "write_prediction", waits)
    (told,) = predictor.predict_files(images(tmp_path / "in", 3), tmp_path / "out")
    assert "case c01: no such values" in told
    assert [name[:3] for name in written_] == ["c00", "c01", "c02"]
    assert [name[:3] for name in sorted(written(tmp_path / "out"))] == ["c00", "c02"]
    assert left_behind(tmp_path / "out") == []


def test_beside_a_gpu_a_case_is_decided_on_while_the_next_one_is_predicted(
    predictor: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, alone, out = images(tmp_path / "in", 3), tmp_path / "alone", tmp_path / "out"
    assert predictor.predict_files(source, alone, probabilities=True) == []
    second, predicted, threads = threading.Event(), [], set()
    predict, decide = Predictor.predict_scores, Predictor.decide

    def noticed(self: Predictor, *given: Any, **more: Any) -> Any:
        predicted.append(threading.current_thread())
        if len(predicted) == 2:
            second.set()
        return predict(self, *given, **more)

    def waits(self: Predictor, scores: Any) -> Any:
        threads.add(threading.current_thread())
        assert second.wait(60), "the first was to be decided on before the second is predicted"
        if len(threads) > 1:
            raise AssertionError("cases are decided on by several threads")
        return decide(self, scores)

    monkeypatch.setattr(prediction_folder, "decided_beside", lambda device, scores: True)
    monkeypatch.setattr(Predictor, "predict_scores", noticed)
    monkeypatch.setattr(Predictor, "decide", waits)
    assert predictor.predict_files(source, out, probabilities=True) == []
    assert not threads & set(predicted)
    assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in alone.iterdir())
    for path in alone.glob("*.nii*"):
        np.testing.assert_array_equal(*(read_image(each)[0] for each in (path, out / path.name)))


def test_scores_wait_only_beside_a_gpu_and_where_there_is_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = {"2d": NetworkScores(np.zeros(0), np.zeros((2, 10, 10, 10), np.float32), None)}  # type: ignore[arg-type]
    monkeypatch.setattr(prediction_folder, "available_memory", lambda: 40_000)
    assert prediction_folder.decided_beside("cuda:0", scores)
    assert not prediction_folder.decided_beside("cpu", scores)
    monkeypatch.setattr(prediction_folder, "available_memory", lambda: 30_000)
    assert not prediction_folder.decided_beside("cuda:0", scores)


def test_a_process_that_is_asked_to_end_does_so_at_once(tmp_path: Path) -> None:
    """Also in the middle of a case, and it says so to who made the call."""

    def load(device: str) -> Predictor:
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("it went on")

    work = Work(tmp_path, OutputOptions(), "key", "run", False, False)
    values = {"load": partial(load), "device": "cpu", "work": work, "cases": ()}
    with pytest.raises(Cancelled, match="asked to end"):
        predict_job(None, "prediction 1", values, 0.0)  # type: ignore[arg-type]


def test_a_cluster_predicts_shards_and_repeats_only_what_was_killed(
    folder: Path,
    predictor: Model,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("parsl", reason="needs the extra cluster")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]))
    source, out, marker = images(tmp_path / "in", 4), tmp_path / "out", tmp_path / "marker"
    (source / "c03.nii").write_bytes(b"no image")
    file = tmp_path / "here.toml"
    file.write_text(f'provider = "local"\nfolder = "{tmp_path / "engine"}"\n')
    monkeypatch.setattr("autounet.workflow.shards.SHARDS_EACH", 2)
    load = partial(faulty_prediction.killed_at_its_second_case, marker, folder)
    found = predict_on("auto", str(file), load, source, out, OutputOptions())
    assert (found.predicted, found.kept, len(found.failures)) == (3, 0, 1)
    assert marker.stat().st_size == 3 + 1
    place = prediction_jobs(out)
    status = read_status(out)
    assert status.state == "finished"
    assert [(job.name, job.state, job.attempts) for job in status.jobs] == [
        ("predict cases 1 to 2", "done", 1), ("predict cases 3 to 4", "done", 0),
    ]  # fmt: skip
    assert "ended from outside" in read_attempts(job_folder(place, status.jobs[0].name))[0].reason
    predictor.predict_files(source, tmp_path / "alone")
    require_equal(out, tmp_path / "alone")
    images(source, 4)
    monkeypatch.setattr("autounet.workflow.cluster.Cluster.submit", None)  # what is finished is given to nobody
    assert predictor.predict_files(source, out) == []
    assert predict_on("auto", str(file), load, source, out, OutputOptions()).kept == 4
    with pytest.raises(OptionError, match="a job of a cluster uses one device"):
        predict_on("cpu,cpu", str(file), load, source, out, OutputOptions())


def test_one_command_at_a_time_predicts_into_a_folder(
    predictor: Model,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    source, out = images(tmp_path / "in", 2), tmp_path / "out"
    monkeypatch.setattr(folder_lock, "LOCK_WAIT_SECONDS", 0.0)
    (out / ".predicted").mkdir(parents=True)
    with locked(out, out / ".predicted"), pytest.raises(OptionError, match=f"another autounet is working in {out} "):
        predictor.predict_files(source, out)
    assert written(out) == {}

    def fails(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("filelock.FileLock.acquire", fails)
    assert predictor.predict_files(source, out) == []
    assert "make sure that no other command writes into it" in caplog.text


def test_what_a_killed_process_had_begun_is_removed_and_stays_autounets(predictor: Model, tmp_path: Path) -> None:
    source, out = images(tmp_path / "in", 2), tmp_path / "out"
    for name in ("c00.nii", ".c00.nii.0123abcd.77.nii", ".c00.nii.mine"):
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_text("half")
    PredictedCase(case="c00", key="", run="killed", earlier=("c00.nii",)).save(record_of(out, "c00"))
    (out / ".predicted" / ".c01.json.0123abcd.77").touch()
    assert predictor.predict_files(source, out) == []
    assert left_behind(out) == [".c00.nii.mine"]


@pytest.mark.parametrize("place", ["", "/.lock", "/.work", "/.work/jobs/a/log.txt"])
def test_nothing_is_written_through_links_among_records(predictor: Model, tmp_path: Path, place: str) -> None:
    source, victim, link = images(tmp_path / "in", 1), tmp_path / "victim", tmp_path / "out" / f".predicted{place}"
    victim.mkdir()
    link.parent.mkdir(parents=True)
    link.symlink_to(victim)
    with pytest.raises(OptionError, match="is a link"):
        predictor.predict_files(source, tmp_path / "out")
    assert list(victim.iterdir()) == []


def test_jobs_that_a_killed_command_left_are_asked_to_end_before_anything_begins(
    predictor: Model,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("autounet.workflow.job_state.SILENT_SECONDS", 0.3)
    monkeypatch.setattr("autounet.workflow.shards.POLL_SECONDS", 0.05)
    source, place, seen = images(tmp_path / "in", 1), prediction_jobs(tmp_path / "out"), []
    state(place, "predict cases 1 to 9")  # on another machine
    stop = job_folder(place, "predict cases 1 to 9").stop("x")
    monkeypatch.setattr("autounet.workflow.shards.stop_if_cancelled", lambda: seen.append(stop.exists()))
    assert predictor.predict_files(source, tmp_path / "out") == []
    assert all(seen)
    assert len(seen) > 1, "it was not waited for"
    assert left_behind(tmp_path / "out") == []

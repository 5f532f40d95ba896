"""Jobs that a cluster does, here Parsl's workers on this machine: what is killed goes on, and nothing is done twice."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from quick_runs import (  # noqa: F401 - used by the runs here
    narrow,
    no_trials,
    one_probe,
)

import autounet
from autounet.datasets import synthetic
from autounet.schema.metrics import Metrics
from autounet.store.weights import load_weights
from autounet.workflow.job_state import JobRun, job_folder, read_attempts

pytest.importorskip("parsl", reason="needs the extra cluster")

OPTIONS: dict[str, Any] = {
    "iterations": 40, "deterministic": True, "configurations": "3d_fullres", "device": "cpu", "folds": "0,1",
    "memory": "3GB",
}  # fmt: skip
TRAINED = "train 3d_fullres fold_0"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with `data`, `planned` and `alone`: the run of one process with one thread."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(synthetic, "SHAPES", ((16, 24, 24),))
        data = synthetic.make_demo_dataset(folder / "data", cases=4)
    autounet.plan(data, folder / "planned", workers=0, **OPTIONS)
    shutil.copytree(folder / "planned", folder / "alone")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        autounet.run(data, folder / "alone", workers=0, **OPTIONS)
    finally:
        torch.set_num_threads(threads)
    (folder / "two.toml").write_text(
        f'provider = "local"\njobs_per_block = 2\ncores = 1\nfolder = "{folder / "engine"}"\n'
    )
    yield folder
    for process in psutil.process_iter(["cmdline"]):  # blocks of commands that were killed wait for ten minutes
        if any(str(folder) in part for part in process.info["cmdline"] or ()):
            with suppress(psutil.Error):
                process.kill()


def command(folder: Path, out: Path, executor: Path | None = None, *more: str) -> subprocess.Popen[str]:
    """The run on two workers, planned before; or where `executor` says, with more options."""
    if not out.exists() and not more:
        shutil.copytree(folder / "planned", out)
    words = [sys.executable, "-P", "-m", "autounet", "run", str(folder / "data"), "--out", str(out)]
    words += ["--executor", str(executor or folder / "two.toml"), *more]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    return subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True)


def wait_for(found: Callable[[], object], process: subprocess.Popen[str], seconds: float = 240) -> Any:
    until = time.monotonic() + seconds
    while not (value := found()):
        if process.poll() is not None or time.monotonic() > until:
            process.kill()
            pytest.fail(process.communicate()[1])
        time.sleep(0.05)
    return value


def training(out: Path) -> JobRun | None:
    """The attempt at the first training, once it has done steps and said so."""
    folder = job_folder(out, TRAINED)
    log = out / "models" / "3d_fullres" / "fold_0" / "log.jsonl"
    return JobRun.load(folder.run) if folder.run.exists() and log.exists() and log.stat().st_size else None


def ended(process: subprocess.Popen[str], seconds: float = 400) -> str:
    errors = process.communicate(timeout=seconds)[1]
    assert process.returncode == 0, errors
    return errors


def attempts(out: Path) -> dict[str, int]:
    """Job -> times that it was tried and did not come to its end."""
    listed = json.loads((out / "jobs" / "jobs.json").read_text())["jobs"]
    return {job["name"]: len(read_attempts(job_folder(out, job["name"]))) for job in listed}


def require_equal(out: Path, alone: Path) -> None:
    ours, theirs = (Metrics.load(each / "metrics.json") for each in (out, alone))
    assert ours == theirs
    folds = sorted((alone / "models" / "3d_fullres").glob("fold_?"))
    assert len(folds) == 2
    for fold in folds:
        ours_, theirs_ = (load_weights(each / "models" / "3d_fullres" / fold.name / "weights.safetensors")
                          for each in (out, alone))  # fmt: skip
        assert all(torch.equal(value, theirs_[name]) for name, value in ours_.items())


def test_a_worker_that_is_killed_in_a_training_costs_one_more_attempt_and_nothing_else(
    undisturbed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    process = command(undisturbed, out)
    run = wait_for(lambda: training(out), process)
    for number in run.processes:  # Parsl's worker, and the process of the job
        os.kill(number, signal.SIGKILL)
    errors = ended(process)
    assert f"{TRAINED}: did not come to its end" in errors
    assert {name: count for name, count in attempts(out).items() if count} == {TRAINED: 1}
    require_equal(out, undisturbed / "alone")
    again = command(undisturbed, out)
    assert "jobs go to" not in ended(again)  # nothing is left to be done, so that no block is requested
    status = autounet_status(out)
    assert {job["state"] for job in status["jobs"]} == {"done"}
    assert {job["name"]: job["attempts"] for job in status["jobs"]}[TRAINED] == 1
    assert list((undisturbed / "engine").rglob("*.key_secret")) == []  # gone with a command that ends well
    assert not list(out.rglob("*.key_secret"))


def autounet_status(out: Path) -> dict[str, Any]:
    from autounet.workflow.read_status import read_status

    found: dict[str, Any] = read_status(out).model_dump(mode="json")
    return found


def prepared_by(out: Path) -> bool:
    return job_folder(out, "prepare 3d_fullres").run.exists()


def trained(out: Path) -> bool:
    return (out / "models" / "3d_fullres" / "fold_0" / "done.json").exists()


@pytest.mark.parametrize("moment", [prepared_by, training, trained])
def test_a_command_that_is_killed_finds_what_goes_on(
    undisturbed: Path, tmp_path: Path, moment: Callable[[Path], object]
) -> None:
    out = tmp_path / "out"
    process = command(undisturbed, out)
    first = wait_for(lambda: moment(out), process)
    process.kill()
    process.communicate()
    if moment is training:
        status = autounet_status(out)
        assert {job["name"]: job["state"] for job in status["jobs"]}[TRAINED] == "running"
    errors = ended(command(undisturbed, out))
    if moment is training:
        assert f"{TRAINED}: goes on, since before this command" in errors
        assert JobRun.load(job_folder(out, TRAINED).run).attempt == first.attempt
    assert not any(attempts(out).values()), "nothing is given twice"
    assert {job["state"] for job in autounet_status(out)["jobs"]} == {"done"}
    require_equal(out, undisturbed / "alone")

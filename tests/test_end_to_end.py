"""The whole main job on synthetic data, through the command line: one true run that the other tests look at.

What only looks at it goes through the same command line in this process, which has loaded all that a command needs."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from doc_pages import undocumented

from autounet.cli.app import main
from autounet.datasets.synthetic import make_demo_dataset
from autounet.imageio import read_image, read_labels
from autounet.schema.bundle import ModelBundle
from autounet.schema.metrics import Metrics
from autounet.schema.plan import Plan
from autounet.schema.run import RunRecord
from autounet.schema.selection import Selection

CASES, FOLDS, STEPS = 6, 2, 40


class Done(NamedTuple):
    """What a command in this process ended with."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def autounet(monkeypatch, capsys):
    """A command in this process; by default it has to succeed."""

    def run(*arguments, check=True):
        monkeypatch.setattr(sys, "argv", ["autounet", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as ended:
            code = ended.code or 0
        done = Done(code, *capsys.readouterr())
        if check:
            assert done.returncode == 0, done.stdout + done.stderr
        return done

    return run


def run_options(out, steps=STEPS):
    return ("--out", out, "--iterations", steps, "--folds", "0,1", "--configurations", "3d_fullres", "--device", "cpu",
            "--memory", "420MB", "--workers", 0)  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(data folder, output folder, printed text) of one finished run."""
    folder = tmp_path_factory.mktemp("end_to_end")
    make_demo_dataset(folder / "data", cases=CASES, test_cases=1)
    command = [sys.executable, "-m", "autounet", "run", folder / "data", *run_options(folder / "out")]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "data", folder / "out", done.stdout


def test_the_output_folder_holds_what_the_contract_names(finished):
    _, out, printed = finished
    names = ("options", "device", "dataset", "splits", "fingerprint", "plan", "selection", "metrics")
    assert all((out / f"{name}.json").exists() for name in names)
    for fold in range(FOLDS):
        folder = out / "models" / "3d_fullres" / f"fold_{fold}"
        for file in ("weights.safetensors", "record.json", "log.jsonl", "progress.png"):
            assert (folder / file).exists()
    assert (out / "model" / "bundle.json").exists()
    assert (out / "report.html").stat().st_size > 10_000
    assert "mean Dice" in printed
    assert str(out / "report.html") in printed
    assert undocumented(out) == []


def test_something_was_learnt_and_the_numbers_agree(finished):
    _, out, _ = finished
    metrics = Metrics.load(out / "metrics.json")
    assert metrics.mean_dice > 0.4
    assert {case.fold for case in metrics.cases} == {0, 1}
    for name, values in metrics.per_class.items():
        dices = [case.per_class[name].dice for case in metrics.cases if case.per_class[name].dice is not None]
        assert values.dice == pytest.approx(np.mean(dices))
    bundle = ModelBundle.load(out / "model" / "bundle.json")
    assert bundle.mean_dice == metrics.mean_dice
    assert Selection.load(out / "selection.json").chosen == ("3d_fullres",)


def test_out_of_fold_segmentations_have_the_geometry_and_values_of_the_labels(finished):
    data, out, _ = finished
    for case in Metrics.load(out / "metrics.json").cases:
        predicted, geometry = read_labels(out / "crossval" / "3d_fullres" / f"{case.case}.nii.gz")
        truth, expected = read_labels(data / "labelsTr" / f"{case.case}.nii.gz")
        assert geometry == expected
        assert set(np.unique(predicted)) <= set(np.unique(truth)) | {0}


def test_new_images_are_predicted_and_evaluated(finished, tmp_path, autounet):
    data, out, _ = finished
    autounet("predict", out / "model", data / "imagesTs", "--out", tmp_path / "predicted", "--device", "cpu")
    images = sorted((data / "imagesTs").iterdir())
    assert len(list((tmp_path / "predicted").glob("[!.]*"))) == len(images)
    for image in images:
        predicted, geometry = read_labels(tmp_path / "predicted" / image.name.replace("_0000", ""))
        assert geometry == read_image(image)[1]
        assert predicted.any()
    metrics = tmp_path / "metrics.json"
    autounet(
        "evaluate", tmp_path / "predicted", data / "labelsTs", "--model", out / "model", "--out", metrics
    )  # fmt: skip
    assert Metrics.load(metrics).mean_dice > 0.4


def test_an_array_gives_what_its_file_gives(finished, tmp_path):
    import autounet as package

    data, out, _ = finished
    image = min((data / "imagesTs").iterdir())
    predictor = package.load(out / "model", device="cpu", folds=[0])
    predictor.predict_files(image, tmp_path)
    array, geometry = read_image(image)
    from_file = read_labels(tmp_path / image.name.replace("_0000", ""))[0]
    assert np.array_equal(predictor.predict(array, spacing=geometry.spacing), from_file)


def test_the_same_command_again_keeps_everything(finished, autounet):
    data, out, _ = finished
    watched = [out / "plan.json", out / "metrics.json", *out.glob("models/*/*/weights.safetensors")]
    before = {path: path.stat().st_mtime_ns for path in watched}
    autounet("run", data, "--out", out)  # omitted options take the stored values
    assert {path: path.stat().st_mtime_ns for path in watched} == before
    assert RunRecord.load(out / "models/3d_fullres/fold_0/record.json").steps == STEPS


def test_status_says_what_is_done(finished, autounet):
    _, out, _ = finished
    found = json.loads(autounet("status", out, "--json").stdout)
    assert all(found["stages"].values())
    assert [fold["state"] for fold in found["folds"]] == ["done"] * FOLDS


def test_a_damaged_image_among_good_ones_is_named_and_the_others_are_written(finished, tmp_path, autounet):
    data, out, _ = finished
    (tmp_path / "in").mkdir()
    image = min((data / "imagesTs").iterdir()).read_bytes()
    for name, content in (("a", image), ("broken", image[:300]), ("c", image)):
        (tmp_path / "in" / f"{name}_0000.nii.gz").write_bytes(content)
    done = autounet(
        "predict", out / "model", tmp_path / "in", "--out", tmp_path / "out", "--device", "cpu",
        "--folds", "0", "--no-mirror", check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "broken" in done.stderr
    assert "Traceback" not in done.stderr
    assert len(list((tmp_path / "out").glob("[!.]*"))) == 2


def planned(trained, folder):
    """A copy of an output folder as it was before anything was trained."""
    later = shutil.ignore_patterns("models", "crossval", "model", "selection.json", "metrics.json", "report.html")
    return Path(shutil.copytree(trained, folder / "out", ignore=later))


def test_an_edited_plan_is_kept_and_an_impossible_one_refused(finished, tmp_path, autounet):
    data, trained, _ = finished
    out = planned(trained, tmp_path)
    content = json.loads((out / "plan.json").read_text())
    assert content["configurations"]["3d_fullres"]["batch_size"] > 1
    content["configurations"]["3d_fullres"]["batch_size"] = 1
    (out / "plan.json").write_text(json.dumps(content))
    autounet("plan", data, *run_options(out))
    assert Plan.load(out / "plan.json").configurations["3d_fullres"].batch_size == 1
    content["configurations"]["3d_fullres"]["patch_size"][2] += 1
    (out / "plan.json").write_text(json.dumps(content))
    refused = autounet("plan", data, *run_options(out), check=False)
    assert refused.returncode == 1
    assert "divi" in refused.stderr
    assert "Traceback" not in refused.stderr


OFTEN = """
from autounet.training import state
state.LEAST_SECONDS, state.TIME_SHARE = 0.0, 1e9
from autounet.cli.app import main
main()
"""
"""the command, with a checkpoint at every line of the log instead of four a minute"""


def test_a_killed_run_continues_where_it_was(finished, tmp_path, autounet):
    """Killed in the middle of the first fold; the same command goes on, and steps done are not done again."""
    data, trained, _ = finished
    out = planned(trained, tmp_path)
    command = [sys.executable, "-c", OFTEN, "train", str(data), *map(str, run_options(out, 30))]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    state = out / "models" / "3d_fullres" / "fold_0" / "state.pt"
    waited = time.monotonic()
    while not state.exists() and process.poll() is None and time.monotonic() - waited < 300:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it came to its end before it was killed"
    autounet("train", data, "--out", out, "--folds", "0")
    record = RunRecord.load(out / "models" / "3d_fullres" / "fold_0" / "record.json")
    assert record.steps == 30
    assert any("continued at step" in event for event in record.events)
    steps = [json.loads(line)["step"] for line in (out / "models/3d_fullres/fold_0/log.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps))


def test_too_little_time_is_refused_with_the_least_time(finished, tmp_path, autounet):
    data, _, _ = finished
    done = autounet(
        "run", data, "--out", tmp_path / "out", "--time", "2s", "--device", "cpu", "--memory", "560MB",
        "--configurations", "3d_fullres", check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "Give more --time" in done.stderr


def test_usage_errors_exit_with_2(autounet):
    assert autounet("run", check=False).returncode == 2
    assert autounet("run", "x", "--out", "y", "--epochs", "many", check=False).returncode == 2


def test_a_missing_folder_is_one_clear_message(tmp_path, autounet):
    done = autounet("run", tmp_path / "nothing", "--out", tmp_path / "out", check=False)
    assert done.returncode == 1
    assert "nothing" in done.stderr
    assert "Traceback" not in done.stderr
    assert not Path(tmp_path / "out" / "models").exists()

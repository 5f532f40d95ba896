"""The parts of the benchmarks that can be wrong without anybody noticing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture(scope="module")
def tools():
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import measuring
        import vs_nnunet

        yield measuring, vs_nnunet
    finally:
        sys.path.remove(str(BENCHMARKS))


def test_the_largest_process_of_a_tree_is_measured(tmp_path):
    """Measured from a small process, as the benchmarks do: a child counts what its parent had before it started."""
    inner = "b = bytearray(200 * 2**20); b[::4096] = b[::4096]"
    outer = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}], check=True)"
    code = f"""
import sys
from pathlib import Path
import measuring
for name, work in (("small", "pass"), ("large", {outer!r})):
    print(measuring.run([sys.executable, "-c", work], Path({str(tmp_path)!r}) / name).peak_bytes)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=BENCHMARKS, capture_output=True, text=True, check=True)
    small, large = map(int, done.stdout.split())
    assert small < 100 * 2**20
    assert large > 200 * 2**20


def test_a_failing_command_shows_its_output(tools, tmp_path):
    measuring, _ = tools
    with pytest.raises(measuring.CommandFailed, match="this went wrong"):
        measuring.run([sys.executable, "-c", "import sys; sys.exit('this went wrong')"], tmp_path / "log")


def test_published_commands_hold_no_folders(tools):
    measuring, _ = tools
    shown = measuring.public_command(["run", "/home/someone/DRIVE", "--label", "1st_manual/*", "--out=/tmp/out"])
    assert shown == "run DRIVE --label '1st_manual/*' --out=out"


def test_different_plans_are_told_apart(tools):
    _, vs_nnunet = tools
    plan = {"3d_fullres": {"patch_size": [40, 56, 40], "spacing": [1.0, 1.0, 1.0]}}
    other = {"3d_fullres": {"patch_size": [40, 56, 48], "spacing": [1.0, 1.0, 1.0 + 1e-9]}}
    assert vs_nnunet.differences(plan, plan) == []
    assert vs_nnunet.differences(plan, other) == ["3d_fullres.patch_size[2]: ours 40, nnU-Net's 48"]
    assert vs_nnunet.differences(plan, {}) != []


def test_a_job_is_reported_with_its_goal(tools):
    measuring, _ = tools
    import main_job

    job = main_job.JOBS["isbi"]
    classes = {"membrane": {"dice": 0.81, "iou": 0.7, "hd95": None, "nsd": 0.9}, "cell": {"dice": 0.95}}
    metrics = {"mean_dice": 0.95, "per_class": classes, "cases": [{}] * 30}
    plan = {"2d": {"patch_size": [64, 64], "batch_size": 2, "network": {"features": [8, 16]}, "predicted_steps": None}}
    step = main_job.Step(("autounet", "run", "/data/ISBI2012_membrane"), measuring.Measured(1200.0, 2**30))
    dataset = {
        "layout": "pairs",
        "cases": [{"identifier": name, "group": name[0]} for name in ("a1", "a2", "b1")],
        "labels": {"pairs": [], "ignore": None},
    }
    splits = {"folds": [["a1"], ["a2", "b1"]]}
    outcome = main_job.Outcome(
        job, (step,), metrics, None, None, {"configurations": plan}, {"chosen": ["2d"]}, dataset, splits
    )
    page = main_job.section(outcome)
    assert "Got 0.8100: reached" in page
    assert "| `autounet run ISBI2012_membrane` | 20.0 min | 1.00 GiB |" in page
    assert "2d: patch 64x64" in page
    assert "3 cases in 2 groups, 2 folds, 1 groups in more than one fold" in page

"""The parts of the benchmarks that can be wrong without anybody noticing."""

from __future__ import annotations

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


def test_the_largest_process_of_a_tree_is_measured(tools, tmp_path):
    measuring, _ = tools
    inner = "b = bytearray(200 * 2**20); b[::4096] = b[::4096]"
    outer = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}], check=True)"
    small = measuring.run([sys.executable, "-c", "pass"], tmp_path / "small.log")
    large = measuring.run([sys.executable, "-c", outer], tmp_path / "large.log")
    assert large.peak_bytes > 200 * 2**20
    assert large.peak_bytes > small.peak_bytes
    assert large.seconds > 0


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

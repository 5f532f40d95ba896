"""Runs from check to predict that are interrupted at random moments end as one that is not: a dozen times, or 200."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

FAULTS = Path(__file__).resolve().parent.parent / "benchmarks" / "faults.py"


def soak(work: Path, interruptions: int) -> None:
    """In a process of its own, which forks: that is no good where torch has used its threads."""
    command = [sys.executable, FAULTS, "--work", work, "--soak", str(interruptions), "--quick"]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    told = ended.stdout.splitlines()[-1]
    assert told.startswith(f"{interruptions} interruptions (")
    assert "all ended in the same weights, metrics and segmentations" in told


@pytest.mark.skipif(sys.platform != "linux", reason="forks beside threads of libraries")
def test_six_interruptions_change_nothing(tmp_path: Path) -> None:
    soak(tmp_path, 12)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="forks beside threads of libraries")
def test_two_hundred_interruptions_change_nothing(tmp_path: Path) -> None:
    soak(tmp_path, 200)

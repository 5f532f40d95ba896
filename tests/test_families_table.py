"""The table of `benchmarks/families.py`: shares of the best, and families without a training."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture(scope="module")
def families():
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import families

        yield families
    finally:
        sys.path.remove(str(BENCHMARKS))


def trained(families, membrane: float | None):
    import measuring

    planned = {
        "patch_size": [64, 48], "batch_size": 2, "predicted_memory_bytes": 2**30, "network": {"features": [8, 16, 32]}
    }  # fmt: skip
    curve = [{"step_seconds": 0.2}, {"step_seconds": 0.25}, {"step_seconds": 9.0}]
    record = {"parameters": 1_500_000, "peak_memory_bytes": 2**29, "steps": 70, "seconds": 20.0, "curve": curve}
    metrics = {
        "mean_dice": 0.95, "per_class": {"membrane": {"dice": membrane}, "cell": {"dice": 0.95}}, "cases": [{}] * 6
    }  # fmt: skip
    return families.Trained("2d", planned, record, metrics, measuring.Measured(60.0, 2**30))


def test_the_best_is_1_and_failures_are_told(families):
    results = {
        "plain": trained(families, 0.8),
        "swin": trained(families, 0.6),
        "mednext": trained(families, None),
        "unet3d": "does not exist in 2-D",
        "nested": "failed: Error: no memory",
    }
    assert families.shares(results, families.JOBS["isbi"]) == {"plain": 1.0, "swin": pytest.approx(0.75)}
    page = families.section("isbi", results)
    line = "| plain | 64x48, batch 2, 8-32 | 1.50 M | 1.00 GiB | 512 MiB | 250 ms | 70 | 20.0 s | 60.0 s | 0.8000 | "
    assert line + "0.9500 | 0.9500 | 1.000 |" in page
    assert "undefined | 0.9500 | 0.9500 | undefined |" in page
    assert "- nested: failed: Error: no memory" in page
    assert "- swin: below 0.90 of the best" in page


def test_every_family_that_exists_must_be_good(families):
    good = {"plain": trained(families, 0.8), "unet3d": "does not exist in 2-D"}
    assert families.good("isbi", good)
    assert not families.good("isbi", {**good, "swin": trained(families, 0.6)})
    assert not families.good("isbi", {**good, "nested": "failed: Error: no memory"})


def test_a_data_set_without_any_training_has_a_section(families):
    page = families.section("isbi", {"plain": "failed: no output"})
    assert "fold 0, no cases" in page
    assert "- plain: failed: no output" in page


def test_the_reason_is_the_last_error_on_one_line(families, tmp_path):
    log = tmp_path / "log"
    log.write_text("planning\nError: first\nmore\nError: the patch | is\n too large\n")
    assert families.reason(log) == "Error: the patch / is too large"
    log.write_text("Traceback\nValueError: odd\n")
    assert families.reason(log) == "ValueError: odd"

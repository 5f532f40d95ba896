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
    classes = {"membrane": {"dice": 0.84, "iou": 0.7, "hd95": None, "nsd": 0.9}, "cell": {"dice": 0.95}}
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
    assert "Got 0.8400: reached" in page
    assert "| `autounet run ISBI2012_membrane` | 20.0 min | 1.00 GiB |" in page
    assert "2d: patch 64x64" in page
    assert "3 cases in 2 groups, 2 folds, 1 groups in more than one fold" in page


@pytest.fixture(scope="module")
def recipes():
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import recipes

        yield recipes
    finally:
        sys.path.remove(str(BENCHMARKS))


def test_sums_of_losses_are_what_they_say(recipes):
    import torch

    from autounet import losses
    from autounet.schema.labels import LabelClass, Labels

    labels = Labels(classes=tuple(LabelClass(name=f"c{value}", value=value) for value in range(3)))
    logits = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    truth = torch.tensor([0, 0, 0, 1, 2]).expand(2, 4, 5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("autounet.losses.LOSSES", dict(losses.LOSSES))
        values = {}
        for name in ("dice_ce", "dice+ce", "dice", "ce", "2*dice+0.5*ce", "ce^1.0"):
            recipes.register_loss(name)
            values[name] = losses.LOSSES[name](losses.LossSetting(labels))(logits, truth, None, None).item()
    assert values["dice+ce"] == pytest.approx(values["dice_ce"])
    assert values["2*dice+0.5*ce"] == pytest.approx(2 * values["dice"] + 0.5 * values["ce"])
    likelihood = -logits.log_softmax(1).gather(1, truth[:, None])[:, 0]
    by_class = [likelihood[truth == value].mean().item() for value in range(3)]
    assert values["ce^1.0"] == pytest.approx(sum(by_class) / 3, rel=1e-5)


def test_the_model_of_dice_is_found_again(recipes):
    """Trainings by a law with a factor of 1 for one set and 3 for the other."""
    lines = []
    for number, (steps, coverage, width) in enumerate([(100, 1, 16), (900, 1, 8), (400, 0.2, 16), (2000, 0.5, 32)]):
        for name, factor, mirror in (("a", 1.0, False), ("b", 3.0, True)):
            kept = 1 - 0.02 * number
            learnt = factor * steps**-0.3 * coverage**-0.2 * (width / 16) ** -0.1
            line = {"set": name, "dims": 3, "steps": steps, "coverage": coverage, "features": width, "kept": kept}
            lines.append({**line, "options": {"mirror": mirror}, "mean": 1 - ((1 - kept) ** 2 + learnt**2) ** 0.5})
    text = recipes.fitted(lines)
    assert "8 trainings: steps 0.30, coverage 0.20, width 0.10; what is left of the logarithm: 0.00" in text
    assert "a 3-D 1.00, b 3-D mirrored 3.00" in text


def test_recipes_are_compared_by_the_ratio_of_the_same_seeds(recipes):
    def line(name, variant, seed, dice):
        return {
            "set": name, "variant": variant, "seed": seed, "limit": 9.0, "dice": {"a": dice, "b": 0.0},
            "mean": dice / 2, "steps": 3, "seconds": 9.0, "patch": [8, 8], "batch": 2, "features": 8,
        }  # fmt: skip

    lines = [line("x", "base", 0, 0.4), line("x", "base", 1, 0.8), line("x", "new", 0, 0.8),
             line("y", "base", 0, 0.4), line("y", "new", 0, 0.2)]  # fmt: skip
    text = recipes.summary(lines, 9.0, ["base", "new"])
    assert "| new | 1.000 | 2.000 | 0.500 |" in text
    assert "| x: base | 0.3000 ± 0.1414 | 0.000 | 1 | 2 |" in text

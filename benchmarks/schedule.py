"""Which recipe reaches the best Dice in equal time: one fold of one data set, several variants one after the other.

    python benchmarks/schedule.py DATA --out OUT --seconds 120 --variant width=16,batch=2 --variant ...

A variant is a comma-separated list of `width`, `batch`, `patch` (voxels at most) and fields of TrainOptions. The data
are prepared once; each variant trains fold 0 for the given seconds and predicts the validation cases of that fold.
Prints a table.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from pathlib import Path
from typing import Any

from autounet.crossval.validate import summarise_cases, validate_cases
from autounet.schema.dataset import Dataset, Splits
from autounet.schema.metrics import Metrics
from autounet.schema.options import DataOptions, RunOptions, TrainOptions
from autounet.schema.plan import Configuration
from autounet.schema.run import DeviceProfile
from autounet.store.run_folder import CrossvalFolder, FoldFolder, RunFolder
from autounet.workflow.pipeline import RunOutcome, run_pipeline

BASE = {
    "optimiser": "adamw",
    "learning_rate": 3e-3,
    "weight_decay": 1e-2,
    "schedule": "warmup_cosine",
    "augmentation": "light",
}


def parse_variant(text: str) -> dict[str, Any]:
    """`a=1,b=x` as a dict; numbers where they read as numbers, `off` as None."""
    values: dict[str, Any] = {}
    for part in text.split(","):
        name, _, value = part.partition("=")
        try:
            values[name] = None if value == "off" else float(value) if "." in value or "e-" in value else int(value)
        except ValueError:
            values[name] = value
    return values


def prepare(data: Path, out: Path, label: str | None, configuration: str) -> RunOutcome:
    """A run up to the prepared cases, planned without a time limit."""
    options = RunOptions(data=DataOptions(label=label), iterations=1, configurations=(configuration,))
    run_pipeline(data, out, options, until="preprocess")
    return run_pipeline(data, out, options, until="plan")


def sized(outcome: RunOutcome, name: str, width: int, batch: int, patch_limit: int | None) -> Configuration:
    assert outcome.plan is not None
    assert outcome.maker is not None
    changed = {"base_features": width, "batch_limit": batch, "patch_limit": patch_limit}
    options = outcome.plan.options.model_copy(update=changed)
    return outcome.maker.with_options(options).configurations[name]


def run_variant(
    outcome: RunOutcome, run: RunFolder, name: str, text: str, seconds: float, cases: int
) -> tuple[Metrics, int, float]:
    """Train and validate one variant. Returns metrics, steps, and seconds of validation."""
    from trainings import fold_training

    from autounet.inference.bundle import load_network
    from autounet.training import Horizon, train_fold

    values, device = parse_variant(text), DeviceProfile.load(run.device).device
    configuration = sized(outcome, name, values.pop("width", 16), values.pop("batch", 2), values.pop("patch", None))
    folder = FoldFolder(run.path / "variants" / text.replace("=", "_"))
    options = TrainOptions(**{**BASE, **values})
    record = train_fold(
        *fold_training(run, name, configuration, options, folder.path, Horizon(seconds=seconds), device=device)
    )
    model, dataset = load_network(configuration, folder.weights, device), Dataset.load(run.dataset)
    validation = Splits.load(run.splits).validation(0)[:cases]
    began = time.monotonic()
    results = validate_cases(
        dataset, configuration, [model], run.prepared(configuration.prepared), validation, 0,
        CrossvalFolder(folder.path / "predicted"), device, keep_scores=False,
    )  # fmt: skip
    return summarise_cases(results, dataset), record.steps, time.monotonic() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--cases", type=int, default=1000, help="validation cases at most")
    parser.add_argument("--configuration", default="3d_fullres")
    parser.add_argument("--label")
    parser.add_argument("--variant", action="append", required=True)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    outcome, run = (
        prepare(arguments.data, arguments.out, arguments.label, arguments.configuration),
        RunFolder(arguments.out),
    )
    header = "| variant | steps | mean Dice | per class | validation |\n|---|---|---|---|---|\n"
    sys.stdout.write(f"{arguments.seconds:.0f} s of training a variant\n\n{header}")
    for text in arguments.variant:
        metrics, steps, seconds = run_variant(
            outcome, run, arguments.configuration, text, arguments.seconds, arguments.cases
        )
        classes = ", ".join(f"{name} {values.dice:.4f}" for name, values in metrics.per_class.items())
        sys.stdout.write(f"| {text} | {steps} | {metrics.mean_dice:.4f} | {classes} | {seconds:.1f} s |\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()

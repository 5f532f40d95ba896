"""Part of `run_length.py`: trains one fold for some steps and predicts some cases, in a process of its own.

python benchmarks/run_length_trainer.py OUT CONFIGURATION RESULT STEPS CASES
python benchmarks/run_length_trainer.py --demo FOLDER
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

from autounet.crossval.validate import validate_cases
from autounet.datasets.synthetic import make_demo_dataset
from autounet.schema.dataset import Dataset, Splits
from autounet.schema.fingerprint import Fingerprint
from autounet.schema.options import RunOptions
from autounet.schema.plan import Plan
from autounet.schema.run import DeviceProfile
from autounet.store.run_folder import CrossvalFolder, RunFolder
from autounet.workers import wait_politely
from autounet.workflow.defaults import loader_workers
from autounet.workflow.training_schedule import TrainingSchedule, training_schedule

FOLD = 0
WARM_UP = 0.2
"""share of the steps that is not counted: opening the cases, starting the workers"""


def step_seconds(run: RunFolder, name: str, steps: int, folder: Path) -> float:
    """Mean seconds of a step in the real loop after the warm-up, what the loop does beside it included."""
    from trainings import fold_training

    from autounet.training import Horizon, train_fold

    profile, schedule = DeviceProfile.load(run.device), schedule_of(run)
    configuration, options = schedule.configurations[name], schedule.train_options[name]
    workers = loader_workers(RunOptions.load(run.options), profile.device)
    given = fold_training(
        run, name, configuration, options, folder, Horizon(steps=steps), FOLD, profile.device, workers
    )
    lines = train_fold(*given).curve
    first = next(line for line in lines if line.progress >= WARM_UP)
    return (lines[-1].seconds - first.seconds) / (lines[-1].step - first.step)


def case_seconds(run: RunFolder, name: str, count: int, weights: Path, folder: Path) -> float:
    """Mean seconds of predicting, exporting and evaluating one case, after a first one that is not counted."""
    from autounet.inference.bundle import load_network

    schedule, device, dataset = schedule_of(run), DeviceProfile.load(run.device).device, Dataset.load(run.dataset)
    configuration = schedule.configurations[name]
    model = load_network(configuration, weights, device)
    first, *cases = schedule.validation_cases(FOLD)[: count + 1]

    def validate(chosen: list[str]) -> None:
        validate_cases(
            dataset, configuration, [model], run.prepared(configuration.prepared), chosen, FOLD,
            CrossvalFolder(folder), device, keep_scores=len(schedule.configurations) > 1,
        )  # fmt: skip

    validate([first])
    cases = cases or [first]
    began = time.monotonic()
    validate(cases)
    return (time.monotonic() - began) / len(cases)


def schedule_of(run: RunFolder) -> TrainingSchedule:
    """What the run of an output folder trains."""
    options, dataset, splits = RunOptions.load(run.options), Dataset.load(run.dataset), Splits.load(run.splits)
    dimension = Fingerprint.load(run.fingerprint).dimension
    return training_schedule(Plan.load(run.plan), options, dataset, splits, dimension, options.seconds)


def main() -> None:
    if sys.argv[1] == "--demo":
        make_demo_dataset(Path(sys.argv[2]))
        return
    wait_politely()
    out, name, result, steps, cases = sys.argv[1:]
    run = RunFolder(Path(out))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        step = step_seconds(run, name, int(steps), folder / "fold")
        case = case_seconds(run, name, int(cases), folder / "fold" / "weights.safetensors", folder / "predicted")
    measured = {
        "step_seconds": step,
        "case_seconds": case,
        "cases_per_fold": len(Dataset.load(run.dataset).cases) / len(Splits.load(run.splits).folds),
    }
    Path(result).write_text(json.dumps(measured))


if __name__ == "__main__":
    main()

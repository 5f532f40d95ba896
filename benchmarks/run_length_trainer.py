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

from autounet.crossval import validate as case_work
from autounet.datasets.synthetic import make_demo_dataset
from autounet.schema.dataset import Dataset, Splits
from autounet.schema.fingerprint import Fingerprint
from autounet.schema.options import RunOptions
from autounet.schema.plan import Plan
from autounet.schema.run import DeviceProfile
from autounet.time_budget.deadline import Deadline
from autounet.workers import available_cores, wait_politely
from autounet.workflow.context import Context
from autounet.workflow.dataset_stage import DataRecords

FOLD = 0
WARM_UP = 0.2
"""share of the steps that is not counted: opening the cases, starting the workers"""


def context_of(out: Path) -> Context:
    options = RunOptions.load(out / "options.json")
    known = DataRecords(
        Dataset.load(out / "dataset.json"), [], Splits.load(out / "splits.json"),
        Fingerprint.load(out / "fingerprint.json"),
    )  # fmt: skip
    return Context(
        out=out,
        options=options,
        workers=available_cores() if options.workers is None else options.workers,
        deadline=Deadline(options.seconds, out / "clock.json"),
        profile=DeviceProfile.load(out / "device.json"),
        known=known,
        plan=Plan.load(out / "plan.json"),
    )


def step_seconds(context: Context, name: str, steps: int, folder: Path) -> float:
    """Mean seconds of a step in the real loop after the warm-up, what the loop does beside it included."""
    from autounet.training import FoldTask, Horizon, train_fold

    configuration = context.plan.configurations[name]
    training, validation = context.cases(FOLD)
    task = FoldTask(
        configuration_name=name,
        configuration=configuration,
        labels=context.known.dataset.labels,
        options=context.train_options(configuration),
        prepared=context.out / "prepared" / configuration.prepared,
        train_cases=training,
        validation_cases=validation,
        fold=FOLD,
        folder=folder,
        horizon=Horizon(steps=steps),
        device=context.profile.device,
        workers=context.loader_workers,
    )
    lines = train_fold(task).curve
    first = next(line for line in lines if line.progress >= WARM_UP)
    return (lines[-1].seconds - first.seconds) / (lines[-1].step - first.step)


def case_seconds(context: Context, name: str, count: int, weights: Path, folder: Path) -> float:
    """Mean seconds of predicting, exporting and evaluating one case, after a first one that is not counted."""
    from autounet.inference.bundle import load_network

    configuration, device = context.plan.configurations[name], context.profile.device
    model = load_network(configuration, weights, device)
    first, *cases = context.cases(FOLD)[1][: count + 1]

    def validate(chosen: list[str]) -> None:
        case_work.validate_cases(
            context.known.dataset, configuration, [model], context.out / "prepared", chosen, FOLD, folder, device,
            keep_scores=len(context.configurations) > 1,
        )  # fmt: skip

    validate([first])
    cases = cases or [first]
    began = time.monotonic()
    validate(cases)
    return (time.monotonic() - began) / len(cases)


def main() -> None:
    if sys.argv[1] == "--demo":
        make_demo_dataset(Path(sys.argv[2]))
        return
    wait_politely()
    out, name, result, steps, cases = sys.argv[1:]
    context = context_of(Path(out))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        step = step_seconds(context, name, int(steps), folder / "fold")
        case = case_seconds(context, name, int(cases), folder / "fold" / "weights.safetensors", folder / "predicted")
    measured = {
        "step_seconds": step,
        "case_seconds": case,
        "cases_per_fold": len(context.known.dataset.cases) / len(context.known.splits.folds),
    }
    Path(result).write_text(json.dumps(measured))


if __name__ == "__main__":
    main()

"""The part of the parity benchmarks that runs in nnU-Net's environment: short trainings, and its own predictions.

    /path/to/nnunet-env/bin/python benchmarks/nnunet_models.py train WORK JOB.json
    /path/to/nnunet-env/bin/python benchmarks/nnunet_models.py predict MODEL IMAGES OUT --folds 0 1 [--previous FOLDER]
    /path/to/nnunet-env/bin/python benchmarks/nnunet_models.py tensors tests/golden/nnunet_tensors.json

`train` makes what JOB.json lists that is not there yet: fingerprint, plans (with edits), prepared data, and checkpoints
after a few iterations. Everything is nnU-Net's own but the number of iterations, the optimiser and the edits of plans.
`tensors` fills in the shapes of the tensors that nnU-Net's networks have, by their names, for the architectures in the
file.
"""

from __future__ import annotations

import argparse
import json
import os
from functools import partial
from pathlib import Path
from typing import Any

ITERATIONS_A_VALIDATION = 1
LEARNING_RATE = 2e-3


def use_folders(work: Path) -> None:
    """nnU-Net reads these when it is imported; its workers hang on a CPU, so batches are made in this process."""
    os.environ |= {f"nnUNet_{name}": str(work / name) for name in ("raw", "preprocessed", "results")}
    os.environ |= {"nnUNet_n_proc_DA": "0", "nnUNet_def_n_proc": "1", "nnUNet_compile": "f"}


def merged(base: dict[str, Any], edits: dict[str, Any]) -> dict[str, Any]:
    """`base` with the values of `edits`, which may be nested."""
    joined = dict(base)
    for key, value in edits.items():
        joined[key] = merged(joined.get(key, {}), value) if isinstance(value, dict) else value
    return joined


def train(work: Path, job: dict[str, Any]) -> None:
    """`job`: dataset (number), planner, plans (their name), configurations (edits by name) and trainings, a list of
    {configuration, fold, iterations, validate}."""
    from nnunetv2.experiment_planning import plan_and_preprocess_api as api
    from nnunetv2.utilities.dataset_name_id_conversion import convert_id_to_dataset_name

    number = job["dataset"]
    folder = work / "preprocessed" / convert_id_to_dataset_name(number)
    if not (folder / "dataset_fingerprint.json").exists():
        api.extract_fingerprints([number], num_processes=1)
    plans_file = folder / f"{job['plans']}.json"
    if not plans_file.exists():
        os.environ |= {"nnUNet_n_proc_DA": "1"}  # the planner refuses 0
        api.plan_experiments([number], job["planner"], overwrite_plans_name=job["plans"])
        os.environ |= {"nnUNet_n_proc_DA": "0"}
        plans = json.loads(plans_file.read_text())
        plans["configurations"] = merged(plans["configurations"], job["configurations"])
        plans_file.write_text(json.dumps(plans, indent=1))
    for training in job["trainings"]:
        _train_fold(folder, number, job["plans"], **training)


def _train_fold(
    folder: Path,
    number: int,
    plans: str,
    configuration: str,
    fold: int | str,
    iterations: int,
    validate: bool,
) -> None:
    import torch
    from nnunetv2.experiment_planning import plan_and_preprocess_api as api
    from nnunetv2.run.run_training import get_trainer_from_args

    torch.manual_seed(0)
    cpu = torch.device("cpu")
    trainer = get_trainer_from_args(str(number), configuration, fold, plans_identifier=plans, device=cpu)
    if (Path(trainer.output_folder) / "checkpoint_final.pth").exists():
        return
    if not (folder / trainer.configuration_manager.data_identifier).exists():
        api.preprocess([number], plans, [configuration], num_processes=[1])
    trainer.num_epochs, trainer.num_iterations_per_epoch = 1, iterations
    trainer.num_val_iterations_per_epoch = ITERATIONS_A_VALIDATION
    trainer.configure_optimizers = partial(_adam, trainer)
    trainer.run_training()
    if validate:  # also writes the segmentations that a cascade's second stage learns from
        trainer.perform_actual_validation()


def _adam(trainer: Any) -> tuple[Any, Any]:
    """Optimiser and schedule. nnU-Net's own SGD finds nothing in so few iterations, and nothing is easily agreed on."""
    import torch
    from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler

    optimiser = torch.optim.AdamW(trainer.network.parameters(), LEARNING_RATE)
    return optimiser, PolyLRScheduler(optimiser, LEARNING_RATE, trainer.num_epochs)


def predict(model: Path, images: Path, out: Path, folds: list[str], previous: Path | None) -> None:
    """Segmentations of a folder of images by nnU-Net's own predictor, at its default settings, one case at a time."""
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    chosen = tuple(fold if fold == "all" else int(fold) for fold in folds)
    predictor.initialize_from_trained_model_folder(str(model), chosen)
    out.mkdir(parents=True, exist_ok=True)
    predictor.predict_from_files_sequential(
        str(images), str(out), folder_with_segs_from_prev_stage=str(previous) if previous else None
    )


def write_tensors(file: Path) -> None:
    """Of entries {architecture, inputs, outputs, tensors} by name."""
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

    entries = json.loads(file.read_text())
    for entry in entries.values():
        each = entry["architecture"]
        parts = [each[key] for key in ("network_class_name", "arch_kwargs", "_kw_requires_import")]
        network = get_network_from_plans(*parts, entry["inputs"], entry["outputs"], deep_supervision=True)
        entry["tensors"] = {name: list(tensor.shape) for name, tensor in network.state_dict().items()}
    lines = [f"{json.dumps(name)}: {json.dumps(entry)}" for name, entry in entries.items()]
    file.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    training = commands.add_parser("train")
    training.add_argument("work", type=Path)
    training.add_argument("job", type=Path)
    naming = commands.add_parser("tensors")
    naming.add_argument("file", type=Path)
    predicting = commands.add_parser("predict")
    for name in ("model", "images", "out"):
        predicting.add_argument(name, type=Path)
    predicting.add_argument("--folds", nargs="+", required=True)
    predicting.add_argument("--previous", type=Path)
    given = parser.parse_args()
    if given.command == "tensors":
        write_tensors(given.file)
        return
    use_folders(given.out.resolve() if given.command == "predict" else given.work.resolve())
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    if given.command == "train":
        train(given.work.resolve(), json.loads(given.job.read_text()))
    else:
        predict(given.model, given.images, given.out, given.folds, given.previous)


if __name__ == "__main__":
    main()

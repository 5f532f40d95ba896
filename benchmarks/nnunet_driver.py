"""Run inside nnU-Net's own environment: what its command line cannot do on a CPU.

    python nnunet_driver.py steps RESULT.json --batches fixed|augmented --steps N
    python nnunet_driver.py checkpoints WEIGHTS_FOLDER

`steps` times nnU-Net's own `train_step` with its own network, loss and optimiser. Its worker processes hang on a CPU,
so the augmented batches are made in this process (`nnUNet_n_proc_DA=0`, set by the caller); their time is counted.
`checkpoints` writes untrained weights of five folds, in nnU-Net's format for its own prediction, and the same
tensors as plain dicts into WEIGHTS_FOLDER for the other program.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import torch
from nnunetv2.run.run_training import get_trainer_from_args

CONFIGURATION = "3d_fullres"
WARM_UP = 1


def trainer_of(fold: int) -> Any:
    """nnU-Net's trainer for Task04, network, loss and optimiser built."""
    torch.manual_seed(fold)
    trainer = get_trainer_from_args("4", CONFIGURATION, fold, device=torch.device("cpu"))
    trainer.initialize()
    return trainer


def fixed_batch(trainer: Any) -> dict[str, Any]:
    """One random batch of the plan's size; targets already at the size of each output, as its loader delivers them."""
    patch = trainer.configuration_manager.patch_size
    shape = (trainer.batch_size, 1, *patch)
    generator = torch.Generator().manual_seed(0)
    targets = []
    for scale in trainer._get_deep_supervision_scales():
        size = [round(length * factor) for length, factor in zip(patch, scale, strict=True)]
        targets.append(torch.randint(0, 3, (shape[0], 1, *size), generator=generator).to(torch.int16))
    return {"data": torch.randn(shape, generator=generator), "target": targets}


def time_steps(result: Path, batches: str, steps: int) -> None:
    """Seconds of each step after the warm-up, as JSON: {"seconds": [...], "data_seconds": [...]}."""
    trainer = trainer_of(0)
    trainer.network.train()
    if batches == "fixed":
        batch = fixed_batch(trainer)
    else:
        loader, _ = trainer.get_dataloaders()
    seconds, data_seconds = [], []
    for _ in range(WARM_UP + steps):
        started = time.perf_counter()
        if batches == "augmented":
            batch = next(loader)
        loaded = time.perf_counter()
        trainer.train_step(batch)
        seconds.append(time.perf_counter() - started)
        data_seconds.append(loaded - started)
    shape = list(batch["data"].shape)
    measured = {"seconds": seconds[WARM_UP:], "data_seconds": data_seconds[WARM_UP:], "batch": shape}
    result.write_text(json.dumps(measured))


def write_checkpoints(weights: Path) -> None:
    weights.mkdir(parents=True, exist_ok=True)
    for fold in range(5):
        trainer = trainer_of(fold)
        trainer.inference_allowed_mirroring_axes = (0, 1, 2)
        Path(trainer.output_folder).mkdir(parents=True, exist_ok=True)
        trainer.do_split()
        trainer.save_checkpoint(str(Path(trainer.output_folder) / "checkpoint_final.pth"))
        torch.save(dict(trainer.network.state_dict()), weights / f"fold_{fold}.pt")
    model = Path(trainer.output_folder_base)
    (model / "plans.json").write_text(json.dumps(trainer.plans_manager.plans))
    (model / "dataset.json").write_text(json.dumps(trainer.dataset_json))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    steps = commands.add_parser("steps")
    steps.add_argument("result", type=Path)
    steps.add_argument("--batches", choices=["fixed", "augmented"], default="fixed")
    steps.add_argument("--steps", type=int, default=5)
    commands.add_parser("checkpoints").add_argument("weights", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(len(os.sched_getaffinity(0)))  # as its own commands do on a CPU
    if given.command == "steps":
        time_steps(given.result, given.batches, given.steps)
    else:
        write_checkpoints(given.weights)


if __name__ == "__main__":
    main()

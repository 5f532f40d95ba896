"""The part of `planning_parity.py` that runs in nnU-Net's environment: what its own planners answer.

    /path/to/nnunet-env/bin/python benchmarks/nnunet_planner.py questions.json answers.jsonl

One line of JSON per question, in order, so that a run that was interrupted goes on. Networks are made on torch's meta
device, without numbers in their weights: the planners only ask them for the sizes of their feature maps.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

LIMIT_SECONDS = 300
"""of processor time for one planner and one data set: some searches of nnU-Net may never end"""
SCHEMES = {"CTNormalization": "ct", "ZScoreNormalization": "zscore", "NoNormalization": "none"}
FAMILIES = {"PlainConvUNet": "plain", "ResidualEncoderUNet": "residual"}
FOLDER = Path(tempfile.mkdtemp())
os.environ.update({f"nnUNet_{name}": str(FOLDER / name) for name in ("raw", "preprocessed", "results")})
os.environ |= {"nnUNet_n_proc_DA": "1"}


def planners() -> dict[str, type]:
    """Our preset's name -> nnU-Net's class."""
    from nnunetv2.experiment_planning.experiment_planners import default_experiment_planner
    from nnunetv2.experiment_planning.experiment_planners.residual_unets import (
        residual_encoder_unet_planners as residual,
    )

    return {
        "nnunet": default_experiment_planner.ExperimentPlanner,
        "residual-m": residual.nnUNetPlannerResEncM,
        "residual-l": residual.nnUNetPlannerResEncL,
        "residual-xl": residual.nnUNetPlannerResEncXL,
    }


def description(question: dict[str, Any]) -> dict[str, Any]:
    """nnU-Net's dataset.json. Region r unites the classes r, r + 1, ..."""
    values = range(1, question["classes"])
    labels: dict[str, Any] = {"background": 0}
    if question["regions"]:
        for region in range(1, question["regions"] + 1):
            labels[f"region_{region}"] = [value for value in values if value >= region]
    else:
        labels |= {f"class_{value}": value for value in values}
    if question["ignore"]:
        labels["ignore"] = question["classes"]
    return {
        "channel_names": {str(number): channel for number, channel in enumerate(question["channels"])},
        "labels": labels,
        "regions_class_order": list(range(1, question["regions"] + 1)),
        "numTraining": sum(case["times"] for case in question["cases"]),
        "file_ending": ".nii.gz",
        "overwrite_image_reader_writer": "SimpleITKIO",
        "dataset": {"case": {"images": ["case_0000.nii.gz"], "label": "case.nii.gz"}},
    }


def fingerprint(question: dict[str, Any]) -> dict[str, Any]:
    """nnU-Net's dataset_fingerprint.json, as far as planners read it."""
    import numpy as np

    cases = [case for case in question["cases"] for _ in range(case["times"])]
    shares = [np.prod(case["cropped"]) / np.prod(case["shape"]) for case in cases]
    return {
        "spacings": [[999.0, 1.0, 1.0] if question["flat"] else case["spacing"] for case in cases],
        "shapes_after_crop": [case["cropped"] for case in cases],
        "foreground_intensity_properties_per_channel": {},
        "median_relative_size_after_cropping": float(np.median(shares, 0)),
    }


def answer(question: dict[str, Any], name: str) -> dict[str, Any]:
    """By preset the configurations in our words, or {'error': ...} where nnU-Net fails."""
    raw, prepared = FOLDER / "raw" / name, FOLDER / "preprocessed" / name
    raw.mkdir(parents=True, exist_ok=True)
    prepared.mkdir(parents=True, exist_ok=True)
    (raw / "dataset.json").write_text(json.dumps(description(question)))
    (prepared / "dataset_fingerprint.json").write_text(json.dumps(fingerprint(question)))
    return {preset: _answer(planner, question, name) for preset, planner in planners().items()}


def _answer(planner: type, question: dict[str, Any], name: str) -> dict[str, Any]:
    import torch
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    target = {} if question["gigabytes"] is None else {"gpu_memory_target_in_gb": question["gigabytes"]}
    signal.setitimer(signal.ITIMER_PROF, LIMIT_SECONDS)
    try:
        with torch.device("meta"):
            plans = PlansManager(planner(name, **target).plan_experiment())
        return {found: words(plans, found, question) for found in plans.available_configurations}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"[:200]}
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def words(plans: Any, name: str, question: dict[str, Any]) -> dict[str, Any]:
    """One configuration in our words."""
    from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels

    found = plans.get_configuration(name).configuration
    network = found["architecture"]["arch_kwargs"]
    blocks = network["n_conv_per_stage" if "n_conv_per_stage" in network else "n_blocks_per_stage"]
    schemes = zip(found["normalization_schemes"], found["use_mask_for_norm"], strict=True)
    return {
        "family": FAMILIES[found["architecture"]["network_class_name"].split(".")[-1]],
        "patch_size": found["patch_size"],
        "batch_size": found["batch_size"],
        "batch_dice": found["batch_dice"],
        "spacing": found["spacing"],
        "features": network["features_per_stage"],
        "strides": network["strides"],
        "kernel_sizes": network["kernel_sizes"],
        "encoder_blocks": blocks,
        "decoder_blocks": network["n_conv_per_stage_decoder"],
        "in_channels": determine_num_input_channels(plans, name, description(question)),
        "previous_stage": found.get("previous_stage"),
        "normalisation": [[SCHEMES[scheme], masked] for scheme, masked in schemes],
        "transpose": plans.transpose_forward,
    }


def _out_of_time(*_: object) -> None:
    raise TimeoutError(f"no plan within {LIMIT_SECONDS} s")


def main(questions: Path, answers: Path) -> None:
    signal.signal(signal.SIGPROF, _out_of_time)
    warnings.simplefilter("ignore")
    done = len(answers.read_text().splitlines()) if answers.exists() else 0
    with answers.open("a") as file:
        for index, question in enumerate(json.loads(questions.read_text())):
            if index < done:
                continue
            with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
                found = answer(question, f"Dataset{index % 999 + 1:03d}_Parity")
            file.write(json.dumps(found, separators=(",", ":"), default=_number) + "\n")
            file.flush()
            sys.stderr.write(f"{index + 1} data sets\n")


def _number(value: Any) -> Any:
    """numpy's numbers and arrays as plain ones."""
    return value.tolist()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

"""Our preset `nnunet` beside nnU-Net 2.8.1's own planner, over random fingerprints.

    .venv/bin/python benchmarks/planning_parity.py --nnunet /path/to/nnunet-env/bin/python --count 200
    ... --count 100 --save tests/golden/nnunet_plans.json      keeps questions and answers for the tests

The script runs twice: in our environment, where it draws the data sets and compares, and (`answer`) in nnU-Net's,
where it asks the installed planner. Exit code 1 when any plan differs. nnU-Net builds a network for every size that it
tries, so 200 data sets take some minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

SCHEMES = {"CTNormalization": "ct", "ZScoreNormalization": "zscore", "NoNormalization": "none"}


def draw(generator: random.Random) -> dict[str, Any]:
    """A data set in numbers: 1 to 60 cases around one typical shape and spacing, sometimes mixed, sometimes 2-D."""
    flat = generator.random() < 0.15
    shape = [round(2 ** generator.uniform(3.5, 9)) for _ in range(3)]
    spacing = [2 ** generator.uniform(-1.5, 1.5) for _ in range(3)]
    kind = generator.random()
    if kind < 0.35:
        axis = generator.randrange(3)
        spacing[axis] *= generator.uniform(2, 9)
        shape[axis] = max(4, round(shape[axis] / generator.uniform(1, 10)))
    elif kind < 0.6:
        spacing = [generator.choice([0.5, 1.0, 1.5, 3.0])] * 3
        shape = [generator.choice([32, 64, 128, 256])] * 3 if generator.random() < 0.5 else shape
    if flat:
        shape, spacing = [1, *(max(length, 32) * 2 for length in shape[1:])], [1.0, 1.0, 1.0]
    spread = generator.choice([0.0, 0.1, 0.4])
    cases = []
    for _ in range(generator.choice([1, 2, 5, 9, 20, 60])):
        size = [max(1, round(length * generator.uniform(1 - spread, 1 + spread))) for length in shape]
        whole = [round(length * generator.uniform(1, 1.25)) for length in size]
        if flat:
            size[0] = whole[0] = 1
        steps = spacing if flat else [round(value * generator.uniform(1 - spread, 1 + spread), 4) for value in spacing]
        cases.append({"cropped": size, "shape": whole, "spacing": steps})
    names = ["CT", "T1", "noNorm", "FLAIR", "ct", "zscore"]
    return {
        "flat": flat,
        "cases": cases,
        "channels": [generator.choice(names) for _ in range(generator.choice([1, 1, 2, 4]))],
        "classes": generator.choice([2, 3, 4, 14, 60]),
        "ignore": generator.random() < 0.2,
        "gigabytes": generator.choice([4, 8, 8, 8, 11, 24]),
    }


def answer(questions: Path, answers: Path) -> None:
    """In nnU-Net's environment: one planner per data set, fed by files in a temporary folder."""
    folder = Path(tempfile.mkdtemp())
    os.environ.update({f"nnUNet_{name}": str(folder / name) for name in ("raw", "preprocessed", "results")})
    import numpy as np
    from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner

    results = []
    for index, data in enumerate(json.loads(questions.read_text()), 1):
        name = f"Dataset{index % 999 + 1:03d}_Parity"
        raw, prepared = folder / "raw" / name, folder / "preprocessed" / name
        raw.mkdir(parents=True)
        prepared.mkdir(parents=True)
        labels = {"background": 0, **{f"class_{value}": value for value in range(1, data["classes"])}}
        if data["ignore"]:
            labels["ignore"] = data["classes"]
        description = {
            "channel_names": {str(number): channel for number, channel in enumerate(data["channels"])},
            "labels": labels,
            "numTraining": len(data["cases"]),
            "file_ending": ".nii.gz",
            "overwrite_image_reader_writer": "SimpleITKIO",
            "dataset": {"case": {"images": ["case_0000.nii.gz"], "label": "case.nii.gz"}},
        }
        (raw / "dataset.json").write_text(json.dumps(description))
        flat = [999.0, 1.0, 1.0]
        shares = [np.prod(case["cropped"]) / np.prod(case["shape"]) for case in data["cases"]]
        fingerprint = {
            "spacings": [flat if data["flat"] else case["spacing"] for case in data["cases"]],
            "shapes_after_crop": [case["cropped"] for case in data["cases"]],
            "foreground_intensity_properties_per_channel": {},
            "median_relative_size_after_cropping": float(np.median(shares, 0)),
        }
        (prepared / "dataset_fingerprint.json").write_text(json.dumps(fingerprint))
        try:
            results.append(ExperimentPlanner(name, data["gigabytes"]).plan_experiment())
        except Exception as error:
            results.append({"error": f"{type(error).__name__}: {error}"})
    answers.write_text(json.dumps(results))


def theirs(plan: dict[str, Any], name: str) -> dict[str, Any]:
    """One configuration of nnU-Net's plan in our words."""
    found = plan["configurations"][name]
    network = found["architecture"]["arch_kwargs"]
    return {
        "patch_size": list(found["patch_size"]),
        "batch_size": found["batch_size"],
        "batch_dice": found["batch_dice"],
        "spacing": list(found["spacing"]),
        "features": list(network["features_per_stage"]),
        "strides": [list(stride) for stride in network["strides"]],
        "kernel_sizes": [list(kernel) for kernel in network["kernel_sizes"]],
        "normalisation": [
            [SCHEMES[scheme], masked]
            for scheme, masked in zip(found["normalization_schemes"], found["use_mask_for_norm"], strict=True)
        ],
        "transpose": list(plan["transpose_forward"]),
    }


def our_plan(data: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The configurations that our planner makes, in the same words; raises PlanError."""
    from autounet.planning import plan
    from autounet.schema.fingerprint import CaseFingerprint, ChannelFingerprint, Fingerprint
    from autounet.schema.labels import LabelClass, Labels
    from autounet.schema.options import GIB, PlannerOptions, TrainOptions

    statistics = {"mean": 1.0, "std": 1.0, "median": 1.0, "minimum": 0.0, "maximum": 2.0}
    statistics |= {"percentile_00_5": 0.0, "percentile_99_5": 2.0}
    fingerprint = Fingerprint(
        dimension=2 if data["flat"] else 3,
        orientation="as_stored",
        channels=tuple(ChannelFingerprint(name=name, kind="other", **statistics) for name in data["channels"]),
        cases=tuple(
            CaseFingerprint(
                identifier=str(number),
                content_hash="",
                shape=case["shape"],
                cropped_shape=case["cropped"],
                spacing=case["spacing"],
                voxels=(0,) * data["classes"],
            )
            for number, case in enumerate(data["cases"])
        ),
    )
    labels = Labels(
        classes=tuple(LabelClass(name=str(value), value=value) for value in range(data["classes"])),
        ignore=data["classes"] if data["ignore"] else None,
    )
    options = PlannerOptions(preset="nnunet", memory_bytes=data["gigabytes"] * GIB)
    made = plan(fingerprint, labels, options, TrainOptions())
    return {name: _in_words(configuration) for name, configuration in made.configurations.items()}


def _in_words(configuration: Any) -> dict[str, Any]:
    network, preprocess = configuration.network, configuration.preprocess
    return {
        "patch_size": list(configuration.patch_size),
        "batch_size": configuration.batch_size,
        "batch_dice": configuration.batch_dice,
        "spacing": list(configuration.spacing),
        "features": list(network.features),
        "strides": [list(stride) for stride in network.strides],
        "kernel_sizes": [list(kernel) for kernel in network.kernel_sizes],
        "normalisation": [[scheme.scheme, scheme.nonzero_only] for scheme in preprocess.normalisation],
        "transpose": list(preprocess.transpose),
    }


def in_our_words(reference: dict[str, Any]) -> dict[str, dict[str, Any]] | None:
    """The configurations that we plan too; None when nnU-Net failed or made a network of a single stage."""
    if "error" in reference:
        return None
    answers = {name: theirs(reference, name) for name in reference["configurations"] if name in ("2d", "3d_fullres")}
    return None if min(len(answer["strides"]) for answer in answers.values()) < 2 else answers


def compare(data: dict[str, Any], expected: dict[str, dict[str, Any]] | None) -> list[str]:
    """What differs, in words. What nnU-Net cannot plan may be planned by us or be refused."""
    from autounet.schema.errors import PlanError

    try:
        ours = our_plan(data)
    except PlanError as error:
        return [] if expected is None else [f"refused: {error}"]
    if expected is None:
        return []
    if set(expected) != set(ours):
        return [f"configurations {sorted(ours)} instead of {sorted(expected)}"]
    return [
        f"{name}.{field}: {ours[name][field]} instead of {wanted}"
        for name, answer in expected.items()
        for field, wanted in answer.items()
        if ours[name][field] != wanted
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nnunet", required=True, help="python of an environment with nnunetv2==2.8.1")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save", type=Path, help="write questions and nnU-Net's answers to this file")
    options = parser.parse_args()
    generator = random.Random(options.seed)
    data = [draw(generator) for _ in range(options.count)]
    with tempfile.TemporaryDirectory() as folder:
        questions, answers = Path(folder, "questions.json"), Path(folder, "answers.json")
        questions.write_text(json.dumps(data))
        command = [options.nnunet, __file__, "answer", str(questions), str(answers)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        references = [in_our_words(reference) for reference in json.loads(answers.read_text())]
    if options.save:
        options.save.write_text(json.dumps([data, references], separators=(",", ":")) + "\n")
    failures = 0
    for index, (question, reference) in enumerate(zip(data, references, strict=True)):
        if differences := compare(question, reference):
            failures += 1
            sys.stdout.write(f"data set {index}: " + "; ".join(differences) + "\n")
    refused = sum(reference is None for reference in references)
    sys.stdout.write(f"{len(data)} data sets, {failures} plans differ, {refused} that nnU-Net could not plan\n")
    return 1 if failures else 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["answer"]:
        answer(Path(sys.argv[2]), Path(sys.argv[3]))
    else:
        sys.exit(main())

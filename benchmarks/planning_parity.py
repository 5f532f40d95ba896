"""Our four presets beside nnU-Net 2.8.1's own planners, over known, awkward and random data sets.

    .venv/bin/python benchmarks/planning_parity.py --nnunet /path/to/nnunet-env/bin/python --count 270
    ... --save tests/golden/nnunet_plans.json.gz      keeps questions and answers for the tests
    ... --answers FILE                                keeps nnU-Net's answers there, and goes on with those it holds

`planning_questions.py` draws the data sets, `nnunet_planner.py` runs in nnU-Net's environment and asks its planners;
this compares. A data set for which nnU-Net fails, or makes a network of a single stage that cannot be run, is counted
and left out. Exit code 1 when any plan differs.
"""

from __future__ import annotations

import argparse
import gzip
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from planning_questions import Question, questions

Answer = dict[str, dict[str, Any]]
"""configuration -> field -> value"""


def our_plan(question: Question, preset: str) -> Answer:
    """The configurations that our planner makes, in the same words; raises PlanError."""
    from autounet.planning import PRESETS, plan
    from autounet.schema.options import GIB, PlannerOptions, TrainOptions

    gigabytes = question["gigabytes"]
    memory = PRESETS[preset].memory_bytes if gigabytes is None else gigabytes * GIB  # type: ignore[index]
    options = PlannerOptions(preset=preset, memory_bytes=memory)  # type: ignore[arg-type]
    made = plan(our_fingerprint(question), our_labels(question), options, TrainOptions())
    return {name: _in_words(configuration) for name, configuration in made.configurations.items()}


def our_fingerprint(question: Question) -> Any:
    from autounet.schema.fingerprint import CaseFingerprint, ChannelFingerprint, Fingerprint

    statistics = {"mean": 1.0, "std": 1.0, "median": 1.0, "minimum": 0.0, "maximum": 2.0}
    statistics |= {"percentile_00_5": 0.0, "percentile_99_5": 2.0}
    cases = [
        CaseFingerprint(
            identifier=str(number),
            content_hash="",
            shape=case["shape"],
            cropped_shape=case["cropped"],
            spacing=case["spacing"],
            voxels=(0,) * question["classes"],
        )
        for number, case in enumerate(question["cases"])
    ]
    return Fingerprint(
        dimension=2 if question["flat"] else 3,
        orientation="as_stored",
        channels=tuple(ChannelFingerprint(name=name, kind="other", **statistics) for name in question["channels"]),
        cases=tuple(case for case, asked in zip(cases, question["cases"], strict=True) for _ in range(asked["times"])),
    )


def our_labels(question: Question) -> Any:
    from autounet.schema.labels import LabelClass, Labels, Region

    classes = question["classes"]
    return Labels(
        classes=tuple(LabelClass(name=str(value), value=value) for value in range(classes)),
        regions=tuple(
            Region(name=f"region {first}", values=tuple(range(first, classes)))
            for first in range(1, question["regions"] + 1)
        ),
        ignore=classes if question["ignore"] else None,
    )


def _in_words(configuration: Any) -> dict[str, Any]:
    network, preprocess = configuration.network, configuration.preprocess
    words = {
        "family": network.family,
        "patch_size": configuration.patch_size,
        "batch_size": configuration.batch_size,
        "batch_dice": configuration.batch_dice,
        "spacing": configuration.spacing,
        "features": network.features,
        "strides": network.strides,
        "kernel_sizes": network.kernel_sizes,
        "encoder_blocks": network.encoder_blocks,
        "decoder_blocks": network.decoder_blocks,
        "in_channels": network.in_channels,
        "previous_stage": configuration.previous_stage,
        "normalisation": [[scheme.scheme, scheme.nonzero_only] for scheme in preprocess.normalisation],
        "transpose": preprocess.transpose,
    }
    return {field: _as_json(value) for field, value in words.items()}


def _as_json(value: Any) -> Any:
    """Tuples as lists."""
    return [_as_json(item) for item in value] if isinstance(value, tuple | list) else value


def usable(answer: Answer) -> bool:
    """nnU-Net made plans of networks that it can run: those with a decoder."""
    return "error" not in answer and all(len(found["strides"]) > 1 for found in answer.values())


def compare(question: Question, preset: str, expected: Answer) -> list[str]:
    """What differs, in words."""
    from autounet.schema.errors import PlanError

    try:
        ours = our_plan(question, preset)
    except PlanError as error:
        return [f"{preset} refused: {error}"]
    if list(expected) != list(ours):
        return [f"{preset}: configurations {list(ours)} instead of {list(expected)}"]
    return [
        f"{preset} {name}.{field}: {ours[name].get(field)} instead of {wanted}"
        for name, answer in expected.items()
        for field, wanted in answer.items()
        if ours[name].get(field) != wanted
    ]


def ask(nnunet: str, asked: list[Question], answers: Path) -> list[dict[str, Answer]]:
    """By data set and preset what nnU-Net's planners answer."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "questions.json")
        file.write_text(json.dumps(asked))
        program = Path(__file__).with_name("nnunet_planner.py")
        subprocess.run([nnunet, program, file, answers], check=True)
    return [json.loads(line) for line in answers.read_text().splitlines()]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nnunet", required=True, help="python of an environment with nnunetv2==2.8.1")
    parser.add_argument("--count", type=int, default=270)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--answers", type=Path, help="file of JSON lines with nnU-Net's answers, to interrupt and go on"
    )
    parser.add_argument("--save", type=Path, help="write questions and nnU-Net's answers to this file (.json.gz)")
    options = parser.parse_args()
    asked = questions(options.count, options.seed)
    with tempfile.TemporaryDirectory() as folder:
        answers = ask(options.nnunet, asked, options.answers or Path(folder, "answers.jsonl"))
    pairs = [
        (question, answer) for question, answer in zip(asked, answers, strict=True) if all(map(usable, answer.values()))
    ]
    if options.save:
        text = json.dumps(pairs, separators=(",", ":"))
        options.save.write_bytes(gzip.compress(text.encode(), 9, mtime=0))
    failures = 0
    for question, answer in pairs:
        differences = [line for preset, expected in answer.items() for line in compare(question, preset, expected)]
        if differences:
            failures += 1
            sys.stdout.write(f"data set {asked.index(question)}: " + "; ".join(differences) + "\n")
    left_out = len(asked) - len(pairs)
    sys.stdout.write(f"{len(pairs)} data sets, {failures} with plans that differ; {left_out} left out\n")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())

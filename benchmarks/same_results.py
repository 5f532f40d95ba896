"""Whether two commits make the same plans and predict the same bytes in the same time, as after a change of structure.

    python benchmarks/same_results.py --before 2fa19ae --data DATA --work FOLDER [--only plans|predictions|speed]

Plans: `autounet plan` by both commits, for six data sets, without a preset and with each of the four. Both get the
device profile that the earlier commit measured first, because a profile holds times. Compared are all fields that the
configurations of both have, but for the estimates of time.

Predictions: the earlier commit trains four tiny models (2d and 3-D; regions; the residual family; photographs), and
both commits predict with the same model folders, with maps, without mirroring, from one configuration, and as
ensembles. Compared is every byte of every file, unpacked where it is gzip.

Speed: the stages on Task04 and on the tiny data set, by both commits in turns, `REPEAT` times; medians.

Exit code 1 when a plan or a prediction differs. Runs on the CPU, with one thread.
"""

from __future__ import annotations

import argparse
import gzip
import json
import logging
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from known_sets import JOBS
from measuring import REPOSITORY, CommandFailed, commit, machine, median, public_command, run, table, write_results

log = logging.getLogger("benchmark")

PRESETS = ("", "nnunet", "residual-m", "residual-l", "residual-xl")
TIMES = ("predicted_step_seconds", "predicted_steps", "predicted_validation_seconds")
SETS = {name: (JOBS[name].data, JOBS[name].options) for name in ("task04", "isbi", "drive", "brats", "acdc", "openkbp")}
REPEAT = 3
TRAIN = ("--device", "cpu", "--folds", "0,1", "--iterations", "8", "--memory", "500MB", "--workers", "1")


@dataclass(frozen=True)
class Checkout:
    """The package of one commit and where its commands write."""

    folder: Path
    work: Path

    def autounet(self, name: str, *words: str | Path) -> float:
        """Seconds that it took. Raises CommandFailed; the output goes to `work/NAME.log`."""
        environment = {"PYTHONPATH": str(self.folder), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "autounet", *words]
        log.info("%s: autounet %s", self.work.name, public_command(words))
        return run(command, self.work / f"{name}.log", environment).seconds


def main() -> int:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", required=True, help="the earlier commit")
    parser.add_argument("--data", type=Path, required=True, help="the folder of the public data sets")
    parser.add_argument("--work", type=Path, required=True, help="finished commands found here are not run again")
    parser.add_argument("--only", choices=("plans", "predictions", "speed"))
    parser.add_argument("--set", action="append", choices=SETS, help="plan these sets alone")
    parser.add_argument("--results", type=Path, help="write the table into this folder")
    arguments = parser.parse_args()
    work = arguments.work.resolve()
    before = Checkout(worktree(arguments.before, work / "tree"), work / "before")
    after = Checkout(REPOSITORY, work / "after")

    rows: list[list[str]] = []
    if arguments.only in (None, "plans"):
        rows += compare_plans(before, after, arguments.data.resolve(), arguments.set or list(SETS))
    if arguments.only in (None, "predictions"):
        rows += compare_predictions(before, after, arguments.data.resolve())
    text = table(["what", "compared", "different"], rows) if rows else ""
    if arguments.only in (None, "speed"):
        speeds = compare_speed(before, after, arguments.data.resolve())
        text += "\n" + table(["stage", arguments.before, "now", "now / before"], speeds)
    print(text)
    if arguments.results:
        command = public_command(["python", "benchmarks/same_results.py", *sys.argv[1:]])
        head = f"# {arguments.before} and {commit()} side by side\n\n- command: `{command}`\n- machine: {machine()}\n\n"
        write_results("same_results", head + text, arguments.results)
    return int(any(row[2] != "none" for row in rows))


def worktree(name: str, folder: Path) -> Path:
    if not folder.exists():
        subprocess.run(["git", "-C", str(REPOSITORY), "worktree", "add", "--detach", str(folder), name], check=True)
    return folder


def compare_plans(before: Checkout, after: Checkout, data: Path, names: Sequence[str]) -> Iterator[list[str]]:
    profile = before.work.parent / "device.json"
    for name in names:
        for checkout in (before, after):
            for preset in PRESETS:
                make_plan(checkout, name, preset, data, profile)
        compared = different = 0
        unlike: list[str] = []
        for preset in PRESETS:
            plans = [configurations(plan_file(checkout, name, preset)) for checkout in (before, after)]
            for configuration in sorted(set(plans[0]) | set(plans[1])):
                fields = differing([plan.get(configuration, {}) for plan in plans])
                compared += 1
                different += bool(fields)
                unlike += [f"{preset or 'default'} {configuration}: {', '.join(fields)}"] if fields else []
        yield [f"plans of {name}", f"{compared} configurations", "; ".join(unlike) if different else "none"]


def plan_file(checkout: Checkout, name: str, preset: str) -> Path:
    return checkout.work / "plans" / f"{name}_{preset or 'default'}.json"


def make_plan(checkout: Checkout, name: str, preset: str, data: Path, profile: Path) -> None:
    """One output folder a data set: the fingerprint serves all presets. A refusal is compared as an empty plan."""
    target = plan_file(checkout, name, preset)
    if target.exists():
        return
    folder, options = SETS[name]
    out = checkout.work / name
    out.mkdir(parents=True, exist_ok=True)
    if profile.exists():
        shutil.copy(profile, out / "device.json")
    words = ["plan", data / folder, "--out", out, *options, "--memory", "8GB", "--device", "cpu"]
    words += ["--iterations", "1000", *(["--preset", preset] if preset else [])]
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        checkout.autounet(f"plan_{name}_{preset or 'default'}", *words)
        shutil.copy(out / "plan.json", target)
    except CommandFailed as error:
        log.warning("%s", error)
        target.write_text('{"configurations": {}}')
    if not profile.exists():
        shutil.copy(out / "device.json", profile)


def configurations(path: Path) -> dict[str, dict[str, object]]:
    found: dict[str, dict[str, object]] = json.loads(path.read_text())["configurations"]
    return found


def differing(plans: Sequence[dict[str, object]]) -> list[str]:
    """Names of the fields that both have with other values; a configuration that one lacks differs as a whole."""
    if not all(plans):
        return ["made by one commit only"]
    common = (set(plans[0]) & set(plans[1])) - set(TIMES)
    return sorted(field for field in common if plans[0][field] != plans[1][field])


def compare_predictions(before: Checkout, after: Checkout, data: Path) -> Iterator[list[str]]:
    inputs = before.work.parent / "inputs"
    hippocampus, images = few_hippocampi(data / "Task04_Hippocampus", inputs)
    photographs, photograph = few_photographs(data / "DRIVE", inputs)
    trainings = {
        "plain": (hippocampus, images, ("--configurations", "2d,3d_fullres")),
        "regions": (
            *(hippocampus, images),
            ("--configurations", "3d_fullres", "--region", "hippocampus=1,2", "--region", "posterior=2"),
        ),
        "residual": (hippocampus, images, ("--configurations", "3d_fullres", "--family", "residual")),
        "photographs": (photographs, photograph, ("--label", "1st_manual/*")),
    }
    for name, (training, new, options) in trainings.items():
        trained = before.work / "models" / name
        if not (trained / "model" / "bundle.json").exists():
            before.autounet(f"train_{name}", "run", training, "--out", trained, "--deterministic", *TRAIN, *options)
        for checkout in (before, after):
            predict(checkout, name, trained / "model", new)
        yield compared_files(name, before.work / "predictions" / name, after.work / "predictions" / name)


def compare_speed(before: Checkout, after: Checkout, data: Path) -> list[list[str]]:
    """Seconds of the whole commands: median, fastest and slowest."""
    training, images = few_hippocampi(data / "Task04_Hippocampus", before.work.parent / "inputs")
    seconds: dict[str, dict[Checkout, list[float]]] = {}
    for _ in range(REPEAT):
        for checkout in (before, after):
            for stage, took in stage_seconds(checkout, data / "Task04_Hippocampus", training, images):
                seconds.setdefault(stage, {}).setdefault(checkout, []).append(took)
    rows = []
    for stage, both in seconds.items():
        old, new = (both[checkout] for checkout in (before, after))
        shown = [f"{median(each):.2f} s ({min(each):.2f}-{max(each):.2f})" for each in (old, new)]
        rows.append([stage, *shown, f"{median(new) / median(old):.2f}"])
    return rows


def stage_seconds(checkout: Checkout, large: Path, small: Path, images: Path) -> Iterator[tuple[str, float]]:
    out = checkout.work / "speed"
    shutil.rmtree(out, ignore_errors=True)
    for stage in ("fingerprint", "plan", "preprocess"):
        common = (large, "--out", out / "large", "--preset", "nnunet", "--memory", "8GB", "--device", "cpu")
        yield f"{stage} of Task04", checkout.autounet(f"speed_{stage}", stage, *common, "--iterations", "1000")
    options = (*TRAIN, "--configurations", "3d_fullres")
    yield (
        "train and validate two folds",
        checkout.autounet("speed_train", "run", small, "--out", out / "small", *options),
    )
    words = ("predict", out / "small" / "model", images, "--out", out / "predicted", "--device", "cpu")
    yield "predict an image", checkout.autounet("speed_predict", *words)


def few_hippocampi(source: Path, inputs: Path) -> tuple[Path, Path]:
    """The first ten cases of Task04 to train on, the next to predict."""
    training, new = inputs / "hippocampus", inputs / "hippocampus_new"
    if not new.exists():
        description = json.loads((source / "dataset.json").read_text())
        pairs = sorted(description["training"], key=lambda pair: pair["image"])
        for pair in pairs[:10]:
            for path in pair.values():
                (training / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source / path, training / path)
        (training / "dataset.json").write_text(json.dumps({**description, "training": pairs[:10], "test": []}))
        new.mkdir()
        shutil.copy(source / pairs[10]["image"], new)
    return training, new


def few_photographs(source: Path, inputs: Path) -> tuple[Path, Path]:
    """Six photographs of DRIVE to train on, one of its test images to predict."""
    training, new = inputs / "drive", inputs / "drive_new"
    if not new.exists():
        for folder in ("images", "1st_manual"):
            (training / folder).mkdir(parents=True, exist_ok=True)
            for path in sorted((source / "training" / folder).iterdir())[:6]:
                shutil.copy(path, training / folder)
        new.mkdir()
        shutil.copy(min((source / "test" / "images").iterdir()), new)
    return training, new


def predict(checkout: Checkout, name: str, model: Path, images: Path) -> None:
    out = checkout.work / "predictions" / name
    if (out / "done").exists():
        return
    shutil.rmtree(out, ignore_errors=True)
    device = ("--device", "cpu")
    runs: dict[str, tuple[str | Path, ...]] = {
        "maps": ("predict", model, images, "--probabilities", "--uncertainty", *device),
        "quick": ("predict", model, images, "--no-mirror", "--overlap", "0.25", *device),
        "logits": ("predict", model, images, "--folds", "0", "--average", "logits", "--probabilities", *device),
    }
    if name == "plain":
        runs["one"] = ("predict", model, images, "--configuration", "2d", "--probabilities", *device)
    members = (out / "maps", out / "logits")
    runs["ensemble"] = ("ensemble", *members, "--weights", "0.7,0.3", "--probabilities")
    runs["ensemble_logits"] = ("ensemble", *members, "--average", "logits")
    for kind, words in runs.items():
        checkout.autounet(f"{name}_{kind}", *words, "--out", out / kind)
    (out / "done").touch()


def compared_files(name: str, before: Path, after: Path) -> list[str]:
    """Every file of the predictions but the programs' own notes in hidden folders."""
    found = [
        {path.relative_to(out) for path in out.rglob("*") if path.is_file() and ".predicted" not in path.parts}
        for out in (before, after)
    ]
    unlike = sorted(found[0] ^ found[1])
    unlike += sorted(
        path for path in found[0] & found[1] if (before / path).read_bytes() != (after / path).read_bytes()
    )
    return [f"predictions of {name}", f"{len(found[0] | found[1])} files", ", ".join(map(str, unlike)) or "none"]


def content(path: Path) -> bytes:
    """Unpacked, since libraries compress the same bytes differently."""
    return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()


if __name__ == "__main__":
    sys.exit(main())

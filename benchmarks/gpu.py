"""Everything that waits for a GPU, in one command of at most ten minutes: tests, memory, speed, and a short training.

    python benchmarks/gpu.py [--device cuda] [--data DATA/Task04_Hippocampus] [--only steps,training] [--small]

Each part is a process with a time limit of its own. The dated table is written anew after each one, so that it holds
what was measured when a later part fails or the machine is taken away. Needs torch, numpy, scipy and what AutoUNet
imports, no network; nnU-Net's network is measured beside ours where `dynamic_network_architectures` is installed, and
its loss where `nnunetv2` is. `--small` is a rehearsal, also on a CPU.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from measuring import REPOSITORY, commit, machine, public_command, table, write_results

log = logging.getLogger("benchmark")


@dataclass(frozen=True)
class Setting:
    """What every part is given."""

    device: str
    data: Path | None
    """of Task04"""
    work: Path
    small: bool

    @property
    def kind(self) -> str:
        return self.device.partition(":")[0]


@dataclass(frozen=True)
class Part:
    title: str
    seconds: int
    """its limit; the ten minutes are their sum"""
    measure: Callable[[Setting], str]


def autounet(setting: Setting, words: Sequence[str | Path]) -> float:
    """Seconds of a command. Raises CalledProcessError with the end of what it said."""
    began = time.monotonic()
    command = [sys.executable, "-m", "autounet", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPOSITORY)
    if done.returncode:
        raise RuntimeError(f"{public_command(command)} ended with {done.returncode}: {done.stderr[-1500:]}")
    return time.monotonic() - began


def tests(setting: Setting) -> str:
    """Those marked `gpu`; on a CPU the same ones on a device that keeps its memory on the host."""
    mark = "gpu" if setting.kind == "cuda" else "not gpu"
    command = [sys.executable, "-m", "pytest", "-q", "-m", mark, "tests/test_device.py", "-p", "no:cacheprovider"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPOSITORY)
    said = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR")) or " passed" in line]
    return "".join(f"    {line}\n" for line in said or done.stdout.splitlines()[-5:] or done.stderr.splitlines()[-5:])


def memory(setting: Setting) -> str:
    """`planning.py`: predicted and measured memory of training steps."""
    command = [sys.executable, "-P", "benchmarks/planning.py", "--device", setting.kind, "--results", setting.work]
    command += ["--only", "plain 192x192"] if setting.small else []
    subprocess.run([str(word) for word in command], check=True, cwd=REPOSITORY, stdout=subprocess.DEVNULL)
    return memory_so_far(setting)


def memory_so_far(setting: Setting) -> str:
    """Also where the time ran out: `planning.py` writes after each measurement."""
    text = next(setting.work.glob("planning_*.md")).read_text()
    return text[text.index("- median error") :]


def calibration(setting: Setting) -> str:
    from autounet.workflow.trial_steps import calibrate

    os.environ["XDG_CONFIG_HOME"] = str(setting.work)  # that of the machine is left alone
    margin, _ = calibrate(setting.kind)
    return f"{margin.bytes / 2**20:.0f} MiB and {margin.fraction:.1%} beyond what is traced\n"


SIZES = {"Task04's patch": (1, (40, 56, 40), 9), "BraTS' patch": (4, (128, 128, 128), 2)}
"""channels, patch and batch of nnU-Net's plans"""


def steps(setting: Setting) -> str:
    """Training steps on a batch that is on the device, of our network and nnU-Net's with the same topology."""
    from autounet.training.probe import probe_device

    profile = probe_device(setting.device)
    rows = []
    for name, (channels, patch, batch) in SIZES.items():
        if setting.small:
            patch, batch = tuple(side // 4 // 8 * 8 or 8 for side in patch), 2
        spec = topology(channels, patch)
        ours = step_seconds(setting, spec, patch, batch, profile.precision, profile.channels_last, "ours")
        theirs = None
        if importlib.util.find_spec("dynamic_network_architectures"):
            theirs = step_seconds(setting, spec, patch, batch, "fp16", False, "theirs")
        rows.append(
            [name, f"{batch} x {channels} x {' x '.join(map(str, patch))}", f"{profile.precision}", f"{ours:.4f}",
             f"{batch / ours:.1f}", "-" if theirs is None else f"{theirs:.4f}",
             "-" if theirs is None else f"{theirs / ours:.2f}"]
        )  # fmt: skip
    return table(["step", "input", "precision", "s/step", "volumes/s", "nnU-Net's s/step (fp16)", "ratio"], rows)


def topology(channels: int, patch: tuple[int, ...]) -> Any:
    """nnU-Net's rule: halved until 4 voxels are left, at most 6 stages, 32 features doubled up to 320."""
    from autounet.nets import FAMILIES

    stages = min(6, max(2, max(side.bit_length() - 2 for side in patch)))
    sizes, strides = list(patch), [(1,) * len(patch)]
    for _ in range(stages - 1):
        strides.append(tuple(2 if side >= 8 and side % 2 == 0 else 1 for side in sizes))
        sizes = [side // factor for side, factor in zip(sizes, strides[-1], strict=True)]
    return FAMILIES["plain"].propose(len(patch), channels, 3, strides, [(3,) * len(patch)] * stages, 32)


def step_seconds(
    setting: Setting, spec: Any, patch: tuple[int, ...], batch: int, precision: str, channels_last: bool, whose: str
) -> float:
    """Median of some steps, the device waited for after each few."""
    import torch

    from autounet.losses import Batch, build_loss
    from autounet.nets import FAMILIES
    from autounet.schema.labels import LabelClass, Labels
    from autounet.schema.options import TrainOptions
    from autounet.step import Precision, build_optimiser, train_step

    labels = Labels(classes=tuple(LabelClass(name=f"class {value}", value=value) for value in range(3)))
    device, by = torch.device(setting.device), Precision(precision, channels_last)  # type: ignore[arg-type]
    if whose == "ours":
        built = FAMILIES[spec.family].build(spec)
    else:
        from network_parity import their_network

        built = their_network(spec)
    model = by.place(built, device).train()
    loss = build_loss("dice_ce", labels, False, len(spec.decoder_blocks))
    optimiser, scaler = build_optimiser(TrainOptions(), model.parameters()), by.scaler(device)
    image = torch.randn(batch, spec.in_channels, *patch)
    made = Batch(image, torch.randint(3, (batch, *patch)).short()).to(device, channels_last)
    rounds, each = (2, 1) if setting.small else (6, 5)
    seconds = []
    for _ in range(rounds + 1):
        began = time.monotonic()
        for _ in range(each):
            train_step(model, loss, optimiser, scaler, made, by, 12.0)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append((time.monotonic() - began) / each)
    return statistics.median(seconds[1:])


def loop(setting: Setting) -> str:
    """The real loop with full augmentation on cases of four channels: how long the device waits for samples."""
    import numpy as np

    from autounet.imageio import write_image, write_labels
    from autounet.schema.geometry import Geometry

    shape = (24, 32, 24) if setting.small else (140, 160, 150)
    folder, rng = setting.work / "four_channels", np.random.default_rng(0)
    for case in range(6):
        (folder / f"case{case}").mkdir(parents=True, exist_ok=True)
        geometry = Geometry(shape=shape)
        inside = sum((np.ogrid[: shape[0], : shape[1], : shape[2]][axis] - shape[axis] / 2) ** 2 for axis in range(3))
        target = (inside < (min(shape) / 3) ** 2).astype(np.uint8) + (inside < (min(shape) / 6) ** 2)
        for channel in range(4):
            image = (rng.normal(size=shape) + target * (channel + 1)).astype(np.float32)
            write_image(folder / f"case{case}" / f"mri{channel}.nii.gz", image[None], geometry)
        write_labels(folder / f"case{case}" / "label.nii.gz", target.astype(np.uint8), geometry)
    out = setting.work / "loop"
    words = ["train", folder, "--out", out, "--device", setting.device, "--folds", "0", "--loss", "dice_ce"]
    words += ["--label", "label.nii.gz", "--configurations", "3d_fullres", "--memory", "10GB", "--workers", "4"]
    words += ["--iterations", "12" if setting.small else "250"]
    words += ["--memory", "1GB", "--workers", "0"] if setting.small else []
    autounet(setting, words)
    return waiting(out)


def waiting(out: Path) -> str:
    """Steps of the second half of each training."""
    rows = []
    for log_file in sorted(out.glob("models/*/fold_*/log.jsonl")):
        lines = [json.loads(line) for line in log_file.read_text().splitlines()]
        late = lines[len(lines) // 2 :]
        step, wait = (statistics.fmean(line[name] for line in late) for name in ("step_seconds", "data_wait_seconds"))
        planned = json.loads((out / "plan.json").read_text())["configurations"][log_file.parent.parent.name]
        size = f"{planned['batch_size']} x {' x '.join(map(str, planned['patch_size']))}"
        rows.append([log_file.parent.parent.name, size, f"{lines[-1]['step']}", f"{step:.3f}", f"{wait / step:.1%}"])
    return table(["training", "input", "steps", "s/step", "of it waiting for data"], rows)


def training(setting: Setting) -> str:
    """Fold 0 of Task04 in three minutes, the whole command; then 20 cases predicted by its model."""
    if setting.data is None:
        return "not run: no --data\n"
    out, given = setting.work / "task04", "2m" if setting.small else "3m"
    took = autounet(
        setting, ["run", setting.data, "--out", out, "--folds", "0", "--time", given, "--device", setting.device]
    )
    found = json.loads((out / "metrics.json").read_text())
    text = f"`autounet run Task04_Hippocampus --folds 0 --time {given}`: mean Dice {found['mean_dice']:.3f} over "
    text += f"{len(found['cases'])} cases, {took:.0f} s in all\n\n{waiting(out)}\n"
    images = setting.work / "images"
    images.mkdir()
    for image in sorted((setting.data / "imagesTr").glob("[!.]*.nii.gz"))[: 4 if setting.small else 20]:
        (images / image.name).symlink_to(image)
    words = ["predict", out / "model", images, "--out", setting.work / "predicted", "--device", setting.device]
    count = len(list(images.iterdir()))
    return f"{text}\n`autounet predict` of {count} cases by its model: {autounet(setting, words):.1f} s with starting\n"


PARTS = {
    "tests": Part("Tests", 90, tests),
    "calibration": Part("Calibration", 30, calibration),
    "steps": Part("Training steps", 60, steps),
    "loop": Part("Waiting for data", 90, loop),
    "training": Part("A short training", 230, training),
    "memory": Part("Predicted and measured memory", 100, memory),
}
SMALL_SHARE = 4
"""times the limit in a rehearsal on a CPU"""


def run_part(name: str, setting: Setting) -> str:
    """The section of one part, by a process of its own; what went wrong in place of what was not measured."""
    result, limit = setting.work / f"{name}.md", PARTS[name].seconds * (SMALL_SHARE if setting.small else 1)
    command = [sys.executable, "-P", __file__, "--part", name, "--work", setting.work, "--device", setting.device]
    command += [*(["--data", setting.data] if setting.data else []), *(["--small"] if setting.small else [])]
    began = time.monotonic()
    try:
        done = subprocess.run(
            [str(word) for word in command], timeout=limit, capture_output=True, text=True, check=False,
            start_new_session=True,
        )  # fmt: skip
        text = result.read_text() if result.exists() else f"failed:\n\n    {done.stderr.strip()[-1500:]}\n"
    except subprocess.TimeoutExpired:
        text = f"not ended within {limit} s\n"
        if name == "memory" and any(setting.work.glob("planning_*.md")):
            text += f"\n{memory_so_far(setting)}"
    log.info("%s: %.0f s", name, time.monotonic() - began)
    return f"## {PARTS[name].title}\n\n{text}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--data", type=Path, help="Task04 as it is distributed")
    parser.add_argument("--only", default=",".join(PARTS), help="parts, separated by commas")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--results", type=Path, default=Path(__file__).with_name("results"))
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    data = given.data.resolve() if given.data else None
    if given.part:
        text = PARTS[given.part].measure(Setting(given.device, data, given.work, given.small))
        (given.work / f"{given.part}.md").write_text(text)
        return
    head = "\n".join(
        [
            "# On one device: tests, memory, speed and a short training\n",
            f"- command: `python {public_command([f'benchmarks/{Path(__file__).name}', *sys.argv[1:]])}`",
            f"- machine: {machine()}",
            f"- device: {device_name(given.device)}",
            f"- commit: {commit()}\n",
        ]
    )
    sections: list[str] = []
    with tempfile.TemporaryDirectory() as work:
        for name in given.only.split(","):
            sections.append(run_part(name, Setting(given.device, data, Path(work), given.small)))
            path = write_results(f"gpu_{given.device.partition(':')[0]}", "\n".join([head, *sections]), given.results)
    sys.stdout.write(path.read_text())


def device_name(device: str) -> str:
    import torch

    return torch.cuda.get_device_name(device) if device.startswith("cuda") else device


if __name__ == "__main__":
    main()

"""How time, memory and files grow with the number of cases: thousands of tiny ones through every stage.

    python benchmarks/growth.py --work DIR [--sizes 1000,3000,10000] [--stages check,fingerprint,...]

Each stage is a command of its own: seconds on the clock and of the processor, and peak memory of its largest process.
The exponent is that of the processor's seconds over cases, between the two largest sets, less what the smallest takes.
Writes benchmarks/results/growth.md from all that is in DIR; what is measured there is not measured again.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path

from measuring import commit, machine, run

RESULTS = Path(__file__).resolve().parent / "results" / "growth.md"
SHAPE = (8, 16, 16)
STAGES = ("check", "fingerprint", "plan", "preprocess", "train", "status", "predict")
OPTIONS = (
    "--iterations", "2", "--folds", "0", "--configurations", "3d_fullres", "--memory", "600MB", "--device", "cpu",
    "--workers", "1",
)  # fmt: skip


def make_cases(folder: Path, cases: int) -> None:
    """Noise with a brighter box, which is the label; pairs of folders of uncompressed NIfTI."""
    import numpy as np

    from autounet.imageio import write_image, write_labels
    from autounet.schema.geometry import Geometry

    geometry, random = Geometry(shape=SHAPE, spacing=(2.0, 1.0, 1.0)), np.random.default_rng(0)
    for index in range(cases):
        z, y, x = (int(random.integers(1, size // 2)) for size in SHAPE)
        labels = np.zeros(SHAPE, np.uint8)
        labels[z : z + 4, y : y + 6, x : x + 6] = 1
        image = random.integers(0, 60, SHAPE) + 80 * labels
        write_image(folder / f"images/c{index:05d}.nii", image.astype(np.int16)[None], geometry)
        write_labels(folder / f"labels/c{index:05d}.nii", labels, geometry)


def command(stage: str, work: Path) -> list[str | Path]:
    data, out = work / "data", work / "out"
    words: dict[str, list[str | Path]] = {
        "check": [data],
        "status": [out],
        "predict": [out / "model", data / "images", "--out", work / "predicted", "--device", "cpu", "--no-mirror"],
    }
    return [sys.executable, "-m", "autounet", stage, *words.get(stage, [data, "--out", out, *OPTIONS])]


def measure(work: Path, stage: str) -> dict[str, float]:
    if stage == "predict":  # of the one fold: packed beforehand, which is no stage of its own here
        run([sys.executable, "-m", "autounet", "select", work / "data", "--out", work / "out", *OPTIONS], work / "log")
    measured = run(command(stage, work), work / "log", {"OMP_NUM_THREADS": "1"})
    folder = work / ("predicted" if stage == "predict" else "out")
    counts = [sum(each.is_file() for each in place.iterdir()) for place in _folders(folder)]
    return {
        "seconds": measured.seconds,
        "cpu": measured.cpu_seconds,
        "peak": measured.peak_bytes,
        "files": sum(counts),
        "most": max(counts, default=0),
    }


def _folders(folder: Path) -> list[Path]:
    return [folder, *(each for each in folder.rglob("*") if each.is_dir())] if folder.is_dir() else []


def exponent(sizes: Sequence[int], seconds: Sequence[float]) -> float | None:
    """Of the two largest sets, less what the smallest costs: starting, and probing the device."""
    if len(sizes) < 3 or seconds[-2] <= seconds[0] * 1.1:
        return None
    small, middle, large = seconds[0], seconds[-2], seconds[-1]
    return math.log(max(large - small, 1e-3) / (middle - small)) / math.log(
        (sizes[-1] - sizes[0]) / (sizes[-2] - sizes[0])
    )


def table(found: dict[int, dict[str, dict[str, float]]]) -> str:
    sizes = sorted(found)
    lines = [
        f"# Growth, {date.today()}\n",
        f"Cases of {' x '.join(map(str, SHAPE))} voxels; two steps of one fold, whose validation has a fifth of the "
        f"cases. {machine()}, {commit()}. Seconds on the clock (beside other work), of the processor, and memory.\n",
        "| stage | " + " | ".join(f"{size:,} cases" for size in sizes) + " | exponent | files, most in a folder |",
        "|---" * (len(sizes) + 3) + "|",
    ]
    for stage in STAGES:
        there = [size for size in sizes if stage in found[size]]
        cells = [
            f"{each['seconds']:.1f} s, {each['cpu']:.1f} s, {each['peak'] / 2**20:.0f} MB"
            if (each := found[size].get(stage))
            else ""
            for size in sizes
        ]
        if not there:
            continue
        grown = exponent(there, [found[size][stage]["cpu"] for size in there])
        last = found[there[-1]][stage]
        files = f"{last['files']:,.0f}, {last['most']:,.0f}" if stage not in ("check", "status") else ""
        lines.append(f"| {stage} | " + " | ".join(cells) + f" | {'' if grown is None else f'{grown:.2f}'} | {files} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--sizes", default="1000,3000,10000")
    parser.add_argument("--stages", default=",".join(STAGES))
    given = parser.parse_args()
    for size in map(int, given.sizes.split(",")):
        work = given.work / str(size)
        done = work / "measured.json"
        measured = json.loads(done.read_text()) if done.exists() else {}
        if not (work / "made").exists():
            shutil.rmtree(work, ignore_errors=True)
            make_cases(work / "data", size)
            (work / "made").touch()
        for stage in [each for each in STAGES if each in given.stages.split(",") and each not in measured]:
            measured[stage] = measure(work, stage)
            done.write_text(json.dumps(measured))
            sys.stdout.write(f"{size} {stage}: {measured[stage]['seconds']:.1f} s\n")
            sys.stdout.flush()
    there = sorted(given.work.glob("*/measured.json"))
    RESULTS.write_text(table({int(each.parent.name): json.loads(each.read_text()) for each in there}))


if __name__ == "__main__":
    main()

"""How long `autounet evaluate` takes: 100 cases of 256^3 voxels with five classes, the default metrics.

    python benchmarks/evaluating.py [--cases 100] [--out OUT]

The structures are blobs with rough surfaces, each within a box of up to 120^3 voxels; a prediction is its reference
shifted by a voxel or two with another roughness. The goal for 100 cases on 2 cores is under 3 minutes.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from measuring import commit, cores, machine, memory_text, public_command, run, seconds_text, table, write_results
from scipy import ndimage

log = logging.getLogger("benchmark")

PROGRAM = Path(sys.executable).with_name("autounet")
SIZE, LARGEST, CLASSES = 256, 120, 5
GOAL_SECONDS = 180
ROUGHNESS = 0.15
"""standard deviation of the radius, as a share of it"""
SPACING = (1.0, 1.0, 1.0)


def blob(size: int, random: np.random.Generator, coarse: np.ndarray) -> np.ndarray:
    """A ball in a cube of `size` voxels whose radius varies with the smooth noise `coarse` and a little of its own."""
    axes = np.linspace(-1, 1, size, dtype=np.float32)
    radius = np.sqrt(axes[:, None, None] ** 2 + axes[:, None] ** 2 + axes**2)
    noise = coarse + 0.2 * random.standard_normal(coarse.shape).astype(np.float32)
    rough = ndimage.zoom(noise, size / coarse.shape[0], order=1)
    return radius < 0.8 * (1 + ROUGHNESS * rough)


def case(index: int) -> tuple[np.ndarray, np.ndarray]:
    """Prediction and reference, (Z, Y, X) uint8."""
    random = np.random.default_rng(index)
    prediction, reference = (np.zeros((SIZE,) * 3, np.uint8) for _ in range(2))
    for value in range(1, CLASSES + 1):
        size = int(random.integers(LARGEST // 2, LARGEST + 1))
        corner = random.integers(2, SIZE - size - 2, 3)
        coarse = random.standard_normal((6, 6, 6)).astype(np.float32)
        for image, shift in ((reference, 0), (prediction, random.integers(-2, 3, 3))):
            box = tuple(slice(start, start + size) for start in corner + shift)
            image[box][blob(size, random, coarse)] = value
    return prediction, reference


def write_case(index: int, folders: tuple[Path, Path]) -> None:
    for array, folder in zip(case(index), folders, strict=True):
        folder.mkdir(parents=True, exist_ok=True)
        image = sitk.GetImageFromArray(array)
        image.SetSpacing(SPACING)
        sitk.WriteImage(image, str(folder / f"case_{index:03d}.nii.gz"), useCompression=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=100)
    parser.add_argument("--out", type=Path, default=Path(tempfile.gettempdir()) / "autounet-evaluating")
    parser.add_argument("--results", type=Path, default=Path(__file__).with_name("results"))
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    out = given.out.resolve()
    folders = out / "predictions", out / "references"
    for index in range(given.cases):
        if not all((folder / f"case_{index:03d}.nii.gz").exists() for folder in folders):
            write_case(index, folders)
    log.info("%d cases are written", given.cases)

    command = ["evaluate", *folders, "--out", out / "metrics.json"]
    measured = run([PROGRAM, *command], out / "evaluate.log")
    metrics = json.loads((out / "metrics.json").read_text())
    goal = GOAL_SECONDS * given.cases / 100
    text = "\n".join(
        [
            "# Evaluating\n",
            f"- command: `python {public_command([f'benchmarks/{Path(__file__).name}', *sys.argv[1:]])}`",
            f"- machine: {machine()}",
            f"- commit: {commit()}",
            f"- goal: under {seconds_text(goal)} for {given.cases} cases; "
            f"{'reached' if measured.seconds < goal else 'NOT reached'}\n",
            table(
                ["command", "cores", "cases", "mean Dice", "wall time", "a case", "peak memory"],
                [
                    [
                        f"`autounet {public_command(command)}`",
                        str(cores()),
                        str(len(metrics["cases"])),
                        f"{metrics['mean_dice']:.4f}",
                        seconds_text(measured.seconds),
                        seconds_text(measured.seconds / given.cases),
                        memory_text(measured.peak_bytes),
                    ]
                ],
            ),
        ]
    )
    write_results("evaluating", text, given.results)
    sys.stdout.write(text)
    if measured.seconds >= goal:
        sys.exit(1)


if __name__ == "__main__":
    main()

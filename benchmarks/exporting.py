"""From scores of 40 classes to a label image in the file's own voxels: AutoUNet and nnU-Net 2.8.1, in turns.

    python benchmarks/exporting.py --work WORK --environment NNUNET_ENVIRONMENT [--repeat 3]

The scores (40 x 100 x 128 x 128, for an image of 200 x 256 x 256) are made: 39 organs that fill a body, with borders as
soft as a trained network's, and noise. Each program gets them from a file in a process of its own, which reports the
seconds of the export alone; memory is the peak of that process beyond what it holds before the export. nnU-Net's
side calls its own resampling of probabilities and its decision, in the environment that `vs_nnunet.py` makes.
"""

from __future__ import annotations

import argparse
import importlib
import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

CLASSES, GRID, IMAGE = 40, (100, 128, 128), (200, 256, 256)


def make(work: Path) -> None:
    """`scores.npy` (K, Z, Y, X) float32 and `properties.json`, of a prepared case."""
    import numpy as np
    from scipy import ndimage

    from autounet.preprocessing import prepare_case
    from autounet.schema.geometry import Geometry
    from autounet.schema.plan import ChannelNormalisation, PreprocessSpec

    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, length) for length in GRID), indexing="ij")).astype(np.float32)
    centres = rng.uniform(-0.6, 0.6, (CLASSES - 1, 3))
    scores = np.empty((CLASSES, *GRID), np.float32)
    scores[0] = 60 * (np.sqrt((grid**2).sum(0)) - 0.75)
    for index, centre in enumerate(centres, 1):
        scores[index] = -40 * np.sqrt(((grid - centre[:, None, None, None]) ** 2).sum(0)) * rng.uniform(0.7, 1.3)
    for channel in scores:
        channel += 4 * ndimage.gaussian_filter(rng.normal(size=GRID), 2).astype(np.float32)
        channel += rng.normal(0, 0.05, GRID).astype(np.float32)
    scores[0] += scores[1:].max(0)
    np.save(work / "scores.npy", scores)
    image = rng.normal(size=(1, *IMAGE)).astype(np.float32)
    spec = PreprocessSpec(spacing=(2.0, 2.0, 2.0), normalisation=(ChannelNormalisation(scheme="none"),))
    geometry = Geometry(shape=IMAGE, spacing=(1.0, 1.0, 1.0), kind="nifti", dimension=3)
    prepared = prepare_case("case", "", image, None, geometry, spec)
    assert prepared.properties.shape == GRID
    (work / "properties.json").write_text(prepared.properties.model_dump_json())


def ours(work: Path, scores: Any) -> Any:
    from autounet.inference.export import export
    from autounet.schema.geometry import CaseProperties
    from autounet.schema.labels import LabelClass, Labels

    properties = CaseProperties.model_validate_json((work / "properties.json").read_text())
    names = [LabelClass(name="background" if not value else f"c{value}", value=value) for value in range(CLASSES)]
    return export([(scores, properties)], Labels(classes=tuple(names)))


def theirs(work: Path, scores: Any) -> Any:
    import torch
    from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg_to_shape

    large = resample_data_or_seg_to_shape(scores, IMAGE, (2.0,) * 3, (1.0,) * 3, is_seg=False, order=1, order_z=0)
    return torch.as_tensor(large).argmax(0).numpy()


MODULES = {
    "ours": ("autounet.inference.export",),
    "theirs": ("torch", "nnunetv2.preprocessing.resampling.default_resampling"),
}
"""imported before the clock starts"""
PROGRAMS: dict[str, Callable[[Path, Any], Any]] = {"ours": ours, "theirs": theirs}


def measure(program: str, work: Path) -> None:
    """Prints seconds and peak bytes of one export, and keeps its labels."""
    import numpy as np

    scores = np.load(work / "scores.npy")
    for module in MODULES[program]:
        importlib.import_module(module)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    labels = PROGRAMS[program](work, scores)
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    np.save(work / f"{program}.npy", np.asarray(labels).astype(np.uint8))
    print(json.dumps({"seconds": seconds, "peak": 1024 * peak}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--environment", type=Path)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--results", type=Path, default=Path(__file__).with_name("results"))
    parser.add_argument("--one", choices=list(PROGRAMS), help=argparse.SUPPRESS)
    parser.add_argument("--make", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    if given.make:
        return make(given.work)
    if given.one:
        return measure(given.one, given.work)
    if given.environment is None:
        parser.error("--environment is needed: vs_nnunet.py makes one")
    return compare(given.work, given.environment, given.repeat, given.results)


def compare(work: Path, environment: Path, repeat: int, results: Path) -> None:
    import subprocess

    from measuring import commit, machine, median, memory_text, public_command, seconds_text, table, write_results

    def child(python: Path, *words: str) -> str:
        command = [python, "-P", Path(__file__), "--work", work, *words]
        done = subprocess.run([str(word) for word in command], check=True, capture_output=True, text=True)
        return done.stdout

    if not (work / "properties.json").exists():
        child(Path(sys.executable), "--make")
    pythons = {"ours": Path(sys.executable), "theirs": environment / "bin" / "python"}
    found: dict[str, list[dict[str, float]]] = {name: [] for name in PROGRAMS}
    for _ in range(repeat):
        for name, python in pythons.items():
            found[name].append(json.loads(child(python, "--one", name).splitlines()[-1]))
            print(name, found[name][-1], flush=True)
    seconds, peaks = ({name: [each[key] for each in own] for name, own in found.items()} for key in ("seconds", "peak"))
    equal = _agreement(work)
    rows = [
        (
            label,
            f"{seconds_text(median(seconds[name]))} ({min(seconds[name]):.2f} to {max(seconds[name]):.2f})",
            memory_text(median(peaks[name])),
        )
        for name, label in (("ours", "AutoUNet"), ("theirs", "nnU-Net 2.8.1"))
    ]
    text = f"""# Exporting 40 classes

- command: `python {public_command([f"benchmarks/{Path(__file__).name}", *sys.argv[1:]])}`
- machine: {machine()}
- commit: {commit()}
- scores of 40 x 100 x 128 x 128 to labels of 200 x 256 x 256; medians of {repeat} turns, with the shortest and longest

{table(("program", "seconds", "memory beyond what was held before"), rows)}
AutoUNet is {median(seconds["theirs"]) / median(seconds["ours"]):.1f} times as fast, in
{median(peaks["ours"]) / median(peaks["theirs"]):.2f} of the memory; {equal:.4%} of the voxels have the same label.
"""
    write_results("exporting", text, results)


def _agreement(work: Path) -> float:
    import numpy as np

    return float((np.load(work / "ours.npy") == np.load(work / "theirs.npy")).mean())


if __name__ == "__main__":
    main()

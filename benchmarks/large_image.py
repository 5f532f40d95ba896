"""An OME-Zarr image that is larger than the memory through `autounet predict`: memory and seconds.

    python benchmarks/large_image.py --work DIR [--shape 1536,1280,1280] [--limit 3]

A small model is trained on synthetic cases of 2 x 1 x 1 mm, and predicts an image of the same content at a quarter of
each spacing. The process may have `--limit` GiB of memory of its own (RLIMIT_DATA); what it had is measured as well.
Writes benchmarks/results/large_image.md; what is in DIR is not made again.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from datetime import date
from pathlib import Path

from measuring import commit, machine, memory_text, run, seconds_text, table

RESULTS = Path(__file__).resolve().parent / "results" / "large_image.md"
FINER = 4
CHUNK = 128
TRAINING = (
    "--iterations", "60", "--folds", "0", "--configurations", "3d_fullres", "--memory", "600MB", "--device", "cpu",
    "--workers", "1",
)  # fmt: skip


def make_image(path: Path, shape: tuple[int, ...]) -> None:
    """A synthetic case side by side with itself, each voxel as a block, with some noise: uint16 in chunks."""
    import numpy as np
    import zarr

    from autounet.datasets.synthetic import make_case

    random = np.random.default_rng(0)
    case, _, _ = make_case(random, (24, 40, 40))
    small = np.round(20 * case[0]).astype(np.uint16)
    levels = {"path": "0", "coordinateTransformations": [{"type": "scale", "scale": [2 / FINER, 1 / FINER, 1 / FINER]}]}
    axes = [{"name": name, "type": "space", "unit": "millimeter"} for name in "zyx"]
    group = zarr.open_group(str(path), mode="w", zarr_format=3)
    group.attrs.update({"ome": {"version": "0.5", "multiscales": [{"axes": axes, "datasets": [levels]}]}})
    array = group.create_array("0", shape=shape, chunks=(CHUNK,) * 3, dtype="uint16")
    places = [np.arange(length) // FINER % size for length, size in zip(shape, small.shape, strict=True)]
    for start in range(0, shape[0], CHUNK):
        slab = small[np.ix_(places[0][start : start + CHUNK], places[1], places[2])]
        array[start : start + CHUNK] = slab + random.integers(0, 16, slab.shape, np.uint8)


def narrow(path: Path) -> None:
    """An edit of a plan: the network's time is not what is measured here."""
    plan = json.loads(path.read_text())
    network = plan["configurations"]["3d_fullres"]["network"]
    network["features"] = [8 * 2**stage for stage in range(len(network["features"]))]
    path.write_text(json.dumps(plan, indent=1))


def size_of(folder: Path) -> int:
    return sum(each.stat().st_size for each in folder.rglob("*") if each.is_file())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--shape", default="1536,1280,1280")
    parser.add_argument("--limit", type=float, default=3.0)
    parser.add_argument("--make", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    shape = tuple(map(int, given.shape.split(",")))
    if given.make:  # in a process of its own, as this one stays small
        make_image(given.make, shape)
        return
    work, program = given.work, [sys.executable, "-m", "autounet"]
    if not (work / "out" / "model").exists():
        code = "import sys; from pathlib import Path; from autounet.datasets.synthetic import make_demo_dataset as make"
        run([sys.executable, "-c", f"{code}; make(Path(sys.argv[1]), 10)", work / "data"], work / "log")
        run([*program, "plan", work / "data", "--out", work / "out", *TRAINING], work / "log")
        narrow(work / "out" / "plan.json")
        run([*program, "run", work / "data", "--out", work / "out", *TRAINING], work / "log")
    image = work / "images" / "large.ome.zarr"
    if not image.exists():
        part = work / "part.ome.zarr"
        run([sys.executable, __file__, "--work", work, "--shape", given.shape, "--make", part], work / "log")
        image.parent.mkdir(exist_ok=True)
        part.rename(image)
    shutil.rmtree(work / "predicted", ignore_errors=True)
    words = [*program, "predict", work / "out" / "model", image.parent, "--out", work / "predicted"]
    words += ["--no-mirror", "--overlap", "0.25", "--device", "cpu"]
    limited = ["bash", "-c", f'ulimit -d {round(given.limit * 2**20)} && exec "$@"', "predict", *words]
    measured = run(limited, work / "predict.log", {"OMP_NUM_THREADS": "1"})
    (line,) = [each for each in (work / "predict.log").read_text().splitlines() if "some rows at a time" in each]
    voxels = shape[0] * shape[1] * shape[2]
    rows = [
        ["image", f"{' x '.join(map(str, shape))} voxels, uint16, {memory_text(2 * voxels)}"],
        ["on the disk", memory_text(size_of(image))],
        ["segmentation", memory_text(size_of(work / "predicted"))],
        ["limit of memory (`ulimit -d`)", f"{given.limit:g} GiB"],
        ["peak memory", memory_text(measured.peak_bytes)],
        ["time", f"{seconds_text(measured.seconds)}, of the processor {seconds_text(measured.cpu_seconds)}"],
    ]
    text = f"""# An image larger than the memory, {date.today()}

{machine()}, {commit()}, one thread. Peak memory is resident memory, pages of files and libraries included.

    autounet predict MODEL IMAGES --out OUT --no-mirror --overlap 0.25 --device cpu

    {line.split("case ", 1)[-1]}

{table(["", "large.ome.zarr"], rows)}"""
    RESULTS.write_text(text, encoding="utf-8")
    sys.stdout.write(text)


if __name__ == "__main__":
    main()

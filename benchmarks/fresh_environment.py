"""Whether a packed model predicts the same bits in an environment that holds the package and nothing else of ours.

    python benchmarks/fresh_environment.py MODEL IMAGES [--out OUT]

Makes a virtual environment, installs this checkout there as a user would (not in place), copies MODEL, and predicts
IMAGES with both installations, each in a folder of its own. Every segmentation has to be equal, byte for byte.
"""

from __future__ import annotations

import argparse
import logging
import shutil
import sys
import tempfile
from pathlib import Path

from measuring import REPOSITORY, commit, machine, public_command, run, seconds_text, write_results

log = logging.getLogger("benchmark")


def install(folder: Path, logs: Path) -> Path:
    """A new virtual environment with the package; the path of its program."""
    run([sys.executable, "-m", "venv", folder], logs / "venv.log")
    pip = [folder / "bin" / "python", "-m", "pip", "install", "-c", REPOSITORY / "constraints.txt"]
    run([*pip, "torch"], logs / "torch.log")  # first and alone, so that nothing later chooses another one
    run([*pip, REPOSITORY], logs / "package.log")
    return folder / "bin" / "autounet"


def same(first: Path, second: Path) -> list[str]:
    """What differs between two folders of segmentations; empty: nothing."""
    names = {path.name for path in first.iterdir()} | {path.name for path in second.iterdir()}
    pairs = [(name, first / name, second / name) for name in sorted(names) if not name.startswith(".")]
    return [
        name
        for name, ours, theirs in pairs
        if ours.is_file() != theirs.is_file() or (ours.suffix != ".json" and ours.read_bytes() != theirs.read_bytes())
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("--out", type=Path, default=Path(tempfile.gettempdir()) / "autounet-fresh")
    parser.add_argument("--results", type=Path, default=Path(__file__).with_name("results"))
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    out = given.out.resolve()
    if out.exists():
        sys.exit(f"{out} exists already. Give another --out.")

    here, logs = Path(sys.executable).with_name("autounet"), out / "logs"
    fresh = install(out / "environment", logs)
    model = Path(shutil.copytree(given.model, out / "copied"))
    images = given.images.resolve()
    first = run([here, "predict", given.model.resolve(), images, "--out", out / "here"], logs / "here.log")
    second = run([fresh, "predict", model, images, "--out", out / "fresh"], logs / "fresh.log")
    differing = same(out / "here", out / "fresh")
    count = len([path for path in (out / "fresh").iterdir() if path.is_file()])
    verdict = (
        "all files are equal, byte for byte"
        if count and not differing
        else f"DIFFERENT: {', '.join(differing) or 'none'}"
    )
    text = "\n".join(
        [
            "# A copied model in a fresh environment\n",
            f"- command: `python {public_command([f'benchmarks/{Path(__file__).name}', *sys.argv[1:]])}`",
            f"- machine: {machine()}",
            f"- commit: {commit()}",
            f"- {count} files; here {seconds_text(first.seconds)}, there {seconds_text(second.seconds)}: {verdict}",
            "",
        ]
    )
    write_results("fresh_environment", text, given.results)
    sys.stdout.write(text)
    if differing or not count:
        sys.exit(1)


if __name__ == "__main__":
    main()

"""Checking a data set and taking its fingerprint: AutoUNet and nnU-Net 2.8.1, alternating on one machine.

    python benchmarks/reading.py --task04 DATA/Task04_Hippocampus --openkbp DATA/Dataset100_OpenKBP5 [--repeat 1]

AutoUNet reads both folders as they are. nnU-Net gets an environment of its own (made when missing) and the data in its
raw layout. Peak memory is measured for 20, 40 and 80 cases of the second data set as well.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from measuring import (
    MEMORY_NOTE,
    CommandFailed,
    Measured,
    commit,
    cores,
    machine,
    median,
    memory_text,
    public_command,
    run,
    seconds_text,
    table,
    write_results,
)
from nnunet_program import NnUNet

log = logging.getLogger("benchmark")

AIM = 3.0
"""how many times faster we want to be"""
CASES = 40
SERIES = (20, 40, 80)
NNUNET_ID = 140
NNUNET_NAME = f"Dataset{NNUNET_ID}_OpenKBP"
OURS, THEIRS, AGAIN = "AutoUNet", NnUNet.name, "AutoUNet, nothing changed"


@dataclass
class Reading:
    """Folders below `work`, and what was measured: (data set, program) -> one measurement a repetition."""

    task04: Path
    openkbp: Path
    work: Path
    nnunet: NnUNet
    samples: dict[tuple[str, str], list[Measured]] = field(default_factory=dict)

    def measure(self, repeat: int) -> None:
        sets = {"Task04, 260 cases": (self.task04, 4), f"OpenKBP, {CASES} cases": (self.subset(CASES), NNUNET_ID)}
        self.raw_for_nnunet(self.subset(CASES))
        for name, (folder, number) in sets.items():
            for repetition in range(repeat):
                programs = (OURS, THEIRS) if repetition % 2 == 0 else (THEIRS, OURS)
                for program in programs:
                    found = self.ours(folder) if program == OURS else self.theirs(number)
                    self.keep(name, program, found)
                self.keep(name, AGAIN, self.ours(folder, again=True))
        for count in SERIES:
            folder = self.subset(count)
            for _ in range(repeat):
                self.keep(f"OpenKBP, {count} cases, memory", OURS, self.ours(folder))

    def keep(self, name: str, program: str, found: Measured) -> None:
        self.samples.setdefault((name, program), []).append(found)
        log.info("%s, %s: %s, %s", name, program, seconds_text(found.seconds), memory_text(found.peak_bytes))

    def seconds(self, name: str, program: str) -> float:
        return median([each.seconds for each in self.samples[name, program]])

    def peak(self, name: str, program: str) -> float:
        return median([each.peak_bytes for each in self.samples[name, program]])

    # what is timed

    def ours(self, folder: Path, again: bool = False) -> Measured:
        """`autounet fingerprint`, which checks; `again` in the same output folder."""
        out = self.work / "out"
        if not again:
            shutil.rmtree(out, ignore_errors=True)
        program = Path(sys.executable).with_name("autounet")
        return run([program, "fingerprint", folder, "--out", out], self.work / "logs" / "autounet.log")

    def theirs(self, number: int) -> Measured:
        command = "nnUNetv2_extract_fingerprint"
        words = [self.nnunet.bin / command, "-d", number, "--verify_dataset_integrity", "--clean", "-np", cores()]
        return run([str(word) for word in words], self.work / "logs" / f"{command}.log", self.nnunet.variables)

    # set-up, never timed

    def subset(self, count: int) -> Path:
        """The first cases of OpenKBP, linked, in nnU-Net's raw layout, which both programs read."""
        folder = self.work / f"openkbp_{count}"
        if folder.exists():
            return folder
        unfinished = folder.with_name(f"{folder.name}_unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        images = sorted((self.openkbp / "imagesTr").glob("*.nii.gz"))[:count]
        names = {path.name.removesuffix("_0000.nii.gz") for path in images}
        labels = [path for path in sorted((self.openkbp / "labelsTr").glob("*.nii.gz")) if path.name[:-7] in names]
        for part, files in (("imagesTr", images), ("labelsTr", labels)):
            (unfinished / part).mkdir(parents=True)
            for path in files:
                (unfinished / part / path.name).symlink_to(path)
        description = json.loads((self.openkbp / "dataset.json").read_text())
        (unfinished / "dataset.json").write_text(json.dumps({**description, "numTraining": len(images)}))
        unfinished.rename(folder)
        return folder

    def raw_for_nnunet(self, folder: Path) -> None:
        """The same files with a dataset.json that nnU-Net accepts: it wants a class called background."""
        raw = self.nnunet.raw.parent / NNUNET_NAME
        if raw.exists():
            return
        raw.mkdir(parents=True)
        for part in ("imagesTr", "labelsTr"):
            (raw / part).symlink_to(folder / part, target_is_directory=True)
        description = json.loads((folder / "dataset.json").read_text())
        named = {name: value for name, value in description["labels"].items() if value != 0}
        description["labels"] = {"background": 0, **named}
        (raw / "dataset.json").write_text(json.dumps(description))


def report(found: Reading, command: list[str], repeat: int) -> str:
    """The markdown page."""
    names = [name for name, program in found.samples if program == THEIRS]
    rows = [
        [
            name,
            seconds_text(found.seconds(name, OURS)),
            seconds_text(found.seconds(name, THEIRS)),
            f"{found.seconds(name, THEIRS) / found.seconds(name, OURS):.2f}",
            f"{AIM:g}",
            seconds_text(found.seconds(name, AGAIN)),
            memory_text(found.peak(name, OURS)),
            memory_text(found.peak(name, THEIRS)),
        ]
        for name in names
    ]
    header = ["check + fingerprint", OURS, THEIRS, "times faster", "aim", "ours again, nothing changed"]
    header += [f"peak {OURS}", f"peak {THEIRS}"]
    series = {count: found.peak(f"OpenKBP, {count} cases, memory", OURS) for count in SERIES}
    peaks = [[str(count), memory_text(peak), f"{peak / series[SERIES[0]]:.3f}"] for count, peak in series.items()]
    return "\n".join(
        [
            "# Checking a data set and taking its fingerprint\n",
            f"- command: `python {public_command(command)}`",
            f"- machine: {machine()}",
            f"- commit: {commit()}",
            f"- each number is the median of {repeat} alternating run{'s' if repeat > 1 else ''}\n",
            table(header, rows),
            "Ours is `autounet fingerprint`, which checks; theirs `nnUNetv2_extract_fingerprint "
            "--verify_dataset_integrity`, with as many processes as there are cores. Ours finds more (duplicates, "
            "components, outliers, values) and writes the folds as well.\n",
            "Peak memory of ours against the number of cases, all of 128 x 128 x 128 voxels:\n",
            table(["cases", "peak", f"of that with {SERIES[0]}"], peaks),
            MEMORY_NOTE,
            "",
        ]
    )


def main() -> None:
    temporary = Path(tempfile.gettempdir())
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task04", type=Path, required=True, help="the folder Task04_Hippocampus")
    parser.add_argument("--openkbp", type=Path, required=True, help="the folder Dataset100_OpenKBP5")
    parser.add_argument("--environment", type=Path, default=temporary / "nnunet-env", help="nnU-Net's own environment")
    parser.add_argument("--work", type=Path, default=temporary / "autounet-reading", help="files made on the way")
    parser.add_argument("--repeat", type=int, default=1, help="runs of each program")
    parser.add_argument("--results", type=Path, default=Path(__file__).with_name("results"))
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    work, task04 = given.work.resolve(), given.task04.resolve()
    try:
        nnunet = NnUNet.installed(given.environment.resolve(), task04, work)
        found = Reading(task04, given.openkbp.resolve(), work, nnunet)
        found.measure(given.repeat)
    except CommandFailed as error:
        sys.exit(str(error))
    text = report(found, [f"benchmarks/{Path(__file__).name}", *sys.argv[1:]], given.repeat)
    write_results("reading", text, given.results)
    sys.stdout.write(text)


if __name__ == "__main__":
    main()

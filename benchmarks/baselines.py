"""Every data set with published results that lies in a folder: run, and set beside what was published.

    python benchmarks/baselines.py --data FOLDER --out OUT [--only NAME ...] [--time 2h] [--device cuda]

FOLDER holds data sets under any names that `autounet compare` recognises (autounet/report/published.json). Each is run
into OUT/NAME: what is finished there is kept, and an interrupted run continues, so that the same command brings a long
list to its end. `--time` is the budget of each data set; without it the program's own rule holds. Options not listed
here are handed to `autounet run`. The table, results/baselines.md, is written anew after each data set from what OUT
holds.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from known_sets import JOBS, Job
from measuring import CommandFailed, commit, machine, public_command, run, seconds_text, table

from autounet.report.output_records import OutputRecords, read_output_records
from autounet.report.published import MEAN, PUBLISHED_FILE, compare_published
from autounet.schema.metrics import ComparedFigure, KnownDataSet, Metrics, PublishedTable

log = logging.getLogger("benchmark")

PROGRAM = Path(sys.executable).with_name("autounet")
REFERENCE = "nnU-Net"
"""whose figure the gap is told for, where there is one; else the best"""


@dataclass(frozen=True)
class Found:
    """A known data set on the disk."""

    name: str
    """short, for --only and the output folder"""
    known: KnownDataSet
    folder: Path
    options: tuple[str, ...] = ()
    job: Job | None = None


def plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())


def find_sets(data: Path, known_sets: Sequence[KnownDataSet]) -> list[Found]:
    """The folders of `data` with a known name; `known_sets.py` says what their files cannot."""
    found = []
    for folder in sorted(path for path in data.iterdir() if path.is_dir()):
        known = next((each for each in known_sets if any(alias in plain(folder.name) for alias in each.aliases)), None)
        if known is None:
            continue
        named = [name for name, job in JOBS.items() if Path(job.data).parts[0] == folder.name and not job.references]
        if named:
            job = JOBS[named[0]]
            found.append(Found(named[0], known, data / job.data, job.options, job))
        else:
            found.append(Found(plain(folder.name), known, folder))
    return found


def carry_out(found: Found, out: Path, time: str | None, more: Sequence[str]) -> None:
    """Train, and predict the test set where there is one. Raises CommandFailed."""
    logs, limit = out / "logs", ("--time", time) if time else ()
    folder, predictions, metrics = out / found.name, out / f"{found.name}_test", out / f"{found.name}_test.json"
    command = [PROGRAM, "run", found.folder, "--out", folder, *found.options, *limit, *more]
    log.info("%s", public_command(["autounet", *command[1:]]))
    seconds = run(command, logs / f"{found.name}_run.log").seconds
    log.info("%s: %s", found.name, seconds_text(seconds))
    if found.job and found.job.test:
        data, model = found.folder.parents[len(Path(found.job.data).parts) - 1], folder / "model"
        images, references = data / found.job.test.images, data / found.job.test.references
        run([PROGRAM, "predict", model, images, "--out", predictions], logs / f"{found.name}_predict.log")
        evaluate = [PROGRAM, "evaluate", predictions, references, "--model", model, "--out", metrics]
        run(evaluate, logs / f"{found.name}_evaluate.log")


def compared(found: Found, out: Path) -> tuple[OutputRecords, list[ComparedFigure], list[str]]:
    """The records of a finished run, the published figures beside its results, and what is said of them.

    Figures of test images stand beside this program's on the same images, where it predicted them.
    """
    records, tested = read_output_records(out / found.name), out / f"{found.name}_test.json"
    comparison = compare_published(
        records.dataset,
        records.fingerprint,
        records.metrics,
        test=Metrics.load(tested) if tested.is_file() else None,
    )
    return records, list(comparison.rows), [comparison.recognised, *comparison.sentences]


def row(found: Found, out: Path) -> list[list[str]]:
    """One line a protocol: the mean over the classes, beside the reference method and the best one."""
    records, figures, _ = compared(found, out)
    limit = records.options.seconds if records.options else None
    budget = f"{limit / 60:g} min" if limit else "no limit"
    trained = sum(record.seconds for record in records.runs)
    means = [figure for figure in figures if figure.target == MEAN or found.known.signature.classes == 1]
    lines = []
    for source in dict.fromkeys(figure.source for figure in means):
        own = [figure for figure in means if figure.source == source]
        reference = next((figure for figure in own if REFERENCE in figure.method), None)
        best = max(own, key=lambda figure: figure.published)
        named, first = reference or best, own[0]
        shown = "" if first.interval is None else f" ({first.interval[0]:.4f} to {first.interval[1]:.4f})"
        end = [budget, seconds_text(trained)]
        if first.ours is None:
            lines.append([found.known.name, first.measured_on, "not comparable", "", "", "", *end])
            continue
        lines.append(
            [
                found.known.name,
                first.measured_on,
                f"{first.ours:.4f}{shown}",
                f"{named.method} {named.published:.4f}",
                f"{first.ours - named.published:+.4f}",
                f"{best.method} {best.published:.4f}",
                *end,
            ]
        )
    return lines


HEAD = (
    "data set",
    "measured on",
    "mean Dice (95 % interval)",
    "published",
    "gap",
    "best published",
    "time given",
    "of it training",
)


def write(sets: Sequence[Found], out: Path, failed: Sequence[str], results: Path) -> str:
    """The whole table from what is finished in `out`."""
    done = [found for found in sets if (out / found.name / "metrics.json").is_file()]
    sections = []
    for found in done:
        _, figures, sentences = compared(found, out)
        sources = [f"- {figure.metric}, {figure.protocol}: {figure.source}" for figure in figures]
        sections += [
            f"## {found.known.name}\n",
            *(f"{sentence}\n" for sentence in sentences),
            *dict.fromkeys(sources),
            "",
        ]
    text = "\n".join(
        [
            "# Beside published results\n",
            f"- command: `python {public_command([f'benchmarks/{Path(__file__).name}', *sys.argv[1:]])}`",
            f"- machine: {machine()}",
            f"- commit: {commit()}, {date.today().isoformat()}",
            f"- the gap is to {REFERENCE}'s figure where there is one, else to the best\n",
            table(HEAD, [line for found in done for line in row(found, out)]),
            *[f"{name}: a command ended with an error.\n" for name in failed],
            *sections,
        ]
    )
    results.mkdir(parents=True, exist_ok=True)
    (results / "baselines.md").write_text(text, encoding="utf-8")
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the data sets")
    parser.add_argument("--out", type=Path, required=True, help="finished runs in it are kept")
    parser.add_argument("--only", action="append", help="one data set by its short name; may be given several times")
    parser.add_argument("--time", help="the budget of each data set")
    parser.add_argument("--results", type=Path, default=Path(__file__).with_name("results"))
    given, more = parser.parse_known_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")

    sets, out = find_sets(given.data.resolve(), PublishedTable.load(PUBLISHED_FILE).data_sets), given.out.resolve()
    names = [found.name for found in sets]
    if unknown := set(given.only or ()) - set(names):
        sys.exit(
            f"{', '.join(sorted(unknown))}: not found in {given.data}; there is {', '.join(names) or 'nothing known'}"
        )
    failed, text = [], ""
    for found in [found for found in sets if not given.only or found.name in given.only]:
        try:
            carry_out(found, out, given.time, more)
        except CommandFailed as error:
            log.error("%s", error)
            failed.append(found.name)
        text = write(sets, out, failed, given.results)
    sys.stdout.write(text)
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    main()

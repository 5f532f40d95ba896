"""The paths in the output folder of a run, and in nothing else: whoever reads or writes there asks these classes."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..schema.run import fold_name
from ..schema.selection import Selection

BUNDLE_FILE, CARD_FILE = "bundle.json", "model_card.md"
"""in the folder of a packed model"""


@dataclass(frozen=True)
class FoldFolder:
    """`models/<configuration>/fold_<k>/`: one training."""

    path: Path

    @property
    def weights(self) -> Path:
        return self.path / "weights.safetensors"

    @property
    def state(self) -> Path:
        """Of an unfinished training."""
        return self.path / "state.pt"

    @property
    def good_state(self) -> Path:
        """Of an unfinished training: its last state that segmented training cases, to which it can go back."""
        return self.path / "good.pt"

    @property
    def record(self) -> Path:
        return self.path / "record.json"

    @property
    def log(self) -> Path:
        return self.path / "log.jsonl"

    @property
    def chart(self) -> Path:
        return self.path / "progress.png"

    @property
    def started(self) -> Path:
        """Holds the key of the training that the other files are of."""
        return self.path / "started.json"

    @property
    def done(self) -> Path:
        return self.path / "done.json"


@dataclass(frozen=True)
class CrossvalFolder:
    """`crossval/<configuration>/`, or of an ensemble `crossval/<configuration>+<configuration>/`: out-of-fold results.

    The segmentations lie in the folder itself, as `<case>.<ext>`.
    """

    path: Path

    @property
    def scores(self) -> Path:
        """Folder of the kept scores."""
        return self.path / "scores"

    def metrics(self, fold: int) -> Path:
        return self.path / f"fold_{fold}.json"

    def fold_metrics(self) -> list[Path]:
        """Those that are there, sorted by name."""
        return sorted(path for path in self.path.glob("fold_*.json") if not path.stem.endswith(".done"))

    def done(self, fold: int) -> Path:
        return self.path / f"fold_{fold}.done.json"

    def case_result(self, identifier: str) -> Path:
        """Metrics of one case, with the key of what they depend on."""
        return self.path / "cases" / f"{identifier}.json"

    def cascade_labels(self, following: str) -> CascadeLabelsFolder:
        return CascadeLabelsFolder(self.path / "next" / following)

    @property
    def weighted(self) -> CrossvalFolder:
        """Of an ensemble: the result with weights that differ."""
        return CrossvalFolder(self.path / "weighted")

    @property
    def postprocessed(self) -> Path:
        """Folder of the postprocessed segmentations."""
        return self.path / "postprocessed"

    @property
    def objects(self) -> Path:
        """Folder of the numbered objects."""
        return self.path / "objects"


@dataclass(frozen=True)
class CascadeLabelsFolder:
    """`crossval/<configuration>/next/<following configuration>/`: labels of one stage on the grid of the next."""

    path: Path

    def done(self, fold: int) -> Path:
        return self.path / f"fold_{fold}.done.json"

    def case_key(self, identifier: str) -> Path:
        return self.path / "keys" / f"{identifier}.json"


@dataclass(frozen=True)
class JobFolder:
    """`jobs/<job>/`: what is known of a job that another process does, perhaps on another machine."""

    path: Path

    @property
    def run(self) -> Path:
        """The last attempt, with its signs of life."""
        return self.path / "run.json"

    @property
    def attempts(self) -> Path:
        """Those that did not come to their end."""
        return self.path / "attempts.jsonl"

    @property
    def log(self) -> Path:
        return self.path / "log.txt"

    @property
    def done(self) -> Path:
        """Of a job that has no other place for that, as it leaves single cases."""
        return self.path / "done.json"

    @property
    def lock(self) -> Path:
        return self.path / ".lock"

    def stop(self, attempt: str) -> Path:
        """Where this file is, the attempt is to save its state and end."""
        return self.path / f"stop.{attempt}"


OWN_NAMES = (
    "options.json", "device.json", "dataset.json", "splits.json", "fingerprint.json", "findings.json", "facts",
    "hashes.json", "checked.json", "plan.json", "plan.key", "clock.json", "prepared", "models", "crossval",
    "selection.json", "metrics.json", "model", "report.html", "run.log", "trial", "palette.json", "jobs",
)  # fmt: skip
"""what a run writes into its output folder, tracking and hidden files aside"""


def _is_record(path: Path) -> bool:
    """Whether a file begins as `Record.save` writes it."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(32).replace(b" ", b"").startswith(b'{\n"format_version":')


@dataclass(frozen=True)
class RunFolder:
    """`--out`."""

    path: Path

    def taken_names(self) -> list[str]:
        """Of what a run would write, the names under which other things lie than records of ours, such as a plan."""
        return [name for name in OWN_NAMES if os.path.lexists(self.path / name) and not _is_record(self.path / name)]

    # records, each written by one stage

    @property
    def options(self) -> Path:
        return self.path / "options.json"

    @property
    def device(self) -> Path:
        return self.path / "device.json"

    @property
    def dataset(self) -> Path:
        return self.path / "dataset.json"

    @property
    def splits(self) -> Path:
        return self.path / "splits.json"

    @property
    def palette(self) -> Path:
        """Which colour is which class, where label pictures are coded by colour."""
        return self.path / "palette.json"

    @property
    def fingerprint(self) -> Path:
        return self.path / "fingerprint.json"

    @property
    def findings(self) -> Path:
        return self.path / "findings.json"

    @property
    def facts(self) -> Path:
        """Folder of what was read of each case."""
        return self.path / "facts"

    @property
    def hashes(self) -> Path:
        """Of the data set's files."""
        return self.path / "hashes.json"

    @property
    def checked(self) -> Path:
        """Hashes of our own files as they were last compared with what was written."""
        return self.path / "checked.json"

    @property
    def plan(self) -> Path:
        return self.path / "plan.json"

    @property
    def plan_key(self) -> Path:
        """What the plan was made for, and which edition of it the program wrote."""
        return self.path / "plan.key"

    @property
    def clock(self) -> Path:
        """Time spent of a promise."""
        return self.path / "clock.json"

    @property
    def log(self) -> Path:
        """What the commands in this folder said, one after another."""
        return self.path / "run.log"

    @property
    def lock(self) -> Path:
        """The system frees it when its process ends, however it ends."""
        return self.path / ".lock"

    @property
    def lock_holder(self) -> Path:
        """Host and process that hold the lock, or were ended from outside while they did."""
        return self.path / ".lock_holder"

    def job(self, name: str) -> JobFolder:
        return JobFolder(self.path / "jobs" / re.sub(r"[^\w.+-]+", "_", name))

    @property
    def job_list(self) -> Path:
        """The jobs of the last command that gave them to a cluster."""
        return self.path / "jobs" / "jobs.json"

    def is_of_a_run(self) -> bool:
        return any(path.exists() for path in (self.options, self.findings, self.lock))

    def stage_is_done(self, stage: str) -> bool:
        """By the file that the stage writes last; not for `train`, whose folds each have their own."""
        if stage == "preprocess":
            return any(self.any_prepared_done())
        written = {"fingerprint": self.fingerprint, "plan": self.plan, "select": self.selection, "report": self.report}
        return written[stage].exists()

    def work_files(self) -> Iterator[Path]:
        """Files that a running command writes again and again."""
        yield self.clock
        yield from self.path.glob("models/*/fold_*/*")
        yield from self.path.glob("crossval/*/*.json")

    @property
    def selection(self) -> Path:
        return self.path / "selection.json"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.json"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    @property
    def bundle(self) -> Path:
        """Folder of the packed model."""
        return self.path / "model"

    @property
    def bundle_done(self) -> Path:
        return self.bundle / "done.json"

    @property
    def tracking(self) -> Path:
        return self.path / "tracking"

    # work of the configurations

    def prepared(self, name: str) -> Path:
        """Folder of the prepared cases that `Configuration.prepared` names."""
        return self.path / "prepared" / name

    def prepared_done(self, name: str) -> Path:
        """Beside the folder: a case may be called done."""
        return self.path / "prepared" / f"{name}.done.json"

    def any_prepared_done(self) -> Iterator[Path]:
        return (self.path / "prepared").glob("*.done.json")

    @property
    def learning_trial(self) -> Path:
        """Folder of a short run of a few cases, while it goes on."""
        return self.path / "trial"

    def models(self, name: str) -> Path:
        """Folder of one configuration's trainings."""
        return self.path / "models" / name

    def trial(self, name: str) -> Path:
        """Key of the trial steps that a configuration passed."""
        return self.models(name) / "trial.json"

    def fold(self, name: str, fold: int | None) -> FoldFolder:
        return FoldFolder(self.models(name) / fold_name(fold))

    def folds(self, name: str) -> list[FoldFolder]:
        """The trainings of one configuration that are there, sorted by name."""
        return [FoldFolder(path) for path in sorted(self.models(name).glob("fold_*")) if ".old_" not in path.name]

    @property
    def crossval_root(self) -> Path:
        return self.path / "crossval"

    def crossval(self, *names: str) -> CrossvalFolder:
        """Of a configuration, or of the ensemble of several."""
        return CrossvalFolder(self.crossval_root / "+".join(names))

    def selected(self, selection: Selection) -> CrossvalFolder:
        """Where the out-of-fold segmentations of the selected result lie, before postprocessing."""
        chosen = self.crossval(*selection.chosen)
        return chosen.weighted if selection.weights else chosen

    def former_results(self, kind: Literal["weighted", "postprocessed", "objects"]) -> list[Path]:
        """Folders of this name below `crossval/`, whatever was selected when they were written."""
        return [path for path in self.crossval_root.glob(f"**/{kind}") if path.is_dir()]

"""Makes the golden files of Task04_Hippocampus: its fingerprint and the plan of preset nnunet at 8 GB.

    .venv/bin/python tests/golden/make_task04.py ../shared/data/Task04_Hippocampus

Run it only when the fingerprint's or the plan's format changes, and read the difference: the numbers of the plan are
nnU-Net 2.8.1's (3d_fullres patch 40 x 56 x 40, batch 9; 2d patch 56 x 40, batch 366) and must stay.
"""

from __future__ import annotations

import sys
from pathlib import Path

from autounet.datasets import complete_labels, examine, scan
from autounet.fingerprint import build_fingerprint
from autounet.planning import plan
from autounet.schema.options import DataOptions, PlannerOptions, TrainOptions

HERE = Path(__file__).parent


def main(data: Path) -> None:
    dataset = scan(data, DataOptions())
    facts = examine(dataset, workers=2)
    dataset = complete_labels(dataset, facts)
    fingerprint = build_fingerprint(dataset, facts, "as_stored")
    fingerprint.save(HERE / "task04_fingerprint.json")
    made = plan(fingerprint, dataset.labels, PlannerOptions(preset="nnunet"), TrainOptions())
    made.save(HERE / "task04_plan.json")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

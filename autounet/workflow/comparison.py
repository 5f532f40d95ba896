"""What `autounet compare` says: a run beside published figures, and beside another run over the same cases."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..evaluation import METRICS, compare_models
from ..schema.errors import DataError, OptionError
from ..schema.metrics import Metrics, PairedDifference, PublishedComparison

LEVEL = 0.05
"""p from which on a difference may be chance"""
LEAST_CASES = 6
"""below, the smallest p that the signed-rank test can give is above `LEVEL`: 2 / 2^5"""


def published(out: Path, test: Path | None = None) -> PublishedComparison:
    """Of an output folder, and the metrics of test cases in the file `test`.

    Raises DataError when there is no such folder, RecordError when the file cannot be read.
    """
    from ..report.published import compare_published
    from ..report.records import gather

    if not out.is_dir():
        raise DataError(f"{out} is no folder. Give the output folder of a run")
    return compare_published(gather(out), test=None if test is None else Metrics.load(test))


def published_lines(comparison: PublishedComparison) -> list[str]:
    """For a terminal: how the set was recognised, the table, its sources, the sentences."""
    from ..report.tables import published_table

    table = published_table(comparison)
    lines = [comparison.recognised]
    if table:
        lines += ["", *_columns([table.head, *table.rows], table.numeric), "", *table.notes, ""]
    return [*lines, *comparison.sentences]


def _columns(rows: Sequence[Sequence[str]], right: Sequence[int]) -> list[str]:
    """Rows of text in columns of equal width; those in `right` end at the same place."""
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    padded = [
        [cell.rjust(width) if place in right else cell.ljust(width)
         for place, (cell, width) in enumerate(zip(row, widths, strict=True))]
        for row in rows
    ]  # fmt: skip
    return ["  ".join(row).rstrip() for row in padded]


def paired(first: Path, second: Path, metric: str) -> tuple[PairedDifference, ...]:
    """Of two output folders or metrics.json files. Raises OptionError for an unknown metric, RecordError, DataError."""
    if metric not in METRICS:
        raise OptionError(f"--metric {metric} is unknown; choose one of {', '.join(METRICS)}")
    one, other = (Metrics.load(path / "metrics.json" if path.is_dir() else path) for path in (first, second))
    return compare_models(one, other, metric)


def paired_lines(found: Sequence[PairedDifference], metric: str) -> list[str]:
    """A plain sentence for each class."""
    return [_sentence(each, metric) for each in found]


def _sentence(each: PairedDifference, metric: str) -> str:
    if each.difference is None or each.p_corrected is None:
        return f"{each.name}: nothing to test, {each.undefined}."
    interval = f" (95 % interval {each.interval[0]:+.4f} to {each.interval[1]:+.4f})" if each.interval else ""
    start = f"{each.name}: {metric} differs by {each.difference:+.4f}{interval} over {each.cases} cases, "
    if each.cases < LEAST_CASES:
        return f"{start}too few cases to tell it from chance."
    told = "more than chance explains" if each.p_corrected < LEVEL else "which may be chance"
    return f"{start}{told} (Wilcoxon p {each.p:.4g}, Holm {each.p_corrected:.4g})."

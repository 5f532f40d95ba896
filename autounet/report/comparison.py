"""What `autounet compare` shows: a run and published results, or two runs on the same cases."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..evaluation import METRICS, compare_models
from ..schema.errors import DataError, unknown_name
from ..schema.metrics import ComparedFigure, Metrics, PairedDifference, PublishedComparison
from ..store.run_folder import RunFolder
from .output_records import read_output_records
from .published import compare_published
from .tables import DASH, ReportTable, interval_text, number, text_lines

SIGNIFICANCE = 0.05
"""p below which a difference is called more than chance"""
MIN_CASES = 6
"""with fewer, the smallest p of the signed-rank test is above `SIGNIFICANCE`: 2 / 2^5"""


def compare_with_published(out: Path, test: Path | None = None) -> PublishedComparison:
    """Published results beside those of the run in `out`, and beside the metrics of test cases in the file `test`.

    Raises DataError when `out` is not a folder, RecordError when `test` cannot be read.
    """
    if not out.is_dir():
        raise DataError(f"{out} is not a folder", "Give the folder of a run, as it was given with --out")
    records = read_output_records(out)
    test_metrics = None if test is None else Metrics.load(test)
    return compare_published(records.dataset, records.fingerprint, records.metrics, test_metrics)


def published_table(comparison: PublishedComparison) -> ReportTable | None:
    """A row for each published figure; None where there is none. Sources are numbered and listed in the notes."""
    if not comparison.rows:
        return None
    sources = list(dict.fromkeys(_source(row) for row in comparison.rows))
    rows = [
        [
            row.method,
            row.target,
            number(row.published, 4),
            number(row.ours, 4),
            interval_text(row.interval),
            DASH if row.verdict == "not comparable" else row.verdict,
            str(sources.index(_source(row)) + 1),
        ]
        for row in comparison.rows
    ]
    notes = [
        f"Source {place}: {source}; {metric}; {protocol}. This run: {measured_on}. {comparable.rstrip('.')}"
        for place, (source, metric, protocol, measured_on, comparable) in enumerate(sources, start=1)
    ]
    head = ["published method", "class", "published Dice", "this run", "95 % interval", "this run is", "source"]
    return ReportTable(head, rows, numeric=(2, 3, 4, 6), notes=notes)


def _source(row: ComparedFigure) -> tuple[str, ...]:
    """What figures of one source, measured in one way, have in common."""
    return row.source, row.metric, row.protocol, row.measured_on, row.comparable


def published_lines(comparison: PublishedComparison) -> list[str]:
    """Text of `autounet compare`: how the data set was recognised, the table with its sources, the sentences."""
    table = published_table(comparison)
    shown = ["", *text_lines(table), "", *table.notes, ""] if table else []
    return [comparison.recognised, *shown, *comparison.sentences]


def compare_runs(first: Path, second: Path, metric: str) -> tuple[PairedDifference, ...]:
    """Paired differences, first less second, of two output folders or metrics.json files.

    Raises OptionError for an unknown metric, RecordError for a file that cannot be read, DataError where the two have
    no case or class in common.
    """
    if metric not in METRICS:
        raise unknown_name("--metric", metric, METRICS)
    one, other = (Metrics.load(RunFolder(path).metrics if path.is_dir() else path) for path in (first, second))
    return compare_models(one, other, metric)


def difference_lines(differences: Sequence[PairedDifference], metric: str) -> list[str]:
    """A sentence for each class: the difference, and whether it may be due to chance."""
    return [_difference_line(each, metric) for each in differences]


def _difference_line(each: PairedDifference, metric: str) -> str:
    if each.difference is None or each.p_corrected is None:
        return f"{each.name}: no test is possible, {each.undefined}."
    interval = f" (95 % interval {each.interval[0]:+.4f} to {each.interval[1]:+.4f})" if each.interval else ""
    start = f"{each.name}: {metric} differs by {each.difference:+.4f}{interval} over {each.cases} cases, "
    if each.cases < MIN_CASES:
        return f"{start}too few to distinguish it from chance."
    verdict = "which is more than chance explains" if each.p_corrected < SIGNIFICANCE else "which may be chance"
    return f"{start}{verdict} (Wilcoxon p {each.p:.4g}, Holm-corrected {each.p_corrected:.4g})."

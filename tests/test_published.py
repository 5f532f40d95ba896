"""Published results: each figure has a source, data sets are recognised, the sentence says what the numbers say."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from functools import partial

import pytest
from fake_output import make_output
from typer.main import get_command
from typer.testing import CliRunner

from autounet.cli.app import app
from autounet.evaluation import METRICS, summarise
from autounet.report import page as page_module
from autounet.report import shown_cases, write_report
from autounet.report.comparison import published_table
from autounet.report.output_records import OutputRecords, read_output_records
from autounet.report.published import PUBLISHED_FILE, compare_published, recognise
from autounet.schema.metrics import (
    CaseMetrics,
    KnownDataSet,
    Metrics,
    PublishedComparison,
    PublishedFigure,
    PublishedResults,
    PublishedTable,
    Signature,
)

PUBLISHED = PublishedTable.load(PUBLISHED_FILE)


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return make_output(tmp_path_factory.mktemp("published") / "out", cases=6)


@pytest.fixture
def found(out) -> OutputRecords:
    return read_output_records(out)


def compare(
    records: OutputRecords, table: PublishedTable | None = None, test: Metrics | None = None
) -> PublishedComparison:
    return compare_published(records.dataset, records.fingerprint, records.metrics, test, table)


def table(*values: float, comparability: str = "same", **signature: object) -> PublishedTable:
    """Of a set that is like `make_output`'s."""
    like = {"dimension": 3, "cases": 6, "channels": 1, "classes": 2, "median_shape": (48, 20, 44)} | signature
    results = PublishedResults(
        protocol="5-fold", metric="Dice", source="A paper", comparability=comparability, comparable="As here.",
        figures=tuple(PublishedFigure(method=f"method {place}", value=value) for place, value in enumerate(values)),
    )  # fmt: skip
    return PublishedTable(
        data_sets=(KnownDataSet(name="Kidneys", aliases=("kidney",), signature=Signature(**like), results=(results,)),)
    )


def test_every_figure_has_a_source_and_says_how_comparable_it_is():
    for each in PUBLISHED.data_sets:
        for results in each.results:
            assert len(results.source) > 10
            assert results.comparable.endswith(".")
            assert results.protocol
        assert all(re.fullmatch(r"[a-z0-9]+", alias) for alias in each.aliases)
        if each.signature.median_shape:
            assert len(each.signature.median_shape) == 3
    assert len({each.name for each in PUBLISHED.data_sets}) == len(PUBLISHED.data_sets)


def test_no_two_sets_have_one_fingerprint():
    seen = [each.signature for each in PUBLISHED.data_sets if each.signature.median_shape]
    assert len(seen) == len({each.model_dump_json() for each in seen}) >= 5


def renamed(found: OutputRecords, name: str):
    return found.dataset.model_copy(update={"name": name})


def test_a_set_is_recognised_by_its_name_and_its_kind(found):
    known, how = recognise(renamed(found, "My Kidney-2"), found.fingerprint, table(0.5, cases=99).data_sets)
    assert known.name == "Kidneys"
    assert "by its name" in how
    known, how = recognise(renamed(found, "kidney"), found.fingerprint, table(0.5, classes=1).data_sets)
    assert known is None
    assert "classes differ" in how


def test_a_set_is_recognised_by_its_fingerprint_in_any_order_of_axes(found):
    alike = table(0.5, median_spacing=(1.0, 1.0, 2.0)).data_sets
    known, how = recognise(renamed(found, "x"), found.fingerprint, alike)
    assert known.name == "Kidneys"
    assert "by its fingerprint" in how
    for changed in ({"cases": 7}, {"median_shape": (48, 20, 45)}, {"median_spacing": (1.0, 1.0, 2.1)}):
        assert recognise(renamed(found, "x"), found.fingerprint, table(0.5, **changed).data_sets)[0] is None


def test_nothing_known_is_said(found):
    compared = compare(found)
    assert compared.data_set is None
    assert compared.recognised == "No published results are known for the data set Synthetic & small."
    assert published_table(compared) is None


def test_ahead_level_and_behind(found):
    low, high = found.metrics.mean_dice_interval
    dice = found.metrics.mean_dice
    compared = compare(found, table(low - 0.01, dice, high + 0.01))
    assert [row.verdict for row in compared.rows] == ["ahead", "level", "behind"]
    assert {(row.ours, row.interval, row.source) for row in compared.rows} == {(dice, (low, high), "A paper")}
    (sentence,) = compared.sentences
    assert f"{dice:.4f} (95 % interval {low:.4f} to {high:.4f}) is ahead of method 0 ({low - 0.01:.4f}); " in sentence
    assert f"level with method 1 ({dice:.4f}); behind method 2 ({high + 0.01:.4f})." in sentence
    rows = published_table(compared).rows
    assert [row[5] for row in rows] == ["ahead", "level", "behind"]
    assert {len(row) for row in rows} == {len(published_table(compared).head)}


def test_a_result_without_stored_intervals_has_them_computed(found):
    before = compare(found, table(0.5)).rows[0]
    metrics = found.metrics.model_copy(update={"mean_dice_interval": None, "intervals": {}})
    assert compare(replace(found, metrics=metrics), table(0.5)).rows[0] == before


def test_a_class_is_compared_with_its_own_figure(found):
    one = table(0.5)
    figure = PublishedFigure(method="m", value=0.1, target="LEFT kidney")
    results = one.data_sets[0].results[0].model_copy(update={"figures": (figure,)})
    known = one.data_sets[0].model_copy(update={"results": (results,)})
    (row,) = compare(found, PublishedTable(data_sets=(known,))).rows
    assert row.ours == found.metrics.per_class["left kidney"].dice
    assert row.verdict == "ahead"


def test_other_protocols_and_parts_of_a_set_are_not_judged(found):
    other = compare(found, table(0.5, comparability="other"))
    assert other.rows[0].verdict == "not comparable"
    assert other.rows[0].ours is None
    assert "cannot be compared" in other.sentences[0]
    similar = compare(found, table(0.0001, comparability="similar"))
    assert similar.rows[0].verdict == "ahead"
    assert "not measured on the same images" in similar.sentences[0]
    cases = found.metrics.cases[:4]
    part = compare(replace(found, metrics=summarise(cases, found.dataset.labels)), table(0.5))
    assert part.rows[0].verdict == "not comparable"
    assert "validated 4 cases and Kidneys has 6" in part.sentences[0]


def test_figures_of_test_images_stand_beside_test_metrics(found):
    """Those of one source alone: what was cross-validated stays beside this run's cross-validation."""
    one, other = table(0.1, comparability="similar"), table(0.1)
    sources = [each.data_sets[0].results[0] for each in (one, other)]
    tested = sources[0].model_copy(update={"test_cases": 4})
    both = one.data_sets[0].model_copy(update={"results": (tested, sources[1])})
    public = PublishedTable(data_sets=(both,))
    labels = found.dataset.labels
    test = summarise(found.metrics.cases[:4], labels)
    first, second = compare(found, public, test).rows
    assert (first.ours, first.measured_on, first.verdict) == (test.mean_dice, "4 test cases", "ahead")
    assert (second.ours, second.measured_on) == (found.metrics.mean_dice, "6 out-of-fold cases")
    notes = published_table(compare(found, public, test)).notes
    assert "This run: 4 test cases. Both were measured on the data set's test images" in notes[0]
    part = compare(found, public, summarise(found.metrics.cases[:3], labels))
    assert part.rows[0].verdict == "not comparable"
    assert "The test metrics are of 3 cases and Kidneys has 4 test cases" in part.sentences[0]
    unknown = compare(found, one, test)
    assert unknown.rows[0].verdict == "ahead"
    assert unknown.sentences[0].endswith("whether on the same ones is not known.")
    alone = OutputRecords(found.out, dataset=found.dataset, fingerprint=found.fingerprint)
    assert [row.ours for row in compare(alone, public, test).rows] == [test.mean_dice]


def test_missing_records_are_said(found, tmp_path):
    assert "no dataset.json" in compare(read_output_records(tmp_path)).recognised
    assert "no metrics.json" in compare(replace(found, metrics=None), table(0.5)).sentences[0]


def test_the_report_holds_the_table(out, monkeypatch):
    monkeypatch.setattr(shown_cases, "overlay_pictures", lambda *_: [])
    assert "No published results are known" in write_report(out).read_text()
    monkeypatch.setattr(page_module, "compare_published", partial(compare_published, table=table(0.4321)))
    text = write_report(out).read_text()
    assert "Recognised as Kidneys by its fingerprint" in text
    assert "0.4321" in text
    assert "A paper" in text
    assert "95 % interval" in text


def run(*words: object):
    return CliRunner().invoke(app, [str(word) for word in words])


def test_the_command(out, tmp_path):
    told = run("compare", out)
    assert (told.exit_code, told.stdout.strip()) == (
        0, "No published results are known for the data set Synthetic & small."
    )  # fmt: skip
    record = json.loads(run("compare", out, "--json").stdout)
    assert record["data_set"] is None
    worse = Metrics.load(out / "metrics.json")
    cases = [CaseMetrics(case=each.case, per_class={
        name: values.model_copy(update={"dice": None if values.dice is None else values.dice * 0.9})
        for name, values in each.per_class.items()}) for each in worse.cases]  # fmt: skip
    summarise(cases, read_output_records(out).dataset.labels).save(tmp_path / "metrics.json")
    paired = run("compare", out, "--with", tmp_path / "metrics.json")
    assert paired.exit_code == 0
    wanted = r"left kidney: dice differs by \+0\.\d+ \(95 % interval .*\) over 6 cases, which may be chance"
    assert re.search(wanted + r" \(Wilcoxon p 0\.03125, Holm-corrected 0\.0625\)", paired.stdout)
    assert "tumour <rare>: dice differs by" in paired.stdout
    assert "too few to distinguish" in paired.stdout
    assert run("compare", out, "--test", tmp_path / "metrics.json").stdout == told.stdout
    assert run("compare", out, "--test", tmp_path / "metrics.json", "--with", out).exit_code == 1
    found = json.loads(run("compare", out, "--with", tmp_path, "--metric", "nsd", "--json").stdout)
    assert found["metric"] == "nsd"
    assert found["classes"][0]["undefined"] == "both have the same value in every case"


def test_the_help_of_evaluate_names_all_metrics():
    shown = next(each.help for each in get_command(app).commands["evaluate"].params if each.name == "metrics")
    assert shown == "What to measure: default, all, or some of " + ", ".join(METRICS)

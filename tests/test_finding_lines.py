"""Findings are shown briefly to people, and completely to programs and in the report."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

from autounet.report import write_report
from autounet.schema.dataset import Channel, Finding, Severity
from autounet.schema.fingerprint import CheckResult, Repair, RepairResult
from autounet.schema.labels import LabelClass, Labels, Region
from autounet.workflow.dataset_stage import SHOWN, finding_lines, has_fatal, result_lines


def finding(case: str | None, code: str, severity: Severity = Severity.warning) -> Finding:
    return Finding(case=case, code=code, severity=severity, message=f"{code} of {case}", remedy="Correct it")


def result(*findings: Finding) -> CheckResult:
    labels = Labels(
        classes=(LabelClass(name="background", value=0), LabelClass(name="a_left", value=1),
                 LabelClass(name="a_right", value=2)),
        regions=(Region(name="both", values=(1, 2)),), ignore=9, pairs=(("a_left", "a_right"),),
    )  # fmt: skip
    channels = (Channel(name="T1"), Channel(name="T2"))
    return CheckResult(
        layout="pairs", channels=channels, labels=labels, cases=("a", "b"), example="a: a.png", findings=findings
    )


def test_many_findings_of_one_kind_are_counted() -> None:
    many = [finding(f"c{index:02d}", "slip") for index in range(40)]
    lines = finding_lines([*many, finding("x", "broken", Severity.fatal)])
    assert lines[0] == "case x: broken of x. Correct it"
    assert len(lines) == 1 + SHOWN + 1
    assert lines[-1] == "and 30 more with the code slip; autounet check --json lists all"
    assert len(finding_lines(many[: SHOWN + 1])) == SHOWN + 1


def test_what_was_understood_is_told() -> None:
    lines = result_lines(result())
    assert lines == [
        "layout: pairs, 2 cases",
        "first case: a: a.png",
        "channels: T1 (other), T2 (other)",
        "labels: 0 background, 1 a_left, 2 a_right",
        "regions: both (1, 2)",
        "left/right pairs: a_left and a_right",
        "ignored label value: 9",
        "no problems found",
    ]
    assert result_lines(result(finding("a", "slip")))[-2:] == ["warning: case a: slip of a. Correct it", "1 warning"]


def test_repairs_are_told_before_what_is_left() -> None:
    repairs = (Repair(case="a", done=("one thing", "another")), Repair(case="b", dropped="it is broken"))
    found = RepairResult(folder="new", repairs=repairs, result=result(finding(None, "layout", Severity.fatal)))
    lines = result_lines(found)
    assert lines[:2] == ["case a: one thing; another", "case b: left out: it is broken"]
    assert lines[2] == "the repaired data set is in new and needs no options:"
    assert has_fatal(found)
    assert not has_fatal(result(finding("a", "slip")))


class Text(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []

    def handle_data(self, data: str) -> None:
        self.parts.append(data)


def test_the_report_shows_every_finding(tmp_path: Path) -> None:
    findings = [finding(f"c{index:02d}", "slip") for index in range(40)] + [finding(None, "few")]
    result(*findings).save(tmp_path / "findings.json")
    page = Text()
    page.feed(write_report(tmp_path).read_text())
    text = "".join(page.parts)
    for each in findings:
        assert f"{each.message}. {each.remedy}" in text
    assert "slip: 40" in text

"""What the check of the data found, as groups of one kind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from autounet.schema.dataset import Finding, Severity

OPEN = 5
"""findings up to which a kind is shown without a click"""
MOST_LINES = 200
"""of one kind on the page; findings.json holds all"""


@dataclass(frozen=True)
class Group:
    """Findings with one code and severity, in their order."""

    severity: str
    code: str
    lines: Sequence[tuple[str, str]]
    """(case, or "" for the whole data set; finding and remedy); at most MOST_LINES"""
    total: int

    @property
    def open(self) -> bool:
        return self.total <= OPEN


def grouped(findings: Sequence[Finding]) -> list[Group]:
    """Fatal kinds first, each kind where its first finding stands."""
    kinds: dict[tuple[bool, str], list[Finding]] = {}
    for finding in findings:
        kinds.setdefault((finding.severity is not Severity.fatal, finding.code), []).append(finding)
    ordered = sorted(kinds.items(), key=lambda kind: kind[0][0])
    return [
        Group(
            str(found[0].severity),
            code,
            [(each.case or "", f"{each.message}. {each.remedy}") for each in found[:MOST_LINES]],
            len(found),
        )
        for (_, code), found in ordered
    ]

"""What was found in a data set, as lines of text."""

from __future__ import annotations

from collections.abc import Sequence

from autounet.schema.check import CheckResult, RepairResult
from autounet.schema.dataset import Finding, Severity

SHOWN = 10
"""findings of one kind that a person is shown; programs get all of them"""


def described(findings: Sequence[Finding]) -> list[str]:
    """One line for each, fatal ones first; of many of one kind the first, and how many more there are."""
    kinds: dict[tuple[bool, str], list[Finding]] = {}
    for finding in findings:
        kinds.setdefault((finding.severity is not Severity.fatal, finding.code), []).append(finding)
    lines = []
    for (_, code), found in sorted(kinds.items(), key=lambda item: item[0][0]):
        shown = found if len(found) <= SHOWN + 1 else found[:SHOWN]
        lines += [str(finding) for finding in shown]
        if len(found) > len(shown):
            lines.append(f"and {len(found) - len(shown)} more of the kind {code}; autounet check --json lists all")
    return lines


def is_fatal(found: CheckResult | RepairResult) -> bool:
    """Whether nothing can be trained on the data; of repaired ones, on what was written."""
    result = found.result if isinstance(found, RepairResult) else found
    return any(finding.severity is Severity.fatal for finding in result.findings)


def told(found: CheckResult | RepairResult) -> list[str]:
    """What `autounet check` prints: what was repaired if anything was, what was understood, and every defect."""
    if isinstance(found, CheckResult):
        return _checked(found)
    lines = [str(repair) for repair in found.repairs] or ["there was nothing to repair"]
    return [*lines, f"written to {found.folder}, which needs no option:", *_checked(found.result)]


def _checked(result: CheckResult) -> list[str]:
    lines = [f"layout: {result.layout}, {_counted(len(result.cases), 'case')}"]
    lines.append("channels: " + ", ".join(f"{channel.name} ({channel.kind})" for channel in result.channels))
    lines.append("labels: " + ", ".join(f"{label.value} {label.name}" for label in result.labels.classes))
    if result.labels.regions:
        regions = (f"{region.name} ({', '.join(map(str, region.values))})" for region in result.labels.regions)
        lines.append("regions: " + ", ".join(regions))
    if result.labels.pairs:
        lines.append("left and right: " + ", ".join(f"{left} and {right}" for left, right in result.labels.pairs))
    if result.labels.ignore is not None:
        lines.append(f"not annotated: {result.labels.ignore}")
    for severity in (Severity.fatal, Severity.warning):
        lines += [f"{severity}: {line}" for line in described([f for f in result.findings if f.severity is severity])]
    lines.append(_counted(len(result.findings), "finding") if result.findings else "nothing to complain about")
    return lines


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"

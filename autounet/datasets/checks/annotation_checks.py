"""Lists of annotated classes against what the labels hold."""

from __future__ import annotations

from collections.abc import Sequence

from autounet.schema.dataset import CaseFacts, Dataset, Finding, Severity


def annotation_findings(dataset: Dataset, facts: Sequence[CaseFacts]) -> list[Finding]:
    """Listed values that no class has (fatal); a warning for each class that occurs without being listed."""
    names = {label.value: label.name for label in dataset.labels.classes}
    listed = {case.identifier: case.annotated for case in dataset.cases if case.annotated is not None}
    known = sorted({0, *names, *(value for fact in facts for value in fact.value_counts)} - {dataset.labels.ignore})
    findings = [
        Finding(
            case=case,
            code="unknown-annotation",
            message=f"its annotated classes name the value {value}, which no class has ({', '.join(map(str, known))})",
            remedy="Correct the list, or name the class: --class NAME=VALUE",
        )
        for case, values in listed.items()
        for value in values
        if value not in known
    ]
    for fact in facts:
        annotated = listed.get(fact.identifier)
        if annotated is None:
            continue
        for value, voxels in fact.value_counts.items():
            if value not in (0, dataset.labels.ignore, *annotated):
                name = names.get(value, f"label_{value}")
                findings.append(
                    Finding(
                        case=fact.identifier,
                        code="unlisted-class",
                        severity=Severity.warning,
                        message=f"its label holds {voxels} voxels of {name} (value {value}), which is not among its "
                        "annotated classes",
                        remedy="They are not learned from; add the class to the list if all of it is labelled",
                    )
                )
    return findings

"""What labels hold of classes that a case is said not to be annotated for."""

from __future__ import annotations

from collections.abc import Sequence

from autounet.schema.dataset import CaseFacts, Dataset, Finding, Severity


def annotation_findings(dataset: Dataset, facts: Sequence[CaseFacts]) -> list[Finding]:
    """A warning for each class that occurs in a case without being among the case's annotated ones."""
    names = {label.value: label.name for label in dataset.labels.classes}
    listed = {case.identifier: case.annotated for case in dataset.cases if case.annotated is not None}
    findings = []
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

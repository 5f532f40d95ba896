"""Cases without files for some channels: told as findings unless the data set says that they are meant to be so."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from autounet.schema.dataset import Case, Finding

CODE = "missing-channel"


def missing_channel(case: str, message: str) -> Finding:
    remedy = "Add the file, take the case out, or give --missing-channels to train with the channels that are there"
    return Finding(case=case, code=CODE, message=message, remedy=remedy)


def lacks(case: str, channels: Sequence[str]) -> Finding:
    """A case that has no file for these channels."""
    return missing_channel(case, f"it has no file for channel {', '.join(channels)}")


def with_channels(case: Case, present: Iterable[int], count: int) -> Case:
    """The case with the indices of the channels that it has files for, of `count` in the data set."""
    own = tuple(present)
    return case if len(own) == count else case.model_copy(update={"present": own})


def without_missing_channels(findings: Iterable[Finding]) -> list[Finding]:
    """What is left to tell where cases may lack channels."""
    return [finding for finding in findings if finding.code != CODE]

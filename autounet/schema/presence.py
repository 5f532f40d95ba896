"""Cases that lack some channels: which ones have which, and which combinations a network has to know."""

from __future__ import annotations

from autounet.schema.dataset import Case, Dataset

Presence = tuple[bool, ...]
"""(C) whether a case has each channel"""


def presence(case: Case, channels: int) -> Presence | None:
    """None where the case has all of them."""
    if case.present is None or len(case.present) == channels:
        return None
    return tuple(index in case.present for index in range(channels))


def partly_present(dataset: Dataset) -> dict[str, Presence]:
    """`presence` of the cases that lack a channel; empty in most data sets."""
    found = {case.identifier: presence(case, len(dataset.channels)) for case in dataset.cases}
    return {name: present for name, present in found.items() if present is not None}


def combinations(dataset: Dataset) -> tuple[Presence, ...]:
    """The combinations of channels that occur, sorted; empty where every case has all channels."""
    lacking = partly_present(dataset)
    whole = [(True,) * len(dataset.channels)] if len(lacking) < len(dataset.cases) else []
    return tuple(sorted({*lacking.values(), *whole})) if lacking else ()

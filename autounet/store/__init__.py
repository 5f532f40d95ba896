"""Prepared cases, scores and weights on disk."""

from autounet.store.prepared import (
    StoredCase,
    is_prepared,
    open_prepared,
    read_properties,
    read_scores,
    write_prepared,
    write_scores,
)

__all__ = [
    "StoredCase",
    "is_prepared",
    "open_prepared",
    "read_properties",
    "read_scores",
    "write_prepared",
    "write_scores",
]

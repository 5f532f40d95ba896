"""Prepared cases, scores and weights on disk."""

from .prepared import (
    SCORES,
    STAGE_LABELS,
    StoredCase,
    forget_damaged,
    is_prepared,
    open_prepared,
    open_stage_labels,
    read_class_counts,
    read_properties,
    read_scored,
    read_scores,
    scores_file,
    stage_labels_file,
    write_prepared,
    write_scores,
    write_stage_labels,
)

__all__ = [
    "SCORES",
    "STAGE_LABELS",
    "StoredCase",
    "forget_damaged",
    "is_prepared",
    "open_prepared",
    "open_stage_labels",
    "read_class_counts",
    "read_properties",
    "read_scored",
    "read_scores",
    "scores_file",
    "stage_labels_file",
    "write_prepared",
    "write_scores",
    "write_stage_labels",
]

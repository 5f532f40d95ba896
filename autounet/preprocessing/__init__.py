"""Cases as read to cases as trained on, and predicted scores back to the file's own voxels. Works on arrays only."""

from .decisions import Decision, decision_for
from .export import append_one_hot, export, labels_by_file, labels_for_next_stage
from .prepare import Prepared, case_key, prepare_case
from .probabilities import PooledScores, pooled_maps

__all__ = [
    "Decision",
    "PooledScores",
    "Prepared",
    "append_one_hot",
    "case_key",
    "decision_for",
    "export",
    "labels_by_file",
    "labels_for_next_stage",
    "pooled_maps",
    "prepare_case",
]

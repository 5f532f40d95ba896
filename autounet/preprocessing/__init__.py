"""Cases as read to cases as trained on, and predicted scores back to the file's own voxels. Works on arrays only."""

from autounet.preprocessing.deciding import Decision, decision_for
from autounet.preprocessing.export import export
from autounet.preprocessing.next_stage import append_one_hot, labels_by_file, labels_for_next_stage
from autounet.preprocessing.pooled import PooledScores, pooled_maps
from autounet.preprocessing.prepare import Prepared, case_key, prepare_case

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

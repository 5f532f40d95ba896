"""Curves, results and the report of a run in TensorBoard, Weights & Biases or MLflow: option `--track`."""

from .run_tracking import NO_TRACKER, RunTracker, track_run
from .services import TRACKERS, require_tracker

__all__ = ["NO_TRACKER", "TRACKERS", "RunTracker", "require_tracker", "track_run"]

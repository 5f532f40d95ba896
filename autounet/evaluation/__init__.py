"""How good a segmentation is: metrics of one case, and of all, and of two models side by side."""

from ..schema.metrics import DEFAULT_METRICS, OBJECT_METRICS, chosen_metrics
from .evaluate import METRICS, distance_unit, evaluate_case, evaluate_objects, on_grid_of
from .overlap_metrics import MaskPair, Undefined
from .summary import compare_models, summarise

__all__ = [
    "DEFAULT_METRICS",
    "METRICS",
    "OBJECT_METRICS",
    "MaskPair",
    "Undefined",
    "chosen_metrics",
    "compare_models",
    "distance_unit",
    "evaluate_case",
    "evaluate_objects",
    "on_grid_of",
    "summarise",
]

"""How good a segmentation is: metrics of one case, and of all, and of two models side by side."""

from .evaluate import DEFAULT_METRICS, METRICS, chosen_metrics, distance_unit, evaluate_case
from .summary import compare_models, summarise

__all__ = [
    "DEFAULT_METRICS",
    "METRICS",
    "chosen_metrics",
    "compare_models",
    "distance_unit",
    "evaluate_case",
    "summarise",
]

"""How good a segmentation is: metrics of one case, and of all, and of two models side by side."""

from autounet.evaluation.cases import distance_unit, evaluate_case
from autounet.evaluation.metrics import DEFAULT_METRICS, METRICS, chosen_metrics
from autounet.evaluation.paired import compare_models
from autounet.evaluation.summary import summarise

__all__ = [
    "DEFAULT_METRICS",
    "METRICS",
    "chosen_metrics",
    "compare_models",
    "distance_unit",
    "evaluate_case",
    "summarise",
]

"""How good a segmentation is: metrics of one case, and of all."""

from autounet.evaluation.cases import distance_unit, evaluate_case
from autounet.evaluation.metrics import METRICS
from autounet.evaluation.summary import summarise

__all__ = ["METRICS", "distance_unit", "evaluate_case", "summarise"]

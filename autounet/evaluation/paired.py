"""Two models over the same cases: is one better, or is it chance?

The Wilcoxon signed-rank test (Wilcoxon 1945) over cases, as "Metrics reloaded" and the Medical Segmentation Decathlon
(Antonelli et al., Nature Communications 2022) compare models; with several classes, Holm's correction (Holm 1979).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from autounet.evaluation.summary import SEED, values_of
from autounet.ops.bootstrap import bootstrap_interval
from autounet.schema.comparison import PairedDifference
from autounet.schema.errors import DataError
from autounet.schema.metrics import Metrics

NO_CASE = "no case in which both have a value"
NO_DIFFERENCE = "both have the same value in every case"


def compare_models(first: Metrics, second: Metrics, metric: str = "dice") -> tuple[PairedDifference, ...]:
    """Differences of a metric, first less second, for each class and region that both have.

    Cases are matched by name; those that one lacks are left out. Raises DataError when the two have no case or no
    class in common.
    """
    of_second = {case.case: case for case in second.cases}
    common = [case for case in first.cases if case.case in of_second]
    names = [name for name in first.per_class if name in second.per_class]
    if not common or not names:
        raise DataError("the two results have no case and class in common. Compare models on the same data set")
    others = [of_second[case.case] for case in common]
    differences = (values_of(common, names, metric) - values_of(others, names, metric)).T
    return _corrected([_difference(name, each[~np.isnan(each)]) for name, each in zip(names, differences, strict=True)])


def _difference(name: str, values: np.ndarray) -> PairedDifference:
    """Of one class: differences (N,), all defined."""
    if not len(values):
        return PairedDifference(name=name, cases=0, undefined=NO_CASE)
    p = _signed_rank_p(values)
    return PairedDifference(
        name=name,
        cases=len(values),
        difference=float(values.mean()),
        interval=bootstrap_interval(values, SEED),
        p=p,
        undefined=NO_DIFFERENCE if p is None else None,
    )


def _signed_rank_p(values: np.ndarray) -> float | None:
    """Two-sided; cases without a difference are left out (Wilcoxon's way). None when none is left.

    Exact for up to 50 cases without ties, else by the normal approximation with its correction for ties.
    """
    changed = values[values != 0]
    if not len(changed):
        return None
    from scipy.stats import wilcoxon  # takes half a second to load

    return float(wilcoxon(changed).pvalue)


def _corrected(found: Sequence[PairedDifference]) -> tuple[PairedDifference, ...]:
    """With Holm's p: the k-th smallest of m times (m - k + 1), never below one before it, never above 1."""
    tested = sorted((each for each in found if each.p is not None), key=lambda each: each.p or 0.0)
    corrected: dict[str, float] = {}
    highest = 0.0
    for place, each in enumerate(tested):
        highest = max(highest, min(1.0, (each.p or 0.0) * (len(tested) - place)))
        corrected[each.name] = highest
    return tuple(each.model_copy(update={"p_corrected": corrected.get(each.name)}) for each in found)

"""How much of a difference in mean Dice is chance: bootstrap over cases, the same draws for everything compared."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from autounet.ops.bootstrap import LEAST_VALUES, resampled_means
from autounet.schema.metrics import CaseMetrics

SEED = 0
"""of the draws: equal cases have equal errors"""


def dice_table(cases: Sequence[CaseMetrics], names: Sequence[str]) -> np.ndarray:
    """(cases, names) float64 Dice; NaN where it is undefined."""
    values = [[case.per_class[name].dice if name in case.per_class else None for name in names] for case in cases]
    return np.array(values, dtype=np.float64).reshape(len(cases), len(names))


def mean_dice(table: np.ndarray) -> float:
    """Of a table (cases, names): the mean over names of the mean over cases where defined; NaN if it is nowhere."""
    defined = ~np.isnan(table)
    counts, sums = defined.sum(axis=0), np.where(defined, table, 0.0).sum(axis=0)
    per_name = np.divide(sums, counts, out=np.full(sums.shape, np.nan), where=counts > 0)
    return float(_over_names(per_name[None])[0])


def standard_error(table: np.ndarray, other: np.ndarray) -> float | None:
    """Of the difference of the mean Dice of two tables of the same cases; None with fewer than two cases."""
    if len(table) < LEAST_VALUES or not table.shape[1]:
        return None
    means = [_over_names(resampled_means(each, SEED)) for each in (table, other)]
    differences = means[0] - means[1]
    differences = differences[~np.isnan(differences)]
    return float(differences.std()) if len(differences) else None


def _over_names(means: np.ndarray) -> np.ndarray:
    """(B,) of means (B, names): their mean where defined, NaN if they are nowhere."""
    known = ~np.isnan(means)
    counts, sums = known.sum(axis=1), np.where(known, means, 0.0).sum(axis=1)
    return np.divide(sums, counts, out=np.full(len(means), np.nan), where=counts > 0)

"""Which of many numbers lie apart from the rest."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

LEAST_NUMBERS = 5
"""below, nobody can say what the rest is"""
LIMIT = 3.5
"""modified z-score from which on a number is an outlier: B. Iglewicz and D. Hoaglin, How to Detect and Handle Outliers,
ASQC Quality Press 1993"""
MOST_APART = 0.05
"""share of the numbers; where more lie apart, they come from several sources and none is wrong"""


def outliers(values: Sequence[float], least: float) -> list[int]:
    """Indices of the numbers that lie apart by at least `least` from the median and by the modified z-score.

    The modified z-score is 0.6745 (x - median) / MAD, with the median absolute deviation MAD: of normally distributed
    numbers it is the z-score, and a few wrong numbers do not move it. One number in a small set may lie apart.
    """
    if len(values) < LEAST_NUMBERS:
        return []
    numbers = np.asarray(values, float)
    away = np.abs(numbers - np.median(numbers))
    deviation = np.median(away)
    found = np.flatnonzero((away >= least) & (0.6745 * away > LIMIT * deviation))
    return found.tolist() if len(found) <= max(1, MOST_APART * len(numbers)) else []

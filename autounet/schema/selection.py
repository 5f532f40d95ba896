"""What was chosen after cross-validation, and why."""

from __future__ import annotations

from pydantic import Field

from autounet.schema.aftercare import PostprocessStep, PostprocessTrial, TemperatureScaling, Weighting
from autounet.schema.record import Part, Record

WEIGHTED = "weighted"
"""folder of the selected out-of-fold segmentations where configurations have weights, beside those of equal ones"""


class Candidate(Part):
    """One configuration, or several whose probabilities are averaged. See `selection.choose` for the numbers."""

    configurations: tuple[str, ...]
    mean_dice: float | None
    interval: tuple[float, float] | None = None
    """of the mean Dice: 95 %, by bootstrap over cases"""
    behind: float | None = None
    """mean Dice of the best candidate less its own"""
    noise: float | None = None
    """one standard error of `behind`, by the same bootstrap"""
    networks: int | None = None
    """configurations that are predicted, previous stages included: its cost"""


class Selection(Record):
    """`selection.json`."""

    chosen: tuple[str, ...] = Field(min_length=1)
    """configurations whose probabilities are averaged"""
    compared: tuple[Candidate, ...]
    reason: str
    rule: str = ""
    """by which candidates count as equal"""
    folds: tuple[int, ...] = ()
    """whose out-of-fold predictions were compared"""
    weights: tuple[float, ...] = ()
    """of the chosen configurations' probabilities, summing to 1; empty: equal"""
    weighting: Weighting | None = None
    """why these weights; None: a single configuration, or nothing to fit weights on"""
    postprocessing: tuple[PostprocessStep, ...] = ()
    """applied in this order to what is predicted"""
    postprocessing_trials: tuple[PostprocessTrial, ...] = ()
    postprocessing_reason: str = ""
    calibration: TemperatureScaling | None = None
    """of the probabilities that are written; None: they are as the networks give them"""

    @property
    def folder(self) -> str:
        """Of the selected out-of-fold segmentations before postprocessing, in `crossval/`."""
        return "+".join(self.chosen) + (f"/{WEIGHTED}" if self.weights else "")

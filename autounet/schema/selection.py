"""What was chosen after cross-validation, and why."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from .labels import Labels, TargetKind
from .record import ConfigurationName, Part, Record


class PostprocessStep(Part):
    """Connected components of one class, of one region or of all foreground that become background."""

    name: str
    """of the class or region; `foreground` for all together"""
    values: tuple[int, ...] = Field(min_length=1)
    """label values, as in files, whose union the components are of"""
    keep: Literal["largest", "minimum"]
    """the largest component alone, or those of at least `minimum`"""
    minimum: float | None = Field(default=None, gt=0)
    """mm^3; voxels of images without spacing, whose spacing is 1"""

    @model_validator(mode="after")
    def _consistent(self) -> PostprocessStep:
        if (self.keep == "minimum") != (self.minimum is not None):
            raise ValueError("minimum is a size with keep minimum, and null with keep largest")
        return self

    def __str__(self) -> str:
        what = "the largest component" if self.keep == "largest" else f"components of at least {self.minimum:g}"
        return f"{what} of {self.name}"


class PostprocessTrial(Part):
    """What cross-validation says of postprocessing one class, one region or all foreground."""

    name: str
    step: PostprocessStep | None
    """the best on all cases; None: nothing is better than to leave the segmentation as it is"""
    gain: float | None
    """mean Dice gained on cases that had no part in choosing the step; None where no case can be held out"""
    noise: float | None
    """one standard error of the gain, by bootstrap over cases"""
    kept: bool


class ObjectTrial(Part):
    """One way of making objects of expected depths, see `ops.objects.separate`."""

    height: float = Field(ge=0, le=1)
    """by which a summit rises above every way to a higher one, as a share of the depth of the middle of an object"""
    smallest: float = Field(ge=0)
    """objects below this are removed: mm^3, or voxels of images without spacing, whose spacing is 1"""
    score: float | None = None
    """`ObjectSeparation.rule`, on all out-of-fold cases"""


class ObjectSeparation(Part):
    """How single objects come from what networks predict, chosen on out-of-fold cases."""

    chosen: ObjectTrial
    compared: tuple[ObjectTrial, ...] = ()
    by_group: dict[int, ObjectTrial] = {}
    """of each fold (or group of cases, where a single fold is finished): chosen on the others"""
    rule: str
    """what the score is, and by which of equal ones was chosen"""


class ReliabilityBin(Part):
    """Voxels decided with nearly the same confidence, for a reliability diagram."""

    confidence: float
    """mean probability of what was decided"""
    right: float
    """share of them that is right"""
    share: float
    """of all voxels that fall into this bin"""


class TemperatureScaling(Part):
    """Guo et al., "On calibration of modern neural networks", ICML 2017: logits are divided by one number."""

    temperature: float = Field(ge=1e-6, le=1e6)
    """that is applied: `fitted`, or 1 where it brings nothing on held-out cases"""
    fitted: float = Field(gt=0)
    """on all out-of-fold cases"""
    ece_before: float
    """expected calibration error with 15 bins, over the sampled voxels, at temperature 1"""
    ece_after: float
    """the same, each fold at the temperature fitted on the others"""
    cases: int
    voxels: int
    """sampled around the structures of all cases"""
    bins: int = 15
    reliability_before: tuple[ReliabilityBin, ...] = ()
    """the bins behind `ece_before`, least confident first, empty ones left out"""
    reliability_after: tuple[ReliabilityBin, ...] = ()
    """those behind `ece_after`"""


class Weighting(Part):
    """What cross-validation says of weights for the configurations of an ensemble, beside equal ones."""

    fitted: tuple[float, ...]
    """on all out-of-fold cases: at least 0, summing to 1, in the order of `Selection.chosen`. Empty: not fitted"""
    by_group: dict[int, tuple[float, ...]] = {}
    """of each fold (or group of cases, where a single fold is finished): fitted on the others"""
    gain: float | None = None
    """mean Dice that weights fitted on the other folds gain over equal ones; None: nothing could be held out"""
    noise: float | None = None
    """one standard error of the gain, by bootstrap over cases"""
    kept: bool = False
    reason: str


class ProbabilityChannels(Record):
    """`classes.json` beside written probabilities: what their last axis counts."""

    channels: tuple[str, ...]
    """names, in order"""
    targets: TargetKind
    """classes: they sum to 1, background included; regions: each is by itself, and they may overlap"""
    temperature: float
    """that the logits were divided by"""
    labels: Labels | None = None
    """of the model; None: of a file by another program"""


class Candidate(Part):
    """One configuration, or several whose probabilities are averaged. See `crossval.select` for the numbers."""

    configurations: tuple[ConfigurationName, ...]
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

    chosen: tuple[ConfigurationName, ...] = Field(min_length=1)
    """configurations whose probabilities are averaged"""
    compared: tuple[Candidate, ...]
    reason: str
    rule: str = ""
    """by which candidates count as equal"""
    folds: tuple[int, ...] = ()
    """whose out-of-fold predictions were compared"""
    weights: tuple[Annotated[float, Field(ge=0, le=1)], ...] = ()
    """of the chosen configurations' probabilities, summing to 1; empty: equal"""
    weighting: Weighting | None = None
    """why these weights; None: a single configuration, or nothing to fit weights on"""
    postprocessing: tuple[PostprocessStep, ...] = ()
    """applied in this order to what is predicted"""
    postprocessing_trials: tuple[PostprocessTrial, ...] = ()
    postprocessing_reason: str = ""
    objects: ObjectSeparation | None = None
    """None: objects are not told apart"""
    calibration: TemperatureScaling | None = None
    """of the probabilities that are written; None: they are as the networks give them"""

    @model_validator(mode="after")
    def _one_weight_each(self) -> Selection:
        if self.weights and (len(self.weights) != len(self.chosen) or abs(sum(self.weights) - 1) > 1e-3):
            raise ValueError(f"weights {self.weights} are not one for each of {', '.join(self.chosen)}, summing to 1")
        return self

"""How good segmentations are: per class, per case, over all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from .errors import unknown_name
from .plugins import plugins
from .record import CaseName, Part, Record
from .selection import TemperatureScaling

NEAR_ZERO = 0.1
"""of Dice: a class below it is hardly found"""
WHAT_HELPS = "more time (--time or --epochs), fewer classes, or a region (--region) that unites it with others"
"""where the Dice of a class stays near zero"""


class ClassMetrics(Part):
    """Metrics of one class in one case or over all; the definitions: `docs/metrics.md`.

    A null value has its reason in `undefined`; what was not measured is not written.
    """

    dice: float | None = None
    iou: float | None = None
    sensitivity: float | None = None
    precision: float | None = None
    hd95: float | None = None
    nsd: float | None = None
    volume: float | None = None
    """predicted, in ml (mm^3 / 1000); pixels for images without spacing"""
    volume_difference: float | None = None
    """(predicted - true) volume, in the same unit"""
    assd: float | None = None
    nsd_subvoxel: float | None = None
    boundary_iou: float | None = None
    lesion_f1: float | None = None
    panoptic_quality: float | None = None
    cl_dice: float | None = None
    ap50: float | None = None
    ap60: float | None = None
    ap70: float | None = None
    ap80: float | None = None
    ap90: float | None = None
    count_error: float | None = None
    plugins: dict[str, float] = {}
    """values of metrics of plug-ins, by name"""
    undefined: dict[str, str] = {}

    @classmethod
    def of(cls, values: Mapping[str, float | None], undefined: Mapping[str, str]) -> Self:
        """From values by the name of the metric, built in or of a plug-in."""
        own = {name: value for name, value in values.items() if name in METRIC_NAMES}
        others = {name: value for name, value in values.items() if name not in own and value is not None}
        return cls(**own, plugins=others, undefined=dict(undefined))

    def value(self, metric: str) -> float | None:
        """None where it is undefined or was not measured."""
        found: float | None = getattr(self, metric) if metric in METRIC_NAMES else self.plugins.get(metric)
        return found

    @model_serializer(mode="wrap")
    def _without_unmeasured(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        kept = {*self.undefined, "undefined"}
        return {name: value for name, value in serialise(self).items() if value not in (None, {}) or name in kept}


METRIC_NAMES = tuple(name for name in ClassMetrics.model_fields if name not in ("plugins", "undefined"))
DEFAULT_METRICS = ("dice", "iou", "sensitivity", "precision", "hd95", "nsd", "volume", "volume_difference")
"""what is measured unless others are asked for"""
OBJECT_METRICS = ("panoptic_quality", "ap50", "ap60", "ap70", "ap80", "ap90", "count_error")
"""what is measured besides where label files number objects"""


def chosen_metrics(names: Sequence[str]) -> tuple[str, ...]:
    """Names of metrics in their order, those of plug-ins last; `default` and `all` stand for several, Dice is always
    among them.

    Raises OptionError for an unknown name.
    """
    others = sorted(plugins("metrics")) if not {*names} <= {*METRIC_NAMES, "default"} else []
    several = {"default": DEFAULT_METRICS, "all": (*METRIC_NAMES, *others)}
    wanted = {"dice"}.union(*(several.get(name, (name,)) for name in names))
    if unknown := sorted(wanted - set(several["all"])):
        raise unknown_name("--metrics", unknown[0], several["all"], ", or default, or all")
    return tuple(name for name in several["all"] if name in wanted)


class CaseMetrics(Part):
    case: CaseName
    fold: int | None = None
    per_class: dict[str, ClassMetrics]
    uncertainty: float | None = Field(default=None, ge=0, le=1)
    """mean entropy of the out-of-fold probabilities around the structures, as a share of the greatest possible; None:
    not measured"""


class Metrics(Record):
    """`metrics.json`."""

    mean_dice: float | None
    """mean over foreground classes, or where there are regions over these and the classes that they do not tell apart,
    of the mean over cases where it is defined"""
    per_class: dict[str, ClassMetrics]
    """of classes and regions, by name"""
    cases: tuple[CaseMetrics, ...]
    tolerance: float = 1.0
    """surface distance tolerance of nsd and nsd_subvoxel, in `unit`"""
    unit: str = "mm"
    """of distances: mm, or pixels for images without spacing"""
    mean_dice_interval: tuple[float, float] | None = None
    """95 % confidence, by bootstrap over cases; None with fewer than two cases"""
    intervals: dict[str, dict[str, tuple[float, float]]] = {}
    """class or region -> metric -> the same of its mean in `per_class`"""
    calibration: TemperatureScaling | None = None
    """of the selected out-of-fold probabilities"""

    @property
    def hardly_found(self) -> dict[str, float]:
        """Class or region whose mean Dice is near zero -> the Dice."""
        dice = {name: each.dice for name, each in self.per_class.items() if each.dice is not None}
        return {name: value for name, value in dice.items() if value < NEAR_ZERO}


class PairedDifference(Part):
    """One class, two models, the cases in which the metric is defined for both."""

    name: str
    """of the class or region"""
    cases: int
    difference: float | None = None
    """mean over these cases of the first model's value less the second's"""
    interval: tuple[float, float] | None = None
    """95 % of it, by bootstrap over cases; None with fewer than two cases"""
    p: float | None = None
    """two-sided, of the Wilcoxon signed-rank test"""
    p_corrected: float | None = None
    """the same after Holm's correction for the number of classes tested"""
    undefined: str | None = None
    """why there is no p"""


Comparability = Literal["same", "similar", "other"]
"""same: the same cases, split and metric in kind; similar: one of them may differ; other: for orientation only"""


class PublishedFigure(Part):
    """One number somebody published."""

    method: str
    value: float = Field(ge=0, le=1)
    """in 0..1, whatever the source writes"""
    target: str | None = None
    """class; None: the mean over the classes"""


class PublishedResults(Part):
    """Figures of one source on one data set, measured in one way."""

    protocol: str
    """which cases were trained and tested on"""
    metric: str
    """as the source calls it"""
    source: str
    comparability: Comparability
    comparable: str
    """how a cross-validation of this program relates to it, in a sentence"""
    test_cases: int | None = Field(default=None, ge=1)
    """cases of the official test set that the figures are of; None: measured otherwise, or not stated"""
    figures: tuple[PublishedFigure, ...] = Field(min_length=1)


class Signature(Part):
    """What the fingerprint of a public data set looks like, so that it is known under any name."""

    dimension: int = Field(ge=2, le=3)
    cases: int
    channels: int
    classes: int
    """that are segmented, background left out; of a set with regions, the regions"""
    median_shape: tuple[int, int, int] | None = None
    """(z, y, x); None: the set is known by its name alone"""
    median_spacing: tuple[float, float, float] | None = None
    """(z, y, x) mm, to 1 %"""


class KnownDataSet(Part):
    """A public data set with published results."""

    name: str
    aliases: tuple[str, ...] = Field(min_length=1)
    """words of which one occurs in the data set's name, lower-case letters and digits only"""
    signature: Signature
    results: tuple[PublishedResults, ...] = Field(min_length=1)


class PublishedTable(Record):
    """`report/published.json`, which comes with the package."""

    data_sets: tuple[KnownDataSet, ...]


class ComparedFigure(Part):
    """A published figure with this run's value for the same target."""

    method: str
    target: str
    published: float
    ours: float | None
    measured_on: str = "out-of-fold cases"
    """which cases `ours` is of"""
    interval: tuple[float, float] | None
    verdict: Literal["ahead", "level", "behind", "not comparable"]
    protocol: str
    metric: str
    source: str
    comparable: str


class PublishedComparison(Part):
    """What `autounet compare OUT` says."""

    data_set: str | None
    """None: no published results are known"""
    recognised: str
    """how the data set was recognised, or why not"""
    rows: tuple[ComparedFigure, ...] = ()
    sentences: tuple[str, ...] = ()

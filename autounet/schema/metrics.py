"""How good segmentations are: per class, per case, over all."""

from __future__ import annotations

from typing import Any

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from autounet.schema.aftercare import TemperatureScaling
from autounet.schema.record import Part, Record


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
    undefined: dict[str, str] = {}

    @model_serializer(mode="wrap")
    def _without_unmeasured(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in serialise(self).items() if value is not None or name in self.undefined}


class CaseMetrics(Part):
    case: str
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

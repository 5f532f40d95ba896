"""Where the voxels of a file lie in space, and what a prepared case remembers of its way from there."""

from __future__ import annotations

from typing import Annotated, NamedTuple

from pydantic import Field

from .plan import PreprocessSpec
from .record import Part, Record

Shape3 = tuple[int, int, int]
Spacing3 = tuple[float, float, float]
Box3 = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
Positive = Annotated[float, Field(gt=0)]

IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)


class Geometry(Part):
    """The geometry of one image file, as stored.

    Arrays read from the file are (C, Z, Y, X); a 2-D image has Z = 1. `direction` is the 3x3 matrix, row by row,
    whose columns are the directions of the x, y and z index axes in LPS world space (the convention of ITK);
    `origin` is the world position (x, y, z) of the first voxel.
    """

    shape: Shape3
    """(z, y, x) voxels"""
    spacing: tuple[Positive, Positive, Positive] = (1.0, 1.0, 1.0)
    """(z, y, x) mm; photographs have 1"""
    origin: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """(x, y, z) mm"""
    direction: tuple[float, float, float, float, float, float, float, float, float] = IDENTITY
    kind: str = "nifti"
    """file kind: nifti, nrrd, mha, dicom, png, tiff, gif, jpeg, bmp or array"""
    dimension: int = Field(default=3, ge=2, le=3)
    """2 for photographs and single-slice formats, 3 for volumes"""


TOLERANCE = 1e-3
"""mm by which spacing and origin of two files on the same voxels may differ: formats round, NIfTI to float32"""
DIRECTION_TOLERANCE = 1e-4
"""the same for direction cosines"""


class GeometryDifference(NamedTuple):
    """A field in which two geometries differ, and both values."""

    field: str
    """shape, spacing, origin or direction"""
    found: tuple[float, ...]
    expected: tuple[float, ...]

    def __str__(self) -> str:
        found, expected = (
            tuple(value if isinstance(value, int) else round(value, 4) + 0.0 for value in values)
            for values in (self.found, self.expected)
        )
        return f"{self.field} {found} instead of {expected}"


def geometry_differences(
    found: Geometry, expected: Geometry, direction_tolerance: float = DIRECTION_TOLERANCE
) -> tuple[GeometryDifference, ...]:
    """The fields that keep two files from lying on the same voxels in space; empty where they do.

    The shape must be equal; spacing and origin may differ by `TOLERANCE` and the direction cosines by
    `direction_tolerance`. File kind and dimension do not count.
    """
    tolerances = {"shape": 0.0, "spacing": TOLERANCE, "origin": TOLERANCE, "direction": direction_tolerance}
    pairs = [
        (GeometryDifference(field, getattr(found, field), getattr(expected, field)), tolerance)
        for field, tolerance in tolerances.items()
    ]
    return tuple(
        difference
        for difference, tolerance in pairs
        if any(abs(own - wanted) > tolerance for own, wanted in zip(difference[1], difference[2], strict=True))
    )


class CaseProperties(Record):
    """Everything the inverse of preprocessing needs. Shapes are of three axes.

    forward: stored (Z,Y,X) --orient--> --transpose--> --crop `box`--> `cropped_shape` --resample--> `shape`.
    """

    identifier: str
    key: str
    """digest of the PreprocessSpec, the case's content and the stage's version"""
    spec: PreprocessSpec
    geometry: Geometry
    """of the file"""
    axes: tuple[int, int, int]
    """network axis i is stored array axis axes[i] (orientation and transposition joined)"""
    flips: tuple[bool, bool, bool]
    """whether network axis i runs against the stored one"""
    network_shape: Shape3
    """before the crop, network axis order"""
    network_spacing: tuple[float, float, float]
    """spacing before resampling, network axis order"""
    box: Box3
    """crop, half-open, network axis order, before resampling"""
    shape: Shape3
    """on the prepared grid"""
    present: tuple[bool, ...] | None = None
    """whether the case has each channel; those it lacks are 0. None: it has all"""

    @property
    def cropped_shape(self) -> Shape3:
        a, b, c = (stop - start for start, stop in self.box)
        return (a, b, c)

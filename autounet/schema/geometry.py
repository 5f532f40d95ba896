"""Where the voxels of a file lie in space, and what a prepared case remembers of its way from there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product
from typing import Annotated, Any, Literal, NamedTuple, Self

import numpy as np
from pydantic import Field

from .plan import PreprocessSpec
from .record import CaseName, Part, Record

Shape3 = tuple[int, int, int]
Spacing3 = tuple[float, float, float]
Box3 = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]

IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)


Four = tuple[float, float, float, float]
MILLIMETRES = {1: 1000.0, 2: 1.0, 3: 0.001}
"""mm per unit of a NIfTI file, by the last three bits of xyzt_units; other codes say nothing and are taken for mm"""


FLAT = 1e-3
"""volume of the box of three axes' directions, below which a damaged or empty transform spans no space"""
ROUNDED_LENGTH = 1e-4
"""share by which pixdim and the columns of an sform differ where both were rounded"""
ROUNDED = 1e-12
"""what rounding leaves of 0"""


class NiftiTransforms(Part):
    """Where a NIfTI header puts its voxels, number by number as stored (nifti.nimh.nih.gov/nifti-1).

    A header has two transforms from voxels (x, y, z) to RAS world space, which programs choose from by rules of their
    own, and a registration often changes one of them. Files written beside an image carry both.
    """

    qform_code: int
    """0: the file has no qform"""
    sform_code: int
    quaternion: tuple[float, float, float]
    """b, c and d; with the offset and `pixdim` the qform"""
    offset: tuple[float, float, float]
    sform: tuple[Four, Four, Four]
    """its rows"""
    pixdim: tuple[float, float, float, float, float, float, float, float]
    """the first is the sign of the third axis, the next three the spacing"""
    units: int
    """xyzt_units"""

    @property
    def distances(self) -> tuple[float, float, float]:
        """Between voxels along x, y and z, in the file's unit: pixdim, or what a lone sform says.

        With no qform, or a pixdim below 0 that would make none, NIfTI's third method holds, in which pixdim is not
        used. A flat sform has no lengths.
        """
        lone = self.sform_code > 0 and (self.qform_code <= 0 or min(self.pixdim[1:4]) <= 0)
        x, y, z = np.linalg.norm(np.array(self.sform)[:, :3], axis=0).tolist()
        given = self.pixdim[1:4]
        lengths = (x or given[0], y or given[1], z or given[2])
        return lengths if lone and not np.allclose(lengths, given, rtol=ROUNDED_LENGTH) else given

    @property
    def names_unit(self) -> bool:
        return self.units & 7 in MILLIMETRES

    def matrices(self) -> Iterator[np.ndarray]:
        """(3, 4): a voxel (x, y, z, 1) to mm, RAS, by each transform that the file has.

        A file without any lies where readers put it, of which nibabel alone moves the origin: into the middle. That
        takes the image's shape and is left to `placements`.
        """
        scale = MILLIMETRES.get(self.units & 7, 1.0)
        if self.sform_code > 0:
            yield scale * np.array(self.sform)
        if self.qform_code > 0:
            rotation = quaternion_matrix(*self.quaternion) * np.array(self.pixdim[1:4])
            rotation[:, 2] *= -1 if self.pixdim[0] < 0 else 1
            yield scale * np.column_stack([rotation, self.offset])


def quaternion_matrix(b: float, c: float, d: float) -> np.ndarray:
    """(3, 3) rotation by the unit quaternion (a, b, c, d) with a >= 0."""
    a = max(0.0, 1 - b * b - c * c - d * d) ** 0.5
    return np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
        ]
    )


def quaternion_of(rotation: np.ndarray) -> tuple[float, float, float]:
    """b, c and d of the unit quaternion (a, b, c, d) with a >= 0 that is nearest to a (3, 3) rotation."""
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = rotation
    products = [  # 4 q q^T - 1 of the quaternion q (Bar-Itzhack 2000)
        [xx + yy + zz, zy - yz, xz - zx, yx - xy],
        [zy - yz, xx - yy - zz, xy + yx, xz + zx],
        [xz - zx, xy + yx, yy - xx - zz, yz + zy],
        [yx - xy, xz + zx, yz + zy, zz - xx - yy],
    ]
    a, b, c, d = np.linalg.eigh(np.array(products))[1][:, -1].tolist()
    leading = next((part for part in (a, b, c, d) if abs(part) > ROUNDED), 1.0)
    return (b, c, d) if leading > 0 else (-b, -c, -d)


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
    nifti: NiftiTransforms | None = None
    """both transforms of a NIfTI file, of which the fields above state one"""

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """As pydantic's; a grid that is moved has no longer the transforms of a file."""
        moved = update is not None and not {"spacing", "origin", "direction"}.isdisjoint(update)
        return super().model_copy(update={"nifti": None, **update} if moved and update else update, deep=deep)

    @property
    def skew(self) -> float:
        """How far the axes are off right angles: the largest scalar product of two of them, 0 of a rectangular grid."""
        columns = np.reshape(self.direction, (3, 3))
        return float(np.abs(columns.T @ columns - np.eye(3)).max())


MILLIMETRES_AND_SECONDS = 10
"""xyzt_units"""
MOST_QFORM_SKEW = 1e-5
"""skew of axes up to which a qform, which has none, says the same as an sform"""


def transforms_of(geometry: Geometry) -> NiftiTransforms:
    """For voxels of another format: both transforms, or where the axes are not at right angles the sform alone."""
    direction = np.reshape(geometry.direction, (3, 3)) * [[-1], [-1], [1]] + 0.0  # LPS to RAS, without -0
    spacing = np.array(geometry.spacing[::-1])
    origin = np.array(geometry.origin) * (-1, -1, 1) + 0.0
    sign = -1.0 if np.linalg.det(direction) < 0 else 1.0
    first, second, third = np.column_stack([direction * spacing, origin]).tolist()
    return NiftiTransforms(
        qform_code=int(geometry.skew <= MOST_QFORM_SKEW),
        sform_code=1,
        quaternion=quaternion_of(direction * (1, 1, sign)),
        offset=tuple(origin.tolist()),
        sform=(first, second, third),
        pixdim=(sign, *spacing.tolist(), 1.0, 1.0, 1.0, 1.0),
        units=MILLIMETRES_AND_SECONDS,
    )


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


def placements(geometry: Geometry, unit_counts: bool = True) -> Iterator[Geometry]:
    """The grids on which a file may be meant to lie: its own, and for NIfTI volumes those of both transforms.

    A file with neither also lies where nibabel puts it, its middle in the origin, as it writes into the labels that are
    saved with its affine. `unit_counts` False: lengths are taken as if they were mm, too.
    """
    yield geometry
    header = geometry.nifti
    if header is None or geometry.dimension != 3:
        return
    matrices = list(header.matrices())
    if not matrices:
        spacing = np.array(geometry.spacing[::-1])
        middle = (np.array(geometry.shape[::-1]) - 1) / 2 * spacing
        matrices.append(np.column_stack([np.diag(spacing * (-1, 1, 1)), middle * (1, -1, -1)]))
    scales = [1.0] if unit_counts else [1.0, 1 / MILLIMETRES.get(header.units & 7, 1.0)]
    for matrix in matrices:
        for scale in scales:
            columns, origin = matrix[:, :3] * scale, matrix[:, 3] * scale
            columns, origin = columns * [[-1], [-1], [1]], origin * (-1, -1, 1)  # RAS to LPS
            lengths = np.sqrt((columns**2).sum(axis=0))
            if (lengths > 0).all() and abs(np.linalg.det(columns / lengths)) > FLAT:
                update = {
                    "spacing": tuple(lengths[::-1].tolist()),
                    "origin": tuple(origin.tolist()),
                    "direction": tuple((columns / lengths).ravel().tolist()),
                }
                yield geometry.model_copy(update=update)


def geometry_differences(
    found: Geometry, expected: Geometry, direction_tolerance: float = DIRECTION_TOLERANCE
) -> tuple[GeometryDifference, ...]:
    """The fields that keep two files from lying on the same voxels in space; empty where they do.

    The shape must be equal; spacing and origin may differ by `TOLERANCE` and the direction cosines by
    `direction_tolerance`. File kind and dimension do not count. Of NIfTI files with two transforms that disagree one of
    one file has to equal one of the other: a program that changes one of them moves no voxel. Where one of the files
    names no unit, the numbers have to be equal, which is what programs copy that know no units.
    """
    differences = _grid_differences(found, expected, direction_tolerance)
    if not differences or found.shape != expected.shape:
        return differences
    headers = (found.nifti, expected.nifti)
    unit_counts = all(header is None or header.names_unit for header in headers)
    pairs = product(placements(found, unit_counts), placements(expected, unit_counts))
    return () if any(not _grid_differences(*pair, direction_tolerance) for pair in pairs) else differences


def _grid_differences(
    found: Geometry, expected: Geometry, direction_tolerance: float
) -> tuple[GeometryDifference, ...]:
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

    identifier: Literal[""] | CaseName = Field(union_mode="left_to_right")
    """empty: an image of no data set"""
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

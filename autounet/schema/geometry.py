"""Where the voxels of a file lie in space."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from .record import Part

Shape3 = tuple[int, int, int]
Spacing3 = tuple[float, float, float]
Box3 = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
Positive = Annotated[float, Field(gt=0)]

IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)

TOLERANCES = {"spacing": 1e-3, "origin": 1e-3, "direction": 1e-4}
"""mm, and for directions of length 1; NIfTI rounds to float32"""


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

    def difference(self, expected: Geometry) -> str:
        """The first of shape, spacing, origin and direction that differs, with both values; empty where none does.

        The kind of file may differ, and formats round what they store.
        """
        if self.shape != expected.shape:
            return f"shape: {self.shape}, not {expected.shape}"
        for name, tolerance in TOLERANCES.items():
            own, other = getattr(self, name), getattr(expected, name)
            if not all(abs(a - b) <= tolerance for a, b in zip(own, other, strict=True)):
                return f"{name}: {own}, not {other}"
        return ""

"""What a prepared case remembers so that the inverse needs no raw image."""

from __future__ import annotations

from .geometry import Box3, Geometry, Shape3
from .plan import PreprocessSpec
from .record import Record


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

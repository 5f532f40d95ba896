"""Whether two files of a case lie on the same voxels in space."""

from __future__ import annotations

import numpy as np

from autounet.images import VOLUME_KINDS
from autounet.schema.geometry import Geometry

GEOMETRY_TOLERANCE = 1e-3
"""mm, or direction cosine, that the headers of one case may differ by: what rounding in the formats leaves"""


def differences(own: Geometry, image: Geometry) -> list[str]:
    """How a file's spacing, origin and direction differ from the image's, in words; none within the tolerance.

    Only volume formats say where their voxels lie, and a flat image says less than a volume: others never differ.
    """
    if own.kind not in VOLUME_KINDS or image.kind not in VOLUME_KINDS or own.dimension != image.dimension:
        return []
    return [
        f"{field} {_rounded(getattr(own, field))} instead of {_rounded(getattr(image, field))}"
        for field in ("spacing", "origin", "direction")
        if np.abs(np.subtract(getattr(own, field), getattr(image, field))).max() > GEOMETRY_TOLERANCE
    ]


def _rounded(values: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(round(value, 4) + 0.0 for value in values)

"""Maps on the prepared grid back to the file's own voxels, beside the export, which decides on classes."""

from __future__ import annotations

import numpy as np

from autounet.ops.interpolation import apply_taps
from autounet.preprocessing.grids import stored_view
from autounet.schema.prepared import CaseProperties


def export_map(values: np.ndarray, properties: CaseProperties) -> np.ndarray:
    """(Z, Y, X) float32 in the shape of the original file, from `values` (*S) on the case's prepared grid.

    Interpolated as scores are, slice by slice; 0 outside the crop. Raises ValueError when the values are not on the
    case's prepared grid.
    """
    view = stored_view(values[None], properties)
    along_z, along_y, along_x = view.taps
    result = np.zeros(properties.geometry.shape, np.float32)
    inside = result[tuple(slice(start, stop) for start, stop in view.box)]
    for z, plane in enumerate(inside):
        below, above = (view.scores[0, end[z]].astype(np.float32, copy=False) for end in along_z[:2])
        plane[...] = apply_taps(apply_taps(below + along_z.weight[z] * (above - below), 0, along_y), 1, along_x)
    return result

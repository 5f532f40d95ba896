"""Centre lines of masks."""

from __future__ import annotations

import numpy as np


def skeleton(mask: np.ndarray) -> np.ndarray:
    """The centre line of a boolean mask of 1 to 3 axes: one voxel thin, with the mask's connections; same shape.

    Thinning by Zhang and Suen 1984 in 2-D and by Lee, Kashyap and Chu 1994 in 3-D; beyond the array is outside.
    """
    from skimage.morphology import skeletonize  # takes a while to load, and few runs need it

    return skeletonize(np.atleast_2d(mask)).astype(bool).reshape(mask.shape)

"""What one stage of a cascade hands to the next: its segmentation on the next one's grid, as more image channels."""

from __future__ import annotations

import numpy as np

from autounet.preprocessing.export import classify
from autounet.preprocessing.grids import grid_view
from autounet.schema.prepared import CaseProperties

LARGEST_INT8 = 127


def labels_for_next_stage(scores: np.ndarray, source: CaseProperties, target: CaseProperties) -> np.ndarray:
    """Dense labels (*S) on the prepared grid of `target` from scores (K, *S') on that of `source`.

    The scores are interpolated and the highest wins, as nnU-Net does: labels interpolated from the coarse grid would
    have its steps. int8, or int16 when a class is beyond 127. Raises ValueError when the two are not the same case.
    """
    result = np.empty(target.shape, np.int16)
    classify([grid_view(scores, source, target)], np.ones(1), 1.0, result)
    return result.astype(np.int8) if len(scores) - 1 <= LARGEST_INT8 else result


def append_one_hot(image: np.ndarray, segmentation: np.ndarray, classes: int) -> np.ndarray:
    """Image (C, *S) and dense labels (*S) to (C + classes - 1, *S) float32: one channel a class but the background."""
    joined = np.empty((len(image) + classes - 1, *image.shape[1:]), np.float32)
    joined[: len(image)] = image
    for index, channel in enumerate(joined[len(image) :], 1):
        np.equal(segmentation, index, out=channel, casting="unsafe")
    return joined

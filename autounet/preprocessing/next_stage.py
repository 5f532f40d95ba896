"""What one stage of a cascade hands to the next: its segmentation on the next one's grid, as more image channels."""

from __future__ import annotations

import numpy as np

from autounet.ops.crop import crop
from autounet.ops.orient import orient
from autounet.ops.resample import resample_labels, separate_axis
from autounet.preprocessing.deciding import HIGHEST, Decision
from autounet.preprocessing.export import classify
from autounet.preprocessing.grids import grid_view, prepared_spacing, stored_view
from autounet.schema.prepared import CaseProperties

LARGEST_INT8 = 127


def labels_for_next_stage(
    scores: np.ndarray, source: CaseProperties, target: CaseProperties, decision: Decision = HIGHEST
) -> np.ndarray:
    """Dense labels (*S) on the prepared grid of `target` from scores (C, *S') on that of `source`.

    The scores are interpolated and then decided on, as nnU-Net does: labels interpolated from the coarse grid would
    have its steps. int8, or int16 when a class is beyond 127. Raises ValueError when the two are not the same case.
    """
    result = np.empty(target.shape, np.int16)
    classify([grid_view(scores, source, target)], decision, np.ones(1), 1.0, result)
    highest = len(scores) - 1 if decision.classes is None else int(decision.classes.max())
    return result.astype(np.int8) if highest <= LARGEST_INT8 else result


def labels_by_file(
    scores: np.ndarray, source: CaseProperties, target: CaseProperties, decision: Decision = HIGHEST
) -> np.ndarray:
    """As `labels_for_next_stage`, by way of a label image in the file's own voxels, which is prepared like any other.

    So nnU-Net does where the second stage reads the first one's files: each label is resampled by itself.
    """
    view = stored_view(scores, source)
    dense = np.zeros(source.geometry.shape, np.int16)
    inside = dense[tuple(slice(start, stop) for start, stop in view.box)]
    classify([view], decision, np.ones(1), 1.0, inside)
    rules = target.spec.resampling
    axis = separate_axis(target.network_spacing, prepared_spacing(target), rules.separate_z_ratio)
    seen = crop(orient(dense, target.axes, target.flips), target.box)
    return resample_labels(np.ascontiguousarray(seen), target.shape, rules.label_order, axis, rules.z_order)


def append_one_hot(image: np.ndarray, segmentation: np.ndarray, classes: int) -> np.ndarray:
    """Image (C, *S) and dense labels (*S) to (C + classes - 1, *S) float32: one channel a class but the background."""
    joined = np.empty((len(image) + classes - 1, *image.shape[1:]), np.float32)
    joined[: len(image)] = image
    for index, channel in enumerate(joined[len(image) :], 1):
        np.equal(segmentation, index, out=channel, casting="unsafe")
    return joined

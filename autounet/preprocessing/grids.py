"""How the voxels of a prepared case and those of its file correspond, seen from the file's stored axes.

The export works slab by slab along the file's first axis, for sources that may be oriented and spaced differently.
So each source's interpolation is worked out in its own network axes, where nnU-Net's rules are stated, and then
permuted and flipped into the stored ones.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from autounet.ops.interpolation import Taps
from autounet.ops.orient import unorient, unpermute
from autounet.ops.resample import axis_orders, axis_taps, separate_axis
from autounet.schema.geometry import Box3, Spacing3
from autounet.schema.plan import PreprocessSpec
from autounet.schema.prepared import CaseProperties


class StoredView(NamedTuple):
    """One source's scores in the file's axis order, and how the voxels of the crop are made of them."""

    scores: np.ndarray
    """(K, *S) view, stored axis order"""
    taps: tuple[Taps, Taps, Taps]
    """from the prepared grid to the crop, per stored axis"""
    box: Box3
    """the crop in the file's voxels, stored axis order"""

    @property
    def same_grid(self) -> bool:
        return all(
            len(each.low) == size and not each.weight.any() and np.array_equal(each.low, np.arange(size))
            for each, size in zip(self.taps, self.scores.shape[1:], strict=True)
        )


def target_spacing(spec: PreprocessSpec, spacing: Spacing3) -> Spacing3:
    """The spacing of the prepared grid; `spacing` is the case's own, network axis order."""
    first, second, third = spec.spacing
    return (spacing[0] if first is None else first, second, third)


def stored_view(scores: np.ndarray, properties: CaseProperties) -> StoredView:
    """Raises ValueError when the scores are not on the case's prepared grid."""
    if scores.shape[1:] != properties.shape:
        raise ValueError(
            f"{properties.identifier}: scores of shape {scores.shape} for a prepared case of {properties.shape}"
        )
    spec = properties.spec
    spacing = properties.network_spacing
    # nnU-Net looks at the grid one comes from first: here the prepared one
    axis = separate_axis(target_spacing(spec, spacing), spacing, spec.resampling.separate_z_ratio)
    orders = axis_orders(spec.resampling.score_order, axis, spec.resampling.z_order)
    along = axis_taps(properties.shape, properties.cropped_shape, orders)
    turned, box = [], []
    for each, size, (start, stop), whole, flip in zip(
        along, properties.shape, properties.box, properties.network_shape, properties.flips, strict=True
    ):
        turned.append(each.flipped(size) if flip else each)
        box.append((whole - stop, whole - start) if flip else (start, stop))
    return StoredView(
        unorient(scores, properties.axes, properties.flips),
        unpermute(turned, properties.axes),
        unpermute(box, properties.axes),
    )

"""How the voxels of a prepared case correspond to those of its file, or of the same case prepared otherwise.

The export works slab by slab along the file's first axis, for sources that may be oriented and spaced differently.
So each source's interpolation is worked out in its own network axes, where nnU-Net's rules are stated, and then
permuted and flipped into the stored ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from autounet.ops.interpolation import Taps
from autounet.ops.orient import orient, permute, unorient, unpermute
from autounet.ops.resample import axis_orders, axis_taps, separate_axis
from autounet.schema.geometry import Box3, Spacing3
from autounet.schema.plan import PreprocessSpec
from autounet.schema.prepared import CaseProperties


class View(NamedTuple):
    """One source's scores in the target's axis order, and how the target's voxels are made of them.

    The target is the crop in the file (stored axis order), or another prepared grid (its own axis order).
    """

    scores: np.ndarray
    """(K, *S) view"""
    taps: tuple[Taps, Taps, Taps]
    """from the source's prepared grid to the target, per axis"""
    box: Box3
    """where the target lies in the file (stored axis order), or the whole prepared grid"""

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


def stored_view(scores: np.ndarray, properties: CaseProperties) -> View:
    """To the file's own voxels. Raises ValueError when the scores are not on the case's prepared grid."""
    _require_grid(scores, properties)
    along = _taps_to(properties, properties.cropped_shape, properties.network_spacing)
    return View(
        unorient(scores, properties.axes, properties.flips),
        _stored_taps(along, properties),
        _stored_box(properties),
    )


def grid_view(scores: np.ndarray, source: CaseProperties, target: CaseProperties) -> View:
    """From one prepared grid straight to another of the same case.

    Raises ValueError when the scores are not on the source's grid, or the two are of different cases or crops.
    """
    _require_grid(scores, source)
    if source.identifier != target.identifier or source.geometry != target.geometry:
        raise ValueError(f"grids of different cases: {source.identifier} and {target.identifier}")
    if _stored_box(source) != _stored_box(target):
        raise ValueError(f"{source.identifier}: grids with different crops")
    shape = permute(unpermute(target.shape, target.axes), source.axes)
    spacing = permute(unpermute(prepared_spacing(target), target.axes), source.axes)
    stored = _stored_taps(_taps_to(source, shape, spacing), source)
    sizes = permute(unpermute(source.shape, source.axes), target.axes)
    turned = zip(permute(stored, target.axes), sizes, target.flips, strict=True)
    first, second, third = (each.flipped(size) if flip else each for each, size, flip in turned)
    straight = unorient(scores, source.axes, source.flips)
    box = ((0, target.shape[0]), (0, target.shape[1]), (0, target.shape[2]))
    return View(orient(straight, target.axes, target.flips), (first, second, third), box)


def prepared_spacing(properties: CaseProperties) -> Spacing3:
    """Of a case's prepared grid, network axis order."""
    return target_spacing(properties.spec, properties.network_spacing)


def _require_grid(scores: np.ndarray, properties: CaseProperties) -> None:
    if scores.shape[1:] != properties.shape:
        raise ValueError(
            f"{properties.identifier}: scores of shape {scores.shape} for a prepared case of {properties.shape}"
        )


def _taps_to(source: CaseProperties, shape: Sequence[int], spacing: Spacing3) -> tuple[Taps, Taps, Taps]:
    """From the prepared grid to one of `shape` and `spacing`, all in the source's network axis order."""
    rules = source.spec.resampling
    # nnU-Net looks at the grid one comes from first: here the prepared one
    axis = separate_axis(prepared_spacing(source), spacing, rules.separate_z_ratio)
    return axis_taps(source.shape, shape, axis_orders(rules.score_order, axis, rules.z_order))


def _stored_taps(along: Sequence[Taps], properties: CaseProperties) -> tuple[Taps, Taps, Taps]:
    """Taps of a case's network axes for its stored axes."""
    turned = zip(along, properties.shape, properties.flips, strict=True)
    return unpermute([each.flipped(size) if flip else each for each, size, flip in turned], properties.axes)


def _stored_box(properties: CaseProperties) -> Box3:
    """The crop in the file's voxels, stored axis order."""
    sides = zip(properties.box, properties.network_shape, properties.flips, strict=True)
    box = [(whole - stop, whole - start) if flip else (start, stop) for (start, stop), whole, flip in sides]
    return unpermute(box, properties.axes)

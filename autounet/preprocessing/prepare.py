"""A case as read becomes a case as trained on: orient, transpose, crop, normalise, resample. `export` goes back."""

from __future__ import annotations

import zlib
from typing import NamedTuple

import numpy as np

from autounet.ops.crop import crop, nonzero_box
from autounet.ops.normalise import normalise
from autounet.ops.orient import network_axes, orient, permute
from autounet.ops.resample import resample_image, resample_labels, resampled_shape, separate_axis
from autounet.preprocessing.grids import target_spacing
from autounet.schema.geometry import Geometry
from autounet.schema.plan import PreprocessSpec
from autounet.schema.prepared import CaseProperties
from autounet.schema.presence import Presence
from autounet.schema.record import digest

STAGE_VERSION = 2
"""raised whenever the same input would be prepared differently"""
MOST_LOCATIONS = 10_000
"""per class, as in nnU-Net"""


class Prepared(NamedTuple):
    properties: CaseProperties
    image: np.ndarray
    """(C, *S) float32"""
    labels: np.ndarray | None
    """(*S) int8, or int16 when a class is beyond 127"""
    locations: dict[int, np.ndarray]
    """dense class -> (N, 3) int32 voxels of the prepared grid, in their order; see `class_locations`"""


def case_key(spec: PreprocessSpec, content_hash: str) -> str:
    """Digest of everything that prepared data depend on; equal keys mean equal prepared files."""
    return digest([spec.model_dump(mode="json"), content_hash, STAGE_VERSION])


def prepare_case(
    identifier: str,
    key: str,
    image: np.ndarray,
    labels: np.ndarray | None,
    geometry: Geometry,
    spec: PreprocessSpec,
    present: Presence | None = None,
) -> Prepared:
    """From (C, Z, Y, X) and dense labels (Z, Y, X) as stored to the prepared grid. The inputs are not changed.

    Normalisation comes before resampling, because a resampled mask of non-zero voxels would no longer fit the image.
    Channels that are not `present` (None: all are) are 0 after it: what a network takes for nothing special.
    Raises ValueError when image, labels and geometry differ in shape, or the channels are not the plan's.
    """
    if image.shape[1:] != geometry.shape or (labels is not None and labels.shape != geometry.shape):
        found = f"image {image.shape[1:]}" + ("" if labels is None else f" and labels {labels.shape}")
        raise ValueError(f"{identifier}: {found} do not fit the geometry's shape {geometry.shape}")
    axes, flips = network_axes(geometry.direction, geometry.dimension, spec.orientation, spec.transpose)
    spacing = permute(geometry.spacing, axes)
    target = target_spacing(spec, spacing)
    image = orient(image, axes, flips)
    box = nonzero_box(image)
    inside = crop(image, box)
    shape = resampled_shape(inside.shape[1:], spacing, target)
    rules = spec.resampling
    axis = separate_axis(spacing, target, rules.separate_z_ratio)
    properties = CaseProperties(
        identifier=identifier,
        key=key,
        spec=spec,
        geometry=geometry,
        axes=axes,
        flips=flips,
        network_shape=permute(geometry.shape, axes),
        network_spacing=spacing,
        box=box,
        shape=shape,
        present=present,
    )
    normalised = normalise(inside, spec.normalisation)
    if present is not None:
        normalised[~np.array(present)] = 0
    result = resample_image(normalised, shape, rules.image_order, axis, rules.z_order)
    if labels is None:
        return Prepared(properties, result, None, {})
    dense = crop(orient(labels, axes, flips), box)
    dense = np.ascontiguousarray(dense, dtype=np.int8 if dense.max() <= 127 else np.int16)
    dense = resample_labels(dense, shape, rules.label_order, axis, rules.z_order)
    return Prepared(properties, result, dense, class_locations(dense, identifier))


def class_locations(labels: np.ndarray, identifier: str, most: int = MOST_LOCATIONS) -> dict[int, np.ndarray]:
    """Up to `most` voxels of each class above 0 in dense labels (*S), drawn without replacement.

    Where some voxels have no label, those of class 0 are as hard to hit by chance, and are listed too. The draw is
    seeded by the case's name, so preparing a case again gives the same voxels.
    """
    flat = labels.ravel()
    foreground = np.flatnonzero(flat >= 0 if flat.min(initial=0) < 0 else flat > 0)
    classes = flat[foreground]
    by_class = np.argsort(classes, kind="stable")
    present, starts = np.unique(classes[by_class], return_index=True)
    locations = {}
    parts = np.split(foreground[by_class], starts[1:]) if len(present) else []  # split gives one part of nothing
    for label, indices in zip(present.tolist(), parts, strict=True):
        if len(indices) > most:
            generator = np.random.default_rng([zlib.crc32(identifier.encode()), label])
            indices = np.sort(generator.choice(indices, most, replace=False, shuffle=False))
        locations[label] = np.stack(np.unravel_index(indices, labels.shape), axis=1).astype(np.int32)
    return locations

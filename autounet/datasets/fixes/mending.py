"""Arrays of one case mended: finite intensities, one grid for all files, as many channels as the others have.

Each function takes a part and gives it back, changed or not, and adds a sentence to `done` when it changed something.
It raises DataError for what cannot be mended.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from autounet.datasets.checks.alignment import differences
from autounet.images import VOLUME_KINDS
from autounet.ops.regrid import regrid_image, regrid_labels, share_inside
from autounet.schema.errors import DataError
from autounet.schema.geometry import IDENTITY, Geometry

LEAST_INSIDE = 0.95
"""share of the labelled voxels that must lie in the image for the header of a label to be believed"""
LEAST_COVERED = 0.5
"""share of the first channel that another one must cover to be resampled onto it"""
SAME_ASPECT = 0.01
"""relative difference up to which a mask has the proportions of its picture and was only scaled"""


class FilePart(NamedTuple):
    """What one file holds: (C, Z, Y, X) float32, or label values (1, Z, Y, X)."""

    name: str
    array: np.ndarray
    geometry: Geometry
    changed: bool = False


def finite(part: FilePart, done: list[str]) -> FilePart:
    """NaN becomes 0 where 0 lies among the intensities, else the least; infinite values the least and the largest."""
    wrong = ~np.isfinite(part.array)
    number = int(np.count_nonzero(wrong))
    if not number:
        return part
    if number > part.array.size / 2:
        raise DataError(f"{part.name}: most of its voxels are NaN or infinite")
    right = part.array[~wrong]
    low, high = float(right.min()), float(right.max())
    filler = 0.0 if low <= 0 <= high else low
    done.append(
        f"{number} voxels of {part.name} were replaced: NaN by {filler:g}, infinite ones by {low:g} or {high:g}"
    )
    return part._replace(array=np.nan_to_num(part.array, nan=filler, neginf=low, posinf=high), changed=True)


def header_is_lost(geometry: Geometry) -> bool:
    """Spacing 1, origin 0 and axes along the world's: what programs write that were told nothing."""
    axes = tuple(abs(value) for value in geometry.direction)
    return axes == IDENTITY and geometry.spacing == (1, 1, 1) and not any(geometry.origin)


def common_grid(parts: Sequence[FilePart]) -> Geometry:
    """The case's: the first channel's, or where its header is lost that of another file with the same shape."""
    first = parts[0].geometry
    others = (part.geometry for part in parts if part.geometry.shape == first.shape)
    known = (each for each in others if not header_is_lost(each) and differences(each, first))
    return next(known, first) if header_is_lost(first) else first


def channel_on(part: FilePart, grid: Geometry, done: list[str]) -> FilePart:
    """A channel file on the case's voxels."""
    own = part.geometry
    if own.shape == grid.shape and not differences(own, grid):
        return part
    if own.shape == grid.shape and header_is_lost(own):
        done.append(f"{part.name} had no geometry of its own and got that of the case")
        return part._replace(geometry=grid, changed=True)
    if own.kind not in VOLUME_KINDS or grid.kind not in VOLUME_KINDS:
        raise DataError(f"{part.name} has shape {own.shape}, the case {grid.shape}, and no geometry to go by")
    covered = share_inside(_spread(grid), grid, own)
    if covered < LEAST_COVERED:
        raise DataError(f"{part.name} covers {covered:.0%} of the case's first channel")
    done.append(f"{part.name} was resampled onto the case's first channel")
    return FilePart(part.name, regrid_image(part.array, own, grid), grid, changed=True)


def _spread(grid: Geometry) -> np.ndarray:
    """(N, 3) voxels (z, y, x) spread evenly over a grid, its corners among them."""
    along = [np.linspace(0, size - 1, min(size, 9)) for size in grid.shape]
    return np.stack(np.meshgrid(*along), axis=-1).reshape(-1, 3)


def with_channels(parts: list[FilePart], wanted: int, done: list[str]) -> list[FilePart]:
    """A grey picture among colour ones becomes three equal channels; one of equal colours among grey ones grey."""
    if sum(len(part.array) for part in parts) == wanted:
        return parts
    (part, *rest) = parts
    channels = len(part.array)
    equal = channels == 3 and bool((part.array == part.array[:1]).all())
    if rest or part.geometry.kind in VOLUME_KINDS or not ((channels == 1 and wanted == 3) or (equal and wanted == 1)):
        found = sum(len(part.array) for part in parts)
        raise DataError(f"{', '.join(part.name for part in parts)}: {found} channels where the others have {wanted}")
    done.append(f"{part.name} has {wanted} channel{'s' if wanted > 1 else ''} now, as the others")
    array = np.repeat(part.array, 3, axis=0) if wanted == 3 else part.array[:1]
    return [part._replace(array=array, changed=True)]


def label_on(part: FilePart, grid: Geometry, done: list[str]) -> FilePart:
    """A label on the case's voxels: resampled where its header can be believed, else taken voxel by voxel."""
    own = part.geometry
    if own.shape == grid.shape and not differences(own, grid):
        return part
    if own.kind not in VOLUME_KINDS or grid.kind not in VOLUME_KINDS:
        return _scaled(part, grid, done)
    if own.shape == grid.shape and header_is_lost(own):
        done.append(f"{part.name} had no geometry of its own and got that of its image")
        return part._replace(geometry=grid, changed=True)
    inside = share_inside(np.argwhere(part.array[0] != 0), own, grid)
    if inside >= LEAST_INSIDE:
        done.append(f"{part.name} was resampled onto its image: {'; '.join(differences(own, grid)) or 'another shape'}")
        return FilePart(part.name, regrid_labels(part.array[0], own, grid)[None], grid, changed=True)
    if own.shape == grid.shape:
        done.append(f"{part.name}: its header puts it outside its image, so that it got the image's")
        return part._replace(geometry=grid, changed=True)
    raise DataError(f"{part.name} has another shape than its image, and lies outside it by {1 - inside:.0%}")


def _scaled(part: FilePart, grid: Geometry, done: list[str]) -> FilePart:
    """A mask of another size than its picture, by the nearest pixel."""
    ratios = [new / old for new, old in zip(grid.shape, part.geometry.shape, strict=True)]
    if part.geometry.shape[0] != grid.shape[0] or abs(ratios[1] / ratios[2] - 1) > SAME_ASPECT:
        raise DataError(f"{part.name} has shape {part.geometry.shape}, its image {grid.shape}, other proportions")
    own = Geometry(
        shape=part.geometry.shape, origin=(ratios[2] / 2, ratios[1] / 2, 0), spacing=(1, ratios[1], ratios[2])
    )
    target = Geometry(shape=grid.shape, origin=(0.5, 0.5, 0))
    done.append(f"{part.name} was scaled from {part.geometry.shape} to the size of its picture")
    return FilePart(part.name, regrid_labels(part.array[0], own, target)[None], grid, changed=True)

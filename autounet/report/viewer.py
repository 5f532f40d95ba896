"""Slices of a case for the report's viewer, compressed: the image as a sheet of JPEG tiles, labels as deflated bytes.

Labels must be restored exactly, and some browsers alter what scripts read from a canvas, so only the image is a JPEG.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from ..figures import data_address, jpeg
from .volumes import PLANES, CaseVolume

MAX_CASE_BYTES = 1_100_000
"""of one case, as text"""
MAX_VOXELS = 3_000_000
"""shown of one case; of more, or more bytes, only every second, third ... is shown"""
MAX_SIDE = 1024
"""voxels along an axis; browsers on phones draw sheets of up to 4096 x 4096"""
MAX_SHEET_WIDTH = 4096
JPEG_BLOCK = 8
"""pixels; tiles of whole JPEG blocks do not affect each other"""
JPEG_QUALITY = 80
LEVELS = 32
"""of uncertainty; few levels compress well"""
MAX_CLASSES = 255


@dataclass(frozen=True)
class ViewerCase:
    """What `viewer.js` reads of one case; axes in the order z, y, x."""

    name: str
    words: str
    """shown below the case's name"""
    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    """mm between shown voxels"""
    steps: tuple[int, int, int]
    """every which voxel of each axis is shown"""
    start: tuple[int, ...]
    """first slice to show across each axis"""
    planes: tuple[tuple[str, tuple[str, ...]], ...]
    """name and side letters of each plane, as in `volumes.PLANES`"""
    colour: bool
    image: str
    """data address of the sheet of slices"""
    columns: int
    """tiles in a row of the sheet"""
    tile: tuple[int, int]
    """height and width of a tile in pixels"""
    reference: str
    """class numbers, uint8 (Z,Y,X), deflated, base64"""
    prediction: str
    uncertainty: str | None
    """0..255, packed alike; None: not known"""

    @property
    def characters(self) -> int:
        return sum(len(part or "") for part in (self.image, self.reference, self.prediction, self.uncertainty))


def pack_case(volume: CaseVolume, words: str, limit: int = MAX_CASE_BYTES) -> ViewerCase:
    """A case of at most about `limit` characters, however large its files are."""
    most = MAX_VOXELS
    while (packed := _packed(volume, words, most)).characters > limit:
        most //= 2
    return packed


def strides(shape: Sequence[int], spacing: Sequence[float], most: int) -> tuple[int, int, int]:
    """Every which voxel of each axis to show, so that at most `most` are shown; the finest axis is reduced first."""
    steps = [1, 1, 1]
    while True:
        sizes = [-(-size // step) for size, step in zip(shape, steps, strict=True)]
        long = [axis for axis in range(3) if sizes[axis] > MAX_SIDE]
        if not long and int(np.prod(sizes)) <= most:
            return steps[0], steps[1], steps[2]
        reducible = long or [axis for axis in range(3) if sizes[axis] > 1]
        steps[min(reducible, key=lambda axis: spacing[axis] * steps[axis])] += 1


def _packed(volume: CaseVolume, words: str, most: int) -> ViewerCase:
    window = volume.window
    steps = strides([span.stop - span.start for span in window], volume.spacing, most)
    image = _block_means(volume.image[window], steps)
    indices = [
        np.minimum(np.arange(span.start, span.stop, step) + step // 2, span.stop - 1)
        for span, step in zip(window, steps, strict=True)
    ]
    reference, prediction = (
        _class_numbers(array[np.ix_(*indices)], volume.values) for array in (volume.reference, volume.prediction)
    )
    uncertainty = volume.uncertainty(indices)
    sheet, columns, tile = _sheet(image)
    return ViewerCase(
        name=volume.case,
        words=words,
        shape=image.shape[:3],
        spacing=tuple(size * step for size, step in zip(volume.spacing, steps, strict=True)),
        steps=steps,
        start=_start(reference, prediction),
        planes=(("image", ()),) if volume.flat else PLANES[volume.anatomical],
        colour=image.shape[3] == 3,
        image=data_address("image/jpeg", jpeg(sheet, JPEG_QUALITY)),
        columns=columns,
        tile=tile,
        reference=_deflated(reference),
        prediction=_deflated(prediction),
        uncertainty=None if uncertainty is None else _deflated(_to_levels(uncertainty)),
    )


def _block_means(image: np.ndarray, steps: Sequence[int]) -> np.ndarray:
    """Means over blocks of (Z, Y, X, C), as uint8."""
    for axis, step in enumerate(steps):
        if step > 1:
            starts = np.arange(0, image.shape[axis], step)
            counts = np.diff(np.append(starts, image.shape[axis]))
            sums = np.add.reduceat(image, starts, axis)
            image = sums / counts.reshape([-1 if other == axis else 1 for other in range(4)])
    return np.rint(255 * image).astype(np.uint8)


def _class_numbers(labels: np.ndarray, values: Sequence[int]) -> np.ndarray:
    """Label values to uint8: 0 for none, then 1, 2 ... in the order of `values`; later classes share 255."""
    numbers = np.zeros(labels.shape, np.uint8)
    for number, value in enumerate(values, start=1):
        numbers[labels == value] = min(number, MAX_CLASSES)
    return numbers


def _start(reference: np.ndarray, prediction: np.ndarray) -> tuple[int, ...]:
    """The slices with most wrong voxels, else with most foreground, else the middle ones."""
    for marked in (reference != prediction, (reference > 0) | (prediction > 0)):
        if marked.any():
            return tuple(int(marked.sum(axis=tuple({0, 1, 2} - {axis})).argmax()) for axis in range(3))
    return tuple(size // 2 for size in reference.shape)


def _to_levels(uncertainty: np.ndarray) -> np.ndarray:
    """0..1 to uint8 of few levels."""
    step = 255 // (LEVELS - 1)
    return (np.rint(np.clip(uncertainty, 0, 1) * (LEVELS - 1)) * step).astype(np.uint8)


def _sheet(image: np.ndarray) -> tuple[Image.Image, int, tuple[int, int]]:
    """Slices of (Z,Y,X,C) uint8 as tiles of one image: the image, tiles in a row, (height, width) of a tile."""
    depth, height, width, channels = image.shape
    tall, wide = (-(-size // JPEG_BLOCK) * JPEG_BLOCK for size in (height, width))
    padded = np.pad(image, ((0, 0), (0, tall - height), (0, wide - width), (0, 0)), mode="edge")
    columns = int(np.clip(np.sqrt(depth * tall / wide), 1, max(1, MAX_SHEET_WIDTH // wide)))
    rows = -(-depth // columns)
    sheet = np.zeros((rows * columns, tall, wide, channels), np.uint8)
    sheet[:depth] = padded
    flat = sheet.reshape(rows, columns, tall, wide, channels).swapaxes(1, 2).reshape(rows * tall, columns * wide, -1)
    return Image.fromarray(flat if channels == 3 else flat[..., 0]), columns, (tall, wide)


def _deflated(array: np.ndarray) -> str:
    return base64.b64encode(zlib.compress(np.ascontiguousarray(array).tobytes(), 9)).decode()

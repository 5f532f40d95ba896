"""The slices that the page's viewer shows, packed small: the image as a sheet of JPEG tiles, labels as deflated bytes.

Labels must come back exactly, and some browsers blur what scripts read from a canvas: only the image goes that way.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from ..figures import address, jpeg
from .overlays import TITLES
from .volumes import CaseVolume

CASE_BYTES = 1_100_000
"""of one packed case, as text"""
MOST_VOXELS = 3_000_000
"""shown of one case; with more, or more bytes, voxels are left out evenly"""
LONGEST = 1024
"""voxels along an axis; browsers on phones draw sheets of up to 4096 x 4096"""
WIDEST_SHEET = 4096
BLOCK = 8
"""pixels; tiles of whole JPEG blocks do not bleed into each other"""
QUALITY = 80
LEVELS = 32
"""of uncertainty, which few of compress well"""
MOST_CLASSES = 255


def pack(volume: CaseVolume, words: str, limit: int = CASE_BYTES) -> dict[str, Any]:
    """What `viewer.js` reads of one case: at most about `limit` characters whatever its size. `words` describe it."""
    most = MOST_VOXELS
    while True:
        content = _packed(volume, words, most)
        size = sum(len(content[name] or "") for name in ("image", "truth", "prediction", "uncertainty"))
        if size <= limit:
            return content
        most //= 2


def strides(shape: Sequence[int], spacing: Sequence[float], most: int) -> tuple[int, int, int]:
    """Every which voxel of each axis is shown, so that at most `most` are; the finest axis is thinned out first."""
    found = [1, 1, 1]
    while True:
        sizes = [-(-size // step) for size, step in zip(shape, found, strict=True)]
        long = [axis for axis in range(3) if sizes[axis] > LONGEST]
        if not long and int(np.prod(sizes)) <= most:
            return found[0], found[1], found[2]
        thinned = long or [axis for axis in range(3) if sizes[axis] > 1]
        found[min(thinned, key=lambda axis: spacing[axis] * found[axis])] += 1


def _packed(volume: CaseVolume, words: str, most: int) -> dict[str, Any]:
    window = volume.window
    steps = strides([span.stop - span.start for span in window], volume.spacing, most)
    image = _thinned(volume.image[window], steps)
    shape = image.shape[:3]
    indices = [
        np.minimum(np.arange(span.start, span.stop, step) + step // 2, span.stop - 1)
        for span, step in zip(window, steps, strict=True)
    ]
    truth, prediction = (
        _classes(array[np.ix_(*indices)], volume.values) for array in (volume.truth, volume.prediction)
    )
    unsure = volume.uncertainty(indices)
    tiles, columns, tile = _sheet(image)
    return {
        "name": volume.case,
        "words": words,
        "shape": shape,
        "spacing": [size * step for size, step in zip(volume.spacing, steps, strict=True)],
        "steps": steps,
        "start": _start(truth, prediction),
        "planes": [("image", ())] if volume.flat else TITLES[volume.anatomical],
        "colour": image.shape[3] == 3,
        "image": address("image/jpeg", jpeg(tiles, QUALITY)),
        "columns": columns,
        "tile": tile,
        "truth": _deflated(truth),
        "prediction": _deflated(prediction),
        "uncertainty": None if unsure is None else _deflated(_levels(unsure)),
    }


def _thinned(image: np.ndarray, steps: Sequence[int]) -> np.ndarray:
    """Means over blocks of (Z, Y, X, C), as uint8."""
    for axis, step in enumerate(steps):
        if step > 1:
            starts = np.arange(0, image.shape[axis], step)
            counts = np.diff(np.append(starts, image.shape[axis]))
            sums = np.add.reduceat(image, starts, axis)
            image = sums / counts.reshape([-1 if other == axis else 1 for other in range(4)])
    return np.rint(255 * image).astype(np.uint8)


def _classes(labels: np.ndarray, values: Sequence[int]) -> np.ndarray:
    """File values to uint8: 0 none, then the places in `values`; those beyond 255 share the last."""
    found = np.zeros(labels.shape, np.uint8)
    for place, value in enumerate(values, start=1):
        found[labels == value] = min(place, MOST_CLASSES)
    return found


def _start(truth: np.ndarray, prediction: np.ndarray) -> list[int]:
    """The slices with most wrong voxels; else with most structures; else the middle."""
    for marked in (truth != prediction, (truth > 0) | (prediction > 0)):
        if marked.any():
            return [int(marked.sum(axis=tuple({0, 1, 2} - {axis})).argmax()) for axis in range(3)]
    return [size // 2 for size in truth.shape]


def _levels(unsure: np.ndarray) -> np.ndarray:
    step = 255 // (LEVELS - 1)
    return (np.rint(np.clip(unsure, 0, 1) * (LEVELS - 1)) * step).astype(np.uint8)


def _sheet(image: np.ndarray) -> tuple[Image.Image, int, tuple[int, int]]:
    """The slices of (Z, Y, X, C) uint8 side by side in rows: the sheet, tiles a row, (height, width) of a tile."""
    depth, height, width, channels = image.shape
    tall, wide = (-(-size // BLOCK) * BLOCK for size in (height, width))
    padded = np.pad(image, ((0, 0), (0, tall - height), (0, wide - width), (0, 0)), mode="edge")
    columns = int(np.clip(np.sqrt(depth * tall / wide), 1, max(1, WIDEST_SHEET // wide)))
    rows = -(-depth // columns)
    sheet = np.zeros((rows * columns, tall, wide, channels), np.uint8)
    sheet[:depth] = padded
    flat = sheet.reshape(rows, columns, tall, wide, channels).swapaxes(1, 2).reshape(rows * tall, columns * wide, -1)
    return Image.fromarray(flat if channels == 3 else flat[..., 0]), columns, (tall, wide)


def _deflated(array: np.ndarray) -> str:
    return base64.b64encode(zlib.compress(np.ascontiguousarray(array).tobytes(), 9)).decode()

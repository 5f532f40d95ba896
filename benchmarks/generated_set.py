"""Data sets that are made, not measured: many classes of very different sizes, and objects in 3-D that touch."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
from scipy import ndimage

from autounet.schema.geometry import Geometry

CLASSES = 30


def many_classes(folder: Path, cases: int = 30, seed: int = 0) -> Path:
    """A set of 30 classes in volumes of 56 x 80 x 80 voxels: ellipsoids of 30 to 9,000 voxels, at places and with
    intensities that are much the same in all cases, blurred and noisy. Case i depends on (seed, i) alone."""
    from autounet.imageio import write_image, write_labels

    shape = (56, 80, 80)
    rng = np.random.default_rng((seed, 1000))
    sizes = np.geomspace(9000, 30, CLASSES)
    radii = (sizes * 3 / (4 * math.pi)) ** (1 / 3)
    stretch = rng.uniform(0.75, 1.33, (CLASSES, 3))
    radii = radii[:, None] * stretch / stretch.prod(1, keepdims=True) ** (1 / 3)
    centres = _apart(rng, shape, radii)
    contrast = rng.uniform(-1, 1, CLASSES)
    names = []
    for index in range(cases):
        rng = np.random.default_rng((seed, index))
        labels, image = np.zeros(shape, np.uint8), np.zeros(shape, np.float32)
        shift, scale = rng.uniform(-2.5, 2.5, 3), rng.uniform(0.92, 1.08, 3)
        for number in range(CLASSES):
            centre = (centres[number] - 28) * scale + 28 + shift + rng.uniform(-1, 1, 3)
            grid = np.ogrid[tuple(slice(0, length) for length in shape)]
            radius = radii[number] * scale * rng.uniform(0.9, 1.1, 3)
            inside = sum(((axis - c) / r) ** 2 for axis, c, r in zip(grid, centre, radius, strict=True)) < 1
            labels[inside] = number + 1
            image[inside] = contrast[number] + rng.normal(0, 0.05)
        image = _blurred(image) + rng.normal(0, 0.2, shape)
        image = image[None].astype(np.float32)
        write_image(folder / "imagesTr" / f"case_{index:02d}_0000.nii.gz", image, Geometry(shape=shape))
        write_labels(folder / "labelsTr" / f"case_{index:02d}.nii.gz", labels, Geometry(shape=shape))
        names.append(index)
    description = {
        "channel_names": {"0": "MRI"},
        "labels": {"background": 0, **{f"c{number:02d}": number for number in range(1, CLASSES + 1)}},
        "numTraining": cases,
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(description))
    return folder


def touching_objects(folder: Path, cases: int = 15, seed: int = 0) -> Path:
    """Volumes of 24 x 96 x 96 voxels of 2 x 1 x 1 mm with ellipsoids in clumps, numbered: each meets others at flat
    faces, which only the blur of a microscope shows. Case i depends on (seed, i) alone."""
    from autounet.imageio import write_image, write_labels

    geometry = Geometry(shape=(24, 96, 96), spacing=(2.0, 1.0, 1.0))
    z, y, x = np.ogrid[:48:2, :96, :96]
    for index in range(cases):
        rng = np.random.default_rng((seed, index))
        nearest, numbers = np.full(geometry.shape, np.inf), np.zeros(geometry.shape, np.int32)
        image, places = np.zeros(geometry.shape, np.float32), np.empty((0, 4))
        for _ in range(400):
            radius = rng.uniform(5, 10)
            clump = places[rng.integers(len(places)), :3] if len(places) and rng.uniform() < 0.7 else None
            towards = rng.normal(size=3)
            towards *= rng.uniform(1.5, 1.8) * radius / np.linalg.norm(towards)
            place = rng.uniform(0, (48, 96, 96)) if clump is None else clump + towards
            near = np.linalg.norm(places[:, :3] - place, axis=1) < 0.75 * (places[:, 3] + radius)
            if near.any() or (place < 0).any() or (place > (48, 96, 96)).any():
                continue
            places = np.concatenate([places, [[*place, radius]]])
            radii = radius * rng.uniform(0.85, 1.15, 3)
            share = sum(((axis - c) / r) ** 2 for axis, c, r in zip((z, y, x), place, radii, strict=True))
            own = (share < 1) & (share < nearest)
            nearest[own], numbers[own] = share[own], len(places)
            image[own] = rng.uniform(0.6, 1.4) * (1 - 0.3 * share[own])
        blurred = ndimage.gaussian_filter(image, (0.75, 1.5, 1.5)) + rng.normal(0, 0.1, geometry.shape)
        content = (100 * (blurred + 1)).astype(np.float32)[None]
        write_image(folder / "imagesTr" / f"case_{index:02d}_0000.nii.gz", content, geometry)
        write_labels(folder / "labelsTr" / f"case_{index:02d}.nii.gz", numbers, geometry)
    description = {
        "channel_names": {"0": "fluorescence"},
        "labels": {"background": 0},
        "objects": "cell",
        "numTraining": cases,
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(description))
    return folder


def _apart(rng: np.random.Generator, shape: tuple[int, ...], radii: np.ndarray) -> np.ndarray:
    """Centres (N, 3), the largest first, each at the place of 300 tried that is farthest from the borders of others."""
    placed = np.empty((0, 3))
    for number, radius in enumerate(radii):
        margin = radius + 4
        tried = rng.uniform(margin, np.array(shape) - margin, (300, 3))
        if number:
            gaps = np.linalg.norm(tried[:, None] - placed[None], axis=2) - radii[:number].max(1) - radius.max()
            tried = tried[[gaps.min(1).argmax()]]
        placed = np.concatenate([placed, tried[:1]])
    return placed


def _blurred(image: np.ndarray) -> np.ndarray:
    return ndimage.gaussian_filter(image, 0.7)

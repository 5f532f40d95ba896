"""A small synthetic data set: two organs in noise, for the demonstration and the tests."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Literal

import numpy as np
from scipy import ndimage

from ..imageio import write_image, write_labels
from ..schema.geometry import Geometry, Shape3
from ..schema.record import new_folder, write_text

SHAPES: tuple[Shape3, ...] = ((20, 40, 40), (24, 40, 36), (24, 44, 40), (28, 36, 44))
"""(z, y, x) voxels; the spacing is about 2 x 1 x 1 mm"""
NAMES = ("liver", "kidney")


def make_case(rng: np.random.Generator, shape: Shape3) -> tuple[np.ndarray, np.ndarray, Geometry]:
    """One MRI-like case: image (1, Z, Y, X) float32, labels (Z, Y, X) uint8 with 0, 1, 2, and its geometry.

    A body ellipsoid holds two ellipsoidal organs of varying position, size, rotation and contrast, warped smoothly.
    Blur, a multiplicative bias field and noise come on top, and outside the body it is nearly dark.
    """
    through, inside = float(rng.uniform(1.8, 2.2)), float(rng.uniform(0.95, 1.05))
    spacing = (through, inside, inside)
    extent = np.array(shape) * spacing
    grid = np.stack(np.meshgrid(*[(np.arange(n) - (n - 1) / 2) * s for n, s in zip(shape, spacing, strict=True)],
                                indexing="ij"))  # fmt: skip
    warp = np.stack([ndimage.gaussian_filter(rng.normal(size=shape), 4) for _ in range(3)])
    grid = grid + 1.5 * warp / warp.std()
    body = _ellipsoid(grid, np.zeros(3), 0.46 * extent, 0.0) < 1
    centres = np.array([[0.0, -0.04, -0.17], [0.04, 0.10, 0.19]]) + rng.uniform(-0.05, 0.05, (2, 3))
    radii = np.array([[0.30, 0.20, 0.16], [0.20, 0.12, 0.10]]) * rng.uniform(0.85, 1.15, (2, 3))
    labels = np.zeros(shape, np.uint8)
    for index in range(2):
        distance = _ellipsoid(grid, centres[index] * extent, radii[index] * extent, rng.uniform(-0.5, 0.5))
        labels[(distance < 1) & body] = index + 1
    contrast = np.array([0.45, 0.85, 1.25]) + rng.uniform(-0.08, 0.08, 3)
    signal = ndimage.gaussian_filter(np.where(body, contrast[labels], 0.03), (0.4, 0.8, 0.8))
    bias = ndimage.gaussian_filter(rng.normal(size=shape), 10, mode="nearest")
    signal = signal * np.exp(0.15 * bias / bias.std()) * rng.uniform(300, 700)
    image = np.abs(signal + rng.normal(scale=0.1 * signal.mean() / body.mean(), size=shape))
    x, y, z = rng.uniform(-50, 50, 3).tolist()
    return image[None].astype(np.float32), labels, Geometry(shape=shape, spacing=spacing, origin=(x, y, z))


def _ellipsoid(grid: np.ndarray, centre: np.ndarray, radii: np.ndarray, angle: float) -> np.ndarray:
    """Squared distance in units of the radii, of an ellipsoid turned by `angle` in the plane."""
    z, y, x = (axis - middle for axis, middle in zip(grid, centre, strict=True))
    turned = (z, np.cos(angle) * y - np.sin(angle) * x, np.sin(angle) * y + np.cos(angle) * x)
    return sum((axis / radius) ** 2 for axis, radius in zip(turned, radii, strict=True))


def make_demo_dataset(
    folder: Path, cases: int = 20, seed: int = 0, layout: Literal["nnunet", "msd"] = "nnunet", test_cases: int = 0
) -> Path:
    """Write labelled cases as NIfTI with dataset.json, and `test_cases` more into imagesTs and labelsTs.

    Case i depends on (seed, i) alone. Returns the folder.
    """
    folder = Path(folder)
    channel = "_0000" if layout == "nnunet" else ""
    names = []
    for index in range(cases + test_cases):
        part = "Tr" if index < cases else "Ts"
        name = f"demo_{index:03d}"
        rng = np.random.default_rng((seed, index))
        image, labels, geometry = make_case(rng, SHAPES[index % len(SHAPES)])
        write_image(folder / f"images{part}" / f"{name}{channel}.nii.gz", image, geometry)
        write_labels(folder / f"labels{part}" / f"{name}.nii.gz", labels, geometry)
        names.append(name)
    write_text(folder / "dataset.json", json.dumps(_description(names[:cases], layout), indent=1) + "\n")
    return folder


def make_whole_demo_dataset(folder: Path) -> None:
    """Under another name first: an interruption leaves no half of it."""
    made = new_folder(folder)
    try:
        make_demo_dataset(made).rename(folder)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise


def _description(names: list[str], layout: str) -> dict[str, object]:
    if layout == "nnunet":
        labels = {"background": 0, **{name: value for value, name in enumerate(NAMES, 1)}}
        return {
            "name": "Synthetic organs",
            "channel_names": {"0": "MRI"},
            "labels": labels,
            "numTraining": len(names),
            "file_ending": ".nii.gz",
        }
    return {
        "name": "Demo",
        "tensorImageSize": "3D",
        "modality": {"0": "MRI"},
        "labels": {"0": "background", **{str(value): name for value, name in enumerate(NAMES, 1)}},
        "numTraining": len(names),
        "numTest": 0,
        "training": [{"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"} for name in names],
        "test": [],
    }

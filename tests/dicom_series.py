"""DICOM series for tests, written by SimpleITK (GDCM)."""

from __future__ import annotations

import locale
from collections.abc import Sequence
from pathlib import Path

import numpy as np


def write_series(
    folder: Path,
    array: np.ndarray,
    direction: np.ndarray | None = None,
    spacing: Sequence[float] = (2.0, 0.5, 0.7),
    origin: Sequence[float] = (1.0, 2.0, 3.0),
    uid: str = "1.2.3.4",
    rescale: Sequence[tuple[float, float]] = (),
    compressed: bool = False,
    skip: Sequence[int] = (),
    prefix: str = "",
) -> None:
    """One file per slice of (Z, Y, X); spacing (z, y, x). `rescale` holds slope and intercept of each slice.

    File names run against the order of the slices. `skip` leaves slices out.
    """
    import SimpleITK as sitk

    folder.mkdir(parents=True, exist_ok=True)
    axes = np.eye(3) if direction is None else direction
    image = sitk.GetImageFromArray(array, isVector=array.ndim == 4)
    image.SetSpacing(tuple(spacing)[::-1])
    image.SetOrigin(tuple(origin))
    image.SetDirection(axes.ravel().tolist())
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    writer.SetUseCompression(compressed)
    before = locale.setlocale(locale.LC_CTYPE)
    for z in range(array.shape[0]):
        if z in skip:
            continue
        part = image[:, :, z]
        tags = {
            "0008|0018": f"{uid}.{z}", "0008|0060": "MR", "0008|103e": f"series {uid[-1]}", "0010|0020": "p1",
            "0020|000d": "1.2.3", "0020|000e": uid, "0020|0013": str(z), "0020|0052": "1.2.9",
            "0020|0032": _listed(image.TransformIndexToPhysicalPoint((0, 0, z))),
            "0020|0037": _listed([*axes[:, 0], *axes[:, 1]]),
        }  # fmt: skip
        if rescale:
            tags |= {"0028|1053": f"{rescale[z][0]:.10g}", "0028|1052": f"{rescale[z][1]:.10g}"}
        for key, value in tags.items():
            part.SetMetaData(key, value)
        writer.SetFileName(str(folder / f"{prefix}{array.shape[0] - z:03d}.dcm"))
        writer.Execute(part)
    locale.setlocale(locale.LC_CTYPE, before)  # GDCM's writer leaves C behind, in which files are read as ASCII


def _listed(numbers: Sequence[float]) -> str:
    return "\\".join(f"{number:.10g}" for number in numbers)

"""From a case to the flat pictures that are drawn: which cut, which part of it, which way up.

A volume is cut in its three planes, shown as a radiologist expects them (patient's right on the left of the picture,
front or top of the patient up). A 2-D image is taken whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from autounet.report.volumes import CaseVolume

TITLES = {
    True: (("axial", ("R", "L", "A", "P")), ("coronal", ("R", "L", "S", "I")), ("sagittal", ("A", "P", "S", "I"))),
    False: (("across z", ()), ("across y", ()), ("across x", ())),
}
"""per plane perpendicular to (z, y, x): its name, and the letters at the left, right, top and bottom"""


@dataclass(frozen=True)
class Panel:
    """One flat picture. image (H,W) or (H,W,3) in 0..1; truth and prediction (H,W) file values."""

    title: str
    image: np.ndarray
    truth: np.ndarray
    prediction: np.ndarray
    spacing: tuple[float, float]
    """(row, column) mm"""
    letters: tuple[str, ...] = ()
    volume: bool = True
    uncertainty: np.ndarray | None = None
    """(H,W) 0..1"""
    rivals: Mapping[str, np.ndarray] = field(default_factory=dict)
    """(H,W) file values of single configurations"""


def case_panels(volume: CaseVolume) -> list[Panel]:
    """Three cuts of a volume, each with the largest area of the reference, or the one 2-D image.

    Without a structure in the reference that of the prediction counts, without any the middle is cut.
    """
    if volume.flat:
        return [_panel(volume, 0, "", ())]
    marked = np.isin(volume.truth, volume.values)
    if not marked.any():
        marked = np.isin(volume.prediction, volume.values)
    panels = []
    for axis, (title, letters) in enumerate(TITLES[volume.anatomical]):
        area = marked.sum(axis=tuple(other for other in range(3) if other != axis))
        index = int(area.argmax()) if area.any() else marked.shape[axis] // 2
        panels.append(_panel(volume, axis, title, letters, index))
    return panels


def _panel(volume: CaseVolume, axis: int, title: str, letters: tuple[str, ...], index: int = 0) -> Panel:
    """The cut at `index` of an axis; rows along z, which points upwards, are turned over."""
    box = [index if other == axis else volume.window[other] for other in range(3)]
    turn = slice(None, None, 1 if axis == 0 else -1)

    def cut(array: np.ndarray) -> np.ndarray:
        return array[tuple(box)][turn]

    indices = [
        np.array([index]) if other == axis else np.arange(span.start, span.stop)
        for other, span in enumerate(volume.window)
    ]
    unsure = volume.uncertainty(indices)
    image = cut(volume.image)
    row, column = (volume.spacing[other] for other in range(3) if other != axis)
    return Panel(
        title,
        image[..., 0] if image.shape[-1] == 1 else image,
        cut(volume.truth),
        cut(volume.prediction),
        (row, column),
        letters,
        not volume.flat,
        None if unsure is None else unsure.squeeze(axis)[turn],
        {name: cut(other) for name, other in volume.rivals.items()},
    )

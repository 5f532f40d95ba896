"""Draws panels: the image, the contours of reference and prediction, where the two differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from ..figures import FOUND, PREDICTION, TRUTH, Picture, as_bitmap
from .volumes import CaseVolume

if TYPE_CHECKING:
    from matplotlib.axes import Axes

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


SIDE = 3.4
"""inches of a panel's longer side"""
DPI = 160
WIDEST_RATIO = 2.5
"""a longer image keeps its proportions and is letterboxed"""
LETTER_PLACES = ((0.03, 0.5), (0.97, 0.5), (0.5, 0.965), (0.5, 0.035))
HALO = [withStroke(linewidth=2, foreground="black")]
UNCERTAINTY = "cividis"
"""Nuñez, Anderton and Renslow, PLoS ONE 2018: even steps of lightness, alike with and without colour-blindness"""
NUMBERED = 12
"""with more classes than this, numbers would hide the picture"""


def overlays(panels: list[Panel], case: str, values: Sequence[int]) -> list[Picture]:
    """The pictures of one case: every cut of a volume with contours; a 2-D image plain, with contours, and differences.

    Thin structures (vessels, membranes) are judged by the differences: there, two contours lie on each other.
    """
    pictures = []
    for panel in panels:
        where = f"{panel.title} cut" if panel.volume else "image"
        contours = Picture(
            _draw(panel, values),
            alt=f"Case {case}: {where} with the contours of the reference and of the prediction",
            title=panel.title or "with contours",
        )
        if panel.volume:
            pictures.append(contours)
            continue
        compared = replace(panel, image=differences(panel, values))
        alt = f"Case {case}: pixels found, missed and added"
        pictures += [
            Picture(_draw(panel, []), alt=f"Case {case}: the image", title="image"),
            contours,
            Picture(_draw(compared, []), alt=alt, title="found, missed and added"),
        ]
    return pictures


def uncertainties(panels: list[Panel], case: str, values: Sequence[int]) -> list[Picture]:
    """The entropy in the same cuts, with the contour of the prediction; none where no scores were kept.

    Not so in 2-D images, where contours would cover the borders of thin structures, which are what is unsure.
    """
    pictures = []
    for panel in panels:
        if panel.uncertainty is None:
            continue
        where = f"{panel.title} cut" if panel.volume else "image"
        shown = replace(panel, image=colormaps[UNCERTAINTY](panel.uncertainty)[..., :3], truth=panel.prediction)
        pictures.append(
            Picture(
                _draw(shown, values if panel.volume else (), alone="white"),
                alt=f"Case {case}: {where}, uncertainty of the prediction",
                title=f"{panel.title}, uncertainty".lstrip(", "),
            )
        )
    return pictures


def rivalries(panels: list[Panel], case: str, values: Sequence[int]) -> list[Picture]:
    """The same cuts once for each single configuration, with its own prediction."""
    return [
        Picture(
            _draw(replace(panel, prediction=prediction), values),
            alt=f"Case {case}: {panel.title or 'image'} with the contours of the reference and of {name}",
            title=f"{name}, {panel.title}".rstrip(", "),
        )
        for name in (panels[0].rivals if panels else ())
        for panel in panels
        for prediction in (panel.rivals[name],)
    ]


def differences(panel: Panel, values: Sequence[int]) -> np.ndarray:
    """(H,W,3) in 0..1: the image dimmed to grey, above it what both have, only the reference has, only the prediction.

    A pixel with different classes in both counts as missed.
    """
    grey = panel.image if panel.image.ndim == 2 else panel.image.mean(axis=2)
    picture = np.repeat(0.35 * grey[..., None], 3, axis=2)
    truth, prediction = np.isin(panel.truth, values), np.isin(panel.prediction, values)
    found = truth & (panel.truth == panel.prediction)
    for mask, colour in ((found, FOUND), (truth & ~found, TRUTH), (prediction & ~truth, PREDICTION)):
        picture[mask] = to_rgb(colour)
    return picture


def _draw(panel: Panel, values: Sequence[int], alone: str | None = None) -> str:
    """With `alone` the prediction's contours alone, in this colour."""
    height, width = panel.image.shape[0] * panel.spacing[0], panel.image.shape[1] * panel.spacing[1]
    ratio = 1.0 if panel.volume else float(np.clip(width / height, 1 / WIDEST_RATIO, WIDEST_RATIO))
    side = SIDE if panel.volume else 1.3 * SIDE
    figure = Figure(figsize=(side * min(1, ratio), side * min(1, 1 / ratio)), facecolor="black")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.imshow(
        panel.image,
        cmap="gray",
        vmin=0,
        vmax=1,
        aspect=panel.spacing[0] / panel.spacing[1],
        interpolation="bilinear" if panel.volume else "antialiased",
    )
    borders = axes.get_xlim(), axes.get_ylim()
    scale = 1.0 if max(panel.image.shape[:2]) < 200 else 0.5
    for value in values:
        # the wider line below stays visible where both agree
        if alone is None:
            _contour(axes, panel.truth == value, TRUTH, "solid", 2.6 * scale)
        _contour(axes, panel.prediction == value, alone or PREDICTION, "dashed", 1.7 * scale)
    axes.set(xlim=borders[0], ylim=borders[1])
    if panel.volume and 1 < len(values) <= NUMBERED:
        _numbers(axes, panel.truth, values)
    for letter, place in zip(panel.letters, LETTER_PLACES, strict=False):
        figure.text(*place, letter, color="white", fontsize=8, ha="center", va="center", path_effects=HALO)
    return as_bitmap(figure, DPI)


def _contour(axes: Axes, mask: np.ndarray, colour: str, style: str, width: float) -> None:
    """The outline of a mask (H,W), closed where the structure touches the border."""
    if not mask.any():
        return
    rows, columns = mask.shape
    axes.contour(
        np.arange(-1, columns + 1),
        np.arange(-1, rows + 1),
        np.pad(mask, 1).astype(np.float32),
        levels=[0.5],
        colors=[colour],
        linestyles=[(0, (4, 3)) if style == "dashed" else style],
        linewidths=[width],
    )


def _numbers(axes: Axes, truth: np.ndarray, values: Sequence[int]) -> None:
    """The class's place in the list of classes, on its voxel nearest to its centre."""
    for number, value in enumerate(values, start=1):
        rows, columns = np.nonzero(truth == value)
        if not rows.size:
            continue
        nearest = np.argmin((rows - rows.mean()) ** 2 + (columns - columns.mean()) ** 2)
        axes.text(
            columns[nearest],
            rows[nearest],
            str(number),
            color="white",
            fontsize=9,
            ha="center",
            va="center",
            path_effects=HALO,
        )

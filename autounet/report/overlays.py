"""Pictures of a case: the image with the contours of reference and prediction, differences, uncertainty."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from ..figures import AGREEMENT_COLOUR, PREDICTION_COLOUR, REFERENCE_COLOUR, Picture, as_bitmap
from .volumes import PLANES, CaseVolume

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Cut:
    """One plane of a case. image (H,W) or (H,W,3) in 0..1; reference and prediction (H,W) label values."""

    title: str
    image: np.ndarray
    reference: np.ndarray
    prediction: np.ndarray
    spacing: tuple[float, float]
    """(row, column) mm"""
    letters: tuple[str, ...] = ()
    volume: bool = True
    """False: a 2-D image"""
    uncertainty: np.ndarray | None = None
    """(H,W) 0..1"""
    configuration_predictions: Mapping[str, np.ndarray] = field(default_factory=dict)
    """configuration -> its own prediction (H,W)"""


def case_cuts(volume: CaseVolume) -> list[Cut]:
    """Three cuts of a volume, each where the reference has the largest area, or the one 2-D image.

    Where the reference is empty the prediction decides; where both are, the middle is shown.
    """
    if volume.flat:
        return [_cut(volume, 0, "", ())]
    marked = np.isin(volume.reference, volume.values)
    if not marked.any():
        marked = np.isin(volume.prediction, volume.values)
    cuts = []
    for axis, (title, letters) in enumerate(PLANES[volume.anatomical]):
        area = marked.sum(axis=tuple(other for other in range(3) if other != axis))
        index = int(area.argmax()) if area.any() else marked.shape[axis] // 2
        cuts.append(_cut(volume, axis, title, letters, index))
    return cuts


def _cut(volume: CaseVolume, axis: int, title: str, letters: tuple[str, ...], index: int = 0) -> Cut:
    """The cut at `index` of an axis; rows along z, which points upwards, are reversed."""
    box = [index if other == axis else volume.window[other] for other in range(3)]
    turn = slice(None, None, 1 if axis == 0 else -1)

    def plane(array: np.ndarray) -> np.ndarray:
        return array[tuple(box)][turn]

    indices = [
        np.array([index]) if other == axis else np.arange(span.start, span.stop)
        for other, span in enumerate(volume.window)
    ]
    uncertainty = volume.uncertainty(indices)
    image = plane(volume.image)
    row, column = (volume.spacing[other] for other in range(3) if other != axis)
    return Cut(
        title,
        image[..., 0] if image.shape[-1] == 1 else image,
        plane(volume.reference),
        plane(volume.prediction),
        (row, column),
        letters,
        not volume.flat,
        None if uncertainty is None else uncertainty.squeeze(axis)[turn],
        {name: plane(other) for name, other in volume.configuration_predictions.items()},
    )


SIDE = 3.4
"""inches of the longer side of a picture"""
LETTER_SIZE = 12
"""points, of letters and numbers: legible also where three pictures are side by side on a tablet"""
DPI = 160
MAX_ASPECT_RATIO = 2.5
"""of the sides; a longer image keeps its proportions and gets black borders"""
LETTER_PLACES = ((0.03, 0.5), (0.97, 0.5), (0.5, 0.965), (0.5, 0.035))
HALO = [withStroke(linewidth=2, foreground="black")]
UNCERTAINTY_COLOURS = "cividis"
"""Nuñez, Anderton and Renslow, PLoS ONE 2018: even steps of lightness, the same with and without colour blindness"""
MAX_NUMBERED = 12
"""classes whose numbers are written into the picture; more would hide it"""


def overlay_pictures(cuts: Sequence[Cut], case: str, values: Sequence[int]) -> list[Picture]:
    """Every cut of a volume with contours; a 2-D image plain, with contours, and with differences.

    Differences show thin structures (vessels, membranes), whose two contours would hide each other.
    """
    pictures = []
    for cut in cuts:
        where = f"{cut.title} cut" if cut.volume else "image"
        contours = Picture(
            _draw(cut, values),
            alt=f"Case {case}: {where} with the contours of the reference and of the prediction",
            title=cut.title or "with contours",
        )
        if cut.volume:
            pictures.append(contours)
            continue
        compared = replace(cut, image=difference_image(cut, values))
        alt = f"Case {case}: pixels found, missed and added"
        pictures += [
            Picture(_draw(cut, []), alt=f"Case {case}: the image", title="image"),
            contours,
            Picture(_draw(compared, []), alt=alt, title="found, missed and added"),
        ]
    return pictures


def uncertainty_pictures(cuts: Sequence[Cut], case: str, values: Sequence[int]) -> list[Picture]:
    """The entropy in the same cuts with the contour of the prediction; none where no scores were kept.

    2-D images get no contour: it would cover the borders of thin structures, which are the uncertain part.
    """
    pictures = []
    for cut in cuts:
        if cut.uncertainty is None:
            continue
        where = f"{cut.title} cut" if cut.volume else "image"
        shown = replace(cut, image=colormaps[UNCERTAINTY_COLOURS](cut.uncertainty)[..., :3], reference=cut.prediction)
        pictures.append(
            Picture(
                _draw(shown, values if cut.volume else (), prediction_only="white"),
                alt=f"Case {case}: {where}, uncertainty of the prediction",
                title=f"{cut.title}, uncertainty".lstrip(", "),
            )
        )
    return pictures


def configuration_pictures(cuts: Sequence[Cut], case: str, values: Sequence[int]) -> list[Picture]:
    """The same cuts with contours, once for each single configuration with its own prediction."""
    return [
        Picture(
            _draw(replace(cut, prediction=prediction), values),
            alt=f"Case {case}: {cut.title or 'image'} with the contours of the reference and of {name}",
            title=f"{name}, {cut.title}".rstrip(", "),
        )
        for name in (cuts[0].configuration_predictions if cuts else ())
        for cut in cuts
        for prediction in (cut.configuration_predictions[name],)
    ]


def difference_image(cut: Cut, values: Sequence[int]) -> np.ndarray:
    """(H,W,3) in 0..1: the image in dark grey, over it in colours what both contain, only the reference, only the
    prediction. A pixel with different classes in both counts as missed.
    """
    grey = cut.image if cut.image.ndim == 2 else cut.image.mean(axis=2)
    picture = np.repeat(0.35 * grey[..., None], 3, axis=2)
    reference, prediction = np.isin(cut.reference, values), np.isin(cut.prediction, values)
    equal = reference & (cut.reference == cut.prediction)
    for mask, colour in (
        (equal, AGREEMENT_COLOUR),
        (reference & ~equal, REFERENCE_COLOUR),
        (prediction & ~reference, PREDICTION_COLOUR),
    ):
        picture[mask] = to_rgb(colour)
    return picture


def _draw(cut: Cut, values: Sequence[int], prediction_only: str | None = None) -> str:
    """Data address of the picture; `prediction_only`: a colour, for the contours of the prediction alone."""
    height, width = cut.image.shape[0] * cut.spacing[0], cut.image.shape[1] * cut.spacing[1]
    ratio = 1.0 if cut.volume else float(np.clip(width / height, 1 / MAX_ASPECT_RATIO, MAX_ASPECT_RATIO))
    side = SIDE if cut.volume else 1.3 * SIDE
    figure = Figure(figsize=(side * min(1, ratio), side * min(1, 1 / ratio)), facecolor="black")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.imshow(
        cut.image,
        cmap="gray",
        vmin=0,
        vmax=1,
        aspect=cut.spacing[0] / cut.spacing[1],
        interpolation="bilinear" if cut.volume else "antialiased",
    )
    borders = axes.get_xlim(), axes.get_ylim()
    scale = 1.0 if max(cut.image.shape[:2]) < 200 else 0.5
    for value in values:
        # the wider line below stays visible where both agree
        if prediction_only is None:
            _contour(axes, cut.reference == value, REFERENCE_COLOUR, "solid", 2.6 * scale)
        _contour(axes, cut.prediction == value, prediction_only or PREDICTION_COLOUR, "dashed", 1.7 * scale)
    axes.set(xlim=borders[0], ylim=borders[1])
    if cut.volume and 1 < len(values) <= MAX_NUMBERED:
        _numbers(axes, cut.reference, values)
    for letter, place in zip(cut.letters, LETTER_PLACES, strict=False):
        figure.text(*place, letter, color="white", fontsize=LETTER_SIZE, ha="center", va="center", path_effects=HALO)
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


def _numbers(axes: Axes, reference: np.ndarray, values: Sequence[int]) -> None:
    """Writes the number of each class on its voxel nearest to its centre."""
    for number, value in enumerate(values, start=1):
        rows, columns = np.nonzero(reference == value)
        if not rows.size:
            continue
        nearest = np.argmin((rows - rows.mean()) ** 2 + (columns - columns.mean()) ** 2)
        axes.text(
            columns[nearest],
            rows[nearest],
            str(number),
            color="white",
            fontsize=LETTER_SIZE,
            ha="center",
            va="center",
            path_effects=HALO,
        )

"""Matplotlib figures in one style: colours, line styles, and pictures as data addresses for the report.

Matplotlib is loaded with the first figure, since colours are asked for by commands that draw nothing.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from .workers import PROCESS_WIDE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito, "Color Universal Design" (2008): distinguishable with every common kind of colour blindness.
# Black and the pale yellow are left out: text is black, and the yellow cannot be seen on white paper.
SERIES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)))
REFERENCE_COLOUR = "#56B4E9"
PREDICTION_COLOUR = "#E69F00"
AGREEMENT_COLOUR = "#E8EBEF"
INK = "#1c2430"
MUTED = "#5b6675"
GRID = "#dfe3e8"

MAX_BITMAP_BYTES = 90_000
"""of one picture: some 40 of them, in base64, take half of the 10 MB that the report may have"""
JPEG_QUALITIES = (90, 80, 70, 55, 40)
MAX_VECTOR_POINTS = 2000
"""points of a chart; more are drawn as one bitmap inside it"""
MAX_ROWS = 40
"""of a chart with a row for each class"""
STYLE: dict[Any, Any] = {
    "font.size": 10.0,
    "font.family": "DejaVu Sans",
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "svg.hashsalt": "autounet",
    "svg.fonttype": "path",
}


@dataclass(frozen=True)
class Picture:
    """An image of the report."""

    source: str
    """a data address"""
    alt: str
    """what it shows, for readers who cannot see it"""
    title: str = ""


@contextmanager
def styled() -> Iterator[None]:
    """Inside, matplotlib draws in `STYLE`."""
    from matplotlib import rc_context

    with PROCESS_WIDE, rc_context(STYLE):
        yield


def chart(width: float = 4.1, height: float = 3.0) -> tuple[Figure, Axes]:
    """A figure with one pair of axes; width and height in inches, so that text is legible on a phone."""
    from matplotlib.figure import Figure

    with styled():
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.add_subplot()
    axes.grid(axis="y", color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    return figure, axes


def two_charts(width: float = 4.4, height: float = 4.0) -> tuple[Figure, tuple[Axes, Axes]]:
    """A figure with two pairs of axes that share x, the upper one three times as high as the lower."""
    from matplotlib.figure import Figure

    with styled():
        figure = Figure(figsize=(width, height), layout="constrained")
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    for axes in (upper, lower):
        axes.grid(axis="y", color=GRID, linewidth=0.7)
        axes.set_axisbelow(True)
    return figure, (upper, lower)


def box_rows(axes: Axes, values: Mapping[str, Sequence[float]]) -> None:
    """A row for each name, first on top: its values as points, with a box of the quartiles and the median."""
    points = sum(map(len, values.values()))
    for row, each in enumerate(values.values()):
        # a fixed shift by rank separates equal values without chance
        shift = ((np.arange(len(each)) * 0.618034) % 1 - 0.5) * 0.42
        axes.plot(
            each,
            row + shift,
            "o",
            color=SERIES[0],
            markersize=3.5,
            alpha=0.45,
            markeredgewidth=0,
            rasterized=points > MAX_VECTOR_POINTS,
        )
    axes.boxplot(
        list(values.values()),
        positions=range(len(values)),
        orientation="horizontal",
        widths=0.6,
        showfliers=False,
        medianprops={"color": SERIES[1], "linewidth": 2},
        boxprops={"color": INK},
        whiskerprops={"color": MUTED},
        capprops={"color": MUTED},
    )
    axes.set_yticks(range(len(values)), [shortened(name) for name in values])
    axes.set_ylim(len(values) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", color=GRID, linewidth=0.7)


def shortened(name: str, length: int = 22) -> str:
    return literal(name if len(name) <= length else name[: length - 1] + "…")


def literal(text: str) -> str:
    """For a figure: between two dollar signs matplotlib would read mathematics."""
    return text.replace("$", r"\$")


def as_svg(figure: Figure) -> str:
    """Data address of the figure; without a date, so that equal records give an equal report."""
    buffer = io.BytesIO()
    with styled():
        figure.savefig(buffer, format="svg", metadata={"Date": None}, dpi=200)
    return data_address("image/svg+xml", buffer.getvalue())


def as_bitmap(figure: Figure, dpi: int) -> str:
    """Data address of at most `MAX_BITMAP_BYTES`: PNG, else JPEG of decreasing quality, then of half the size."""
    buffer = io.BytesIO()
    with styled():
        figure.savefig(buffer, format="png", dpi=dpi)
    if buffer.tell() <= MAX_BITMAP_BYTES:
        return data_address("image/png", buffer.getvalue())
    image = Image.open(buffer).convert("RGB")
    while True:
        for quality in JPEG_QUALITIES:
            content = jpeg(image, quality)
            if len(content) <= MAX_BITMAP_BYTES:
                return data_address("image/jpeg", content)
        image = image.reduce(2)


def jpeg(image: Image.Image, quality: int) -> bytes:
    """JPEG file at full colour resolution: halved, as is the default, it would blur thin contours."""
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=quality, subsampling=0)
    return buffer.getvalue()


def data_address(media_type: str, content: bytes) -> str:
    """Content of a file as an address that needs no file."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"

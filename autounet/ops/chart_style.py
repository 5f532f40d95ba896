"""Colours, line styles and the two ways a matplotlib figure enters the page."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from matplotlib import rc_context
from matplotlib.figure import Figure
from PIL import Image

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito, "Color Universal Design" (2008): told apart with every common kind of colour-blindness.
# Black and the pale yellow are left out: one is the text, the other is invisible on white paper.
SERIES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)))
TRUTH = "#56B4E9"
PREDICTION = "#E69F00"
FOUND = "#E8EBEF"
INK = "#1c2430"
MUTED = "#5b6675"
GRID = "#dfe3e8"

BITMAP_LIMIT = 90_000
"""bytes of one picture: of some 40 in base64 half of the 10 MB that the page may have"""
QUALITIES = (90, 80, 70, 55, 40)
MOST_MARKS = 2000
"""points of a chart; with more they are drawn as one bitmap inside it"""
RC: dict[Any, Any] = {
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
    """An image for the page: a data address, the words for who cannot see it, and a caption."""

    source: str
    alt: str
    caption: str = ""
    title: str = ""


def chart(width: float = 4.1, height: float = 3.0) -> tuple[Figure, Axes]:
    """One pair of axes in the page's style; inches, sized so that text is legible at a phone's width."""
    with rc_context(RC):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.add_subplot()
    axes.grid(axis="y", color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    return figure, axes


def two_charts(width: float = 4.4, height: float = 4.0) -> tuple[Figure, tuple[Axes, Axes]]:
    """Two pairs of axes above each other that share x, the upper one three times as high."""
    with rc_context(RC):
        figure = Figure(figsize=(width, height), layout="constrained")
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    for axes in (upper, lower):
        axes.grid(axis="y", color=GRID, linewidth=0.7)
        axes.set_axisbelow(True)
    return figure, (upper, lower)


def as_svg(figure: Figure) -> str:
    """A data address; the date is left out, so equal records give equal pages."""
    buffer = io.BytesIO()
    with rc_context(RC):
        figure.savefig(buffer, format="svg", metadata={"Date": None}, dpi=200)
    return address("image/svg+xml", buffer.getvalue())


def as_bitmap(figure: Figure, dpi: int) -> str:
    """A data address of at most `BITMAP_LIMIT` bytes: PNG, or JPEG (photographs), of less quality or half the size."""
    buffer = io.BytesIO()
    with rc_context(RC):
        figure.savefig(buffer, format="png", dpi=dpi)
    if buffer.tell() <= BITMAP_LIMIT:
        return address("image/png", buffer.getvalue())
    image = Image.open(buffer).convert("RGB")
    while True:
        for quality in QUALITIES:
            content = jpeg(image, quality)
            if len(content) <= BITMAP_LIMIT:
                return address("image/jpeg", content)
        image = image.reduce(2)


def jpeg(image: Image.Image, quality: int) -> bytes:
    """Without the halved colour resolution that would wash out thin contours."""
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=quality, subsampling=0)
    return buffer.getvalue()


def address(kind: str, content: bytes) -> str:
    """A data address."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"

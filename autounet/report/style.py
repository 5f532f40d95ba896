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

PNG_LIMIT = 300_000  # bytes; a larger picture is stored as JPEG so that the page stays below 10 MB
RC: dict[Any, Any] = {
    "font.size": 9.0,
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


def chart(width: float = 5.2, height: float = 3.1) -> tuple[Figure, Axes]:
    """One pair of axes in the page's style; inches, sized so that text is legible at a phone's width."""
    with rc_context(RC):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.add_subplot()
    axes.grid(axis="y", color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    return figure, axes


def as_svg(figure: Figure) -> str:
    """A data address; the date is left out, so equal records give equal pages."""
    buffer = io.BytesIO()
    with rc_context(RC):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return _address("image/svg+xml", buffer.getvalue())


def as_bitmap(figure: Figure, dpi: int) -> str:
    """A data address: PNG, or JPEG when the PNG would be large (photographs)."""
    buffer = io.BytesIO()
    with rc_context(RC):
        figure.savefig(buffer, format="png", dpi=dpi)
    if buffer.tell() <= PNG_LIMIT:
        return _address("image/png", buffer.getvalue())
    smaller = io.BytesIO()
    Image.open(buffer).convert("RGB").save(smaller, format="JPEG", quality=90, subsampling=0)
    return _address("image/jpeg", smaller.getvalue())


def _address(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"

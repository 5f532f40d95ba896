"""Writes the pictures of the documentation: `python docs/make_pictures.py [OUT/report.html]`.

`pictures/flow.svg` is drawn here. `pictures/report.png` is the upper part of a report as a headless Chromium shows it
(`chromium` on the PATH); without a report it stays as it is.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from xml.sax.saxutils import escape

from PIL import Image

PICTURES = Path(__file__).parent / "pictures"
STEPS = (
    ("Check", ("layout, channels, labels,", "every defect at once"), "findings.json"),
    ("Plan", ("grid, patch and network", "for data and device"), "plan.json"),
    ("Train", ("a network for each fold,", "without that fold's cases"), "models/"),
    ("Validate", ("each case by a network", "that has not seen it"), "crossval/"),
    ("Select", ("the best configuration", "or ensemble, packed"), "model/"),
)
"""name, what happens, what it leaves in the output folder"""
BOX, GAP, EDGE = (176, 92), 22, 16
"""pixels: a step's width and height, between two steps, around the picture"""
INK, MUTED, LINE, FILL, ACCENT = "#1c2430", "#5b6675", "#b9c2cc", "#f5f7f9", "#0072b2"
WINDOW = (1100, 1690)
"""pixels of the report that are shown"""
COLOURS = 128
"""of the report's picture: it stays below 300 kB"""


def flow() -> str:
    """The stages of a run from left to right, below each what it writes, and where images come in and out."""
    width = 2 * EDGE + len(STEPS) * BOX[0] + (len(STEPS) - 1) * GAP
    top, height = 74, 316
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        'font-family="system-ui, Segoe UI, Roboto, Helvetica, Arial, sans-serif" font-size="13">',
        "<title>From a folder of images and labels to a model and a report</title>",
        '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
        f'<path d="M0 0L8 4L0 8z" fill="{MUTED}"/></marker></defs>',
        f'<rect width="{width}" height="{height}" rx="8" fill="#ffffff"/>',
        _text(EDGE, 34, "Your folder of images and labels", INK, "start", bold=True),
        _arrow(EDGE + BOX[0] / 2, 44, EDGE + BOX[0] / 2, top - 2),
    ]
    for index, (name, lines, file) in enumerate(STEPS):
        left = EDGE + index * (BOX[0] + GAP)
        middle, bottom = left + BOX[0] / 2, top + BOX[1]
        parts.append(
            f'<rect x="{left}" y="{top}" width="{BOX[0]}" height="{BOX[1]}" rx="6" fill="{FILL}" stroke="{LINE}"/>'
        )
        parts.append(_text(middle, top + 28, name, ACCENT, "middle", bold=True))
        parts += [_text(middle, top + 52 + 18 * row, line, INK, "middle") for row, line in enumerate(lines)]
        parts.append(_arrow(middle, bottom + 2, middle, bottom + 34))
        parts.append(_text(middle, bottom + 54, f"OUT/{file}", MUTED, "middle"))
        if index:
            parts.append(_arrow(left - GAP + 2, top + BOX[1] / 2, left - 2, top + BOX[1] / 2))
    last = width - EDGE - BOX[0] / 2
    summary = "OUT/report.html tells all of it: results, pictures, plan, training"
    promise = "One command does it, within the time that is given, and continues after an interruption."
    parts += [
        _text(EDGE, 274, summary, INK, "start", bold=True),
        _text(EDGE, 296, promise, MUTED, "start"),
        _arrow(last, 230, last, 256),
        _text(width - EDGE, 274, "Segmentations of new images", INK, "end", bold=True),
    ]
    return "\n".join([*parts, "</svg>"]) + "\n"


def _text(x: float, y: float, words: str, colour: str, anchor: str, bold: bool = False) -> str:
    weight = ' font-weight="600"' if bold else ""
    return f'<text x="{x:g}" y="{y:g}" fill="{colour}" text-anchor="{anchor}"{weight}>{escape(words)}</text>'


def _arrow(x: float, y: float, to_x: float, to_y: float) -> str:
    line = f'x1="{x:g}" y1="{y:g}" x2="{to_x:g}" y2="{to_y:g}"'
    return f'<line {line} stroke="{MUTED}" stroke-width="1.5" marker-end="url(#head)"/>'


def photograph(report: Path, target: Path) -> None:
    """The top of a page as a PNG of few colours. Raises RuntimeError without a Chromium."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        raise RuntimeError("there is no chromium on the PATH; on Debian: apt-get install chromium")
    with tempfile.TemporaryDirectory() as folder:
        shot = Path(folder) / "shot.png"
        window = ",".join(map(str, WINDOW))
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={folder}/p"]
        command = [browser, *flags, f"--window-size={window}", f"--screenshot={shot}", report.resolve().as_uri()]
        subprocess.run(command, check=True, capture_output=True, timeout=120)
        with Image.open(shot) as image:
            image.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(target, optimize=True)


if __name__ == "__main__":
    PICTURES.mkdir(exist_ok=True)
    (PICTURES / "flow.svg").write_text(flow(), encoding="utf-8")
    for path in sys.argv[1:2]:
        photograph(Path(path), PICTURES / "report.png")

"""Outlines of objects, and those that ImageJ saves: regions of interest, in files and zip files, through roifile.

Coordinates count pixels from the upper left corner of the first one, so that its centre lies at (0.5, 0.5).
"""

from __future__ import annotations

import re
import zipfile
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from ..schema.errors import FileError
from .containers import require_extra
from .image_format import damaged

ROI_ENDINGS = (".zip", ".roi")
LARGEST_ROIS, MOST_ROIS = 1 << 26, 100_000
"""bytes of all regions of a zip file, unpacked, and their number"""


class Outline(NamedTuple):
    """One object on a picture, or on one slice of a stack or on all of them."""

    name: str
    """of its class"""
    parts: tuple[np.ndarray, ...] = ()
    """(N, 2) corners x, y"""
    exclusive: bool = False
    """whether what lies in an even number of parts is a hole"""
    position: int = 0
    """of the slice, from 1 on; 0: all slices"""
    over_channels: bool = False
    """whether `position` counts the channels of each slice, too"""
    box: tuple[int, int] = (0, 0)
    """row and column of the first pixel of `mask`"""
    mask: np.ndarray | None = None
    """(Y, X) bool, where pixels were stored in place of corners"""
    crowd: bool = False
    """whether it surrounds several objects, which nobody told apart"""


def clean_name(text: object) -> str:
    """Of a class, in one line."""
    return " ".join("".join(each if each.isprintable() else " " for each in str(text or "")).split())[:100] or "unnamed"


def corners(path: Path, values: object) -> np.ndarray:
    """(N, 2) of a flat list or of pairs. Raises FileError for anything but finite numbers."""
    try:
        found = np.array(values, float).reshape(-1, 2)
    except (TypeError, ValueError):
        raise damaged(path, "an outline is no list of points") from None
    if not np.isfinite(found).all() or (np.abs(found) > 1e9).any():
        raise damaged(path, "an outline has points that lie nowhere")
    return found


def holds_rois(path: Path) -> bool:
    """Whether a file is a region of ImageJ, or a zip file with some; others have zip files beside their data, too."""
    try:
        if path.suffix.lower() == ".roi":
            with path.open("rb") as file:
                return file.read(4) == b"Iout"
        with zipfile.ZipFile(path) as packed:
            return any(name.lower().endswith(".roi") for name in packed.namelist()[:MOST_ROIS])
    except (zipfile.BadZipFile, OSError, ValueError):
        return False


def read_rois(path: Path) -> list[Outline]:
    """Of a file, or of a zip of them. Raises FileError."""
    status = path.stat()
    return _read_rois(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=4)
def _read_rois(path: Path, size: int, modified: int) -> list[Outline]:
    roifile = require_extra("roifile", path)
    contents: list[tuple[str, bytes]] = []
    if path.suffix.lower() == ".roi":
        if size > LARGEST_ROIS:
            raise damaged(path, f"it has {size} bytes, for one region")
        contents.append((path.stem, path.read_bytes()))
    else:
        try:
            with zipfile.ZipFile(path) as packed:
                entries = [each for each in packed.infolist() if each.filename.lower().endswith(".roi")]
                if len(entries) > MOST_ROIS or sum(each.file_size for each in entries) > LARGEST_ROIS:
                    raise damaged(path, f"its {len(entries)} regions are larger than regions can be")
                contents += [(PurePosixPath(each.filename).stem, packed.read(each)) for each in entries]
        except (zipfile.BadZipFile, EOFError, NotImplementedError, OSError, RuntimeError) as error:
            raise damaged(path, f"it is no zip file that can be read ({error})") from None
    if not contents:
        raise FileError(path, "holds no regions of ImageJ (.roi)", "Save them from the ROI Manager")
    found = []
    for name, content in contents:
        try:
            found.append(_of_imagej(path, roifile.ImagejRoi.frombytes(content), name, roifile.ROI_TYPE))
        except FileError:
            raise
        except Exception as error:  # of roifile, whatever a damaged region leads it to
            raise damaged(path, f"the region {name[:40]!r} cannot be read ({type(error).__name__})") from None
    return found


def _of_imagej(path: Path, roi: Any, file: str, kinds: Any) -> Outline:
    open_kinds = (kinds.LINE, kinds.FREELINE, kinds.POLYLINE, kinds.ANGLE, kinds.POINT, kinds.NOROI)
    position, over_channels = (int(roi.z_position), False) if roi.z_position > 0 else (int(roi.position), True)
    name = f"group {roi.group}" if roi.group else _roi_class(str(roi.name or file))
    closed = roi.roitype not in open_kinds
    parts = tuple(corners(path, each) for each in roi.coordinates(multi=True)) if closed else ()
    parts = tuple(each for each in parts if len(each) > 2)
    return Outline(name, parts, True, max(0, position), over_channels)


def _roi_class(name: str) -> str:
    """What is left of a region's name without the numbers at its end; `roi` where that is nothing but numbers."""
    bare = re.sub(r"[\s_.#()-]*[0-9][0-9\s_.#()-]*\Z", "", clean_name(name)).strip(" _-.#()")
    return bare if re.search(r"[^\W\d_]", bare) else "roi"

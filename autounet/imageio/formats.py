"""Which files are images, by the end of their names."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

from ..schema.errors import DataError
from ..schema.geometry import Geometry

SUFFIXES: dict[str, str] = {
    ".nii.gz": "nifti",
    ".nii": "nifti",
    ".seg.nrrd": "nrrd",
    ".nrrd": "nrrd",
    ".mha": "mha",
    ".mhd": "mha",
    ".png": "png",
    ".ome.tif": "tiff",
    ".ome.tiff": "tiff",
    ".tif": "tiff",
    ".tiff": "tiff",
    ".gif": "gif",
    ".jpg": "jpeg",
    ".jpeg": "jpeg",
    ".bmp": "bmp",
}
"""file name ending -> kind; the longest ending that fits counts"""

VOLUME_KINDS = frozenset({"nifti", "nrrd", "mha", "dicom"})
"""kinds that carry a geometry in millimetres"""

DICOM = "dicom"
"""kind of a folder that holds one DICOM series; it has no ending"""

_OUTPUT = {
    ".gif": ".png", ".jpg": ".png", ".jpeg": ".png", ".mhd": ".mha", ".seg.nrrd": ".nrrd", ".ome.tif": ".tif",
    ".ome.tiff": ".tif", "": ".nii.gz",
}  # fmt: skip
"""formats that are lossy, bound to a palette, of two files or with a description of their own are written as their
nearest safe relative, a DICOM series as NIfTI"""


_LABEL_LIMITS = {"png": (0, 65_535), "bmp": (0, 255)}


def suffix(path: Path | str) -> str:
    """The image ending as spelt in the name (".nii.gz" is one ending), or "" when it is no image file."""
    name = Path(path).name
    for ending in SUFFIXES:
        if name.lower().endswith(ending) and len(name) > len(ending):
            return name[-len(ending) :]
    return ""


def stem(path: Path | str) -> str:
    """The file's name without its image ending."""
    name = Path(path).name
    ending = suffix(name)
    return name[: -len(ending)] if ending else name


def is_image(path: Path) -> bool:
    """True for visible files with a known ending."""
    return bool(suffix(path)) and not path.name.startswith(".")


def file_kind(path: Path | str) -> str:
    """Kind as in `Geometry.kind`; a folder is a DICOM series. Raises DataError for an unknown ending."""
    ending = suffix(path).lower()
    if not ending and Path(path).is_dir():
        return DICOM
    if not ending and Path(path).suffix.lower() == ".dcm":
        raise DataError(f"{path} is one DICOM file. Give the folder that holds its series, and nothing else")
    if not ending:
        raise DataError(f"{path} has an ending that is not supported. Supported are {', '.join(SUFFIXES)}")
    return SUFFIXES[ending]


def label_limits(ending: str) -> tuple[int, int]:
    """The least and the largest label value that segmentations of images with this ending ("": DICOM) can hold."""
    kind = SUFFIXES[output_suffix(ending).lower()]
    return _LABEL_LIMITS.get(kind, (-(2**31), 2**31 - 1))


def output_suffix(ending: str) -> str:
    """The ending of segmentations for images with this ending."""
    return _OUTPUT.get(ending.lower(), ending)


def with_sidecar(path: Path, geometry: Geometry) -> Geometry:
    """The geometry with the spacing of `case.json`, or of the same without the `_0000` of a channel, when it is there.

    Spacing in mm, (z, y, x), or (y, x) for a 2-D image. Raises DataError when the file names none that fits.
    """
    found = sidecar_of(path)
    if found is None:
        return geometry
    try:
        content = json.loads(found.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise DataError(f"{found} is not readable JSON: {error}. Correct it, or take it away") from None
    if not isinstance(content, dict) or "spacing" not in content:
        return geometry
    given = content["spacing"]
    numbers = isinstance(given, list) and all(
        isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and value > 0
        for value in given
    )
    if not numbers or len(given) not in (3, geometry.dimension):
        raise DataError(f"{found}: spacing is {given!r}. Write the mm of z, y and x, for example [2.5, 0.7, 0.7]")
    z, y, x = given if len(given) == 3 else (1.0, *given)
    return geometry.model_copy(update={"spacing": (float(z), float(y), float(x))})


def sidecar_of(path: Path) -> Path | None:
    """The file that `with_sidecar` would read."""
    names = dict.fromkeys((stem(path), re.sub(r"_\d{4}$", "", stem(path))))
    return next((file for name in names if (file := path.with_name(f"{name}.json")).is_file()), None)

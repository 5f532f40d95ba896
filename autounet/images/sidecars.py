"""Spacing written beside an image whose format has none: `case.json` with {"spacing": [z, y, x]}, as nnU-Net has it."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

from autounet.images.formats import stem
from autounet.schema.errors import DataError
from autounet.schema.geometry import Geometry


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

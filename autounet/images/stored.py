"""How a file stores its voxels."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from autounet.images.formats import VOLUME_KINDS, file_kind
from autounet.images.pictures import read_picture
from autounet.images.tiffs import read_tiff
from autounet.images.volumes import read_volume


def stored_type(path: Path | str) -> np.dtype:
    """The number type of the voxels of a file; of a palette picture that of its indices. Raises DataError."""
    path = Path(path)
    kind = file_kind(path)
    if kind in VOLUME_KINDS:
        return read_volume(path, kind)[0].dtype
    return (read_tiff(path) if kind == "tiff" else read_picture(path, kind, True))[0].dtype

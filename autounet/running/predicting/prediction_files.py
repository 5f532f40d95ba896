"""How the segmentation of an image is written: in the image's own format, or as a DICOM-SEG object."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from autounet.datasets import InputCase
from autounet.images import is_series, output_suffix, suffix, write_labels
from autounet.schema.errors import OptionError
from autounet.schema.geometry import Geometry
from autounet.schema.labels import Labels

DICOM_SEG = "dicom-seg"


def prediction_path(out: Path, case: InputCase, form: str | None) -> Path:
    """`<case>.<ext>` in the format of the image (NIfTI for a DICOM series), or `<case>.dcm`.

    Raises OptionError for an unknown format, for DICOM-SEG of other images than DICOM, and without its extra.
    """
    if form is None:
        return out / f"{case.identifier}{output_suffix(suffix(case.images[0]))}"
    if form != DICOM_SEG:
        raise OptionError(f"--format {form} is unknown. Write {DICOM_SEG}, or leave it out for the image's own format")
    if not is_series(case.images[0]):
        raise OptionError(f"--format {form}: {case.images[0]} is no folder with a DICOM series. Leave it out")
    from autounet.interop.dicom_seg import require_highdicom

    require_highdicom()
    return out / f"{case.identifier}.dcm"


def write_prediction(path: Path, values: np.ndarray, geometry: Geometry, case: InputCase, labels: Labels) -> None:
    """(Z, Y, X) label values in the geometry of the case's image. Raises DataError."""
    if path.suffix == ".dcm":
        from autounet.interop.dicom_seg import write_dicom_seg

        write_dicom_seg(path, values, case.images[0], labels)
    else:
        write_labels(path, values, geometry)

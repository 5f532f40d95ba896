"""The files that belong to a predicted case: where they go, and how the segmentation is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ..datasets import InputCase
from ..imageio import is_series, segmentation_suffix, write_labels
from ..schema.bundle import ModelBundle
from ..schema.errors import OptionError, unknown_name
from ..schema.geometry import Geometry
from .bids_derivatives import BIDS, bids_path, sidecar
from .case_records import OutputOptions
from .maps import map_paths
from .objects_table import table_paths
from .predictor import Predictor

DICOM_SEG = "dicom-seg"


def prediction_path(out: Path, case: InputCase, form: str | None) -> Path:
    """`<case>.<ext>` in the format of the image (NIfTI for a DICOM series), or `<case>.dcm`, or as BIDS names it.

    Raises OptionError for an unknown format, for DICOM-SEG of other images than DICOM, and without its extra.
    """
    if form is None:
        return out / f"{case.identifier}{segmentation_suffix(case.images[0])}"
    if form == BIDS:
        return bids_path(out, case)
    if form != DICOM_SEG:
        raise unknown_name("--format", form, [DICOM_SEG, BIDS], ", or leave it out for the image's own format")
    if not is_series(case.images[0]):
        raise OptionError(
            f"--format {form} is for DICOM images, and {case.images[0]} is no folder with a DICOM series",
            "Leave --format out",
        )
    from .dicom_seg import require_highdicom

    require_highdicom()
    return out / f"{case.identifier}.dcm"


def output_paths(predictor: Predictor, out: Path, case: InputCase, outputs: OutputOptions) -> list[Path]:
    """Files that may be written for a case, the segmentation first. Raises OptionError like `prediction_path`."""
    if case.error is not None:
        return []
    beside = map_paths(
        predictor, prediction_path(out, case, None), outputs.probabilities, outputs.uncertainty, outputs.gate_maps
    )
    tables = table_paths(predictor.bundle, prediction_path(out, case, None))
    own = prediction_path(out, case, outputs.form)
    return [own, *([sidecar(own)] if outputs.form == BIDS else []), *beside, *tables]


def write_prediction(path: Path, values: np.ndarray, geometry: Geometry, case: InputCase, bundle: ModelBundle) -> None:
    """(Z, Y, X) label values in the geometry of the case's image. Raises DataError."""
    if path.suffix == ".dcm":
        from .dicom_seg import write_dicom_seg

        write_dicom_seg(path, values, case.images[0], bundle.labels, bundle)
    else:
        write_labels(path, values, geometry)


def require_new(paths: Mapping[InputCase, Sequence[Path]]) -> None:
    """Raises OptionError where a segmentation, or a map beside it, would take the place of an image."""
    images = {image.resolve() for case in paths for image in case.images}
    for case, own in paths.items():
        if taken := [path for path in own if path.resolve() in images]:
            raise OptionError(
                f"the segmentation would overwrite {taken[0]}, an image to be predicted",
                "Give another --out",
                case.identifier,
            )

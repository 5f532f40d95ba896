"""Segmentations as DICOM-SEG objects, which viewers and archives attach to the series they were drawn on.

Needs the extra `dicom` (highdicom). Standard: DICOM PS3.3 A.51, Segmentation IOD.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import __version__
from ..imageio import read_geometry, series_files
from ..schema.errors import DataError, OptionError
from ..schema.labels import Labels
from ..schema.record import replacing

if TYPE_CHECKING:
    import pydicom

SCHEME = "99AUTOUNET"
"""designator of codes that no standard scheme defines (PS3.3 8.2): the classes by their values"""
_MAY_LACK = ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyID", "AccessionNumber", "StudyDate",
             "StudyTime", "ReferringPhysicianName")  # fmt: skip
"""attributes that may be empty but must be there (type 2); anonymised files often lack them"""
_LONGEST = 64
"""characters of a segment's label (LO)"""


def require_highdicom() -> None:
    """Raises OptionError when the extra is not installed."""
    try:
        import highdicom  # noqa: F401
    except ImportError:
        raise OptionError(
            "DICOM-SEG needs the package highdicom", "Install it: pip install 'autounet[dicom]'"
        ) from None


def write_dicom_seg(path: Path, values: np.ndarray, series: Path, labels: Labels) -> None:
    """Write (Z, Y, X) label values of the series in the folder `series`, one binary segment per foreground class.

    Z runs along the slices as `series_files` orders them. A class that does not occur is a segment without frames.
    Raises OptionError without highdicom, DataError when the series lacks what a DICOM-SEG must refer to.
    """
    require_highdicom()
    import highdicom
    import pydicom

    logging.getLogger("highdicom").setLevel(logging.WARNING)  # else a line for each module of attributes
    distance = read_geometry(series).spacing[0]
    sources = [_completed(pydicom.dcmread(file), distance) for file in series_files(series)]
    if len(sources) != len(values):
        raise DataError(f"{series} has {len(sources)} slices, and its segmentation {len(values)}", "Predict it again")
    dense = np.zeros(values.shape, np.uint8 if len(labels.foreground) < 256 else np.uint16)
    for number, label in enumerate(labels.foreground, 1):
        dense[values == label.value] = number
    try:
        segmentation = highdicom.seg.Segmentation(
            source_images=sources,
            pixel_array=dense,
            segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
            segment_descriptions=_descriptions(labels),
            series_instance_uid=highdicom.UID(),
            series_number=int(sources[0].get("SeriesNumber") or 0) + 1000,
            sop_instance_uid=highdicom.UID(),
            instance_number=1,
            manufacturer="AutoUNet",
            manufacturer_model_name="AutoUNet",
            software_versions=__version__,
            device_serial_number="0",
            series_description="AutoUNet segmentation",
            omit_empty_frames=bool(dense.any()),
        )
    except (AttributeError, ValueError, TypeError) as error:  # of highdicom, for what the source images lack
        raise DataError(
            f"{series} cannot carry a DICOM-SEG ({error})", "Write NIfTI instead: leave --format out"
        ) from None
    with replacing(path, ".dcm") as temporary:
        segmentation.save_as(temporary)


def _completed(source: pydicom.Dataset, distance: float) -> pydicom.Dataset:
    """With the attributes that may be empty, and the slices' distance (mm) by their positions: headers err in it."""
    for name in _MAY_LACK:
        if name not in source:
            setattr(source, name, "")
    source.SpacingBetweenSlices = f"{distance:.10g}"
    if not source.get("SliceThickness"):
        source.SliceThickness = f"{distance:.10g}"
    return source


def _descriptions(labels: Labels) -> list[Any]:
    import highdicom
    from pydicom.sr.codedict import codes

    algorithm = highdicom.AlgorithmIdentificationSequence(
        name="AutoUNet", version=__version__, family=codes.DCM.ArtificialIntelligence
    )
    return [
        highdicom.seg.SegmentDescription(
            segment_number=number,
            segment_label=label.name[:_LONGEST],
            segmented_property_category=codes.SCT.AnatomicalStructure,
            segmented_property_type=highdicom.sr.CodedConcept(str(label.value), SCHEME, label.name[:_LONGEST]),
            algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=algorithm,
        )
        for number, label in enumerate(labels.foreground, 1)
    ]

"""Segmentations as DICOM-SEG objects, which viewers and archives attach to the series they were drawn on.

Structures whose names the standard knows carry its codes (`structure_codes`), all a colour, and the object says which
model made it. Needs the extra `dicom` (highdicom). Standard: DICOM PS3.3 A.51, Segmentation IOD.
"""

from __future__ import annotations

import colorsys
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import __version__
from ..figures import SERIES
from ..imageio import read_geometry, series_files
from ..schema.bundle import ModelBundle
from ..schema.errors import DataError, OptionError
from ..schema.labels import Labels
from ..schema.record import replacing
from ..workers import PROCESS_WIDE
from .structure_codes import structure_codes

if TYPE_CHECKING:
    import pydicom

SCHEME = "99AUTOUNET"
"""designator of codes that no standard scheme defines (PS3.3 8.2): the classes by their values"""
_MAY_LACK = ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyID", "AccessionNumber", "StudyDate",
             "StudyTime", "ReferringPhysicianName")  # fmt: skip
"""attributes that may be empty but must be there (type 2); anonymised files often lack them"""
_LONGEST = 64
"""characters of a segment's label, a description and a version (LO)"""
GOLDEN = (5**0.5 - 1) / 2
"""of the circle of hues between the colours of neighbouring classes, when the report's are used up"""


def written_name(name: str) -> str:
    """What a segment of a class is called: a backslash would divide it in two."""
    return name.replace("\\", "/")[:_LONGEST]


def require_highdicom() -> None:
    """Raises OptionError when the extra is not installed."""
    try:
        import highdicom  # noqa: F401
    except ImportError:
        raise OptionError(
            "DICOM-SEG needs the package highdicom", "Install it: pip install 'autounet[dicom]'"
        ) from None


def write_dicom_seg(
    path: Path, values: np.ndarray, series: Path, labels: Labels, bundle: ModelBundle | None = None
) -> None:
    """Write (Z, Y, X) label values of the series in the folder `series`, one binary segment per foreground class.

    `bundle` is the model that predicted them. Z runs along the slices as `series_files` orders them. A class that does
    not occur is a segment without frames. Raises OptionError without highdicom, DataError when the series lacks what a
    DICOM-SEG must refer to.
    """
    require_highdicom()
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
        with _plain_names_allowed():
            segmentation = _segmentation(sources, dense, labels, bundle)
    except (AttributeError, ValueError, TypeError) as error:  # of highdicom, for what the source images lack
        raise DataError(
            f"{series} cannot carry a DICOM-SEG ({error})", "Write NIfTI instead: leave --format out"
        ) from None
    with replacing(path, ".dcm") as temporary:
        segmentation.save_as(temporary)


def _segmentation(sources: list[pydicom.Dataset], dense: np.ndarray, labels: Labels, bundle: ModelBundle | None) -> Any:
    """Of (Z, Y, X) segment numbers on the slices `sources`."""
    import highdicom

    return highdicom.seg.Segmentation(
        source_images=sources,
        pixel_array=dense,
        segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=_descriptions(labels, bundle),
        series_instance_uid=highdicom.UID(),
        series_number=int(sources[0].get("SeriesNumber") or 0) + 1000,
        sop_instance_uid=highdicom.UID(),
        instance_number=1,
        manufacturer="AutoUNet",
        manufacturer_model_name="AutoUNet",
        software_versions=__version__,
        device_serial_number="0",
        series_description=written_name(f"AutoUNet {bundle.name if bundle else 'segmentation'}"),
        content_description=written_name(f"Segmented automatically by the model {_model_name(bundle)}"),
        content_label="SEGMENTATION",
        omit_empty_frames=bool(dense.any()),
    )


@contextmanager
def _plain_names_allowed() -> Iterator[None]:
    """Inside, highdicom does not warn of patients' names of one part, which are those of anonymised files."""
    with PROCESS_WIDE, warnings.catch_warnings():
        warnings.filterwarnings("ignore", 'The string ".*" is unlikely to represent the intended person name')
        yield


def _completed(source: pydicom.Dataset, distance: float) -> pydicom.Dataset:
    """With the attributes that may be empty, and the slices' distance (mm) by their positions: headers err in it."""
    for name in _MAY_LACK:
        if name not in source:
            setattr(source, name, "")
    source.SpacingBetweenSlices = f"{distance:.10g}"
    if not source.get("SliceThickness"):
        source.SliceThickness = f"{distance:.10g}"
    return source


def _model_name(bundle: ModelBundle | None) -> str:
    return bundle.name if bundle is not None else "AutoUNet"


def _descriptions(labels: Labels, bundle: ModelBundle | None) -> list[Any]:
    import highdicom
    from pydicom.sr.codedict import codes

    parameters = None
    version = __version__
    if bundle is not None:  # a model has no number: its digest tells it from all others
        version = f"{bundle.checksum or 'not sealed'}, AutoUNet {bundle.versions.get('autounet', 'unknown')}"
        parameters = {"configurations": "+".join(bundle.selection.chosen), "segmented with AutoUNet": __version__}
    algorithm = highdicom.AlgorithmIdentificationSequence(
        name=written_name(_model_name(bundle)),
        version=written_name(version),
        family=codes.DCM.ArtificialIntelligence,
        source="AutoUNet",
        parameters=parameters,
    )
    found = []
    for number, label in enumerate(labels.foreground, 1):
        known = structure_codes(label.name)
        own = highdicom.sr.CodedConcept(str(label.value), SCHEME, written_name(label.name))
        described = highdicom.seg.SegmentDescription(
            segment_number=number,
            segment_label=written_name(label.name),
            segmented_property_category=known.category if known else codes.SCT.AnatomicalStructure,
            segmented_property_type=known.property_type if known else own,
            algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=algorithm,
            anatomic_regions=[known.region] if known and known.region else None,
            display_color=highdicom.color.CIELabColor.from_rgb(*display_colour(number)),
        )
        if known and known.side:
            side = [highdicom.sr.CodedConcept(known.side.value, known.side.scheme_designator, known.side.meaning)]
            if known.region:
                described.AnatomicRegionSequence[0].AnatomicRegionModifierSequence = side
            else:
                described.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = side
        found.append(described)
    return found


def display_colour(number: int) -> tuple[int, int, int]:
    """Red, green and blue, 0 to 255, of a foreground class (from 1): those of the report, then others."""
    if number <= len(SERIES):
        code = int(SERIES[number - 1][1:], 16)
        return code >> 16, code >> 8 & 255, code & 255
    red, green, blue = colorsys.hsv_to_rgb(number * GOLDEN % 1, 0.65, 0.9)
    return round(red * 255), round(green * 255), round(blue * 255)

"""Which DICOM files a folder holds, at any depth, and what they say of themselves: patients, studies and series."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from .containers import is_zarr
from .dicom_slices import is_dicom, quiet_pydicom

if TYPE_CHECKING:
    from pydicom import Dataset

NO_IMAGES = frozenset({"dicomdir", "version", "lockfile"})
"""names in small letters of what media carry besides images"""


class DicomFile(NamedTuple):
    """What the header of a file says of its place among others."""

    path: Path
    patient: str
    study: str
    """UID, as are the next three"""
    series: str
    instance: str
    frame_of_reference: str
    """files with the same one share their coordinates"""
    modality: str
    """CT, MR, SEG, RTSTRUCT, SR, ..."""
    is_slice: bool
    """whether it holds an image of a volume, and no localizer"""
    description: str
    number: str
    """of the series"""
    date: str
    frames: int
    refers_to: tuple[str, ...]
    """series that a segmentation or a structure set was drawn on"""


LABEL_MODALITIES = ("SEG", "RTSTRUCT")
_NO_SLICES = (
    *LABEL_MODALITIES, "SR", "PR", "KO", "RTPLAN", "RTDOSE", "RTRECORD", "REG", "DOC", "SC", "OT", "FID", "RWV",
)  # fmt: skip
_TAGS = (
    "SOPInstanceUID", "PatientID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "Modality",
    "ImageType", "SeriesDescription", "SeriesNumber", "StudyDate", "NumberOfFrames", "Rows", "ReferencedSeriesSequence",
    "ReferencedFrameOfReferenceSequence",
)  # fmt: skip
_UID = re.compile(r"[0-9]+(\.[0-9]+){3,}")
_indices: dict[Path, tuple[object, tuple[DicomFile, ...]]] = {}
"""by folder, with the stamps of all folders below it: one command asks several times"""


def is_series_uid(path: Path) -> bool:
    """Whether a path names a series among other files."""
    return bool(_UID.fullmatch(path.name)) and not path.exists() and path.parent.is_dir()


def dicom_index(folder: Path) -> tuple[DicomFile, ...]:
    """Every DICOM file in a folder and below it, whatever its name, sorted by path. Files of other kinds are passed."""
    walked = sorted((place, files) for place, files in _walk(folder))
    stamp = tuple((place, place.stat().st_mtime_ns) for place, _ in walked)
    known = _indices.get(folder)
    if known is None or known[0] != stamp:
        paths = (place / name for place, files in walked for name in sorted(files))
        found = tuple(each for path in paths if _may_be_dicom(path) and (each := _indexed(path)) is not None)
        known = _indices[folder] = (stamp, found)
    return known[1]


def holds_dicom(folder: Path) -> bool:
    """Whether a DICOM file lies in a folder or below it."""
    return any(_may_be_dicom(place / name) for place, files in _walk(folder) for name in files)


def _walk(folder: Path) -> Iterator[tuple[Path, list[str]]]:
    """Every folder with its files, but those of Zarr, whose chunks may be millions."""
    for place, inner, files in os.walk(folder):
        inner[:] = [name for name in inner if not is_zarr(Path(place, name))]
        yield Path(place), files


def _may_be_dicom(path: Path) -> bool:
    """By its name, and where that may be one of DICOM by its first bytes; those end in anything, or in a UID."""
    name = path.name.lower()
    if name.startswith(".") or name in NO_IMAGES or any(part.startswith(".") for part in path.parts[-3:-1]):
        return False
    ending = path.suffix.lower()
    return (ending in ("", ".dcm", ".dicom", ".ima") or ending[1:].isdigit()) and is_dicom(path)


def _read_elements(path: Path, keywords: Sequence[str]) -> Dataset | None:
    """A few elements before the pixels; None where the file is damaged, which is told when it is read."""
    pydicom = quiet_pydicom()
    try:
        return pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(keywords))
    except Exception:  # see `read_dataset`
        return None


def _indexed(path: Path) -> DicomFile | None:
    header = _read_elements(path, _TAGS)
    if header is None or not header.get("SeriesInstanceUID"):
        return None
    modality, kinds = str(header.get("Modality") or ""), header.get("ImageType") or ()
    localizer = "LOCALIZER" in {str(kind).upper() for kind in ([kinds] if isinstance(kinds, str) else kinds)}

    def text(keyword: str) -> str:
        return str(header.get(keyword) or "").strip(" \0")

    return DicomFile(
        path,
        text("PatientID"),
        text("StudyInstanceUID"),
        text("SeriesInstanceUID"),
        text("SOPInstanceUID"),
        text("FrameOfReferenceUID") or _referenced_frame(header),
        modality,
        bool(header.get("Rows")) and modality not in _NO_SLICES and not localizer,
        text("SeriesDescription"),
        text("SeriesNumber"),
        text("StudyDate"),
        int(text("NumberOfFrames") or 1),
        tuple(dict.fromkeys(_referenced_series(header))),
    )


def _referenced_frame(header: Dataset) -> str:
    frames = header.get("ReferencedFrameOfReferenceSequence") or ()
    return next((str(each.get("FrameOfReferenceUID") or "") for each in frames), "")


def _referenced_series(header: Dataset) -> Iterator[str]:
    """PS3.3 C.8.8.5 (structure sets) and C.12.4 (segmentations)."""
    for each in header.get("ReferencedSeriesSequence") or ():
        yield str(each.get("SeriesInstanceUID") or "")
    for frame in header.get("ReferencedFrameOfReferenceSequence") or ():
        for study in frame.get("RTReferencedStudySequence") or ():
            for series in study.get("RTReferencedSeriesSequence") or ():
                yield str(series.get("SeriesInstanceUID") or "")


def dicom_files(folder: Path) -> list[Path]:
    """The DICOM files directly in a folder, sorted by name; the index that media carry is none of them.

    Of a path that names a series among others, its slices.
    """
    if not folder.is_dir():
        return [each.path for each in dicom_index(folder.parent) if each.series == folder.name and each.is_slice]
    return [
        path
        for path in sorted(folder.iterdir())
        if path.is_file()
        and not path.name.startswith(".")
        and path.name.lower() not in NO_IMAGES
        and (path.suffix.lower() == ".dcm" or is_dicom(path))
    ]

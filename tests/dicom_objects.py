"""DICOM series, segmentations and structure sets for tests, as scanners and contouring programs write them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from pydicom import Dataset, FileMetaDataset
from pydicom.pixels import pack_bits
from pydicom.sequence import Sequence as Items
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

STORAGE = {
    "CT": "1.2.840.10008.5.1.4.1.1.2",
    "MR": "1.2.840.10008.5.1.4.1.1.4",
    "PT": "1.2.840.10008.5.1.4.1.1.128",
    "SEG": "1.2.840.10008.5.1.4.1.1.66.4",
    "RTSTRUCT": "1.2.840.10008.5.1.4.1.1.481.3",
    "SR": "1.2.840.10008.5.1.4.1.1.88.11",
}
AXIAL = np.array([[1.0, 0, 0], [0, 1, 0]])


class Series(NamedTuple):
    uid: str
    study: str
    frame: str
    patient: str
    sops: list[str]
    positions: list[np.ndarray]
    spacing: tuple[float, float, float]
    axes: np.ndarray
    shape: tuple[int, ...]

    def millimetres(self, points: np.ndarray) -> np.ndarray:
        """(N, 3) voxels x, y, z -> mm."""
        z, y, x = self.spacing
        normal = np.cross(*self.axes)
        return self.positions[0] + points * (x, y, z) @ np.stack([*self.axes, normal])


def item(**elements: object) -> Dataset:
    found = Dataset()
    for keyword, value in elements.items():
        setattr(found, keyword, Items(value) if isinstance(value, list) and keyword.endswith("Sequence") else value)
    return found


def save(path: Path, modality: str, uid: str | None = None, **elements: object) -> str:
    """A file with these elements; returns its UID."""
    file = item(**elements)
    file.SOPClassUID, file.SOPInstanceUID, file.Modality = STORAGE[modality], uid or generate_uid(), modality
    file.file_meta = FileMetaDataset()
    file.file_meta.MediaStorageSOPClassUID = file.SOPClassUID
    file.file_meta.MediaStorageSOPInstanceUID = file.SOPInstanceUID
    file.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    path.parent.mkdir(parents=True, exist_ok=True)
    file.save_as(path, enforce_file_format=True)
    return str(file.SOPInstanceUID)


def write_slices(
    folder: Path,
    array: np.ndarray,
    patient: str = "P1",
    modality: str = "CT",
    name: str = "{z:02d}.dcm",
    study: str | None = None,
    frame: str | None = None,
    spacing: tuple[float, float, float] = (3.0, 2.0, 1.5),
    axes: np.ndarray = AXIAL,
    kind: Sequence[str] = ("ORIGINAL", "PRIMARY", "AXIAL"),
    **elements: object,
) -> Series:
    """A file for each slice of (Z, Y, X) whole numbers from -1024 on."""
    uid, study, frame = generate_uid(), study or generate_uid(), frame or generate_uid()
    origin, normal, sops, positions = np.array([10.0, -20.0, 30.0]), np.cross(*axes), [], []
    for z, plane in enumerate(array):
        positions.append(origin + z * spacing[0] * normal)
        common = dict(
            PatientID=patient, PatientName=patient, StudyInstanceUID=study, SeriesInstanceUID=uid, StudyDate="20200101",
            FrameOfReferenceUID=frame, SeriesNumber=2, InstanceNumber=z + 1, ImageType=list(kind),
            ImagePositionPatient=[f"{each:.8g}" for each in positions[-1]],
            ImageOrientationPatient=[f"{each:.10g}" for each in axes.ravel()],
            PixelSpacing=[spacing[1], spacing[2]], SliceThickness=spacing[0], Rows=plane.shape[0],
            Columns=plane.shape[1], SamplesPerPixel=1, PhotometricInterpretation="MONOCHROME2", BitsAllocated=16,
            BitsStored=16, HighBit=15, PixelRepresentation=0, RescaleIntercept=-1024, RescaleSlope=1,
            PixelData=(plane + 1024).astype("<u2").tobytes(),
        )  # fmt: skip
        sops.append(save(folder / name.format(z=z), modality, **(common | elements)))
    return Series(uid, study, frame, patient, sops, positions, spacing, axes, array.shape)


def write_segmentation(
    path: Path, series: Series, masks: Mapping[str, np.ndarray], fractional: bool = False, backwards: bool = False
) -> None:
    """A DICOM-SEG object; empty frames are left out, as most programs do."""
    frames, groups = [], []
    for number, mask in enumerate(masks.values(), 1):
        for z in range(len(mask))[:: -1 if backwards else 1]:
            if mask[z].any():
                frames.append(mask[z].astype(np.uint8))
                position = [f"{each:.8g}" for each in series.positions[z]]
                groups.append(
                    item(
                        SegmentIdentificationSequence=[item(ReferencedSegmentNumber=number)],
                        PlanePositionSequence=[item(ImagePositionPatient=position)],
                    )
                )
    array = np.stack(frames) if frames else np.zeros((0, *series.shape[1:]), np.uint8)
    segments = [
        item(SegmentNumber=number, SegmentLabel=name, SegmentAlgorithmType="MANUAL")
        for number, name in enumerate(masks, 1)
    ]
    orientation = [f"{each:.10g}" for each in series.axes.ravel()]
    shared = item(
        PlaneOrientationSequence=[item(ImageOrientationPatient=orientation)],
        PixelMeasuresSequence=[item(PixelSpacing=list(series.spacing[1:]), SliceThickness=series.spacing[0])],
    )
    kind = {"SegmentationFractionalType": "PROBABILITY", "MaximumFractionalValue": 200} if fractional else {}
    save(
        path, "SEG", PatientID=series.patient, StudyInstanceUID=series.study, SeriesInstanceUID=generate_uid(),
        FrameOfReferenceUID=series.frame, SegmentationType="FRACTIONAL" if fractional else "BINARY", **kind,
        ImageType=["DERIVED", "PRIMARY"], Rows=series.shape[1], Columns=series.shape[2], SamplesPerPixel=1,
        NumberOfFrames=len(frames), PhotometricInterpretation="MONOCHROME2", BitsAllocated=8 if fractional else 1,
        BitsStored=8 if fractional else 1, HighBit=7 if fractional else 0, PixelRepresentation=0,
        SegmentSequence=segments, SharedFunctionalGroupsSequence=[shared], PerFrameFunctionalGroupsSequence=groups,
        ReferencedSeriesSequence=[item(SeriesInstanceUID=series.uid)],
        PixelData=(array * 150).tobytes() + b"\0" * (array.size % 2) if fractional else pack_bits(array),
    )  # fmt: skip


Contour = tuple[int, Sequence[Sequence[float]]]
"""slice, and corners x, y in voxels"""


def write_structures(
    path: Path,
    series: Series,
    contours: Mapping[str, Sequence[Contour]],
    kind: str = "CLOSED_PLANAR",
    refers: bool = True,
    images: bool = False,
) -> None:
    """An RTSTRUCT object, which refers to the series, and each contour to its image."""
    drawn = []
    for number, own in enumerate(contours.values(), 1):
        items = []
        for z, corners in own:
            points = np.array([(x, y, z) for x, y in corners], float)
            listed = [f"{each:.9g}" for each in series.millimetres(points).ravel()]
            shown = [item(ReferencedSOPInstanceUID=series.sops[int(z)])] if images else []
            contour = item(ContourGeometricType=kind, NumberOfContourPoints=len(corners), ContourData=listed)
            contour.ContourImageSequence = shown
            items.append(contour)
        drawn.append(item(ReferencedROINumber=number, ContourSequence=items))
    rois = [item(ROINumber=number, ROIName=name) for number, name in enumerate(contours, 1)]
    referred = item(RTReferencedSeriesSequence=[item(SeriesInstanceUID=series.uid)])
    frame = item(FrameOfReferenceUID=series.frame, RTReferencedStudySequence=[referred] if refers else [])
    save(
        path, "RTSTRUCT", PatientID=series.patient, StudyInstanceUID=series.study, SeriesInstanceUID=generate_uid(),
        StructureSetLabel="plan", StructureSetROISequence=rois, ROIContourSequence=drawn,
        ReferencedFrameOfReferenceSequence=[frame],
    )  # fmt: skip


def outlines(mask: np.ndarray) -> list[Contour]:
    """Contours of (Z, Y, X) between the centres of the voxels inside and outside; of holes, too."""
    from skimage.measure import find_contours

    return [
        (z, [(x - 1, y - 1) for y, x in line[:-1]])
        for z, plane in enumerate(mask)
        for line in find_contours(np.pad(plane, 1).astype(float), 0.5)
    ]

"""The slices in one DICOM file, and their pixels. pydicom parses the elements.

Standard: DICOM PS3.5 section 8, PS3.3 C.7.6.3 (pixels), C.7.6.16 (frames) and C.11.1 (rescaling).
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import MutableSequence, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..schema.errors import FileError
from ..schema.record import named_in_text
from .image_format import COPY_AGAIN, damaged, itk_reader, itk_reason

if TYPE_CHECKING:
    from pydicom import Dataset

BIG_ENDIAN = "1.2.840.10008.1.2.2"
UNCOMPRESSED = frozenset({"1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99", BIG_ENDIAN})
"""transfer syntaxes: implicit, explicit and deflated little endian, explicit big endian"""
_FRAME_MACROS = (
    "PixelMeasuresSequence",
    "PlanePositionSequence",
    "PlaneOrientationSequence",
    "PixelValueTransformationSequence",
)
"""the functional groups of a frame that say what the elements of a file with one slice say"""


class Slice(NamedTuple):
    """One slice: a file, or a frame of one."""

    path: Path
    sources: tuple[Dataset, ...]
    """where its elements are: the file, then the functional groups of all frames and of this one, which override it"""
    syntax: str
    """transfer syntax"""
    series: str
    shape: tuple[int, int]
    """(rows, columns)"""
    samples: int
    """1 grey, 3 colours"""
    spacing: tuple[float, float]
    """(between rows, between columns) mm"""
    thickness: float
    position: np.ndarray | None
    """(3,) mm, of the first pixel"""
    axes: np.ndarray | None
    """(2, 3) directions along a row and along a column"""
    frame: int = 0
    frames: int = 1
    """how many the file holds, and which of them this is"""

    @property
    def name(self) -> str:
        """For messages."""
        return self.path.name if self.frames == 1 else f"frame {self.frame + 1} of {self.path.name}"

    def text(self, keyword: str) -> str:
        return _text(self.path, self.sources, keyword)


def is_dicom(path: Path) -> bool:
    """By the four letters after the preamble."""
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def read_slices(path: Path) -> list[Slice]:
    """The slices in one file, their pixels not yet decoded.

    Raises DataError for damaged files, files without an image, and frames that are no slices, as of a film.
    """
    dataset = _read_dataset(path)
    syntax = str(dataset.file_meta.get("TransferSyntaxUID", "")).strip(" \0")
    if not syntax.startswith("1.2.840.10008.1.2") or syntax.strip("0123456789."):
        raise damaged(path, f"its transfer syntax is {syntax[:40]!r}")
    count = _whole_number(path, (dataset,), "NumberOfFrames") or 1
    per_frame = _frame_groups(path, dataset, count)
    if per_frame is None and count > 1:
        raise FileError(
            path,
            f"has {count} frames in one file and does not say where they lie",
            "Convert it to NIfTI, or to a file per slice",
        )
    sources = [(dataset, *groups) for groups in per_frame] if per_frame else [(dataset,)]
    slices = [_slice(path, syntax, each) for each in sources]
    return [each._replace(frame=index, frames=len(slices)) for index, each in enumerate(slices)]


def _read_dataset(path: Path) -> Dataset:
    import pydicom
    from pydicom.errors import InvalidDicomError

    logging.getLogger("pydicom").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", module="pydicom")  # elements against the standard, of which few are needed here
    try:  # of the content: from a file, an element would get as much memory as it claims to need
        return pydicom.dcmread(BytesIO(path.read_bytes()))
    except InvalidDicomError:
        raise FileError(path, "is not a DICOM file: it does not say DICM after the preamble", COPY_AGAIN) from None
    except Exception as error:  # pydicom lets struct, value, key, recursion and zlib errors through
        raise damaged(path, _first_line(error)) from None


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__


def _frame_groups(path: Path, dataset: Dataset, count: int) -> list[list[Dataset]] | None:
    """What the functional groups say of each of `count` frames, those of all frames first; None without groups."""
    shared = _items(path, dataset, "SharedFunctionalGroupsSequence")
    per_frame = _items(path, dataset, "PerFrameFunctionalGroupsSequence")
    if not per_frame:
        return None
    if len(per_frame) != count or len(shared) > 1:
        raise damaged(path, f"it has {count} frames and describes {len(per_frame)}")
    common = [item for group in shared for macro in _FRAME_MACROS for item in _items(path, group, macro)]
    return [[*common, *(item for macro in _FRAME_MACROS for item in _items(path, frame, macro))] for frame in per_frame]


def _items(path: Path, dataset: Dataset, keyword: str) -> Sequence[Dataset]:
    from pydicom.sequence import Sequence as DicomSequence

    value = _value(path, (dataset,), keyword)
    if value is not None and not isinstance(value, DicomSequence):
        raise damaged(path, f"its {keyword} is no sequence")
    return value or ()


def _value(path: Path, sources: Sequence[Dataset], keyword: str) -> Any:
    """An element's value as pydicom converts it, of the last source that has it; None where it is missing or empty."""
    for source in reversed(sources):
        try:
            if keyword in source:
                return source[keyword].value
        except Exception as error:  # pydicom converts when asked, and lets value, key and struct errors through
            raise damaged(path, f"its {keyword} cannot be read ({_first_line(error)})") from None
    return None


def _text(path: Path, sources: Sequence[Dataset], keyword: str) -> str:
    return str(_value(path, sources, keyword) or "").strip(" \0")


def _numbers(path: Path, sources: Sequence[Dataset], keyword: str) -> list[float]:
    """The numbers of an element; [] where it is missing or empty."""
    value = _value(path, sources, keyword)
    if value is None or value == "":
        return []
    try:
        return [float(each) for each in (value if isinstance(value, MutableSequence) else [value])]
    except (TypeError, ValueError):
        raise damaged(path, f"its {keyword} is {str(value)[:40]!r}, no numbers") from None


def _whole_number(path: Path, sources: Sequence[Dataset], keyword: str) -> int | None:
    numbers = _numbers(path, sources, keyword)
    if numbers and not numbers[0].is_integer():
        raise damaged(path, f"its {keyword} is {numbers[0]}, no whole number")
    return int(numbers[0]) if numbers else None


def _slice(path: Path, syntax: str, sources: tuple[Dataset, ...]) -> Slice:
    rows, columns = _whole_number(path, sources, "Rows"), _whole_number(path, sources, "Columns")
    if "PixelData" not in sources[0] or not rows or not columns:
        modality = _text(path, sources, "Modality") or "unknown"
        raise FileError(path, f"holds no image (modality {modality})", "Keep only the slices of one series")
    spacing = _numbers(path, sources, "PixelSpacing") or _numbers(path, sources, "ImagerPixelSpacing") or [1.0, 1.0]
    thickness = _numbers(path, sources, "SpacingBetweenSlices") or _numbers(path, sources, "SliceThickness") or [1.0]
    position = _numbers(path, sources, "ImagePositionPatient")
    axes = _numbers(path, sources, "ImageOrientationPatient")
    lengths = (len(spacing), len(position), len(axes))
    if lengths not in ((2, 3, 6), (2, 0, 0)) or not np.isfinite([*spacing, *position, *axes, *thickness]).all():
        raise damaged(path, "its spacing, position or orientation is no list of numbers")
    return Slice(
        path=path,
        sources=sources,
        syntax=syntax,
        series=_text(path, sources, "SeriesInstanceUID"),
        shape=(rows, columns),
        samples=_whole_number(path, sources, "SamplesPerPixel") or 1,
        spacing=(spacing[0], spacing[1]),
        thickness=abs(thickness[0]) or 1.0,
        position=np.array(position) if position else None,
        axes=np.reshape(axes, (2, 3)) if axes else None,
    )


def read_pixels(each: Slice) -> np.ndarray:
    """(C, Y, X) of one slice, rescale slope and intercept applied. Raises DataError."""
    if each.syntax not in UNCOMPRESSED:
        if each.frames > 1:
            raise FileError(
                each.path,
                f"has {each.frames} compressed frames in one file",
                "Convert it to NIfTI, or decompress it (for example with dcmdjpeg or gdcmconv --raw)",
            )
        return _decode(each)
    stored = _stored_pixels(each)
    if each.samples > 1:
        return stored
    slope = (_numbers(each.path, each.sources, "RescaleSlope") or [1.0])[0]
    intercept = (_numbers(each.path, each.sources, "RescaleIntercept") or [0.0])[0]
    if not np.isfinite([slope, intercept]).all() or slope == 0:
        raise damaged(each.path, f"its rescale slope is {slope}, its intercept {intercept}")
    if slope == 1 and intercept == int(intercept) and abs(intercept) < 2**30 and stored.dtype.itemsize < 4:
        return stored.astype(np.int32) + np.int32(intercept)
    return (stored * slope + intercept).astype(np.float32)


def _stored_pixels(each: Slice) -> np.ndarray:
    path, file = each.path, each.sources[:1]
    allocated, stored = _whole_number(path, file, "BitsAllocated"), _whole_number(path, file, "BitsStored")
    signed = _whole_number(path, file, "PixelRepresentation") == 1
    photometric = _text(path, file, "PhotometricInterpretation")
    grey = photometric in ("MONOCHROME1", "MONOCHROME2") and each.samples == 1
    if not grey and not (photometric == "RGB" and each.samples == 3):
        raise FileError(path, f"has pixels of kind {photometric[:20]!r}", "Convert it to grey values or RGB")
    if allocated not in (8, 16, 32) or stored is None or not 1 <= stored <= allocated:
        raise damaged(path, f"its pixels have {stored} bits in {allocated}")
    number = np.dtype(f"{'>' if each.syntax == BIG_ENDIAN else '<'}{'i' if signed else 'u'}{allocated // 8}")
    rows, columns = each.shape
    data = _value(path, file, "PixelData")
    if not isinstance(data, bytes):
        raise damaged(path, "its pixels are no bytes")
    count = rows * columns * each.samples
    size = count * number.itemsize
    if len(data) < size * each.frames:
        raise FileError(path, f"is truncated: {len(data)} of {size * each.frames} bytes of pixels", COPY_AGAIN)
    if len(data) > size * each.frames + 1:  # values have an even length
        pixels = f"{rows}x{columns} pixels" + (f" in {each.frames} frames" if each.frames > 1 else "")
        raise damaged(path, f"its header says {pixels}, and it holds more")
    values = np.frombuffer(data, number, count, offset=size * each.frame)
    if stored < allocated:  # bits above those stored may hold anything (PS3.5 8.1.1)
        shift = allocated - stored
        values = (values << shift) >> shift
    if each.samples == 1:
        return values.reshape(1, rows, columns)
    if _whole_number(path, file, "PlanarConfiguration") == 1:  # colours plane by plane
        return values.reshape(3, rows, columns)
    return np.moveaxis(values.reshape(rows, columns, 3), -1, 0)


def _decode(each: Slice) -> np.ndarray:
    """Compressed pixels, by GDCM, which applies slope and intercept."""
    import SimpleITK as sitk

    try:
        with named_in_text(each.path) as path:
            array = sitk.GetArrayFromImage(itk_reader(path, "GDCMImageIO").Execute())
    except RuntimeError as error:
        raise FileError(each.path, f"cannot be decoded: {itk_reason(error)}", COPY_AGAIN) from None
    return array.reshape(1, *each.shape) if each.samples == 1 else np.moveaxis(array.reshape(*each.shape, -1), -1, 0)

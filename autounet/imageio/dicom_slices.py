"""The slices in one DICOM file, and their pixels. pydicom parses the elements.

Standard: DICOM PS3.5 section 8, PS3.3 C.7.6.3 (pixels), C.7.6.16 (frames) and C.11.1 (rescaling).
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import MutableSequence, Sequence
from io import BytesIO
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..schema.errors import FileError
from .dicom_streams import StreamSize, require_sound
from .image_format import COPY_AGAIN, damaged, itk_reader, itk_reason, require_inflatable, require_memory

if TYPE_CHECKING:
    from pydicom import Dataset

BIG_ENDIAN = "1.2.840.10008.1.2.2"
UNCOMPRESSED = frozenset({"1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99", BIG_ENDIAN})
"""transfer syntaxes: implicit, explicit and deflated little endian, explicit big endian"""
_DECODED_TO_RGB = ("YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
"""kinds of compressed pixels that GDCM's decoders turn into red, green and blue"""
_FRAME_MACROS = tuple(
    f"{name}Sequence" for name in ("PixelMeasures", "PlanePosition", "PlaneOrientation", "PixelValueTransformation")
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
    dataset = read_dataset(path)
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


def quiet_pydicom() -> ModuleType:
    """pydicom, which says nothing on the terminal."""
    import pydicom

    logging.getLogger("pydicom").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", module="pydicom")  # elements against the standard, of which few are needed here
    return pydicom


def read_dataset(path: Path) -> Dataset:
    """The elements of a file. Raises DataError."""
    pydicom = quiet_pydicom()
    from pydicom.errors import InvalidDicomError

    try:  # of the content: from a file, an element would get as much memory as it claims to need
        return pydicom.dcmread(BytesIO(require_inflatable(path, path.read_bytes())))
    except (FileError, MemoryError):
        raise
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
    samples = _whole_number(path, sources, "SamplesPerPixel") or 1
    if "PixelData" not in sources[0] or not rows or not columns:
        modality = _text(path, sources, "Modality") or "unknown"
        raise FileError(path, f"holds no image (modality {modality})", "Keep only the slices of one series")
    require_memory(path, rows * columns * samples, 4)
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
        samples=samples,
        spacing=(spacing[0], spacing[1]),
        thickness=abs(thickness[0]) or 1.0,
        position=np.array(position) if position else None,
        axes=np.reshape(axes, (2, 3)) if axes else None,
    )


def read_pixels(each: Slice) -> np.ndarray:
    """(C, Y, X) of one slice, rescale slope and intercept applied; MONOCHROME1 as MONOCHROME2 would store it.

    Raises DataError.
    """
    encoding = _encoding(each)
    if each.syntax not in UNCOMPRESSED:
        if each.frames > 1:
            raise FileError(
                each.path,
                f"has {each.frames} compressed frames in one file",
                "Convert it to NIfTI, or decompress it (for example with dcmdjpeg or gdcmconv --raw)",
            )
        return _decode(each, encoding)
    stored = _stored_pixels(each, encoding)
    if each.samples > 1:
        return stored
    slope, intercept = rescale(each)
    if slope == 1 and intercept == int(intercept) and abs(intercept) < 2**30 and stored.dtype.itemsize < 4:
        return stored.astype(np.int32) + np.int32(intercept)
    return (stored * slope + intercept).astype(np.float32)


def rescale(each: Slice) -> tuple[float, float]:
    """Slope and intercept. Raises DataError."""
    slope = (_numbers(each.path, each.sources, "RescaleSlope") or [1.0])[0]
    intercept = (_numbers(each.path, each.sources, "RescaleIntercept") or [0.0])[0]
    if not np.isfinite([slope, intercept]).all() or slope == 0:
        raise damaged(each.path, f"its rescale slope is {slope}, its intercept {intercept}")
    return slope, intercept


class _Encoding(NamedTuple):
    """How the stored values of one file are written (PS3.3 C.7.6.3.1)."""

    allocated: int
    """bits of a value, of which `stored` up to the bit number `high` hold it"""
    stored: int
    high: int
    signed: bool
    inverted: bool
    """MONOCHROME1: the least value is shown white"""

    @property
    def limits(self) -> tuple[int, int]:
        return (-(1 << (self.stored - 1)), (1 << (self.stored - 1)) - 1) if self.signed else (0, (1 << self.stored) - 1)


def _encoding(each: Slice) -> _Encoding:
    path, file = each.path, each.sources[:1]
    allocated, stored = _whole_number(path, file, "BitsAllocated"), _whole_number(path, file, "BitsStored")
    photometric = _text(path, file, "PhotometricInterpretation")
    grey = photometric in ("MONOCHROME1", "MONOCHROME2") and each.samples == 1
    colours = ("RGB",) if each.syntax in UNCOMPRESSED else ("RGB", *_DECODED_TO_RGB)
    if not grey and not (photometric in colours and each.samples == 3):
        raise FileError(path, f"has pixels of kind {photometric[:20]!r}", "Convert it to grey values or RGB")
    if allocated not in (8, 16, 32) or stored is None or not 1 <= stored <= allocated:
        raise damaged(path, f"its pixels have {stored} bits in {allocated}")
    high = _whole_number(path, file, "HighBit")
    high = stored - 1 if high is None else high
    if not stored - 1 <= high < allocated:
        raise damaged(path, f"its pixels have {stored} bits, the highest of them number {high} of {allocated}")
    signed = _whole_number(path, file, "PixelRepresentation") == 1
    if each.syntax not in UNCOMPRESSED and (high != stored - 1 or (signed and photometric == "MONOCHROME1")):
        how = "signed values shown inverted" if high == stored - 1 else f"{stored} bits up to number {high}"
        finding = f"is compressed, and holds {how}, which is not supported"
        raise FileError(path, finding, "Decompress it (for example with dcmdjpeg or gdcmconv --raw)")
    return _Encoding(allocated, stored, high, signed, photometric == "MONOCHROME1")


def _stored_pixels(each: Slice, encoding: _Encoding) -> np.ndarray:
    path, file = each.path, each.sources[:1]
    order = ">" if each.syntax == BIG_ENDIAN else "<"
    number = np.dtype(f"{order}{'i' if encoding.signed else 'u'}{encoding.allocated // 8}")
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
    if encoding.stored < encoding.allocated:  # bits above and below those stored may hold anything (PS3.5 8.1.1)
        values = (values << (encoding.allocated - 1 - encoding.high)) >> (encoding.allocated - encoding.stored)
    if encoding.inverted:
        values = _inverted(each, encoding, values)
    if each.samples == 1:
        return values.reshape(1, rows, columns)
    if _whole_number(path, file, "PlanarConfiguration") == 1:  # colours plane by plane
        return values.reshape(3, rows, columns)
    return np.moveaxis(values.reshape(rows, columns, 3), -1, 0)


def _inverted(each: Slice, encoding: _Encoding, values: np.ndarray) -> np.ndarray:
    """MONOCHROME1 values with the least as the darkest. Padding, which viewers show black, is dark before and after."""
    low, high = encoding.limits
    inverted = values.dtype.type(low + high) - values
    padding = padding_range(each, encoding)
    if padding is None:
        return inverted
    padded = (values >= padding[0]) & (values <= padding[1])
    return np.where(padded, np.minimum(values, inverted), inverted)


def padding_range(each: Slice, encoding: _Encoding | None = None) -> tuple[int, int] | None:
    """The stored values that fill up what was not imaged (PS3.3 C.7.5.1.1.2), if the file names any."""
    encoding = encoding or _encoding(each)
    first = _whole_number(each.path, each.sources, "PixelPaddingValue")
    if first is None:
        return None
    last = _whole_number(each.path, each.sources, "PixelPaddingRangeLimit")
    ends = [value & ((1 << encoding.stored) - 1) for value in (first, first if last is None else last)]
    if encoding.signed:  # programs write it unsigned all the same
        ends = [value - (1 << encoding.stored) if value >> (encoding.stored - 1) else value for value in ends]
    return min(ends), max(ends)


def _decode(each: Slice, encoding: _Encoding) -> np.ndarray:
    """Compressed pixels, by GDCM, which applies slope and intercept and inverts MONOCHROME1."""
    import SimpleITK as sitk

    pixels, file = _value(each.path, each.sources[:1], "PixelData"), each.sources[0]
    require_sound(each.path, file, pixels, StreamSize(*each.shape, each.samples))
    try:
        array = sitk.GetArrayFromImage(itk_reader(each.path, "GDCMImageIO").Execute())
    except RuntimeError as error:
        raise FileError(each.path, f"cannot be decoded: {itk_reason(error)}", COPY_AGAIN) from None
    if array.size != each.shape[0] * each.shape[1] * each.samples:
        raise damaged(each.path, f"its compressed pixels have the shape {array.shape}")
    if each.samples > 1:
        return np.moveaxis(array.reshape(*each.shape, each.samples), -1, 0)
    array = array.reshape(1, *each.shape)
    if not encoding.inverted or padding_range(each, encoding) is None:
        return array
    slope, intercept = rescale(each)
    shown = np.rint((array.astype(np.float64) - intercept) / slope).astype(np.int64)
    values = _inverted(each, encoding, sum(encoding.limits) - shown)
    return (values * slope + intercept).astype(np.float32)

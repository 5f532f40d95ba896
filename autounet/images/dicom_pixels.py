"""The pixels of one DICOM slice. Standard: DICOM PS3.5 section 8, PS3.3 C.7.6.3 (pixels) and C.11.1 (rescaling)."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from autounet.images.dicom_elements import NATIVE, PIXELS, Elements
from autounet.images.headers import AGAIN, damaged
from autounet.schema.errors import DataError


class Slice(NamedTuple):
    path: Path
    elements: Elements
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


def read_pixels(each: Slice) -> np.ndarray:
    """(C, Y, X) of one slice, rescale slope and intercept applied. Raises DataError."""
    if each.elements.syntax not in NATIVE:
        if each.frames > 1:
            raise DataError(
                f"{each.path} has {each.frames} compressed frames in one file. Convert it to NIfTI, or decompress it "
                "(for example with dcmdjpeg or gdcmconv --raw)"
            )
        return _decoded(each)
    raw = _native(each)
    try:
        slope = (each.elements.numbers(0x28, 0x1053) or [1.0])[0]
        intercept = (each.elements.numbers(0x28, 0x1052) or [0.0])[0]
    except ValueError as error:
        raise damaged(each.path, str(error)) from None
    if not np.isfinite([slope, intercept]).all() or slope == 0 or each.samples > 1:
        if each.samples > 1:
            return raw
        raise damaged(each.path, f"its rescale slope is {slope}, its intercept {intercept}")
    if slope == 1 and intercept == int(intercept) and abs(intercept) < 2**30 and raw.dtype.itemsize < 4:
        return raw.astype(np.int32) + np.int32(intercept)
    return (raw * slope + intercept).astype(np.float32)


def _native(each: Slice) -> np.ndarray:
    elements, path = each.elements, each.path
    allocated, stored = elements.short(0x28, 0x100), elements.short(0x28, 0x101)
    signed = elements.short(0x28, 0x103) == 1
    photometric = elements.text(0x28, 4)
    grey = photometric in ("MONOCHROME1", "MONOCHROME2") and each.samples == 1
    if not grey and not (photometric == "RGB" and each.samples == 3):
        raise DataError(f"{path} has pixels of kind {photometric[:20]!r}. Convert it to grey values or RGB")
    if allocated not in (8, 16, 32) or stored is None or not 1 <= stored <= allocated:
        raise damaged(path, f"its pixels have {stored} bits in {allocated}")
    number = np.dtype((">" if elements.big else "<") + ("i" if signed else "u") + str(allocated // 8))
    rows, columns = each.shape
    data, count = elements.values[PIXELS], rows * columns * each.samples
    size = count * number.itemsize
    if len(data) < size * each.frames:
        raise DataError(f"{path} is truncated: {len(data)} of {size * each.frames} bytes of pixels. {AGAIN}")
    if len(data) > size * each.frames + 1:  # values have an even length
        pixels = f"{rows}x{columns} pixels" + (f" in {each.frames} frames" if each.frames > 1 else "")
        raise damaged(path, f"its header tells of {pixels}, and it holds more")
    values = np.frombuffer(data, number, count, offset=size * each.frame)
    if stored < allocated:  # bits above those stored may hold anything (PS3.5 8.1.1)
        shift = allocated - stored
        values = (values << shift) >> shift
    if each.samples == 1:
        return values.reshape(1, rows, columns)
    if elements.short(0x28, 6) == 1:  # colours plane by plane
        return values.reshape(3, rows, columns)
    return np.moveaxis(values.reshape(rows, columns, 3), -1, 0)


def _decoded(each: Slice) -> np.ndarray:
    """Compressed pixels, by GDCM, which applies slope and intercept."""
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(each.path))
    try:
        array = sitk.GetArrayFromImage(reader.Execute())
    except RuntimeError as error:
        line = [line for line in str(error).splitlines() if line.strip()][-1].split("): ")[-1].strip()
        raise DataError(f"{each.path} cannot be decoded: {line}. {AGAIN}") from None
    array = array.reshape(1, *each.shape) if each.samples == 1 else np.moveaxis(array.reshape(*each.shape, -1), -1, 0)
    return array

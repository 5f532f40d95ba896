"""NIfTI, NRRD and MetaImage volumes: read with care for damage, written by SimpleITK."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from autounet.images.headers import AGAIN, VolumeHeader, make_geometry
from autounet.images.metaimage import read_meta, read_meta_header
from autounet.images.nifti import read_voxels
from autounet.images.nrrd import read_nrrd, read_nrrd_header
from autounet.images.whole import write_whole
from autounet.schema.errors import DataError
from autounet.schema.geometry import Geometry

if TYPE_CHECKING:
    import SimpleITK


def _reader(path: Path) -> SimpleITK.ImageFileReader:
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    reader = sitk.ImageFileReader()
    reader.SetImageIO("NiftiImageIO")
    reader.SetFileName(str(path))
    return reader


def _reason(error: Exception) -> str:
    """The last telling line of an ITK message."""
    text = str(error)
    if "orthonormal" in text:
        return "its axes are not at right angles (sheared or inexact direction matrix)"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    line = lines[-1] if lines else type(error).__name__
    return line.split("): ")[-1].split("ERROR: ")[-1]


def read_volume(path: Path, kind: str) -> tuple[np.ndarray, VolumeHeader]:
    """Array (C, Z, Y, X) in the file's own number type, and its header. Raises DataError."""
    if kind == "nrrd":
        return read_nrrd(path)
    if kind == "mha":
        return read_meta(path)
    voxels = read_voxels(path)
    header = _nifti_header(path)
    if voxels is None or voxels.size != header.channels * np.prod(header.geometry.shape):
        voxels = _read_with_itk(path)
    return voxels.reshape(header.channels, *header.geometry.shape), header


def read_volume_header(path: Path, kind: str) -> VolumeHeader:
    """From the header alone. Raises DataError."""
    return {"nrrd": read_nrrd_header, "mha": read_meta_header, "nifti": _nifti_header}[kind](path)


def _read_with_itk(path: Path) -> np.ndarray:
    """Vectors and colours in NIfTI: components first."""
    import SimpleITK as sitk

    try:
        image = _reader(path).Execute()
    except RuntimeError as error:
        raise DataError(f"{path} cannot be read: {_reason(error)}. {AGAIN}") from None
    array = sitk.GetArrayFromImage(image)
    return np.moveaxis(array, -1, 0) if image.GetNumberOfComponentsPerPixel() > 1 else array


def _nifti_header(path: Path) -> VolumeHeader:
    """ITK's reading of the two transforms that a NIfTI header may hold; the fourth axis is time or channels."""
    reader = _reader(path)
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise DataError(f"{path} cannot be read: {_reason(error)}. {AGAIN}") from None
    count, components = reader.GetDimension(), reader.GetNumberOfComponents()
    if count not in (2, 3, 4):
        raise DataError(f"{path} has {count} axes. Images have 2 or 3, and one more for channels")
    if count == 4 and components > 1:
        raise DataError(f"{path} has vectors in four dimensions. Store one channel per file")
    axes = min(count, 3)
    columns = np.reshape(reader.GetDirection(), (count, count))[:axes, :axes]
    size, spacing, origin = reader.GetSize(), reader.GetSpacing()[:axes], reader.GetOrigin()[:axes]
    geometry = make_geometry(path, "nifti", size[:axes], spacing, origin, columns)
    return VolumeHeader(geometry, components, size[3] if count == 4 else 1)


def write_volume(path: Path, array: np.ndarray, geometry: Geometry) -> None:
    """Write (C, Z, Y, X), compressed where the format can. One channel becomes a scalar image."""
    import SimpleITK as sitk

    flat = geometry.dimension == 2
    if array.shape[0] == 1:
        image = sitk.GetImageFromArray(array[0, 0] if flat else array[0])
    else:
        moved = np.ascontiguousarray(np.moveaxis(array, 0, -1))
        image = sitk.GetImageFromArray(moved[0] if flat else moved, isVector=True)
    axes = 2 if flat else 3
    image.SetSpacing(tuple(reversed(geometry.spacing))[:axes])
    image.SetOrigin(geometry.origin[:axes])
    image.SetDirection(np.reshape(geometry.direction, (3, 3))[:axes, :axes].ravel().tolist())
    write_whole(image, path, array.nbytes)

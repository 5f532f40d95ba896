"""NIfTI, NRRD and MetaImage volumes through SimpleITK."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from autounet.images.formats import suffix
from autounet.images.nifti import AGAIN, read_voxels
from autounet.schema.errors import DataError
from autounet.schema.geometry import Geometry

if TYPE_CHECKING:
    import SimpleITK

_IO = {"nifti": "NiftiImageIO", "nrrd": "NrrdImageIO", "mha": "MetaImageIO"}


def _reader(path: Path, kind: str) -> SimpleITK.ImageFileReader:
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    reader = sitk.ImageFileReader()
    reader.SetImageIO(_IO[kind])
    reader.SetFileName(str(path))
    return reader


def _reason(error: Exception) -> str:
    """The last telling line of an ITK message."""
    text = str(error)
    if "orthonormal" in text:
        return "its axes are not at right angles (sheared or inexact direction matrix)"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    line = lines[-1] if lines else type(error).__name__
    if line.startswith("Reason:"):  # of MetaImage, which tells only the C library's last error, mostly Success
        return "its header or its data are incomplete or damaged"
    return line.split("): ")[-1].split("ERROR: ")[-1]


def read_volume(path: Path, kind: str) -> tuple[np.ndarray, Geometry]:
    """Array (C, Z, Y, X) in the file's own number type, and its geometry. Raises DataError."""
    import SimpleITK as sitk

    if kind == "nifti" and (voxels := read_voxels(path)) is not None:
        geometry, channels = read_volume_geometry(path, kind)
        if voxels.size == channels * np.prod(geometry.shape):
            return voxels.reshape(channels, *geometry.shape), geometry
    try:
        image = _reader(path, kind).Execute()
    except RuntimeError as error:
        raise DataError(f"{path} cannot be read: {_reason(error)}. {AGAIN}") from None
    geometry = _geometry(path, kind, image.GetDimension(), image)
    array = sitk.GetArrayFromImage(image)
    if image.GetNumberOfComponentsPerPixel() > 1:
        array = np.moveaxis(array, -1, 0)
        if image.GetDimension() == 4:
            raise DataError(f"{path} has vectors in four dimensions. Store one channel per file")
    return array.reshape(-1, *geometry.shape), geometry


def read_volume_geometry(path: Path, kind: str) -> tuple[Geometry, int]:
    """Geometry and number of channels from the header alone. Raises DataError."""
    reader = _reader(path, kind)
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise DataError(f"{path} cannot be read: {_reason(error)}. {AGAIN}") from None
    geometry = _geometry(path, kind, reader.GetDimension(), reader)
    channels = reader.GetNumberOfComponents()
    return geometry, channels * (reader.GetSize()[3] if reader.GetDimension() == 4 else 1)


def _geometry(path: Path, kind: str, dimension: int, source: Any) -> Geometry:
    """Of a SimpleITK image or reader; the fourth axis, when there is one, is the channels."""
    if dimension not in (2, 3, 4):
        raise DataError(f"{path} has {dimension} axes. Images have 2 or 3, and one more for channels")
    size = [*source.GetSize(), 1][:3]
    spacing = [*source.GetSpacing(), 1.0][:3]
    origin = [*source.GetOrigin(), 0.0][:3]
    if min(size) < 1:
        raise DataError(f"{path} holds no voxels. {AGAIN}")
    direction = np.eye(3)
    used = min(dimension, 3)
    direction[:used, :used] = np.reshape(source.GetDirection(), (dimension, dimension))[:used, :used]
    return Geometry(
        shape=(size[2], size[1], size[0]),
        spacing=(spacing[2], spacing[1], spacing[0]),
        origin=(origin[0], origin[1], origin[2]),
        direction=tuple(direction.ravel().tolist()),  # type: ignore[arg-type]
        kind=kind,
        dimension=used,
    )


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
    sitk.WriteImage(image, str(path), useCompression=suffix(path).lower() != ".nii")

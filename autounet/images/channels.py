"""Several values a voxel in one NIfTI file of four axes, which viewers and nibabel show as a series of volumes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from autounet.atomic import replacing
from autounet.images.formats import file_kind, suffix
from autounet.images.whole import write_whole
from autounet.schema.errors import DataError
from autounet.schema.geometry import Geometry


def write_channels(path: Path, array: np.ndarray, geometry: Geometry) -> None:
    """Write (C, Z, Y, X) with the channels as the fourth and last axis of the file, each in the geometry of the volume.

    Raises DataError for other formats than NIfTI, images of two axes, and arrays of another shape than the geometry's.
    """
    import SimpleITK as sitk

    path = Path(path)
    if file_kind(path) != "nifti" or geometry.dimension != 3:
        raise DataError(f"{path}: several values a voxel are written as NIfTI of a volume. Write .nii.gz")
    if array.shape[1:] != geometry.shape:
        raise DataError(f"{path} needs an array of shape {geometry.shape} a channel, not {tuple(array.shape[1:])}")
    image = sitk.GetImageFromArray(array, isVector=False)
    direction = np.eye(4)
    direction[:3, :3] = np.reshape(geometry.direction, (3, 3))
    image.SetSpacing((*reversed(geometry.spacing), 1.0))
    image.SetOrigin((*geometry.origin, 0.0))
    image.SetDirection(direction.ravel().tolist())
    with replacing(path, suffix(path)) as temporary:
        write_whole(image, temporary, array.nbytes)

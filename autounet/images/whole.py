"""Volumes written whole, or an error: ITK says nothing when a NIfTI file ends early because the disk is full."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import TYPE_CHECKING

from autounet.images.formats import suffix

if TYPE_CHECKING:
    import SimpleITK as sitk

NIFTI_SUFFIXES = (".nii", ".nii.gz")
LEAST_HEADER, MOST_HEADER = 348, 4096
"""bytes before the voxels of a NIfTI-1 file as ITK writes it: 352"""
TRAILER = 4
"""last bytes of a gzip file: length of the content modulo 2^32, little-endian (RFC 1952)"""


def write_whole(image: sitk.Image, path: Path, content_bytes: int) -> None:
    """Write an image of so many bytes of voxels, compressed where the format can.

    Raises OSError where the file cannot be written to its end, as on a full disk.
    """
    import SimpleITK as sitk

    ending = suffix(path).lower()
    try:
        sitk.WriteImage(image, str(path), useCompression=ending != ".nii")
    except RuntimeError as error:  # its only type; array and geometry were made by us and can be written
        raise OSError(errno.EIO, f"cannot be written: {str(error).splitlines()[-1].strip()}", str(path)) from None
    if ending in NIFTI_SUFFIXES:
        _require_end(path, ending, content_bytes)


def _require_end(path: Path, ending: str, content_bytes: int) -> None:
    """Of zlib's writer nothing follows a failed write, so that the end of the file tells of all of it."""
    size = path.stat().st_size
    if ending == ".nii.gz":
        with open(path, "rb") as file:
            file.seek(-min(size, TRAILER), 2)
            size = int.from_bytes(file.read(), "little")
    if not LEAST_HEADER <= (size - content_bytes) % 2**32 <= MOST_HEADER:
        raise OSError(errno.EIO, "could be written in part only, as on a full disk", str(path))

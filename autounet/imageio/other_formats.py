"""Formats of images that are not read, by the ends of their names, and how such files become ones that are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple


class OtherFormats(NamedTuple):
    """Formats of one field."""

    remedy: str
    names: dict[str, str]
    """ending -> what people call the format; of several files that are one image, the ending of one"""


OTHER_FORMATS = (
    OtherFormats(
        "Convert pictures to PNG or TIFF, for example with ImageMagick",
        {
            ".webp": "WebP", ".heic": "HEIF", ".heif": "HEIF", ".avif": "AVIF", ".jp2": "JPEG 2000",
            ".j2k": "JPEG 2000", ".jxl": "JPEG XL", ".ppm": "Netpbm", ".pgm": "Netpbm", ".pbm": "Netpbm",
            ".pnm": "Netpbm", ".tga": "Targa", ".psd": "Photoshop", ".exr": "OpenEXR", ".dng": "raw photograph",
        },
    ),
    OtherFormats(
        "Convert volumes to NIfTI, for example with 3D Slicer or nibabel",
        {
            ".img": "Analyze, or a NIfTI pair", ".mgz": "FreeSurfer", ".mgh": "FreeSurfer", ".mnc": "MINC",
            ".vtk": "VTK", ".vti": "VTK", ".brik": "AFNI", ".par": "Philips PAR/REC",
            **dict.fromkeys((".nii.bz2", ".nii.xz", ".nii.zst", ".nii.zip"), "NIfTI, packed in another way"),
        },
    ),
    OtherFormats(
        "Export images of microscopes and slide scanners as OME-TIFF, for example with Fiji or QuPath",
        {
            ".czi": "Zeiss CZI", ".nd2": "Nikon ND2", ".lif": "Leica LIF", ".lsm": "Zeiss LSM", ".oib": "Olympus OIB",
            ".oif": "Olympus OIF", ".ims": "Imaris", ".vsi": "Olympus VSI", ".dv": "DeltaVision", ".svs": "Aperio SVS",
            ".ndpi": "Hamamatsu NDPI", ".scn": "Leica SCN", ".mrxs": "MIRAX", ".bif": "Ventana BIF", ".zarr": "Zarr",
        },
    ),
)  # fmt: skip
SHOWN = 10


def unread_images(folder: Path) -> list[Path]:
    """Images directly in a folder whose format is not read, sorted by name."""
    return sorted(path for path in folder.iterdir() if _known(path) is not None) if folder.is_dir() else []


def describe_unread(files: Sequence[Path]) -> tuple[str, str]:
    """What is wrong with such files, and what to do."""
    found = [known for path in files if (known := _known(path)) is not None]
    shown = [f"{path.name} ({name})" for path, (name, _) in zip(files, found, strict=True)][:SHOWN]
    more = f" and {len(files) - SHOWN} more" if len(files) > SHOWN else ""
    what = "1 image is in a format that is" if len(files) == 1 else f"{len(files)} images are in formats that are"
    remedies = dict.fromkeys(remedy for _, remedy in found)
    return f"{what} not read: {', '.join(shown)}{more}", ". ".join(remedies)


def _known(path: Path) -> tuple[str, str] | None:
    """The format's name and the remedy; None for what is no image, and for hidden files."""
    name = path.name.lower()
    if name.startswith("."):
        return None
    endings = ((ending, each) for each in OTHER_FORMATS for ending in each.names if name.endswith(ending))
    return next(((each.names[ending], each.remedy) for ending, each in endings), None)

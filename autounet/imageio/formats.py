"""The formats that are read and written, and which files are images, by the end of their names."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..schema.errors import FileError
from .containers import ZARR_ENDINGS, is_zarr, split_address
from .dicom import DICOM_SERIES
from .dicom_index import NO_IMAGES, dicom_files, is_series_uid
from .dicom_slices import is_dicom
from .hdf5 import HDF5, images_in_hdf5
from .image_format import (
    COPY_AGAIN,
    MAX_MILLIMETRES,
    UNKNOWN_SPACING,
    UNKNOWN_UNIT,
    ImageFormat,
    ImageHeader,
    transform_remarks,
)
from .metaimage import METAIMAGE
from .nifti import NIFTI
from .nrrd import NRRD
from .ome_zarr import KIND as ZARR
from .ome_zarr import OME_ZARR
from .pictures import BMP, GIF, JPEG, PNG
from .tiff import TIFF

DICOM = "dicom"
"""kind of a folder that holds one DICOM series; it has no ending"""

FORMATS: dict[str, ImageFormat] = {
    "nifti": NIFTI,
    "nrrd": NRRD,
    "mha": METAIMAGE,
    "png": PNG,
    "tiff": TIFF,
    "gif": GIF,
    "jpeg": JPEG,
    "bmp": BMP,
    "zarr": OME_ZARR,
    "hdf5": HDF5,
    DICOM: DICOM_SERIES,
}
"""`Geometry.kind` -> format"""

SUFFIXES: dict[str, str] = {ending: kind for kind, each in FORMATS.items() for ending in each.endings}
"""file name ending -> kind; the longest ending that fits counts"""

VOLUME_KINDS = frozenset(kind for kind, each in FORMATS.items() if each.has_geometry)
"""kinds that carry a geometry in millimetres"""

_MOST_PROBED = 8
"""files of a folder that are opened to see whether they are DICOM"""
_LONGEST_FIRST = sorted(SUFFIXES, key=len, reverse=True)


def suffix(path: Path | str) -> str:
    """The image ending as spelt in the name (".nii.gz" is one ending), or "" when it is no image file.

    Of an address in a container (`a.h5/raw`) the container's.
    """
    return _ending(Path(path).name) or _ending(split_address(path)[0].name)


def _ending(name: str) -> str:
    for ending in _LONGEST_FIRST:
        if name.lower().endswith(ending) and len(name) > len(ending):
            return name[-len(ending) :]
    return ""


def stem(path: Path | str) -> str:
    """The file's name without its image ending; of an address in a container the container's."""
    name = Path(path).name
    if not _ending(name):
        name = split_address(path)[0].name
    return name[: len(name) - len(_ending(name))]


def is_image(path: Path) -> bool:
    """True for visible files with a known ending."""
    return bool(_ending(path.name)) and not path.name.startswith(".")


def is_container(path: Path) -> bool:
    """Whether a path is a Zarr folder, or an address in a container."""
    return is_zarr(path) or bool(split_address(path)[1])


def addresses(container: Path, pattern: str) -> list[str]:
    """The images in a container whose addresses fit a pattern. Of a file that cannot be read, the pattern itself."""
    if is_zarr(container):
        return sorted(each.relative_to(container).as_posix() for each in container.glob(pattern) if each.is_dir())
    try:
        return [name for name in images_in_hdf5(container) if fnmatchcase(name, pattern)]
    except FileError:  # told when it is read
        return [] if set(pattern) & set("*?[") else [pattern]


def is_folder(path: Path) -> bool:
    """False also for what no system can hold, such as a very long name from a file."""
    try:
        return path.is_dir()
    except OSError:
        return False


def is_series(folder: Path) -> bool:
    """True for a folder with DICOM files, by the endings of all its files and the content of a few.

    Also for the path that names a series among others.
    """
    if is_series_uid(folder):
        return bool(dicom_files(folder))
    if not is_folder(folder) or folder.name.startswith(".") or is_zarr(folder) or split_address(folder)[1]:
        return False
    files = [path for path in folder.iterdir() if path.is_file() and not is_image(path)]
    if any(path.suffix.lower() == ".dcm" for path in files):
        return True
    files = sorted(path for path in files if not path.name.startswith(".") and path.name.lower() not in NO_IMAGES)
    return any(is_dicom(path) for path in files[:_MOST_PROBED])


def file_kind(path: Path | str) -> str:
    """Kind as in `Geometry.kind`; a folder is one of Zarr by what it holds, else a series, as is the UID of one.

    Raises DataError for an unknown ending.
    """
    ending = suffix(path).lower()
    if ending:
        return SUFFIXES[ending]
    if is_zarr(Path(path)):
        return ZARR
    if is_folder(Path(path)) or is_series_uid(Path(path)):
        return DICOM
    if Path(path).suffix.lower() == ".dcm":
        raise FileError(path, "is one DICOM file", "Give the folder that holds its series, and nothing else")
    raise FileError(path, "has an ending that is not supported", f"Supported are {', '.join(SUFFIXES)}")


def output_suffix(ending: str) -> str:
    """The ending of segmentations for images with this ending, as spelt; "" for a DICOM series."""
    each = FORMATS[SUFFIXES.get(ending.lower(), DICOM)]
    return each.written_as.get(ending.lower(), ending)


def segmentation_suffix(image: Path) -> str:
    """The ending of the segmentation of an image that is there, of a Zarr folder also where it has none itself."""
    return output_suffix(suffix(image) or (ZARR_ENDINGS[-1] if is_zarr(image) else ""))


def label_limits(ending: str) -> tuple[int, int]:
    """The least and the largest label value that segmentations of images with this ending ("": DICOM) can hold."""
    return FORMATS[SUFFIXES[output_suffix(ending).lower()]].label_limits


def with_sidecar(path: Path, header: ImageHeader) -> ImageHeader:
    """The header with the spacing of `case.json`, or of the same without the `_0000` of a channel, when it is there.

    Spacing in mm, (z, y, x), or (y, x) for a 2-D image. Other programs put JSON of that name beside images, too: a file
    without a `spacing`, or with an object there, is theirs. Raises DataError for any other that does not fit, and for
    broken JSON with a list there.
    """
    file = sidecar_of(path)
    if file is None:
        return header
    text = file.read_bytes()
    try:
        content = json.loads(text)  # in any encoding of Unicode
    except (ValueError, RecursionError) as error:
        if not re.search(rb'"spacing"\s*:\s*\[', text):
            return header
        raise FileError(file, f"is not readable JSON: {error}", "Correct it, or take it away") from None
    spacing = content.get("spacing") if isinstance(content, dict) else None
    if spacing is None or isinstance(spacing, dict):
        return header
    numbers = isinstance(spacing, list) and all(
        isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < MAX_MILLIMETRES
        for value in spacing
    )
    if not numbers or len(spacing) not in (3, header.geometry.dimension):
        raise FileError(
            file, f"gives the spacing {str(spacing)[:60]}", "Write the mm of z, y and x, as in [2.5, 0.7, 0.7]"
        )
    z, y, x = spacing if len(spacing) == 3 else (1.0, *spacing)
    geometry = header.geometry.model_copy(update={"spacing": (float(z), float(y), float(x))})
    remarks = tuple(each for each in header.remarks if each.code not in (UNKNOWN_UNIT, UNKNOWN_SPACING))
    return header._replace(geometry=geometry, remarks=remarks)


def sidecar_of(path: Path) -> Path | None:
    """The JSON file of the same name that may hold the spacing of an image whose format cannot."""
    names = dict.fromkeys((stem(path), re.sub(r"_[0-9]{4}\Z", "", stem(path))))
    return next((file for name in names if (file := path.with_name(f"{name}.json")).is_file()), None)


def format_of(path: Path) -> ImageFormat:
    """Raises DataError for a file that is not there, is empty, or has an unknown ending."""
    kind, (file, _) = file_kind(path), split_address(path)
    if path.is_symlink() and not path.exists():
        remedy = "Fetch the file (datalad get, git annex get), or remove the link"
        raise FileError(path, "is a link to a file that is not there", remedy)
    if kind == DICOM or (FORMATS[kind].is_folder and file.is_dir()):
        return FORMATS[kind]
    if not file.is_file():
        raise FileError(path, "does not exist", "Check the path, or put the file there")
    if file.stat().st_size == 0:
        raise FileError(path, "is empty (0 bytes)", "Copy or export the file again")
    return FORMATS[kind]


@contextmanager
def errors_of_file(path: Path) -> Iterator[None]:
    """Whatever the content of a file leads a library to raise is told as an error of that file."""
    try:
        yield
    except FileError:
        raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise FileError(
            path, f"cannot be read: {reason}", "Check that it is there, and the rights to read it"
        ) from None
    except MemoryError:
        raise FileError(path, "does not fit into the memory", "Check its size; a damaged header may say any") from None
    except Exception as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise FileError(path, f"is damaged, or cannot be read ({reason})", COPY_AGAIN) from error


def read_file(path: Path, as_indices: bool = False) -> tuple[np.ndarray, ImageHeader]:
    """`as_indices`: pictures with a palette of colours give their indices, others their values as numbers."""
    form = format_of(path)
    with errors_of_file(path):
        array, header = form.read_indices(path) if as_indices and form.read_indices else form.read(path)
    if np.iscomplexobj(array):
        raise FileError(path, "holds complex numbers", "Store magnitude and phase as channels")
    header = header._replace(remarks=header.remarks + transform_remarks(header.geometry))
    return array, header if form.has_geometry else with_sidecar(path, header)


def read_file_header(path: Path) -> ImageHeader:
    form = format_of(path)
    with errors_of_file(path):
        header = form.read_header(path)
    return header if form.has_geometry else with_sidecar(path, header)


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
            ".ndpi": "Hamamatsu NDPI", ".scn": "Leica SCN", ".mrxs": "MIRAX", ".bif": "Ventana BIF",
            ".oir": "Olympus OIR", ".zvi": "Zeiss ZVI", ".stk": "MetaMorph", ".sld": "SlideBook", ".ets": "Olympus VSI",
            ".vms": "Hamamatsu VMS", ".qptiff": "PerkinElmer QPTIFF", ".btf": "BigTIFF", ".xdce": "GE InCell",
        },
    ),
    OtherFormats(
        "Export it as OME-Zarr folders, HDF5 or OME-TIFF, for example with Fiji or napari; unpack zip files",
        {
            ".zarr.zip": "Zarr, packed", ".ozx": "OME-Zarr, packed", ".n5": "N5", ".klb": "KLB",
        },
    ),
)  # fmt: skip
OTHER_LABELS = OtherFormats(
    "Export outlines as pictures that number the objects or show the classes: in QuPath with its script for labelled "
    "images, in Cellpose as PNG or TIFF. Outlines are read from COCO, LabelMe and ImageJ",
    {
        ".geojson": "outlines of QuPath", ".qpdata": "QuPath", "_seg.npy": "Cellpose", ".ndpa": "Hamamatsu outlines",
        ".xml": "perhaps outlines of ImageScope, CVAT or Pascal VOC", ".ilp": "ilastik project",
    },
)  # fmt: skip
"""said only where no labels are found: files of such names may be anything"""
SHOWN = 10


def unread_images(folder: Path) -> list[Path]:
    """Images directly in a folder whose format is not read, sorted by name."""
    return sorted(path for path in folder.iterdir() if _known(path) is not None) if folder.is_dir() else []


def unread_labels(folders: Sequence[Path]) -> tuple[str, str] | None:
    """What files directly in some folders may be labels whose format is not read, and what to do; None without any."""
    files = [path for folder in folders for path in sorted(folder.iterdir()) if path.is_file()]
    found: dict[str, tuple[Path, int]] = {}
    for path in files:
        if known := _known(path, (OTHER_LABELS,)):
            first, count = found.get(known[0], (path, 0))
            found[known[0]] = first, count + 1
    if not found:
        return None
    shown = [f"{count} such as {path.name} ({name})" for name, (path, count) in found.items()]
    return f"labels may be in files whose format is not read: {', '.join(shown)}", OTHER_LABELS.remedy


def describe_unread(files: Sequence[Path]) -> tuple[str, str]:
    """What is wrong with such files, and what to do."""
    found = [known for path in files if (known := _known(path)) is not None]
    shown = [f"{path.name} ({name})" for path, (name, _) in zip(files, found, strict=True)][:SHOWN]
    more = f" and {len(files) - SHOWN} more" if len(files) > SHOWN else ""
    what = "1 image is in a format that is" if len(files) == 1 else f"{len(files)} images are in formats that are"
    remedies = dict.fromkeys(remedy for _, remedy in found)
    return f"{what} not read: {', '.join(shown)}{more}", ". ".join(remedies)


def _known(path: Path, forms: Sequence[OtherFormats] = OTHER_FORMATS) -> tuple[str, str] | None:
    """The format's name and the remedy; None for what is in none of these formats, and for hidden files."""
    name = path.name.lower()
    if name.startswith("."):
        return None
    endings = ((ending, each) for each in forms for ending in each.names if name.endswith(ending))
    return next(((each.names[ending], each.remedy) for ending, each in endings), None)

"""Image files <-> arrays, the public face of this folder. An image is a file, or a folder that holds one DICOM series.

Only this folder knows SimpleITK, Pillow, tifffile, pynrrd, pydicom and nibabel, all loaded on first use.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..schema.errors import FileError
from ..schema.geometry import Geometry
from ..schema.labels import LabelCode
from ..schema.record import replacing
from .dicom import (
    LABEL_MODALITIES,
    DicomFile,
    dicom_files,
    dicom_index,
    holds_dicom,
    is_series_uid,
    series_files,
)
from .dicom_labels import (
    masks_of_objects,
    may_overlap,
    object_values,
    objects_geometry,
    referenced_instances,
    structure_names,
)
from .formats import (
    DICOM,
    FORMATS,
    SUFFIXES,
    VOLUME_KINDS,
    describe_unread,
    file_kind,
    format_of,
    is_image,
    is_series,
    label_limits,
    output_suffix,
    read_file,
    read_file_header,
    sidecar_of,
    stem,
    suffix,
    unread_images,
)
from .image_format import ImageHeader, Remark
from .metaimage import data_file
from .nifti import write_nifti_channels
from .nrrd import is_nrrd_segmentation, read_segments
from .stored_values import (
    OPAQUE,
    coded_by_colour,
    colours_without_palette,
    values_of_colours,
    values_of_objects,
)
from .structures import (
    StructureMap,
    join_masks,
    plain_segments,
    read_masks,
    segment_sets,
    sizes_of,
    structure_values,
)

__all__ = [
    "DICOM",
    "FORMATS",
    "LABEL_MODALITIES",
    "OPAQUE",
    "SUFFIXES",
    "VOLUME_KINDS",
    "DicomFile",
    "ImageContent",
    "LabelContent",
    "LabelParts",
    "Remark",
    "StructureMap",
    "describe_unread",
    "dicom_index",
    "file_kind",
    "files_of",
    "holds_dicom",
    "is_image",
    "is_nrrd_segmentation",
    "is_series",
    "is_series_uid",
    "label_limits",
    "may_overlap",
    "object_values",
    "objects_geometry",
    "output_suffix",
    "read_frames",
    "read_geometry",
    "read_header",
    "read_image",
    "read_image_content",
    "read_label_content",
    "read_label_parts",
    "read_labels",
    "read_segments",
    "read_structures",
    "referenced_instances",
    "segment_sets",
    "series_files",
    "sizes_of",
    "stem",
    "stored_type",
    "structure_names",
    "suffix",
    "unread_images",
    "write_channels",
    "write_image",
    "write_labels",
]


ROUNDING = 1e-3
"""what a whole number may be off after scaling in 32 bits"""


class ImageContent(NamedTuple):
    array: np.ndarray
    """(C, Z, Y, X) float32"""
    geometry: Geometry
    remarks: tuple[Remark, ...]


class LabelContent(NamedTuple):
    values: np.ndarray
    """(Z, Y, X) int32"""
    geometry: Geometry
    remarks: tuple[Remark, ...] = ()
    colours: tuple[tuple[int, tuple[int, int, int]], ...] = ()
    """as `ImageHeader.colours`"""
    shared: Mapping[frozenset[str], int] = {}
    """as `CodedStructures.shared`"""


def read_image(path: Path | str, frame: int | None = None) -> tuple[np.ndarray, Geometry]:
    """Array (C, Z, Y, X) float32 as stored, and its geometry. Colour images have C = 3; a fourth axis is C.

    `path` may be a folder with a DICOM series. `frame` takes one time point of a 4-D file. Pictures are read
    as a viewer shows them: the right way up, their palette applied.
    Raises DataError naming the file, what is wrong with it and what to do; truncated and damaged files included.
    """
    content = read_image_content(path, frame)
    return content.array, content.geometry


def read_image_content(path: Path | str, frame: int | None = None) -> ImageContent:
    """As `read_image`, with what the reader has to say of the file."""
    path = Path(path)
    array, header = read_file(path)
    if frame is not None:
        array = _one_frame(path, array, header, frame)
    return ImageContent(np.require(array, np.float32, ["C", "W"]), header.geometry, header.remarks)


def read_labels(
    path: Path | str, codes: Sequence[LabelCode] = (), frame: int | None = None
) -> tuple[np.ndarray, Geometry]:
    """Array (Z, Y, X) int32 of the values as in the file, and its geometry.

    `codes` (`Labels.codes`) turn colours and named segments into values; without them a picture with a palette gives
    its indices, and colours are an error that lists them. `frame` takes one time point of a 4-D file.
    Raises DataError when the file cannot be read, has unknown colours, or holds values that are not integers.
    """
    content = read_label_content(path, codes, frame)
    return content.values, content.geometry


def read_label_content(path: Path | str, codes: Sequence[LabelCode] = (), frame: int | None = None) -> LabelContent:
    """As `read_labels`, with what the reader has to say of the file, and its palette."""
    path = Path(path)
    if is_nrrd_segmentation(path):
        format_of(path)
        if any(code.segments for code in codes):
            found = segment_sets(path)
            return LabelContent(structure_values(path, found, codes, strict=True).values, found.geometry)
        values, geometry = plain_segments(path)
        return LabelContent(_integers(path, values), geometry)
    array, header = read_file(path, as_indices=not coded_by_colour(codes))
    if frame is not None:
        array = _one_frame(path, array, header, frame)
    if coded_by_colour(codes):
        return LabelContent(values_of_colours(path, array, codes), header.geometry, header.remarks)
    if array.shape[0] > 1 and not (array == array[:1]).all():
        if array.shape[0] == 3 and header.frames == 1:
            raise colours_without_palette(path, array)
        raise FileError(
            path, f"has {array.shape[0]} channels with different values", "Store labels as one channel of integers"
        )
    values = _integers(path, array[0], header.slope)
    if any(code.above is not None for code in codes):
        background = tuple(each for each in header.colours if each[0] == 0)  # which must be one in all files
        return LabelContent(values_of_objects(values, codes), header.geometry, header.remarks, background)
    return LabelContent(values, header.geometry, header.remarks, header.colours)


LabelParts = Sequence[tuple[str | None, Path]]
"""structure and file, of the files that a case's label consists of"""


def read_structures(parts: LabelParts, image: Path) -> StructureMap:
    """The structures of a case's label, of mask files on their own grid, of DICOM objects on that of the `image`.

    Raises DataError.
    """
    objects = [path for name, path in parts if name is None]
    if not objects:
        return read_masks([(name, path) for name, path in parts if name is not None])
    geometry = read_geometry(image)
    return join_masks(masks_of_objects(objects, geometry), geometry)


def read_label_parts(parts: LabelParts, image: Path, codes: Sequence[LabelCode]) -> LabelContent:
    """The values of `read_structures` by the codes of their names. Raises DataError, also for unknown structures."""
    found = read_structures(parts, image)
    path = parts[0][1]
    coded = structure_values(path if len(parts) == 1 else path.parent, found, codes, strict=False)
    return LabelContent(coded.values, found.geometry, shared=coded.shared)


def read_header(path: Path | str) -> tuple[Geometry, int]:
    """Geometry and number of channels, from the header where the format allows. Raises DataError."""
    header = read_file_header(Path(path))
    return header.geometry, header.channels


def read_geometry(path: Path | str) -> Geometry:
    """Geometry, from the header where the format allows. Raises DataError."""
    return read_file_header(Path(path)).geometry


def read_frames(path: Path | str) -> int:
    """Length of the fourth axis, 1 when there is none: channels or time points, which the file does not tell."""
    return read_file_header(Path(path)).frames


def stored_type(path: Path | str) -> np.dtype:
    """The number type of the voxels of a file; of a palette picture that of its indices. Raises DataError."""
    return read_file(Path(path), as_indices=True)[0].dtype


def files_of(path: Path | str) -> list[Path]:
    """Every file that an image depends on: itself, the slices of a series, the voxels of an .mhd, a sidecar."""
    path = Path(path)
    if path.is_dir() or is_series_uid(path):
        return dicom_files(path)
    files = [path]
    kind = SUFFIXES.get(suffix(path).lower())
    if kind == "mha" and path.is_file():
        with suppress(FileError):
            files += [file for file in [data_file(path)] if file != path]
    if kind not in VOLUME_KINDS and (sidecar := sidecar_of(path)):
        files.append(sidecar)
    return files


def write_labels(path: Path | str, values: np.ndarray, geometry: Geometry) -> None:
    """Write (Z, Y, X) integers in the smallest type that holds them, under a temporary name that is renamed.

    NIfTI, NRRD and MetaImage keep origin, direction and spacing. Raises DataError for values or shapes the format
    cannot hold.
    """
    path = Path(path)
    if tuple(values.shape) != geometry.shape:
        raise FileError(path, f"needs an array of shape {geometry.shape}, not {tuple(values.shape)}")
    least, largest = FORMATS[file_kind(path)].label_limits
    low, high = (int(values.min()), int(values.max())) if values.size else (0, 0)
    if low < least or high > largest:
        raise FileError(path, f"cannot hold the label values {low} to {high}", "Write TIFF or NIfTI")
    types = (np.uint8, np.uint16, np.uint32) if low >= 0 else (np.int8, np.int16, np.int32)
    smallest = next(each for each in types if np.iinfo(each).min <= low and high <= np.iinfo(each).max)
    _write(path, values.astype(smallest)[None], geometry)


def write_image(path: Path | str, array: np.ndarray, geometry: Geometry) -> None:
    """Write (C, Z, Y, X) where the format holds its number type; pictures take C 1 or 3 of uint8, PNG or uint16."""
    path = Path(path)
    form = FORMATS[file_kind(path)]
    types = (np.uint8, np.uint16) if form.label_limits[1] > np.iinfo(np.uint8).max else (np.uint8,)
    if form.is_picture and (array.dtype not in types or array.shape[0] not in (1, 3)):
        raise FileError(path, f"cannot hold {array.dtype} with {array.shape[0]} channels", "Write TIFF or NIfTI")
    _write(path, array, geometry)


def write_channels(path: Path | str, array: np.ndarray, geometry: Geometry) -> None:
    """Write (C, Z, Y, X) with the channels as the fourth and last axis of the file, each in the geometry of the volume.

    Raises DataError for other formats than NIfTI, images of two axes, and arrays of another shape than the geometry's.
    """
    path = Path(path)
    if file_kind(path) != "nifti" or geometry.dimension != 3:
        raise FileError(path, "cannot hold several values per voxel: only NIfTI of a volume does", "Write .nii.gz")
    if array.shape[1:] != geometry.shape:
        raise FileError(path, f"needs an array of shape {geometry.shape} per channel, not {tuple(array.shape[1:])}")
    with replacing(path, suffix(path).lower()) as temporary:
        write_nifti_channels(temporary, array, geometry)


def _one_frame(path: Path, array: np.ndarray, header: ImageHeader, frame: int) -> np.ndarray:
    """(frames x components or the other way round, Z, Y, X) -> (1, Z, Y, X)."""
    if header.components > 1 or frame >= header.frames:
        raise FileError(
            path, f"has {header.frames} time points of {header.components} values", "Give the original file"
        )
    return array[frame : frame + 1]


def _integers(path: Path, values: np.ndarray, slope: float = 0.0) -> np.ndarray:
    """(Z, Y, X) int32, the same values.

    Whole numbers that a program scaled into the steps of `slope` come back off by up to half of one, and are rounded.
    With steps of 1 and more it could be several numbers, and only small errors are.
    """
    if not np.issubdtype(values.dtype, np.integer):
        off = np.abs(values - np.round(values))
        most = slope / 2 * (1 + ROUNDING) if slope < 1 else ROUNDING
        wrong = int(np.count_nonzero(~(off <= most)))
        if wrong:
            raise FileError(path, f"holds {wrong} label values that are not integers", "Store whole numbers")
        values = np.round(values)
    if values.size and (values.max() > np.iinfo(np.int32).max or values.min() < np.iinfo(np.int32).min):
        raise FileError(path, "holds label values beyond 32 bits", "Renumber the classes")
    return np.require(values, np.int32, ["C", "W"])


def _write(path: Path, array: np.ndarray, geometry: Geometry) -> None:
    form, ending = FORMATS[file_kind(path)], suffix(path).lower()
    if form.write is None:
        raise FileError(path, "is a folder of a format that is only read", "Give a file, for example .nii.gz")
    if ending == ".mhd":
        raise FileError(path, "would be two files", "Write .mha")
    if form.is_picture and array.shape[1] != 1:
        raise FileError(path, f"cannot hold {array.shape[1]} slices", "Write TIFF or NIfTI")
    with replacing(path, ending) as temporary:
        form.write(temporary, array, geometry)

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
from .chunked import CHUNKED_KINDS, ChunkedImage, opened_image
from .containers import is_zarr, require_extra, split_address
from .dicom import series_files
from .dicom_index import (
    LABEL_MODALITIES,
    DicomFile,
    dicom_files,
    dicom_index,
    holds_dicom,
    is_series_uid,
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
    addresses,
    describe_unread,
    file_kind,
    format_of,
    is_container,
    is_image,
    is_series,
    label_limits,
    output_suffix,
    read_file,
    read_file_header,
    segmentation_suffix,
    sidecar_of,
    stem,
    suffix,
    unread_images,
    unread_labels,
)
from .hdf5 import images_in_hdf5
from .image_format import ImageHeader, Remark
from .imagej_rois import holds_rois
from .label_rows import LabelRows
from .metaimage import data_file
from .nrrd import is_nrrd_segmentation, read_segments
from .ome_zarr import zarr_files
from .outline_files import annotation_remarks, crowds_in, is_outlines, outline_names, outlined_images, read_outlines
from .outlines import CROWD, outline_masks, outline_numbers
from .stored_values import (
    OPAQUE,
    coded_by_colour,
    colours_without_palette,
    values_of_colours,
    values_of_objects,
    whole_numbers,
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
from .writing import write_channels, write_image, write_label_rows, write_labels
from .zarr_metadata import label_names, level_of_shape

__all__ = [
    "CHUNKED_KINDS",
    "CROWD",
    "DICOM",
    "FORMATS",
    "LABEL_MODALITIES",
    "OPAQUE",
    "SUFFIXES",
    "VOLUME_KINDS",
    "ChunkedImage",
    "DicomFile",
    "ImageContent",
    "ImageHeader",
    "LabelContent",
    "LabelParts",
    "LabelRows",
    "Remark",
    "StructureMap",
    "addresses",
    "annotation_remarks",
    "crowds_in",
    "describe_unread",
    "dicom_index",
    "file_kind",
    "files_of",
    "holds_dicom",
    "holds_rois",
    "images_in_hdf5",
    "is_container",
    "is_image",
    "is_nrrd_segmentation",
    "is_outlines",
    "is_series",
    "is_series_uid",
    "is_zarr",
    "label_limits",
    "label_names",
    "level_of_shape",
    "may_overlap",
    "object_values",
    "objects_geometry",
    "opened_image",
    "outline_names",
    "outlined_images",
    "output_suffix",
    "read_frames",
    "read_full_header",
    "read_geometry",
    "read_header",
    "read_image",
    "read_image_content",
    "read_label_content",
    "read_label_parts",
    "read_labels",
    "read_outlined_objects",
    "read_outlines",
    "read_segments",
    "read_structures",
    "referenced_instances",
    "require_extra",
    "segment_sets",
    "segmentation_suffix",
    "series_files",
    "sizes_of",
    "split_address",
    "stem",
    "stored_type",
    "structure_names",
    "suffix",
    "unread_images",
    "unread_labels",
    "write_channels",
    "write_image",
    "write_label_rows",
    "write_labels",
]


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


def read_label_content(
    path: Path | str, codes: Sequence[LabelCode] = (), frame: int | None = None, numbers: bool = False
) -> LabelContent:
    """As `read_labels`, with what the reader has to say of the file, and its palette.

    With `numbers`, and by `codes` for objects, values only tell objects apart: those beyond 32 bits become others.
    """
    path = Path(path)
    numbers = numbers or any(code.above is not None for code in codes)
    if is_nrrd_segmentation(path):
        format_of(path)
        if any(code.segments for code in codes):
            found = segment_sets(path)
            return LabelContent(structure_values(path, found, codes, strict=True).values, found.geometry)
        values, geometry = plain_segments(path)
        return LabelContent(whole_numbers(path, values, numbers=numbers), geometry)
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
    values = whole_numbers(path, array[0], header.slope, numbers)
    if codes and numbers:
        background = tuple(each for each in header.colours if each[0] == 0)  # which must be one in all files
        return LabelContent(values_of_objects(values, codes), header.geometry, header.remarks, background)
    return LabelContent(values, header.geometry, header.remarks, header.colours)


LabelParts = Sequence[tuple[str | None, Path]]
"""structure and file, of the files that a case's label consists of"""


def read_structures(parts: LabelParts, image: Path) -> StructureMap:
    """The structures of a case's label: of mask files on their own grid, of objects and outlines on the `image`'s.

    Raises DataError.
    """
    objects = [path for name, path in parts if name is None]
    if not objects:
        return read_masks([(name, path) for name, path in parts if name is not None])
    header = read_full_header(image)
    geometry = header.geometry
    if is_outlines(objects[0]):
        drawn = (each for path in objects for each in outline_masks(path, image, geometry, header.components))
        return join_masks(drawn, geometry)
    return join_masks(masks_of_objects(objects, geometry), geometry)


def read_label_parts(parts: LabelParts, image: Path, codes: Sequence[LabelCode]) -> LabelContent:
    """The values of `read_structures` by the codes of their names. Raises DataError, also for unknown structures."""
    found = read_structures(parts, image)
    path = parts[0][1]
    coded = structure_values(path if len(parts) == 1 else path.parent, found, codes, strict=False)
    remarks = read_outlines(path, image)[1] if len(parts) == 1 and is_outlines(path) else ()
    return LabelContent(coded.values, found.geometry, remarks, shared=coded.shared)


def read_outlined_objects(path: Path, image: Path) -> LabelContent:
    """A number for each outline of an image, CROWD for those of crowds. Raises DataError."""
    header = read_full_header(image)
    numbers = outline_numbers(path, image, header.geometry, header.components)
    return LabelContent(numbers, header.geometry, read_outlines(path, image)[1])


def read_header(path: Path | str) -> tuple[Geometry, int]:
    """Geometry and number of channels, from the header where the format allows. Raises DataError."""
    header = read_full_header(path)
    return header.geometry, header.channels


def read_full_header(path: Path | str) -> ImageHeader:
    """What is known of an image without its voxels. Raises DataError."""
    return read_file_header(Path(path))


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
    kind = SUFFIXES.get(suffix(path).lower())
    if kind is None and is_zarr(path):
        return zarr_files(path)
    if kind is None and (path.is_dir() or is_series_uid(path)):
        return dicom_files(path)
    if kind == "zarr":
        return zarr_files(path)
    files = [split_address(path)[0]]
    if kind == "mha" and path.is_file():
        with suppress(FileError):
            files += [file for file in [data_file(path)] if file != path]
    if kind not in VOLUME_KINDS and (sidecar := sidecar_of(path)):
        files.append(sidecar)
    return files


def _one_frame(path: Path, array: np.ndarray, header: ImageHeader, frame: int) -> np.ndarray:
    """(frames x components or the other way round, Z, Y, X) -> (1, Z, Y, X)."""
    if header.components > 1 or frame >= header.frames:
        raise FileError(
            path, f"has {header.frames} time points of {header.components} values", "Give the original file"
        )
    return array[frame : frame + 1]

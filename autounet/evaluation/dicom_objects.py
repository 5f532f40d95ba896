"""Label files that are DICOM objects (DICOM-SEG, RTSTRUCT): found in folders, paired by series, read by names."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ..imageio import (
    LABEL_MODALITIES,
    DicomFile,
    dicom_index,
    is_image,
    object_values,
    objects_geometry,
    read_geometry,
    read_label_content,
    structure_names,
)
from ..schema.errors import DataError
from ..schema.geometry import Geometry
from ..schema.labels import LabelClass, LabelCode, Labels, Region

log = logging.getLogger(__name__)

LONGEST = 64
"""characters of a segment's label (DICOM PS3.5, LO), to which longer names of classes are cut"""


def label_objects(path: Path) -> dict[Path, DicomFile]:
    """The segmentations and structure sets in a folder and below it, or the one file that it is."""
    index = dicom_index(path.parent if path.is_file() else path)
    wanted = {path} if path.is_file() else {each.path for each in index}
    return {each.path: each for each in index if each.path in wanted and each.modality in LABEL_MODALITIES}


def is_object(path: Path) -> bool:
    """Whether a file is one, and no image that is read by its ending."""
    return path.is_file() and not is_image(path) and path in label_objects(path)


def pair_by_series(predictions: Sequence[Path], references: Sequence[Path]) -> dict[Path, Path]:
    """Prediction -> reference of the same series; {} unless all are objects: in archives, file names mean nothing.

    Raises DataError for several references of one series.
    """
    read = {path: own for path in {*predictions, *references} for own in [label_objects(path).get(path)]}
    if any(own is None for own in read.values()):
        return {}
    series = {path: set(own.refers_to) for path, own in read.items() if own is not None}
    found: dict[Path, Path] = {}
    for prediction in predictions:
        own = [reference for reference in references if series[reference] & series[prediction]]
        if len(own) > 1:
            raise DataError(
                f"{len(own)} references were drawn on the series of {prediction.name}: {', '.join(map(str, own[:3]))}",
                "Give a folder with one for each series",
            )
        found |= {prediction: own[0]} if own else {}
    return found


def require_names(files: Sequence[Path], objects: Sequence[Path], named: bool) -> None:
    """Raises DataError where some files hold names and others values, and nothing says which value is which."""
    if objects and len(objects) < len(files) and not named:
        values = next(path for path in files if path not in objects)
        raise DataError(
            f"{objects[0].name} names its structures, and {values.name} holds values",
            "Say which value is which: --model MODEL, or --class NAME=VALUE for each",
        )


def labels_by_name(objects: Sequence[Path], classes: Mapping[str, int], regions: Mapping[str, Sequence[int]]) -> Labels:
    """The classes that are given, else a value from 1 on for each name in the objects, sorted."""
    names = sorted({name for path in objects for name in structure_names(path)})
    given = dict(classes) or {name: value for value, name in enumerate(names, 1)}
    background = next((name for name, value in given.items() if value == 0), "background")
    own = sorted((value, name) for name, value in given.items() if value)
    if unknown := sorted(set(names) - {name[:LONGEST] for name in given}):
        log.warning("structures that --class does not name are left out: %s", ", ".join(unknown))
    return Labels(
        classes=(LabelClass(name=background, value=0), *(LabelClass(name=name, value=value) for value, name in own)),
        background_named=0 in given.values(),
        regions=tuple(Region(name=name, values=tuple(values)) for name, values in regions.items()),
    )


def read_by_name(path: Path, other: Path, labels: Labels) -> tuple[np.ndarray, Geometry]:
    """(Z, Y, X) values of an object's structures, on the grid of the `other` file of the case. Raises DataError."""
    geometry = objects_geometry([path, other]) if is_object(other) else read_geometry(other)
    codes = [LabelCode(value=each.value, segments=(each.name[:LONGEST],)) for each in labels.classes if each.value]
    return object_values(path, geometry, codes), geometry


def read_case(
    path: Path, other: Path, labels: Labels, codes: Sequence[LabelCode] = (), numbers: bool = False
) -> tuple[np.ndarray, Geometry]:
    """As `read_label_content` of a file of values, as `read_by_name` of an object. Raises DataError."""
    if is_object(path):
        return read_by_name(path, other, labels)
    content = read_label_content(path, codes, numbers=numbers)
    return content.values, content.geometry

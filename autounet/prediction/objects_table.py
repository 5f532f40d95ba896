"""Tables of predicted objects: one for each case beside its segmentation, and `objects.csv` of all cases."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import numpy as np

from ..imageio import stem
from ..ops.objects import measure_objects
from ..schema.bundle import ModelBundle
from ..schema.geometry import Geometry
from ..schema.record import write_text

TABLE = "objects.csv"
COLUMNS = ("case", "object", "class", "size", "unit", "centroid_z", "centroid_y", "centroid_x")
"""followed by `mean_<channel>` of each channel"""


def table_paths(bundle: ModelBundle, segmentation: Path) -> list[Path]:
    """`<case>.objects.csv` beside a segmentation, of a model that tells objects apart."""
    return [segmentation.with_name(f"{stem(segmentation)}.{TABLE}")] if bundle.labels.objects is not None else []


def write_table(
    bundle: ModelBundle, case: str, numbers: np.ndarray, image: np.ndarray, geometry: Geometry, segmentation: Path
) -> list[Path]:
    """A row for each object of a numbered mask (Z, Y, X), measured in its image (C, Z, Y, X), into `table_paths`.

    Sizes are volumes in mm3, of 2-D images areas in mm2, or pixels where the file states no spacing. Centroids are in
    voxels, the first at 0; means are those of the stored intensities.
    """
    flat = geometry.dimension == 2
    unit, scale = "mm3", float(np.prod(geometry.spacing))
    if flat:
        unit = "pixels" if set(geometry.spacing) == {1.0} else "mm2"
        scale = float(np.prod(geometry.spacing[1:]))
    rows = [
        [
            case, each.number, bundle.labels.objects, f"{each.voxels * scale:.6g}", unit,
            *(f"{place:.2f}" for place in each.centroid), *(f"{mean:.6g}" for mean in each.intensities),
        ]
        for each in measure_objects(numbers, image)
    ]  # fmt: skip
    head, text = [*COLUMNS, *(f"mean_{channel.name}" for channel in bundle.channels)], io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([head, *rows])
    paths = table_paths(bundle, segmentation)
    for path in paths:
        write_text(path, text.getvalue())
    return paths


def join_tables(bundle: ModelBundle, out: Path, segmentations: Sequence[Path]) -> None:
    """`objects.csv` of the tables beside these segmentations that are there, in their order; nothing without any."""
    tables = [path for each in segmentations for path in table_paths(bundle, each)]
    found = [path.read_text(encoding="utf-8").splitlines(keepends=True) for path in tables if path.exists()]
    if found:
        write_text(out / TABLE, "".join(chain(found[0][:1], *(lines[1:] for lines in found))))


def foreign_table(bundle: ModelBundle, out: Path) -> list[Path]:
    """`objects.csv` where one would be written and there is another that does not begin as ours do."""
    path = out / TABLE
    if bundle.labels.objects is None or not path.exists():
        return []
    with path.open("rb") as file:
        return [] if file.read(200).startswith(",".join(COLUMNS).encode()) else [path]

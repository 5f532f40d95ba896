"""One image as a program has it: an array with its geometry, or the files of one case."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np

from ..datasets import InputCase, find_inputs, load_input
from ..datasets.inputs import require_trained
from ..datasets.layouts.files import is_there, own_path
from ..datasets.reading import warn_of_intensities
from ..imageio import VOLUME_KINDS, stem
from ..schema.bundle import ModelBundle
from ..schema.dataset import ChannelAvailability
from ..schema.errors import DataError, OptionError
from ..schema.geometry import IDENTITY, Geometry
from .mismatch import geometry_mismatches, intensity_mismatches, judge_headers, require_fit

Files: TypeAlias = "str | Path | Sequence[str | Path | None]"
"""a file or DICOM series, or those of one case in the order of the model's channels, None for one that it lacks"""


class OneImage(NamedTuple):
    array: np.ndarray
    """(C, Z, Y, X) float32"""
    geometry: Geometry
    present: ChannelAvailability | None
    """which of C it has; None: all"""


def from_files(files: Files, bundle: ModelBundle, force: bool = False) -> OneImage:
    """Read as `autounet predict` reads them. Raises DataError, unless `force` also for what is unlike the training."""
    (case,) = judge_headers(bundle, [_case(files, bundle)], force)
    array, geometry = load_input(case, bundle.channels)
    present = None if case.present is None else tuple(index in case.present for index in range(len(array)))
    require_fit(case, intensity_mismatches(bundle, array, present), force)
    return OneImage(array, geometry, present)


def _case(files: Files, bundle: ModelBundle) -> InputCase:
    """A single file may stand for its case: other channels with its name are looked for in its folder."""
    if isinstance(files, str | Path):
        cases = find_inputs(Path(files), bundle)
        if len(cases) != 1:
            raise DataError(
                f"{files} is {len(cases)} cases, not one", "Give one image, or use predict_files for all of them"
            )
        return cases[0]
    given = [None if file is None else own_path(Path(file)) for file in files]
    paths = tuple(file for file in given if file is not None)
    if not paths:
        raise DataError("no file was given", "Give one for each of the model's channels")
    if missing := [path for path in paths if not is_there(path)]:
        raise DataError(f"{missing[0]} does not exist", "Check the path")
    if len(paths) == len(given):
        return InputCase(stem(paths[0]), paths)
    _require_channels(bundle, len(given), "files")
    present = tuple(index for index, file in enumerate(given) if file is not None)
    require_trained(bundle, stem(paths[0]), present)
    return InputCase(stem(paths[0]), paths, present=present)


def from_array(
    image: np.ndarray,
    bundle: ModelBundle,
    spacing: Sequence[float] | None = None,
    direction: Sequence[float] | np.ndarray | None = None,
    geometry: Geometry | None = None,
    present: Sequence[bool] | None = None,
    force: bool = False,
) -> OneImage:
    """An array (C, Z, Y, X), or (Z, Y, X) and (Y, X) of one channel. See `Predictor.predict`. Raises DataError."""
    array = np.asarray(image, dtype=np.float32)
    while array.ndim < 3:
        array = array[None]
    array = array[None] if array.ndim == 3 else array
    channels = len(bundle.channels)
    if array.ndim != 4 or array.shape[0] != channels:
        names = ", ".join(channel.name for channel in bundle.channels)
        raise DataError(
            f"the array has the shape {tuple(np.shape(image))}, and the model needs {channels} channels: {names}",
            f"Give an array ({channels}, Z, Y, X)",
        )
    wrong = int(array.size - np.count_nonzero(np.isfinite(array)))
    if wrong or not array.size:
        what = f"{wrong} voxels that are NaN or infinite" if wrong else "no voxels"
        raise DataError(f"the array has {what}", "Give finite intensities")
    z, y, x = array.shape[1:]
    if geometry is None:
        geometry = _geometry((z, y, x), bundle, spacing, direction)
    elif spacing is not None or direction is not None:
        raise OptionError("geometry holds spacing and direction already", "Give geometry alone, or those two")
    elif geometry.shape != (z, y, x):
        raise DataError(
            f"the array has the shape {tuple(np.shape(image))}, and its geometry {geometry.shape}",
            "Give the geometry of this array",
        )
    own = None if present is None else [index for index, there in enumerate(present) if there]
    warn_of_intensities("array", array, [channel.name for channel in bundle.channels], own)
    found = [*geometry_mismatches(bundle, geometry), *intensity_mismatches(bundle, array, present)]
    require_fit(InputCase("array", ()), found, force)
    return OneImage(array, geometry, _presence(bundle, present))


def _geometry(
    shape: tuple[int, int, int],
    bundle: ModelBundle,
    spacing: Sequence[float] | None,
    direction: Sequence[float] | np.ndarray | None,
) -> Geometry:
    """Pictures have no patient axes, so a single slice without a direction has none where they were trained on."""
    picture = shape[0] == 1 and direction is None and bundle.file_kind not in VOLUME_KINDS
    flat = np.asarray(IDENTITY if direction is None else direction, dtype=float).ravel()
    steps = [float(step) for step in (spacing if spacing is not None else (1.0, 1.0, 1.0))]
    steps = [1.0, *steps] if len(steps) == 2 else steps
    if len(steps) != 3 or not all(np.isfinite(steps)) or min(steps) <= 0:
        raise OptionError(f"spacing is {spacing}", "Give three lengths in mm above 0, in the order z, y, x")
    orthonormal = len(flat) == 9 and np.allclose(flat.reshape(3, 3).T @ flat.reshape(3, 3), np.eye(3), atol=1e-2)
    if not orthonormal:
        raise OptionError(
            f"direction is {direction}",
            "Give a 3x3 matrix, row by row, whose columns are the directions of the axes x, y and z: at right angles "
            "and of length 1",
        )
    a, b, c, d, e, f, g, h, i = (float(value) for value in flat)
    return Geometry(
        shape=shape,
        spacing=(steps[0], steps[1], steps[2]),
        direction=(a, b, c, d, e, f, g, h, i),
        kind="array",
        dimension=2 if picture else 3,
    )


def _presence(bundle: ModelBundle, present: Sequence[bool] | None) -> ChannelAvailability | None:
    if present is None or all(present):
        return None
    _require_channels(bundle, len(present), "entries of present")
    require_trained(bundle, "array", [index for index, there in enumerate(present) if there])
    return tuple(bool(there) for there in present)


def _require_channels(bundle: ModelBundle, count: int, what: str) -> None:
    if count != len(bundle.channels):
        names = ", ".join(channel.name for channel in bundle.channels)
        raise DataError(f"there are {count} {what} for the channels {names}", "Give one for each")

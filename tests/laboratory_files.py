"""Images as laboratories store them, made by the libraries that do: OME-Zarr, HDF5, OME-TIFF, ImageJ."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import zarr


def ngff(
    path: Path,
    array: np.ndarray,
    axes: str,
    version: str = "0.4",
    scale: Mapping[str, float] | None = None,
    unit: str = "micrometer",
    names: Sequence[str] = (),
    levels: int = 2,
    labels: Mapping[str, np.ndarray] | None = None,
    **storage: Any,
) -> Path:
    """An OME-Zarr image of `levels`, each with half the rows and columns of the one before."""
    group = zarr.open_group(str(path), mode="w", zarr_format=3 if version == "0.5" else 2)
    places = []
    for level in range(levels):
        small = array[tuple(slice(None, None, 2**level) if axis in "yx" else slice(None) for axis in axes)]
        chunks = storage.get("chunks") or tuple(min(8, length) for length in small.shape)
        group.create_array(str(level), data=small, **{**storage, "chunks": chunks})
        sizes = [(scale or {}).get(axis, 1.0) * (2**level if axis in "yx" else 1) for axis in axes]
        places.append({"path": str(level), "coordinateTransformations": [{"type": "scale", "scale": sizes}]})
    kinds = {"c": {"type": "channel"}, "t": {"type": "time"}}
    described = [{"name": axis, **kinds.get(axis, {"type": "space", "unit": unit})} for axis in axes]
    content: dict[str, Any] = {"multiscales": [{"version": version, "axes": described, "datasets": places}]}
    if names:
        content["omero"] = {"channels": [{"label": name} for name in names]}
    group.attrs.update({"ome": {**content, "version": version}} if version == "0.5" else content)
    if labels is not None:
        listed = {"labels": list(labels)}
        group.create_group("labels").attrs.update({"ome": listed} if version == "0.5" else listed)
        own = "".join(axis for axis in axes if axis != "c")
        for name, values in labels.items():
            ngff(path / "labels" / name, values, own, version, scale, unit, levels=1)
    return path


def hdf5(path: Path, arrays: Mapping[str, np.ndarray], axes: str | None = None, **storage: Any) -> Path:
    """Data sets by name, with ilastik's axistags where `axes` are given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            data = file.create_dataset(name, data=array, **storage)
            if axes is not None:
                data.attrs["axistags"] = json.dumps({"axes": [{"key": axis} for axis in axes]})
    return path

"""Files and folders that can hold several images (HDF5, Zarr): which of them a path means.

The address of one is written behind the container's name, as ilastik and napari do: `a.h5/volumes/raw`,
`a.ome.zarr/labels/cells`. Without one the container has to hold a single image.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np

from ..schema.errors import FileError
from ..schema.geometry import Spacing3
from .axes import order_axes
from .image_format import ImageHeader, Remark, in_millimetres, make_geometry

HDF5_ENDINGS = (".hdf5", ".h5")
ZARR_ENDINGS = (".ome.zarr", ".zarr")
METADATA = frozenset({".zarray", ".zattrs", ".zgroup", ".zmetadata", "zarr.json"})
"""files of a Zarr folder that hold no voxels; one of them lies at its top"""
_LABEL_WORDS = ("label", "mask", "seg", "truth", "annot")
_SHOWN = 8
"""images that a message lists"""
LARGEST_JSON = 1 << 24
"""bytes of one metadata file"""
MOST_LISTED = 10_000
"""arrays and groups of one container that are looked at"""


def split_address(path: Path | str) -> tuple[Path, str]:
    """The container that an image lies in and its address there; "" where a path is no address.

    A folder that is only called like one is none.
    """
    path = Path(path)
    if not any(f"{ending}/" in path.as_posix().lower() for ending in (*HDF5_ENDINGS, *ZARR_ENDINGS)):
        return path, ""
    outer = [each for each in path.parents if each.name.lower().endswith((*HDF5_ENDINGS, *ZARR_ENDINGS))]
    outer = [each for each in outer if is_zarr(each) or not each.is_dir()]
    return (outer[-1], path.relative_to(outer[-1]).as_posix()) if outer else (path, "")


def is_zarr(path: Path) -> bool:
    """Whether a path is called like a Zarr folder, and is one; or is an image of Zarr by what it holds."""
    if path.name.lower().endswith(ZARR_ENDINGS):
        return any((path / name).is_file() for name in METADATA)
    return _is_zarr_image(path)


def _is_zarr_image(folder: Path) -> bool:
    """Whether a folder of any name is an array, or has the levels of one image. False where its JSON cannot be read."""
    with suppress(OSError):  # a name that no system can hold
        if (folder / ".zarray").is_file():
            return True
    for file in (folder / "zarr.json", folder / ".zattrs"):
        try:
            if not file.is_file() or file.stat().st_size > LARGEST_JSON:
                continue
            content = json.loads(file.read_bytes())
        except (OSError, ValueError, RecursionError):
            continue
        if not isinstance(content, dict):
            continue
        own = content.get("attributes", content)
        ome = own.get("ome") if isinstance(own, dict) else None
        groups = [each for each in (own, ome) if isinstance(each, dict)]
        if content.get("node_type") == "array" or any("multiscales" in each for each in groups):
            return True
    return False


def require_extra(name: str, path: Path) -> ModuleType:
    """A library of the extra `bio`. Raises FileError with what to install."""
    try:
        return import_module(name)
    except ImportError:
        finding = f"needs the library {name}, which is not installed"
        raise FileError(path, finding, "Install it: pip install 'autounet[bio]'") from None


def the_only_one(path: Path, found: Mapping[str, str]) -> str:
    """The address of the image where there is one alone, of addresses with what lies there.

    Raises FileError, where there are several with what to write.
    """
    container, _ = split_address(path)
    if not found:
        raise FileError(path, "holds no image: no array of 2 to 5 axes of numbers", "Check what was exported")
    if len(found) > 1:
        shown = ", ".join(f"{address} ({what})" for address, what in list(found.items())[:_SHOWN])
        more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        endings = (each for each in (*HDF5_ENDINGS, *ZARR_ENDINGS) if container.name.lower().endswith(each))
        ending = next(endings, "")
        first, second = sorted(found, key=lambda name: any(word in name.lower() for word in _LABEL_WORDS))[
            :: len(found) - 1
        ]
        remedy = (
            f"Say which is meant, behind the file's name: {container.name}/{first}. For all files of a data set: "
            f"--channel 'image=*{ending}/{first}' --label '*{ending}/{second}'"
        )
        raise FileError(path, f"holds several images: {shown}{more}", remedy)
    return next(iter(found))


def arranged(
    path: Path,
    kind: str,
    array: np.ndarray,
    axes: str,
    sizes: Sequence[float],
    units: Sequence[str],
    names: tuple[str, ...] = (),
) -> tuple[np.ndarray, ImageHeader]:
    """(C, Z, Y, X) of an array with named axes, and its header; spacing (z, y, x) from `sizes` in `units`.

    A flat image has a spacing of 1, as every picture. Raises DataError.
    """
    array, frames = order_axes(path, array, axes)
    used = 2 if array.shape[1] == 1 else 3
    spacing: Spacing3 = (1.0, 1.0, 1.0)
    remarks: tuple[Remark, ...] = ()
    if used == 3 and any(sizes):
        spacing, remarks = in_millimetres(sizes, units)
    geometry = make_geometry(path, kind, array.shape[:0:-1][:used], spacing[::-1][:used], [0.0] * used, np.eye(used))
    count = array.shape[0] // frames
    header = ImageHeader(geometry, count, frames, remarks=remarks, measured=count > 1)
    return array, header._replace(names=names if len(names) == count > 1 else ())

"""TIFF images and stacks through tifffile."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import numpy as np

from autounet.schema.errors import DataError
from autounet.schema.geometry import Geometry, Spacing3

if TYPE_CHECKING:
    from tifffile import TiffFile

_MILLIMETRES = {
    "nm": 1e-6, "um": 1e-3, "µm": 1e-3, "\\u00b5m": 1e-3, "μm": 1e-3, "micron": 1e-3, "microns": 1e-3,
    "mm": 1.0, "cm": 10.0, "inch": 25.4, "m": 1000.0,
}  # fmt: skip


def read_tiff(path: Path) -> tuple[np.ndarray, Geometry]:
    """Array (C, Z, Y, X) in the file's own number type. Pages are slices; samples and OME channels are channels.

    A single page is a photograph with spacing 1; a stack takes its spacing from OME or ImageJ metadata.
    Transparency is dropped. Raises DataError.
    """
    import tifffile

    logging.getLogger("tifffile").setLevel(logging.CRITICAL)
    try:
        with tifffile.TiffFile(path) as file:
            array = file.series[0].asarray()
            page: Any = file.pages[0]
            if page.photometric == tifffile.PHOTOMETRIC.PALETTE and page.colormap is not None:
                array = _grey_palette(array, np.asarray(page.colormap))
            axes, spacing = file.series[0].axes, _spacing(file)
    except Exception as error:  # tifffile lets struct, zlib, key and codec errors through
        raise DataError(f"{path} cannot be read: {_reason(error)}. Copy or export the file again") from None
    array = _order(path, array, axes)
    flat = array.shape[1] == 1
    geometry = Geometry(
        shape=array.shape[1:], spacing=(1.0, 1.0, 1.0) if flat else spacing, kind="tiff", dimension=2 if flat else 3
    )
    return array, geometry


def _reason(error: Exception) -> str:
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    return "it is not a TIFF file" if "not a TIFF" in text else text


def _grey_palette(indices: np.ndarray, colormap: np.ndarray) -> np.ndarray:
    """Greys of a palette of greys (colormap (3, N), 16 bits scaled from 8); other palettes stay indices."""
    used = colormap[:, np.unique(indices)]
    return (colormap[0][indices] >> 8).astype(np.uint8) if (used == used[:1]).all() else indices


def _order(path: Path, array: np.ndarray, axes: str) -> np.ndarray:
    """Bring any of tifffile's axes (Z, I and Q slices, C and S channels, T time, Y, X) to (C, Z, Y, X)."""
    for index in reversed([i for i, axis in enumerate(axes) if axis not in "YXS" and array.shape[i] == 1]):
        array, axes = array.squeeze(index), axes[:index] + axes[index + 1 :]
    slices = [i for i, axis in enumerate(axes) if axis not in "YXSC"]
    channels = [i for i, axis in enumerate(axes) if axis in "SC"]
    if len(slices) > 1 or len(channels) > 1 or not {"Y", "X"} <= set(axes):
        raise DataError(f"{path} has the axes {axes}. Store one volume per file, with one axis of slices")
    if channels and axes[channels[0]] == "S" and array.shape[channels[0]] in (2, 4):
        array = np.take(array, range(array.shape[channels[0]] - 1), axis=channels[0])
    order = [*channels, *slices, axes.index("Y"), axes.index("X")]
    array = array.transpose(order)
    if not channels:
        array = array[None]
    return array if slices else array[:, None]


def _spacing(file: TiffFile) -> Spacing3:
    """(z, y, x) mm from OME-XML, or from ImageJ's `spacing` and the resolution tags; 1 where nothing is said."""
    if file.is_ome and file.ome_metadata:
        pixels = next((e for e in ElementTree.fromstring(file.ome_metadata).iter() if e.tag.endswith("Pixels")), None)
        if pixels is not None:
            z, y, x = (
                float(pixels.get(f"PhysicalSize{axis}", 0))
                * _MILLIMETRES.get(pixels.get(f"PhysicalSize{axis}Unit", "µm"), 1.0)
                for axis in "ZYX"
            )
            return (z or 1.0, y or 1.0, x or 1.0)
    metadata = file.imagej_metadata or {}
    if "spacing" not in metadata:
        return (1.0, 1.0, 1.0)
    scale = _MILLIMETRES.get(str(metadata.get("unit", "mm")), 1.0)
    sizes = []
    page: Any = file.pages[0]
    for name in ("YResolution", "XResolution"):
        tag = page.tags.get(name)
        numerator, denominator = tag.value if tag is not None else (1, 1)
        sizes.append(denominator / numerator * scale if numerator and denominator else 1.0)
    return (abs(float(metadata["spacing"])) * scale or 1.0, sizes[0], sizes[1])


def write_tiff(path: Path, array: np.ndarray, geometry: Geometry) -> None:
    """Write (C, Z, Y, X) losslessly compressed; a stack keeps its spacing as ImageJ metadata where those can."""
    import tifffile

    photometric = "rgb" if array.shape[0] == 3 and array.dtype in (np.uint8, np.uint16) else "minisblack"
    pixels = np.moveaxis(array, 0, -1) if photometric == "rgb" else array
    if photometric != "rgb" and array.shape[0] > 1:
        tifffile.imwrite(path, array, photometric=photometric, compression="zlib", metadata={"axes": "CZYX"}, ome=True)
        return
    pixels = pixels if photometric == "rgb" else pixels[0]
    stack = geometry.shape[0] > 1 and array.dtype in (np.uint8, np.uint16, np.float32)
    if not stack:
        tifffile.imwrite(
            path, pixels if geometry.shape[0] > 1 else pixels[0], photometric=photometric, compression="zlib"
        )
        return
    z, y, x = geometry.spacing
    axes = "ZYXS" if photometric == "rgb" else "ZYX"
    metadata = {"axes": axes, "spacing": z, "unit": "mm"}
    tifffile.imwrite(path, pixels, imagej=True, photometric=photometric, resolution=(1 / x, 1 / y), metadata=metadata)

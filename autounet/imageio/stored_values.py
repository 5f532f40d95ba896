"""What stored values mean: palettes, inks, transparency, colour profiles; labels coded by colours.

Images are read as a viewer shows them; what is left out is told in a `Remark`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from ..schema.errors import FileError
from ..schema.labels import LabelCode
from .image_format import Remark

CLOSE_COLOURS = 8
"""of 255: the most by which a colour profile may change colours untold; greys of gamma 2.2 and sRGB differ so much"""
_MAX_LISTED = 12
"""colours listed in a message"""


class Pixels(NamedTuple):
    """A picture as it is stored, before it is turned."""

    array: np.ndarray
    """(C, Y, X) with C 1 or 3"""
    remarks: tuple[Remark, ...] = ()
    colours: tuple[tuple[int, tuple[int, int, int]], ...] = ()
    """as `ImageHeader.colours`"""


def apply_palette(indices: np.ndarray, palette: np.ndarray, as_indices: bool) -> Pixels:
    """(..., Y, X) by a `palette` (N, 3) of uint8: the greys or colours that are shown, or values of labels.

    Those are the greys where the whole palette is grey, and else the indices: a label's values must not depend on
    which of them occur. Raises ValueError for indices beyond the palette.
    """
    used = np.unique(indices)
    if used.size and used[-1] >= len(palette):
        raise ValueError(f"its pixels use colour {used[-1]} of a palette of {len(palette)}")
    own = palette if as_indices else palette[used]
    grey = bool((own == own[:, :1]).all())
    if not as_indices:
        return Pixels(palette[:, 0][indices][None] if grey else np.moveaxis(palette[indices], -1, 0))
    values = palette[:, 0][indices] if grey else indices
    shown = {int(palette[index, 0] if grey else index): tuple(palette[index].tolist()) for index in used}
    return Pixels(values[None], (), tuple(sorted(shown.items())))


BIT_COLOURS = ((0, (0, 0, 0)), (1, (255, 255, 255)))
"""how labels of one bit are shown"""


CMYK = Remark(
    "not-as-shown",
    "stores its colours as CMYK, for printing; they were converted to RGB without a colour profile",
    "Store it as RGB, so that its colours are those that a viewer shows",
)
LOOK_UP_TABLE = Remark(
    "not-as-shown",
    "is shown in the colours of a look-up table; the values below were read, as one channel",
    "Nothing needs to be done if the colours only display the values; else convert it to RGB",
)
OTHER_IMAGES = Remark(
    "other-images",
    "holds further images of another size or kind, and only the first one was read",
    "Store each as a file of its own, unless the others are a slide's thumbnail and label",
)
WHITE_ZERO = Remark(
    "not-as-shown",
    "is shown inverted, 0 as white; its values were read as they are stored",
    "Invert its values and save it with 0 as black, unless the values are meant as stored",
)


def alpha_remarks(alpha: np.ndarray) -> tuple[Remark, ...]:
    """What is to be said of transparency that is left out; `alpha` is 0 where a viewer shows the background."""
    full = np.iinfo(alpha.dtype).max if alpha.dtype.kind == "u" else 255
    least, largest = int(alpha.min()), int(alpha.max())
    if least == largest == full:
        return (Remark(OPAQUE, "has a transparency channel that is opaque everywhere and was left out", KEEP_COLOURS),)
    number = int(np.count_nonzero(alpha < full))
    how = f"the same {least} of {full} everywhere" if least == largest else f"in {number} of {alpha.size} pixels"
    text = f"is transparent, {how}; this was left out, and the colours below were read, which a viewer does not show"
    return (Remark("transparency", text, "Check that these colours are meant, or flatten it onto a background"),)


def without_alpha(array: np.ndarray, axes: str) -> tuple[np.ndarray, tuple[Remark, ...]]:
    """Without the last of the samples along the axis "S"."""
    place = axes.index("S")
    count = array.shape[place]
    return np.take(array, range(count - 1), axis=place), alpha_remarks(np.take(array, count - 1, axis=place))


OPAQUE = "opaque-alpha"
"""code of what is said of transparency that hides nothing"""
KEEP_COLOURS = "Nothing needs to be done: the colours are those that a viewer shows"


def profile_remarks(profile: bytes | None, channels: int) -> tuple[Remark, ...]:
    """That an ICC profile is not applied, where it would change what is shown."""
    changed = _profile_change(profile, channels) if profile else None
    if changed is None or changed[1] <= CLOSE_COLOURS:
        return ()
    name, amount = changed
    text = f"has the colour profile {name!r}, which is not applied: a viewer shows colours up to {amount} of 255 apart"
    return (Remark("colour-profile", text, "Convert all images to one colour profile, best to sRGB"),)


@lru_cache(maxsize=32)
def _profile_change(profile: bytes, channels: int) -> tuple[str, int] | None:
    """Its name, and by how much of 255 a profile changes some colour; None for one that viewers cannot use either."""
    from PIL import Image, ImageCms

    steps = np.arange(0, 256, 17, dtype=np.uint8)
    grid = np.stack(np.meshgrid(steps, steps, steps), -1).reshape(-1, len(steps), 3)
    try:
        own = ImageCms.ImageCmsProfile(BytesIO(profile))
        mode = "RGB" if channels == 3 else "L"
        colours = Image.fromarray(grid if channels == 3 else np.repeat(steps[None], 2, 0))
        transform = ImageCms.buildTransform(own, ImageCms.createProfile("sRGB"), mode, "RGB")
        shown = ImageCms.applyTransform(colours, transform)
        name = ImageCms.getProfileDescription(own).strip()
    except (ImageCms.PyCMSError, OSError, TypeError, ValueError):
        return None
    change = np.asarray(shown, int) - np.asarray(colours.convert("RGB"), int)
    return "".join(filter(str.isprintable, name))[:60], int(np.abs(change).max())


def to_rgb(
    path: Path, array: np.ndarray, axes: str, model: Literal["CMYK", "YCbCr"]
) -> tuple[np.ndarray, tuple[Remark, ...]]:
    """Red, green and blue along the axis of samples "S". Raises DataError for other samples than the model's."""
    from PIL import Image

    place, count = axes.find("S"), 4 if model == "CMYK" else 3
    types = (np.uint8, np.uint16) if model == "CMYK" else (np.uint8,)
    if place < 0 or array.shape[place] != count or array.dtype not in types:
        finding = f"stores {array.dtype} values as {model} in a way that is not supported"
        raise FileError(path, finding, "Convert it to RGB")
    values = np.moveaxis(array, place, -1)
    if model == "CMYK":
        full = np.iinfo(array.dtype).max
        inks = values.astype(np.float64) / full
        converted = np.rint((1 - inks[..., :3]) * (1 - inks[..., 3:]) * full).astype(array.dtype)
        return np.moveaxis(converted, -1, place), (CMYK,)
    rows = np.ascontiguousarray(values.reshape(-1, values.shape[-2], 3))
    converted = np.asarray(Image.fromarray(rows, "YCbCr").convert("RGB")).reshape(values.shape)
    return np.moveaxis(converted, -1, place), ()


ROUNDING = 1e-3
"""what a whole number may be off after scaling in 32 bits"""


def whole_numbers(path: Path, values: np.ndarray, slope: float = 0.0, numbers: bool = False) -> np.ndarray:
    """(Z, Y, X) int32, the same values.

    Whole numbers that a program scaled into the steps of `slope` come back off by up to half of one, and are rounded.
    With steps of 1 and more it could be several numbers, and only small errors are. `numbers` only tell objects apart:
    each that is too large for int32 becomes one that the file does not hold. Raises DataError for other values.
    """
    if not np.issubdtype(values.dtype, np.integer):
        off = np.abs(values - np.round(values))
        most = slope / 2 * (1 + ROUNDING) if slope < 1 else ROUNDING
        wrong = int(np.count_nonzero(~(off <= most)))
        if wrong:
            raise FileError(path, f"holds {wrong} label values that are not integers", "Store whole numbers")
        values = np.round(values)
    low, high = np.iinfo(np.int32).min, np.iinfo(np.int32).max
    if values.size and (values.max() > high or values.min() < low):
        if not numbers or values.min() < low:
            remedy = "Renumber the classes; where the values number objects, such as cells, give --objects NAME"
            raise FileError(path, BEYOND_32_BITS, remedy)
        values = _within_32_bits(values)
    return np.require(values, np.int32, ["C", "W"])


BEYOND_32_BITS = "holds label values beyond 32 bits"


def _within_32_bits(values: np.ndarray) -> np.ndarray:
    """Values beyond int32 as the highest numbers of it that do not occur; an ignore value is seldom among them."""
    high = np.iinfo(np.int32).max
    found, places = np.unique(values, return_inverse=True)
    beyond = np.flatnonzero(found > high)
    kept = set(found[: beyond[0]].tolist())
    free = (number for number in range(high - 1, 0, -1) if number not in kept)
    table = np.where(found > high, 0, found).astype(np.int64)
    table[beyond] = [next(free) for _ in beyond]
    return table[places.reshape(values.shape)]


def coded_by_colour(codes: Sequence[LabelCode]) -> bool:
    return any(code.colour is not None for code in codes)


def values_of_colours(path: Path, array: np.ndarray, codes: Sequence[LabelCode]) -> np.ndarray:
    """(1 or 3, Z, Y, X) of uint8 -> (Z, Y, X) int32 by the palette; a grey is the colour of three equal parts.

    Raises DataError listing the colours that the palette lacks, with their number of pixels.
    """
    if array.shape[0] not in (1, 3) or (array.size and not 0 <= array.min() <= array.max() <= 255):
        raise FileError(path, "is no picture with 8 bits a colour, so that no palette fits", "Store it as RGB PNG")
    red, green, blue = array.astype(np.int32) if array.shape[0] == 3 else [array[0].astype(np.int32)] * 3
    packed = (red << 16) | (green << 8) | blue
    colours, inverse, counts = np.unique(packed, return_inverse=True, return_counts=True)
    known = {_pack(code.colour): code.value for code in codes if code.colour is not None}
    lacking = [(colour, count) for colour, count in zip(colours.tolist(), counts.tolist(), strict=True)
               if colour not in known]  # fmt: skip
    if lacking:
        raise FileError(
            path, f"holds colours that the palette does not list: {_listed(lacking)}", "Add them to the palette"
        )
    table = np.array([known[colour] for colour in colours.tolist()], np.int32)
    return table[inverse.reshape(packed.shape)]


def values_of_objects(values: np.ndarray, codes: Sequence[LabelCode]) -> np.ndarray:
    """The values by the codes that name a lowest one, those below all of them as they are."""
    joined = values
    for limit, value in sorted((code.above, code.value) for code in codes if code.above is not None):
        joined = np.where(values > limit, np.int32(value), joined)
    return joined


def colours_without_palette(path: Path, array: np.ndarray) -> FileError:
    """The error for (3, Z, Y, X) when nothing says which class a colour is; it lists the colours."""
    red, green, blue = np.clip(array, 0, 255).astype(np.int32)
    colours, counts = np.unique((red << 16) | (green << 8) | blue, return_counts=True)
    return FileError(
        path,
        "has 3 channels with different values: it is coded by colour, or no label at all. Its colours: "
        f"{_listed(list(zip(colours.tolist(), counts.tolist(), strict=True)))}",
        'Map them in a palette.json, {"class": [red, green, blue], ...}, or store labels as one channel of integers',
    )


def _pack(colour: tuple[int, int, int]) -> int:
    return (colour[0] << 16) | (colour[1] << 8) | colour[2]


def _listed(colours: list[tuple[int, int]]) -> str:
    """`[255, 0, 0] (120 pixels), ...`, the most frequent first."""
    ordered = sorted(colours, key=lambda entry: -entry[1])
    shown = [
        f"[{code >> 16}, {code >> 8 & 255}, {code & 255}] ({count} pixel{'s' if count != 1 else ''})"
        for code, count in ordered[:_MAX_LISTED]
    ]
    return ", ".join(shown) + (f" and {len(ordered) - _MAX_LISTED} more" if len(ordered) > _MAX_LISTED else "")

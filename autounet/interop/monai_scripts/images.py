"""Which files are the channels of a case, and images as arrays, by SimpleITK alone."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

VOLUMES = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd")
PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
WRITTEN_AS = {".jpg": ".png", ".jpeg": ".png", ".nhdr": ".nrrd", ".mhd": ".mha"}
"""endings of segmentations, where they are not the image's: JPEG changes values, and one file is enough"""
NUMBER = re.compile(r"(.+)_(\d{4})")
FAR = 1e-2
"""mm and parts of a direction by which the channels of a case may lie apart"""


@dataclass(frozen=True)
class Image:
    """A case as stored; no tuple, of which MONAI would take each part for an image."""

    name: str
    array: np.ndarray
    """(C, Z, Y, X) float32; channels that are not there are 0"""
    present: tuple[bool, ...]
    """of the C channels"""
    spacing: tuple[float, float, float]
    """(z, y, x) mm; pictures have 1"""
    direction: tuple[float, ...]
    """3 x 3, row by row; columns are the directions of x, y and z in LPS"""
    dimension: int
    """2 for pictures and single slices"""
    source: sitk.Image
    """of the first channel, whose geometry the segmentation gets"""
    ending: str


def ending_of(path: Path) -> str:
    """As spelt; empty for what is no image."""
    found = [each for each in VOLUMES + PICTURES if path.name.lower().endswith(each)]
    return path.name[-len(max(found, key=len)) :] if found and not path.name.startswith(".") else ""


def find_cases(folder: str, plan: Any) -> list[dict[str, Any]]:
    """What MONAI's data sets take: `{"name": ..., "image": [path of each channel, or one of all]}`, sorted by name.

    Files in `folder`; those that end in _0000, _0001, ... are the channels of a case, by the order of the model's. A
    model whose channels are told apart by patterns of file names looks for these, in folders below it too. Raises
    ValueError where no case is found, or one lacks a channel.
    """
    root, names = Path(folder), [channel.name for channel in plan.channels]
    if not root.is_dir():
        raise ValueError(f"{root} is no folder: give one with --dataset_dir")
    files = [path for path in sorted(root.iterdir()) if ending_of(path)]
    if len(plan.channel_patterns) > 1:
        found = _by_patterns(root, dict(plan.channel_patterns))
    else:
        numbered = [NUMBER.fullmatch(path.name[: -len(ending_of(path))]) for path in files]
        found = {}
        for path, match in zip(files, numbered, strict=True):
            numbers = all(numbered) and (len(names) > 1 or all(each and each[2] == "0000" for each in numbered))
            name, place = (match[1], int(match[2])) if match and numbers else (path.name[: -len(ending_of(path))], 0)
            found.setdefault(name, {})[place] = path
    if not found:
        raise ValueError(f"{root} holds no image for the channels {', '.join(names)}: {', '.join(VOLUMES + PICTURES)}")
    return [{"name": name, "image": _channels(name, own, plan)} for name, own in sorted(found.items())]


def _channels(name: str, files: Mapping[int, Path], plan: Any) -> list[str | None]:
    count = len(plan.channels)
    if list(files) == [0]:
        lone = len(plan.channel_patterns) <= 1
        return [str(files[0])] if lone else [str(files[0]), *[None] * (count - 1)]
    if beyond := [place for place in files if place >= count]:
        raise ValueError(f"{name}: {files[beyond[0]].name} is none of {count} channels")
    return [str(files[place]) if place in files else None for place in range(count)]


def _by_patterns(root: Path, patterns: Mapping[str, str]) -> dict[str, dict[int, Path]]:
    """By the folder that files lie in, or else by what stands for the pattern's stars."""
    matches = [
        [path for path in sorted((root.glob if "/" in each else root.rglob)(each)) if ending_of(path)]
        for each in patterns.values()
    ]
    parts = [
        re.compile(".*".join(map(re.escape, each.rpartition("/")[2].split("*"))).replace(".*", "(.*)"))
        for each in patterns.values()
    ]

    def star(path: Path, place: int) -> str:
        match = parts[place].fullmatch(path.name)
        return "_".join(filter(None, match.groups())).strip("_- ") if match else path.name

    for key in (lambda path, place: "_".join(path.parent.relative_to(root).parts) or root.resolve().name, star):
        found: dict[str, dict[int, Path]] = {}
        for place, own in enumerate(matches):
            for path in own:
                found.setdefault(key(path, place), {})[place] = path
        if sum(map(len, found.values())) == sum(map(len, matches)):
            return found
    shown = ", ".join(f"{name} {pattern}" for name, pattern in patterns.items())
    raise ValueError(f"{root}: it is not clear which files belong together by {shown}; give the cases as `datalist`")


def read_case(name: str, files: Sequence[str | None], plan: Any) -> Image:
    """The channels of a case, one file for each or one with all. Raises ValueError where they do not fit."""
    paths = [Path(each) for each in files if each is not None]
    parts = [_read(path) for path in paths]
    first, array = parts[0]
    for path, (image, own) in zip(paths, parts, strict=True):
        apart = own.shape[1:] != array.shape[1:] or any(
            np.abs(np.subtract(a, b)).max() > FAR
            for a, b in (
                (image.GetSpacing(), first.GetSpacing()),
                (image.GetOrigin(), first.GetOrigin()),
                (image.GetDirection(), first.GetDirection()),
            )
        )
        if apart:
            raise ValueError(f"{name}: {path.name} does not lie where {paths[0].name} does: resample it to one grid")
    array = np.concatenate([own for _, own in parts])
    present = tuple(each is not None for each in files) if len(files) > 1 else (True,) * len(plan.channels)
    if len(array) != sum(present) or len(present) != len(plan.channels):
        raise ValueError(f"{name} has {len(array)} channels, and the model needs {len(plan.channels)}")
    if not all(present) and present not in plan.channel_combinations:
        lacking = ", ".join(each.name for each, there in zip(plan.channels, present, strict=True) if not there)
        raise ValueError(f"{name} has no file for {lacking}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} holds voxels that are no finite numbers")
    whole = np.zeros((len(present), *array.shape[1:]), np.float32)
    whole[list(present)] = array
    axes, ending = min(first.GetDimension(), 3), ending_of(paths[0])
    picture = ending.lower() in PICTURES
    spacing = (1.0,) * 3 if picture else (*(1.0,) * (3 - axes), *first.GetSpacing()[:axes][::-1])
    own = np.reshape(first.GetDirection(), (first.GetDimension(),) * 2)[:axes, :axes]
    direction = np.eye(3)
    direction[:axes, :axes] = own
    return Image(name, whole, present, spacing, tuple(direction.ravel()), axes, first, ending)


def _read(path: Path) -> tuple[sitk.Image, np.ndarray]:
    """With (C, Z, Y, X) float32; a fourth axis and components are channels, transparency is left out."""
    image = sitk.ReadImage(str(path))
    array, picture = sitk.GetArrayFromImage(image), ending_of(path).lower() in PICTURES
    if image.GetDimension() > 3 + (image.GetNumberOfComponentsPerPixel() == 1):
        raise ValueError(f"{path.name} has {image.GetDimension()} axes: store 2 or 3, and one more for channels")
    if picture and image.GetDimension() > 2:
        raise ValueError(f"{path.name} is a stack, whose voxels have no known size here: convert it to NIfTI")
    if image.GetNumberOfComponentsPerPixel() > 1:
        array = np.moveaxis(array, -1, 0)
        array = array[: len(array) - (picture and len(array) in (2, 4))]
    elif image.GetDimension() < 4:
        array = array[None]
    return image, np.asarray(array if array.ndim == 4 else array[:, None], np.float32)


def write_labels(folder: Path, image: Image, values: np.ndarray) -> Path:
    """`<case>.<ending>` with label values (Z, Y, X), in the smallest type that holds them."""
    highest, lowest = int(values.max(initial=0)), int(values.min(initial=0))
    types = (np.uint8, np.uint16, np.uint32) if lowest >= 0 else (np.int8, np.int16, np.int32)
    smallest = next(each for each in types if np.iinfo(each).min <= lowest and highest <= np.iinfo(each).max)
    stored = values.astype(smallest)
    result = sitk.GetImageFromArray(stored[0] if image.dimension == 2 else stored)
    axes, count = image.dimension, image.source.GetDimension()
    result.SetSpacing(image.source.GetSpacing()[:axes])
    result.SetOrigin(image.source.GetOrigin()[:axes])
    result.SetDirection(np.reshape(image.source.GetDirection(), (count, count))[:axes, :axes].ravel().tolist())
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{image.name}{WRITTEN_AS.get(image.ending.lower(), image.ending)}"
    sitk.WriteImage(result, str(path), useCompression=True)
    return path

"""Files that hold an image and its label: OME-Zarr with `labels/`, HDF5 with a data set of each.

Also the resolution level of OME-Zarr that labels in other files were drawn on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from ...imageio import (
    images_in_hdf5,
    is_image,
    is_zarr,
    label_names,
    level_of_shape,
    read_geometry,
    require_extra,
    split_address,
    suffix,
)
from ...schema.dataset import Case
from ...schema.errors import DataError
from ...schema.options import DataOptions
from .detected_layout import DetectedLayout, case_of, missing_label, parse_labels, read_description
from .files import distinct_names, image_files, is_held_out, says_label, subfolders

HDF5 = (".h5", ".hdf5")
DEEPEST = 2
"""folders below the data folder in which such files are looked for"""


class _Parts(NamedTuple):
    """Addresses in one container."""

    images: Sequence[str]
    """"" for the image of OME-Zarr itself"""
    labels: Sequence[str]


def detect(root: Path, options: DataOptions) -> bool:
    """Whether files hold labels beside images, of which `--label` may name one by its address."""
    if options.channels or options.class_patterns or not root.is_dir():
        return False
    if options.label is not None and not split_address(options.label)[1]:
        return False
    return any(parts.labels for parts in _containers(root).values())


def _containers(root: Path) -> dict[Path, _Parts]:
    """Those with an image, by path; of folders of test data only where there are no others."""
    found = {path: parts for path in _files(root) if (parts := _parts(path)).images}
    training = {path: parts for path, parts in found.items() if not is_held_out(path.parent)}
    return training or found


def _files(folder: Path, depth: int = 0) -> Iterator[Path]:
    for path in image_files(folder):
        if is_zarr(path) or (path.is_file() and suffix(path).lower() in HDF5):
            yield path
    if depth < DEEPEST:
        for inner in subfolders(folder):
            yield from _files(inner, depth + 1)


def _parts(path: Path) -> _Parts:
    """Nothing of what cannot be read, which is told when another layout reads it."""
    if is_zarr(path):
        return _Parts([""], [f"labels/{name}" for name in label_names(path)])
    if not any(is_image(each) and suffix(each).lower() not in HDF5 for each in path.parent.iterdir()):
        require_extra("h5py", path)  # here nothing else can be read
    with suppress(DataError):
        names = list(images_in_hdf5(path))
        labels = [name for name in names if says_label(name)]
        if len(names) > 1:
            return _Parts([name for name in names if name not in labels], labels)
    return _Parts([], [])


def find(root: Path, options: DataOptions) -> DetectedLayout:
    """A case for each file. Raises DataError where several images or labels can be meant."""
    parts = _containers(root)
    image = _only(parts, {path: each.images for path, each in parts.items()}, "image")
    _, label = split_address(options.label or "")
    label = label or _only(parts, {path: each.labels for path, each in parts.items()}, "label")
    cases, findings = [], []
    for name, path in zip(distinct_names(list(parts)), parts, strict=True):
        own = path / label if label in parts[path].labels else None
        if own is None:
            findings.append(missing_label(root, name, path, path / label))
        cases.append(case_of(root, name, [path / image if image else path], own))
    declared = parse_labels(read_description(root).get("labels", {}))
    ending = suffix(next(iter(parts)))
    return DetectedLayout(
        cases=cases,
        image_pattern=f"*{ending}{image and '/'}{image}",
        labels=declared,
        labels_declared=declared.complete,
        findings=findings,
    )


def _only(parts: Mapping[Path, _Parts], addresses: Mapping[Path, Sequence[str]], what: str) -> str:
    """The one address that containers have for images, or for labels. Raises DataError."""
    counts = Counter(address for own in addresses.values() for address in own)
    usual = [address for address, count in counts.items() if count > len(parts) / 2] or list(counts)
    if len(usual) == 1:
        return usual[0]
    path = next(path for path, own in addresses.items() if own)
    option = "--label '*{}/{}'" if what == "label" else "--channel 'image=*{}/{}'"
    options = " or ".join(option.format(suffix(path), each) for each in usual)
    if what == "image":
        options += f", with --label '*{suffix(path)}/{next(iter(parts[path].labels), 'label')}'"
    finding = f"{path.name} holds {len(usual)} arrays that can be the {what}: {', '.join(usual)}"
    raise DataError(finding, f"Say which: {options}")


def with_levels(root: Path, found: DetectedLayout, cases: list[Case]) -> tuple[DetectedLayout, list[Case]]:
    """The cases with the level of their OME-Zarr images that has the shape of the label, in place of the finest one.

    Raises DataError where that is not the same level in all cases.
    """
    levels: dict[str, str] = {}
    for case in cases:
        path = root / case.images[0]
        if case.label is None or case.label_parts or len(case.images) > 1 or not is_zarr(path):
            continue
        with suppress(DataError):  # told when the case is examined
            shape = read_geometry(root / case.label).shape
            if shape != read_geometry(path).shape and (level := level_of_shape(path, path, shape)):
                levels[case.identifier] = level
    if not levels:
        return found, cases
    if len(levels) < len(cases) or len(set(levels.values())) > 1:
        names = ", ".join(f"{level} in {case}" for case, level in list(levels.items())[:3])
        raise DataError(
            f"labels were drawn on different resolution levels of the images: {names}, the finest in others",
            "Store all labels on the same level",
        )
    level = next(iter(levels.values()))
    if unnamed := [case.images[0] for case in cases if not suffix(case.images[0])]:
        raise DataError(
            f"labels were drawn on the level {level} of the images, and {unnamed[0]} is not called .zarr",
            "Rename these folders: only a name that ends in .zarr can be followed by a level",
        )
    changed = [case.model_copy(update={"images": (f"{case.images[0]}/{level}",)}) for case in cases]
    pattern = found.image_pattern if split_address(found.image_pattern)[1] else f"{found.image_pattern}/{level}"
    patterns = {name: f"{each}/{level}" for name, each in found.channel_patterns.items()}
    return replace(found, image_pattern=pattern, channel_patterns=patterns), changed

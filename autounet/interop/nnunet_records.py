"""What lies beside plans.json in a model of nnU-Net, read and written: dataset.json, our channels and labels, and
checkpoints. Also nnU-Net's readers, which the ending of files chooses.

A checkpoint is a pickle, and a pickle may call anything. torch's restricted reader builds tensors and plain values
alone; nnU-Net's losses and its best score are numpy numbers, so those are allowed too, and nothing else is. What is
written holds tensors and plain values.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from ..datasets.labels import build_labels
from ..datasets.layouts.detected_layout import DeclaredLabels, channel_names, parse_labels
from ..schema.errors import AutoUNetError, ModelError
from ..schema.labels import BACKGROUND, Labels, TargetKind, overlapping_targets
from ..schema.options import DataOptions
from ..store.weights import require_uncompressed
from ..system_memory import require_no_lack_of_memory

if TYPE_CHECKING:
    from torch import Tensor

COPY_DATASET = "Copy the dataset.json of the training into the model's folder"
IGNORE = "ignore"
"""the key of the ignore value, so no class can be called that"""


class NnunetReader(NamedTuple):
    """One of nnU-Net's readers."""

    orientation: Literal["as_stored", "ras"]
    """in which networks see what it reads"""
    endings: tuple[str, ...]
    dimensions: tuple[int, ...]
    """of the images that it reads"""


ITK = (".nii.gz", ".nrrd", ".mha", ".gipl")
READERS = {
    "SimpleITKIO": NnunetReader("as_stored", ITK, (2, 3)),
    "NibabelIO": NnunetReader("as_stored", (".nii", ".nii.gz"), (3,)),
    "Tiff3DIO": NnunetReader("as_stored", (".tif", ".tiff"), (3,)),
    "NaturalImage2DIO": NnunetReader("as_stored", (".png", ".bmp", ".tif"), (2,)),
    "SimpleITKIOWithReorient": NnunetReader("ras", ITK, (3,)),
    "NibabelIOWithReorient": NnunetReader("ras", (".nii", ".nii.gz"), (3,)),
}
"""by name; of several that fit, the first is written"""


def read_channels(content: Mapping[str, Any], label: str) -> tuple[str, ...]:
    """Names in the order of the network's input. Raises ModelError when there are none."""
    try:
        names = channel_names(dict(content))
    except AutoUNetError as error:
        raise ModelError(f"{label}: {error.message}", error.remedy) from None
    if not names:
        raise ModelError(f"{label} names no channels (channel_names)", COPY_DATASET)
    return tuple(names)


def read_labels(content: Mapping[str, Any], label: str) -> Labels:
    """Classes by value, the ignore value, and regions in the order in which nnU-Net writes them.

    Raises ModelError when classes are not numbered from 0 without gaps, which nnU-Net's outputs are, or when
    `regions_class_order` writes regions in an order that ours cannot have.
    """
    declared = content.get("labels")
    try:
        names = parse_labels(declared)
        labels = build_labels(names, DataOptions())
        if names.regions:
            return _with_regions(content, labels, _outputs(declared), label)
    except AutoUNetError as error:
        raise ModelError(f"{label}: {error.message}", error.remedy) from None
    if labels.values != tuple(range(labels.count)):
        raise ModelError(
            f"{label}: the labels {labels.values} are not 0, 1, 2, ..., as nnU-Net numbers its outputs", COPY_DATASET
        )
    if labels.count < 2:
        raise ModelError(f"{label} names no class besides the background", COPY_DATASET)
    return labels


def _outputs(declared: Any) -> dict[str, tuple[int, ...]]:
    """Name -> values of each of nnU-Net's outputs: all entries but the background and the ignore value, in order."""
    each = {name: tuple(dict.fromkeys(value if isinstance(value, list) else [int(value)]))
            for name, value in declared.items() if name != "ignore"}  # fmt: skip
    return {name: values for name, values in each.items() if set(values) != {0}}


def _with_regions(
    content: Mapping[str, Any], labels: Labels, outputs: Mapping[str, tuple[int, ...]], label: str
) -> Labels:
    """Classes that are outputs themselves keep their names; where the order forbids it, every output is a region."""
    order = content.get("regions_class_order")
    if not isinstance(order, list) or len(order) != len(outputs):
        raise ModelError(
            f"{label}: {len(outputs)} regions need as many entries of regions_class_order, not {order!r}", COPY_DATASET
        )
    wanted = [(frozenset(values), int(value)) for values, value in zip(outputs.values(), order, strict=True)]
    all_regions = build_labels(DeclaredLabels({}, dict(outputs), labels.ignore), DataOptions())
    for candidate in (labels, all_regions):
        if _written_values(candidate) == wanted:
            return candidate
    shown = ", ".join(f"{name} writes {value}" for name, value in zip(outputs, order, strict=True))
    raise ModelError(
        f"{label}: regions_class_order cannot be followed ({shown}): each region has to write the first of its values "
        "that no later one holds, and each value has to be written",
        "Predict with nnU-Net",
    )


def _written_values(labels: Labels) -> Sequence[tuple[frozenset[int], int]]:
    """File values of each of our outputs, and the one that it writes."""
    return [
        (frozenset(labels.values[member] for member in target.members), labels.values[target.paints])
        for target in overlapping_targets(labels)
    ]


# ---- written ---------------------------------------------------------------------------------------------------------


def nnunet_dataset(
    channels: Sequence[str], labels: Labels, targets: TargetKind, ending: str, cases: int, where: str
) -> dict[str, Any]:
    """What `read_channels` and `read_labels` read; `cases` is the number trained on.

    Raises ModelError where a region holds the background, or too few outputs for a cascade would follow.
    """
    values = written_numbers(labels, targets)
    declared: dict[str, Any] = {BACKGROUND: 0}
    order: list[int] = []
    if targets == "regions":
        outputs = overlapping_targets(labels)
        if bad := [each.name for each in outputs if 0 in each.members]:
            raise ModelError(
                f"{where}: the region {bad[0]} holds the value 0, which nnU-Net keeps for the background", "Export it "
                "as a bundle"
            )  # fmt: skip
        # a list of two values tells nnU-Net that there are regions, also where each is one class
        lists = any(len(each.members) > 1 for each in outputs)
        for each in outputs:
            members = [values[member] for member in each.members]
            whole = members if len(members) > 1 else members[0] if lists else members * 2
            declared[_free_name(each.name, declared)] = whole
            order.append(values[each.paints])
    else:
        for label, value in zip(labels.classes[1:], values[1:], strict=True):
            declared[_free_name(label.name, declared)] = value
    if labels.ignore is not None:
        declared[IGNORE] = max(values) + 1  # nnU-Net wants it there; no prediction depends on it
    return {
        "channel_names": {str(index): name for index, name in enumerate(channels)},
        "labels": declared,
        **({"regions_class_order": order} if order else {}),
        "numTraining": cases,
        "file_ending": ending,
    }


def written_numbers(labels: Labels, targets: TargetKind) -> tuple[int, ...]:
    """The value in nnU-Net's files of each dense class: its own, or 0, 1, 2, ... where nnU-Net would number it so.

    Without regions nnU-Net writes the number of the output; with them any rising values.
    """
    dense = tuple(range(labels.count))
    own = labels.values
    return own if targets == "regions" and own == tuple(sorted(own)) and own[0] == 0 else dense


def _free_name(name: str, taken: Mapping[str, Any]) -> str:
    """A class may be called as one of nnU-Net's own keys."""
    while name in (IGNORE, BACKGROUND) or name in taken:
        name += "_"
    return name


MOST_REORIENTED = 255
"""largest value that `SimpleITKIOWithReorient` writes"""


def find_reader(orientation: str, ending: str, dimension: int | None, highest: int, where: str) -> tuple[str, str]:
    """The name of nnU-Net's reader that shows networks images in this orientation, and the ending of its files.

    The ending is the model's own where a reader knows it. `dimension` is that of the images, None where it is not
    known; 2-D images have no orientation. `highest` is the largest value in segmentations. Raises ModelError where
    there is none.
    """
    turned = orientation if dimension != 2 else "as_stored"
    fitting = {
        name: reader
        for name, reader in READERS.items()
        if reader.orientation == turned
        and (dimension is None or dimension in reader.dimensions)
        and (highest <= MOST_REORIENTED or name != "SimpleITKIOWithReorient")
    }
    if not fitting:
        raise ModelError(
            f"{where} sees images in the orientation {orientation}, as older plans have it, and no reader of nnU-Net "
            "shows them so",
            "Train it again: new plans have an orientation that nnU-Net knows",
        )
    for name, reader in fitting.items():
        if ending.lower() in reader.endings:
            return name, ending.lower()
    name, reader = next(iter(fitting.items()))
    return name, reader.endings[0]


# ---- checkpoints -----------------------------------------------------------------------------------------------------

NUMPY_TYPES = (
    "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32", "float64",
)  # fmt: skip
NUMPY_MODULES = ("numpy.core.multiarray", "numpy._core.multiarray")
"""where numpy 1 and 2 have the function `scalar`"""
PREFIXES = ("module.", "_orig_mod.")
"""what torch's data parallel and compiled modules put before names"""


class NnunetCheckpoint(NamedTuple):
    """What a prediction needs of one fold; `read_checkpoint` and `write_checkpoint` are inverse."""

    weights: dict[str, Tensor]
    """nnU-Net's names"""
    configuration: str
    trainer: str
    mirror_axes: tuple[int, ...]


def read_checkpoint(path: Path, label: str) -> NnunetCheckpoint:
    """`label` is what errors call the file. Raises ModelError when it is damaged, holds anything but tensors, numbers
    and text, or is no checkpoint of nnU-Net v2."""
    content = _load(path, label)
    try:
        weights, arguments = content["network_weights"], content["init_args"]
        axes = content.get("inference_allowed_mirroring_axes")
        return NnunetCheckpoint(
            weights=_without_prefixes(weights),
            configuration=str(arguments["configuration"]),
            trainer=str(content["trainer_name"]),
            mirror_axes=tuple(int(axis) for axis in axes or ()),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ModelError(
            f"{label} is no checkpoint of nnU-Net v2 ({type(error).__name__} {error})",
            "Give a model of nnU-Net v2; those of nnU-Net v1 and of other programs cannot be imported",
        ) from None


def _load(path: Path, label: str) -> Any:
    import torch
    from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

    with safe_globals(_allowed_globals()):
        try:
            require_uncompressed(path)
            foreign = sorted(get_unsafe_globals_in_checkpoint(path))
        except Exception as error:  # a damaged file leads to whatever its bytes say
            require_no_lack_of_memory(path, error)
            raise ModelError(f"{label} cannot be read as a checkpoint ({error})", "Copy it again") from None
        if foreign:
            raise ModelError(
                f"{label} would build {', '.join(foreign[:5])}, which could run code of its own; only tensors and "
                "plain values are read",
                "Save its weights again with nnU-Net",
            )
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except Exception as error:
            require_no_lack_of_memory(path, error)
            raise ModelError(f"{label} cannot be read as a checkpoint ({error})", "Copy it again") from None


def _allowed_globals() -> list[Any]:
    """numpy's numbers: what makes one, their types, and the codec of their bytes."""
    numbers = [np.dtype(name) for name in NUMPY_TYPES]
    functions = [_scalar_function(module) for module in NUMPY_MODULES]
    return [*functions, np.dtype, *(type(each) for each in numbers), *(each.type for each in numbers), codecs.encode]


def _scalar_function(module: str) -> Callable[..., Any]:
    """numpy's function that makes a number, called as checkpoints call it; torch goes by these names."""
    make: Any = np.float64(0).__reduce__()[0]

    def scalar(*arguments: Any) -> Any:
        return make(*arguments)

    scalar.__module__, scalar.__qualname__ = module, "scalar"
    return scalar


def _without_prefixes(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    import torch

    named = {}
    for name, tensor in weights.items():
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(f"{name} is no tensor")
        for prefix in PREFIXES:
            name = name.removeprefix(prefix)
        named[name] = tensor
    return named


def write_checkpoint(
    path: Path, checkpoint: NnunetCheckpoint, fold: int | None, plans: Mapping[str, Any], dataset: Mapping[str, Any]
) -> None:
    """A finished fold of a training that happened elsewhere: its optimiser's state and its curves are not known."""
    import torch

    content = {
        "network_weights": checkpoint.weights,
        "optimizer_state": None,
        "grad_scaler_state": None,
        "logging": {},
        "_best_ema": None,
        "current_epoch": 0,
        "init_args": {
            "plans": dict(plans),
            "configuration": checkpoint.configuration,
            "fold": "all" if fold is None else fold,
            "dataset_json": dict(dataset),
        },
        "trainer_name": checkpoint.trainer,
        # nnU-Net takes None, and no empty tuple, for no mirroring
        "inference_allowed_mirroring_axes": checkpoint.mirror_axes or None,
    }
    torch.save(content, path)

"""A bundle becomes one of MONAI (`autounet export --format monai`), which predicts without autounet.

    OUT/configs/metadata.json, inference.json     what MONAI reads
    OUT/configs/plan.json                         what the scripts read: preparation, networks, classes
    OUT/models/model.pt                           the weights of all folds and configurations
    OUT/scripts/                                  `monai_scripts`, and the files of autounet that they import
    OUT/docs/README.md, model_card.md             how to run it, and what it does in another way
    OUT/LICENSE                                   of the code

Networks are plain code, not programs of TorchScript, which torch no longer develops, or `torch.export`, whose files
later versions need not read.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any, NamedTuple

from .. import __version__
from ..inference.archive import CARD_FILE
from ..inference.bundle import load_bundle
from ..nets import OWN_FAMILIES
from ..schema.bundle import ModelBundle
from ..schema.errors import ModelError, OptionError, unknown_name
from ..schema.labels import targets_of
from ..schema.plan import Configuration, prediction_swap
from ..schema.record import new_folder, write_text
from ..store.weights import load_weights
from .export_nnunet import fold_files
from .monai_configs import INFERENCE, metadata

ELSEWHERE = "Export it as onnx or torch, or predict with autounet"
PACKAGE = Path(__file__).parents[1]
SCRIPTS = Path(__file__).with_name("monai_scripts")
COPIED = (
    "nets/*.py", "ops/masks.py", "ops/orient.py", "ops/resample.py", "ops/tiles.py", "inference/ensembling.py",
    "inference/sliding_window.py", "system_memory.py",
)  # fmt: skip
"""that the scripts import, and nothing beyond"""
NOT_COPIED = frozenset({"transfer.py"})
RECORDS = ("errors", "geometry", "labels", "plan", "plugins", "record", "selection")
"""modules of `schema` that these import, all of which `records` stands for"""
VOLUMES = frozenset({"nifti", "nrrd", "mha"})
PICTURES = frozenset({"png", "jpeg", "bmp", "tiff"})
README = """\
# {name}

{what}. It was trained with autounet {version}, which this bundle does not need: it runs with MONAI, torch, numpy and
SimpleITK, on Python 3.11 or newer. **Research software: it is not a medical device.** The model's card is
`model_card.md`.

    pip install monai torch numpy SimpleITK fire
    python -m monai.bundle run --config_file configs/inference.json --dataset_dir IMAGES --output_dir SEGMENTATIONS

in this folder; from elsewhere with `--bundle_root BUNDLE` and the path of the file. IMAGES holds the images, whose
segmentations SEGMENTATIONS gets under the same names, in their geometry:

{images}

Cases may be given one by one as well, in the order {channels}:

    --datalist '[{{"name": "one", "image": ["a.nii.gz", ...]}}]'

`--mirror false` leaves mirrored views out, as `autounet predict --no-mirror` does, and `--remove_components false`
keeps the components that postprocessing removes. `--device cpu` chooses the device.

All {networks} networks are used. Images are turned, cropped, normalised and resampled, tiles are placed and weighted,
and scores go back to the file as `autounet predict` does it, by the same code (`scripts/`).

## Differences from `autounet predict`

{differences}
"""


class MonaiExport(NamedTuple):
    """What was written."""

    path: Path
    command: str
    differences: tuple[str, ...]
    """from `autounet predict`; sentences"""


def export_monai(
    model: Path, out: Path, configuration: str | None = None, folds: Sequence[int | None] | None = None
) -> MonaiExport:
    """Write the selected configurations (or `configuration`) with their previous stages into the new folder `out`.

    `folds` are those of the configurations that are averaged; previous stages come with all. Raises OptionError for a
    wrong name or an `out` that is there, ModelError naming what such a bundle cannot express.
    """
    bundle, folder = load_bundle(Path(model))
    out = Path(out)
    if configuration and configuration not in bundle.configurations:
        raise unknown_name("--configuration", configuration, bundle.configurations)
    names = (configuration,) if configuration else bundle.selection.chosen
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OptionError(f"{out} is there already", "Give a new folder")
    members = fold_files(bundle, names, folds)
    _require_expressible(bundle, members)
    licence, differences = _licence(), tuple(_differences(bundle))
    temporary = new_folder(out)
    try:
        _write_scripts(temporary / "scripts")
        _write_weights(folder, members, temporary / "models" / "model.pt")
        texts = {
            "configs/inference.json": _json(INFERENCE),
            "configs/plan.json": _json(_plan(bundle, names, members)),
            "configs/metadata.json": _json(metadata(bundle, names[0], _what(bundle))),
            "docs/README.md": _readme(bundle, sum(map(len, members.values())), differences),
            f"docs/{CARD_FILE}": (folder / CARD_FILE).read_text(encoding="utf-8"),
            "LICENSE": licence,
        }
        for name, text in texts.items():
            (temporary / name).parent.mkdir(exist_ok=True)
            write_text(temporary / name, text)
        os.replace(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    command = "python -m monai.bundle run --config_file configs/inference.json --dataset_dir IMAGES --output_dir OUT"
    return MonaiExport(out, f"cd {out} && {command}", differences)


def _require_expressible(bundle: ModelBundle, names: Iterable[str]) -> None:
    own = {family.name for family in OWN_FAMILIES}
    for name in names:
        family = bundle.configurations[name].network.family
        if family not in own:
            raise ModelError(f"{name}: the code of the network family {family} is that of a plug-in", ELSEWHERE)
    if bundle.labels.objects is not None:
        raise ModelError(f"{bundle.name}: objects are told apart, which its scripts do not do", ELSEWHERE)
    if bundle.time_points:
        raise ModelError(f"{bundle.name}: each time point of a file is a case, which its scripts do not do", ELSEWHERE)


def _licence() -> str:
    """Of autounet's code, from where it is installed or lies."""
    try:
        found = distribution("autounet").read_text("licenses/LICENSE")
    except PackageNotFoundError:
        found = None
    file = PACKAGE.parent / "LICENSE"
    if found is None and not file.is_file():
        raise OptionError("autounet is installed without its file LICENSE", "Install it again: pip install autounet")
    return file.read_text(encoding="utf-8") if found is None else found


def _write_scripts(folder: Path) -> None:
    """One package: what is imported from three packages up lies beside the scripts here."""
    files = {path: Path(path.name) for path in SCRIPTS.glob("*.py")}
    for pattern in COPIED:
        files |= {path: path.relative_to(PACKAGE) for path in PACKAGE.glob(pattern) if path.name not in NOT_COPIED}
    texts = {f"schema/{name}.py": "from ..records import *\n" for name in RECORDS}
    texts |= {f"{name}/__init__.py": "" for name in ("schema", "ops", "inference")}
    texts["step.py"] = "from .records import Precision\n\n__all__ = ['Precision']\n"
    for path, place in files.items():
        text = path.read_text(encoding="utf-8").replace("from pydantic import", "from ..schema.record import")
        texts[place.as_posix()] = text.replace("from ...", "from .")
    head = f"# of autounet {__version__}, under the Apache License 2.0 (../LICENSE)\n"
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_text(folder / name, head + text)


def _write_weights(folder: Path, members: Mapping[str, Mapping[int | None, str]], target: Path) -> None:
    """One state dict, named as `predict.Networks` does. It holds tensors alone."""
    import torch

    state = {
        f"networks.{place}.{number}.{key}": value
        for place, own in enumerate(members.values())
        for number, path in enumerate(own.values())
        for key, value in load_weights(folder / path).items()
    }
    target.parent.mkdir()
    torch.save(state, target)


def _plan(bundle: ModelBundle, names: Sequence[str], members: Mapping[str, Mapping[int | None, str]]) -> dict[str, Any]:
    selected, selection = tuple(names) == bundle.selection.chosen, bundle.selection
    return {
        "name": bundle.name,
        "channels": [channel.model_dump(mode="json") for channel in bundle.channels],
        "channel_patterns": list(bundle.channel_patterns.items()),
        "channel_combinations": bundle.channel_combinations,
        "classes": [label.name for label in bundle.labels.classes],
        "values": bundle.labels.values,
        "chosen": names,
        "weights": selection.weights if selected else (),
        "postprocessing": [step.model_dump(mode="json") for step in selection.postprocessing] if selected else [],
        "configurations": {
            name: _planned(bundle, bundle.configurations[name], list(own)) for name, own in members.items()
        },
    }


def _planned(bundle: ModelBundle, own: Configuration, folds: Sequence[int | None]) -> dict[str, Any]:
    swap = prediction_swap(own, bundle.labels)
    kept = {
        "preprocess", "patch_size", "batch_size", "network", "targets", "precision", "channels_last", "swap_axis",
        "previous_stage", "inference",
    }  # fmt: skip
    outputs = targets_of(bundle.labels, own.targets)
    return {
        **own.model_dump(mode="json", include=kept),
        "swap": swap._asdict() if swap else None,
        "outputs": [each.name for each in outputs],
        "paints": [each.paints for each in outputs],
        "folds": folds,
    }


def _what(bundle: ModelBundle) -> str:
    classes = ", ".join(label.name for label in bundle.labels.foreground)
    return f"Segments {classes} in images of {', '.join(channel.name for channel in bundle.channels)}"


def _differences(bundle: ModelBundle) -> Iterable[str]:
    yield "An image that is unlike the training in spacing, modality or intensities is predicted without a warning."
    if bundle.file_kind not in VOLUMES | PICTURES:
        kind = bundle.suffix or "DICOM"
        yield f"The model was trained on {kind}, which these scripts do not read: convert images, to NIfTI or PNG."
    if bundle.file_kind == "tiff":
        yield "Of TIFF single pictures are read; convert stacks to NIfTI, with the size of their voxels."
    if bundle.file_kind in PICTURES:
        yield "Pictures are read by SimpleITK, which does not turn those that a camera marked as turned."
    yield (
        "Splines for resampling come from a system of equations in place of scipy's filter, and sums of scores go in "
        "another order: where two classes are all but equal, voxels may differ."
    )


def _readme(bundle: ModelBundle, networks: int, differences: Iterable[str]) -> str:
    names = [channel.name for channel in bundle.channels]
    if len(bundle.channel_patterns) > 1:
        images = "\n".join(f"- `{pattern}` for {name}" for name, pattern in bundle.channel_patterns.items())
        images += "\n\nthose of a case in one folder, or with the rest of their names alike."
    elif len(names) > 1:
        images = "\n".join(f"- `<case>_{place:04d}.<ending>` for {name}" for place, name in enumerate(names))
        images += "\n\nor one file with all of these channels."
    else:
        images = f"- `<case>.<ending>`: {names[0]}"
    return README.format(
        name=bundle.name,
        what=_what(bundle),
        version=__version__,
        images=f"{images}\n\nNIfTI, NRRD and MHA are read, and PNG, JPEG, BMP and TIFF of pictures.",
        channels=", ".join(names),
        networks=networks,
        differences="\n".join(f"- {text}" for text in differences),
    )


def _json(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=4, ensure_ascii=False, allow_nan=False) + "\n"

"""The networks of a bundle for programs without autounet: as ONNX or by `torch.export`, and all else as JSON.

    OUT/preprocessing.json                    what an image goes through before and after, see `ExportedModel`
    OUT/<configuration>/fold_<k>.onnx         or .pt2; image (B, C, *P) -> logits (B, K, *T), float32

ONNX files hold the text of the JSON, too, as metadata.

Batch and sizes are open; a size must be one that the network takes (`ExportedConfiguration.sizes`). Every file is run
once with other sizes than it was made with, and compared with the network in torch. `FIXED_SIZES` take the patch alone.
"""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..inference.bundle import build_models, load_bundle
from ..nets import FAMILIES
from ..schema.bundle import ModelBundle
from ..schema.errors import ModelError, OptionError, unknown_name
from ..schema.labels import targets_of
from ..schema.plan import Configuration, NetworkSpec, prediction_swap, with_previous_stages
from ..schema.record import new_folder
from ..schema.run import fold_name
from .exported_model import (
    RECORD,
    ExportedConfiguration,
    ExportedModel,
    ExportedNetwork,
    ExportedOutput,
    ExportedSwap,
    SizeRule,
    describe_onnx,
    require_onnx,
    run_onnx,
    write_onnx,
)

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.export import ExportedProgram

REPORT = "Export in another format, and report this network"
TOLERANCE = 1e-3
"""largest difference from torch that counts as rounding, as a fraction of the largest logit"""
LARGEST_SIZE = 2**16
"""voxels along an axis, and images in a batch"""
LEAST_SIZE = 8
"""voxels along an axis of the images that files are made and checked with; at least twice the strides' product"""

FIXED_SIZES = frozenset({"swin"})
"""families whose windows are cut by the size of the image, so that another size is another program; tiles have one"""


class ExportFormat(NamedTuple):
    """One kind of file."""

    suffix: str
    require: Callable[[], None]
    """raises OptionError when something is not installed"""
    write: Callable[[ExportedProgram, Path], None]
    run: Callable[[Path, np.ndarray], np.ndarray]
    describe: Callable[[Path, str], None] | None = None
    """puts the record into the file; None: it lies beside it alone"""


def _save_program(program: ExportedProgram, path: Path) -> None:
    import torch

    torch.export.save(program, path)


def _run_program(path: Path, image: np.ndarray) -> np.ndarray:
    import torch

    with torch.inference_mode():
        return torch.export.load(path).module()(torch.from_numpy(image)).numpy()


FORMS = {
    "onnx": ExportFormat(".onnx", require_onnx, write_onnx, run_onnx, describe_onnx),
    "torch": ExportFormat(".pt2", lambda: None, _save_program, _run_program),
}


def export_model(
    model: Path,
    out: Path,
    form: str,
    configuration: str | None = None,
    folds: Sequence[int | None] | None = None,
) -> ExportedModel:
    """Write the networks that the bundle predicts with into the new folder `out`; the record says how they agree.

    `configuration` is one instead of those selected; previous stages of a cascade come with it, with all their folds.
    Raises OptionError for an unknown form, a missing extra or a folder with something in it, and ModelError for a
    network that torch cannot export, with torch's own words, or one that gives other logits afterwards.
    """
    if form not in FORMS:
        raise unknown_name("--format", form, [*FORMS, "bundle"])
    FORMS[form].require()
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OptionError(f"{out} is not empty", "Give a new folder")
    bundle, folder = load_bundle(Path(model))
    names = (configuration,) if configuration else bundle.selection.chosen
    if configuration and configuration not in bundle.configurations:
        raise unknown_name("--configuration", configuration, bundle.configurations)
    scaling = bundle.selection.calibration
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = new_folder(out)
    try:
        exported = ExportedModel(
            name=bundle.name,
            form=form,
            channels=bundle.channels,
            labels=bundle.labels,
            chosen=names,
            weights=bundle.selection.weights if names == bundle.selection.chosen else (),
            channel_combinations=bundle.channel_combinations,
            postprocessing=bundle.selection.postprocessing if names == bundle.selection.chosen else (),
            temperature=scaling.temperature if scaling and names == bundle.selection.chosen else 1.0,
            configurations={
                name: _export_configuration(bundle, folder, name, folds if name in names else None, form, temporary)
                for name in with_previous_stages(names, bundle.configurations)
            },
            versions=bundle.versions,
        )
        _save_record(exported, temporary)
        os.replace(temporary, out)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return exported


def _save_record(exported: ExportedModel, folder: Path) -> None:
    """Beside the networks, and where the form allows it in them."""
    exported.save(folder / RECORD)
    if describe := FORMS[exported.form].describe:
        for network in (each for found in exported.configurations.values() for each in found.networks):
            describe(folder / network.path, (folder / RECORD).read_text(encoding="utf-8"))


def _export_configuration(
    bundle: ModelBundle, folder: Path, name: str, folds: Sequence[int | None] | None, form: str, out: Path
) -> ExportedConfiguration:
    """Memory order is a matter of speed in torch, so the networks are exported in the default one."""
    configuration = bundle.configurations[name].model_copy(update={"channels_last": False})
    plain = bundle.model_copy(update={"configurations": {**bundle.configurations, name: configuration}})
    packed = [member.fold for member in bundle.members if member.configuration == name]
    (out / name).mkdir()
    networks = []
    for fold in packed if folds is None else folds:
        (network,) = build_models(plain, folder, name, [fold], "cpu")
        path = f"{name}/{fold_name(fold)}{FORMS[form].suffix}"
        difference, largest = _export_network(
            network, configuration, FORMS[form], out / path, f"{name}, {fold_name(fold)}"
        )
        networks.append(ExportedNetwork(path=path, fold=fold, largest_difference=difference, largest_logit=largest))
    labels, swap = bundle.labels, prediction_swap(configuration, bundle.labels)
    return ExportedConfiguration(
        preprocess=configuration.preprocess,
        patch_size=configuration.patch_size,
        sizes=_size_rules(configuration.network, configuration.patch_size),
        inference=configuration.inference,
        targets=configuration.targets,
        outputs=tuple(
            ExportedOutput(
                name=each.name, values=tuple(labels.values[k] for k in each.members), paints=labels.values[each.paints]
            )
            for each in targets_of(labels, configuration.targets)
        ),
        swap=ExportedSwap(**swap._asdict()) if swap else None,
        previous_stage=configuration.previous_stage,
        networks=tuple(networks),
    )


def _export_network(
    network: nn.Module, configuration: Configuration, form: ExportFormat, path: Path, label: str
) -> tuple[float, float]:
    """The largest difference from torch, and the largest logit, over images of two batches and, if open, sizes."""
    import torch

    spec = configuration.network
    rules = _size_rules(spec, configuration.patch_size)
    generator = torch.Generator().manual_seed(0)
    small = [rule.least for rule in rules]
    other = [rule.most or rule.least + (axis + 1) * rule.step for axis, rule in enumerate(rules)]
    images = [
        torch.randn(batch, spec.in_channels, *size, generator=generator) for batch, size in ((2, small), (1, other))
    ]
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's exporters warn of torch's own future
            program = torch.export.export(network, (images[0],), dynamic_shapes=(_open_sizes(rules),))
            form.write(program, path)
    except Exception as error:  # torch's exporters raise what the network leads to
        raise ModelError(
            f"{label}: torch cannot export a network of the family {spec.family} ({error})",
            "Export in another format, or predict with autounet",
        ) from None
    return _compared(network, images, form, path, label)


def _compared(
    network: nn.Module, images: Sequence[Tensor], form: ExportFormat, path: Path, label: str
) -> tuple[float, float]:
    import torch

    difference = largest = 0.0
    for image in images:
        with torch.inference_mode():
            expected = network(image).numpy()
        result = form.run(path, image.numpy())
        if result.shape != expected.shape:
            raise ModelError(
                f"{label}: the exported network gives the shape {result.shape}, not {expected.shape}", REPORT
            )
        # these keep NaN, of which no comparison holds
        difference = float(np.maximum(difference, np.abs(result - expected).max()))
        largest = float(np.maximum(largest, np.abs(expected).max()))
    if not difference <= TOLERANCE * largest:
        raise ModelError(
            f"{label}: the exported network's logits differ from torch's by {difference:.2g}, and the largest is "
            f"{largest:.2g}",
            REPORT,
        )
    return difference, largest


def _size_rules(spec: NetworkSpec, patch: Sequence[int]) -> tuple[SizeRule, ...]:
    """Valid sizes lie one product of strides apart; where borders are lost they need not be multiples of it."""
    wanted = [max(LEAST_SIZE, 2 * step) for step in spec.divisor]
    fixed = spec.family in FIXED_SIZES
    least = tuple(patch) if fixed else FAMILIES[spec.family].valid_size(spec, wanted)
    return tuple(
        SizeRule(step=step, rest=size % step, least=size, most=size if fixed else None)
        for step, size in zip(spec.divisor, least, strict=True)
    )


def _open_sizes(rules: Sequence[SizeRule]) -> dict[int, Any]:
    """For `torch.export`: the batch and each spatial size that is not fixed as a symbol."""
    from torch.export import Dim

    sizes: dict[int, Any] = {0: Dim("batch", min=1, max=LARGEST_SIZE)}
    for axis, rule in enumerate(rules):
        if rule.most is not None:
            continue
        symbol: Any = Dim(f"size_{axis}", min=1, max=LARGEST_SIZE // rule.step)
        size = rule.step * symbol if rule.step > 1 else symbol
        sizes[2 + axis] = size + rule.rest if rule.rest else size
    return sizes

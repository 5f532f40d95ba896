"""Exported networks give torch's logits for any batch and any size that they take, and say beside them what surrounds
them; what cannot be exported is refused."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from doc_pages import ROOT, Page
from nnunet_exports import SCHEMES, packed
from nnunet_exports import configuration as configuration_of_ours
from nnunet_folders import configuration, network, plans, trained

from autounet.api import load
from autounet.inference.bundle import build_models, load_bundle
from autounet.interop import export_networks as exporting
from autounet.interop.export_networks import ExportedModel, export_model
from autounet.interop.exported_model import NEEDED, run_onnx
from autounet.interop.import_nnunet import import_model
from autounet.nets import FAMILIES
from autounet.schema.errors import ModelError, OptionError, UsageError
from autounet.schema.plan import PreprocessSpec

INSTALLED = all(find_spec(name) for name in NEEDED)
NEEDS_ONNX = pytest.mark.skipif(not INSTALLED, reason="the extra onnx is not installed")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of two folds in 3-D."""
    folder = tmp_path_factory.mktemp("export")
    import_model(trained(folder / "results"), folder / "model")
    return folder / "model"


def logits(model: Path, fold: int, image: np.ndarray) -> np.ndarray:
    bundle, folder = load_bundle(model)
    (built,) = build_models(bundle, folder, "3d_fullres", [fold], "cpu")
    with torch.inference_mode():
        return built(torch.from_numpy(image)).numpy()


@NEEDS_ONNX
def test_onnx_takes_any_batch_and_size(model: Path, tmp_path: Path) -> None:
    export_model(model, tmp_path / "out", "onnx", folds=[1])
    found = ExportedModel.load(tmp_path / "out" / "preprocessing.json")
    (written,) = found.configurations["3d_fullres"].networks
    assert (written.path, written.fold) == ("3d_fullres/fold_1.onnx", 1)
    assert written.largest_difference < 1e-4 * written.largest_logit
    image = np.random.default_rng(0).normal(size=(3, 1, 14, 8, 18)).astype(np.float32)
    expected = logits(model, 1, image)
    np.testing.assert_allclose(run_onnx(tmp_path / "out" / written.path, image), expected, atol=1e-4)


def test_a_torch_program_takes_any_batch_and_size(model: Path, tmp_path: Path) -> None:
    exported = export_model(model, tmp_path / "out", "torch")
    bundle = load_bundle(model)[0]
    found = exported.configurations["3d_fullres"]
    assert [each.fold for each in found.networks] == [0, 1]
    assert found.preprocess == bundle.configurations["3d_fullres"].preprocess
    assert found.swap is None
    values = bundle.labels.values
    assert [(each.values, each.paints) for each in found.outputs] == [((value,), value) for value in values]
    assert (exported.temperature, exported.postprocessing) == (1.0, bundle.selection.postprocessing)
    assert (exported.channels, exported.labels, exported.chosen) == (bundle.channels, bundle.labels, ("3d_fullres",))
    image = np.random.default_rng(0).normal(size=(1, 1, 8, 14, 10)).astype(np.float32)
    program = torch.export.load(tmp_path / "out" / found.networks[0].path)
    np.testing.assert_allclose(program.module()(torch.from_numpy(image)), logits(model, 0, image), atol=1e-5)


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_the_sizes_that_are_told_are_those_that_a_family_takes(name: str) -> None:
    family = FAMILIES[name]
    dims = 2 if 2 in family.dims else 3
    strides = ((1,) * dims, (2,) * dims, (1,) * (dims - 1) + (2,))
    spec = family.propose(dims, 1, 3, strides, ((3,) * dims,) * 3, base_features=4)
    rules = exporting._size_rules(spec, family.valid_size(spec, (24,) * dims))
    for more in range(1 if name in exporting.FIXED_SIZES else 4):
        size = tuple(rule.least + more * rule.step for rule in rules)
        assert family.valid_size(spec, size) == size
        assert all(length % rule.step == rule.rest for length, rule in zip(size, rules, strict=True))


@pytest.mark.parametrize("form", ["torch", pytest.param("onnx", marks=[NEEDS_ONNX, pytest.mark.slow])])
def test_windows_are_exported_for_the_patch_and_any_batch(model: Path, tmp_path: Path, form: str) -> None:
    """The check runs the file with two images and with one."""
    spec = FAMILIES["swin"].propose(2, 1, 3, ((1, 1), (2, 2)), ((3, 3),) * 2, base_features=8)
    planned = load_bundle(model)[0].configurations["3d_fullres"]
    planned = planned.model_copy(update={"network": spec, "patch_size": (24, 32)})
    built = FAMILIES["swin"].build(spec).eval()
    path = tmp_path / f"swin{exporting.FORMS[form].suffix}"
    difference, largest = exporting._export_network(built, planned, exporting.FORMS[form], path, "swin")
    assert 0 <= difference < 1e-4 * largest
    assert [(rule.least, rule.most) for rule in exporting._size_rules(spec, (24, 32))] == [(24, 24), (32, 32)]


def test_a_cascade_is_exported_with_its_first_stage(tmp_path: Path) -> None:
    specs = {"3d_lowres": network(), "3d_cascade_fullres": network(inputs=3)}
    theirs = {name: configuration(spec) for name, spec in specs.items()}
    theirs["3d_cascade_fullres"]["previous_stage"] = "3d_lowres"
    for name, spec in specs.items():
        trained(tmp_path / "results", name, spec, plans(theirs), folds=[0])
    import_model(tmp_path / "results", tmp_path / "model", ["3d_cascade_fullres"])
    exported = export_model(tmp_path / "model", tmp_path / "out", "torch")
    assert list(exported.configurations) == ["3d_lowres", "3d_cascade_fullres"]
    assert exported.configurations["3d_cascade_fullres"].previous_stage == "3d_lowres"
    assert exported.chosen == ("3d_cascade_fullres",)


class Branching(torch.nn.Module):
    """What it computes depends on the values it sees, which no exported program can follow."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image * 2 if image.sum() > 0 else image


def test_what_torch_cannot_export_is_refused_in_its_own_words(model: Path, tmp_path: Path) -> None:
    planned = load_bundle(model)[0].configurations["3d_fullres"]
    with pytest.raises(ModelError, match=r"fold 3: torch cannot export .* family plain \(.*data-dependent"):
        exporting._export_network(Branching(), planned, exporting.FORMS["torch"], tmp_path / "x.pt2", "fold 3")


def test_a_network_that_changed_on_the_way_is_refused(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = exporting.FORMS["torch"]
    exported: list[torch.nn.Module] = []
    monkeypatch.setattr(torch.export, "export", lambda network, images, dynamic_shapes: exported.append(network))
    for wrong, match in ((lambda x: x + 0.1, "differ from torch's by 0.1"), (lambda x: x * np.nan, "by nan"),
                         (lambda x: x[:, :, 1:], "gives the shape")):  # fmt: skip
        form = honest._replace(
            write=lambda program, path: path.touch(),
            run=lambda path, image, wrong=wrong: wrong(exported[-1](torch.from_numpy(image)).numpy()),
        )
        monkeypatch.setitem(exporting.FORMS, "torch", form)
        with pytest.raises(ModelError, match=match):
            export_model(model, tmp_path / "out", "torch", folds=[0])
        assert list(tmp_path.iterdir()) == []


def test_options_that_do_not_fit_are_refused(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OptionError, match=r"--format tensorrt is unknown. Choose one of onnx, torch, bundle"):
        export_model(model, tmp_path / "out", "tensorrt")
    with pytest.raises(UsageError, match=r"--configuration 2d is unknown. The only one is 3d_fullres"):
        export_model(model, tmp_path / "out", "torch", "2d")
    with pytest.raises(ModelError, match="no fold 7"):
        export_model(model, tmp_path / "out", "torch", folds=[7])
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(OptionError, match="not empty"):
        export_model(model, tmp_path, "torch")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(OptionError, match=r"onnx, onnxscript, onnxruntime.*autounet\[onnx\]"):
        export_model(model, tmp_path / "out", "onnx")


@NEEDS_ONNX
def test_the_program_in_the_documentation_predicts_with_onnxruntime_and_numpy_alone(tmp_path: Path) -> None:
    """Without mirrored views and on the model's own grid there is no difference but rounding; several tiles, a crop."""
    spec = PreprocessSpec(spacing=(2.0, 1.0, 1.5), normalisation=SCHEMES, orientation="ras")
    own = configuration_of_ours(3, preprocess=dict(spec), inference={"mirror_axes": ()}, mirror_axes=())
    model = packed(tmp_path, {"3d_fullres": own})
    exported = export_model(model, tmp_path / "onnx", "onnx")
    files = [str(tmp_path / "onnx" / each.path) for each in exported.configurations["3d_fullres"].networks]
    (block,) = Page(ROOT / "docs" / "exchange.md").blocks("python")
    assert len([line for line in block.splitlines() if line.strip()]) <= 30
    names: dict[str, Any] = {}
    exec(compile(block, "exchange.md", "exec"), names)
    z, y, x = np.indices((11, 26, 35)) / 4
    image = np.stack([np.sin(z + y) * np.cos(x), np.sin(x + 2) + np.cos(z - y)]).astype(np.float32) * 40 + 20
    image[:, :, :3] = 0
    ras = (-1, 0, 0, 0, -1, 0, 0, 0, 1)
    for spacing, least in (((2.0, 1.0, 1.5), 0.9999), ((2.6, 1.1, 1.5), 0.8)):
        expected = load(model, device="cpu").predict(image, spacing, direction=ras)
        assert len(np.unique(expected)) > 1
        assert (names["segment"](files, image, spacing) == expected).mean() >= least

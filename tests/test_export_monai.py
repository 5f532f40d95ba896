"""A bundle of MONAI predicts what `autounet predict` does, run by MONAI itself, without autounet and what it needs."""

from __future__ import annotations

import ast
import json
import os
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nnunet_exports import CLASSES, REGIONS, configuration, packed

from autounet.api import load
from autounet.inference.bundle import build_models, load_bundle
from autounet.interop.export_monai import MonaiExport, export_monai
from autounet.interop.monai_configs import SCHEMA
from autounet.interop.monai_scripts import grids, images, records
from autounet.nets import FAMILIES
from autounet.ops.masks import apply_steps
from autounet.ops.masks import filled_mask as filled
from autounet.ops.resample import cubic_operator, resample_labels
from autounet.schema.dataset import Channel
from autounet.schema.errors import ModelError, OptionError
from autounet.schema.labels import labels_of_objects
from autounet.schema.plan import Configuration, PreprocessSpec
from autounet.schema.selection import PostprocessStep

ABSENT = ("autounet", "pydantic", "scipy", "scipy.ndimage", "scipy.sparse", "cc3d", "skimage", "nibabel", "safetensors")
"""what a bundle must not need"""
ALLOWED = {"monai", "torch", "numpy", "SimpleITK"}
TURNED = (0.0, 1, 0, -1, 0, 0, 0, 0, 1)
WIDTHS = {"network": {"features": (4, 6, 8)}}
"""of stages whose random weights find every class"""
COARSE = {"preprocess": {"spacing": (4.0, 1.5, 2.0)}, **WIDTHS}
PROBABILITIES = {"average": "probabilities", "mirror_axes": (2,)}
FEW = {"mirror_axes": (0,)}
KINDS: dict[str, dict[str, Any]] = {
    "3d, probabilities": {"3d_fullres": configuration(inference=PROBABILITIES)},
    "regions": {"3d_fullres": configuration(labels=REGIONS, inference=PROBABILITIES)},
    "2d and 3d, transposed": {
        "2d": configuration(2, preprocess={"transpose": (1, 2, 0)}, inference=FEW),
        "3d_fullres": configuration(preprocess={"orientation": "canonical"}, inference=FEW),
    },
    "cascade by scores": {
        "3d_lowres": configuration(**COARSE, inference=FEW),
        "3d_cascade_fullres": configuration(previous="3d_lowres", inference={"handover": "grid", **FEW}, **WIDTHS),
    },
    "cascade by labels": {
        "3d_lowres": configuration(**COARSE, inference=FEW),
        "3d_cascade_fullres": configuration(previous="3d_lowres", inference={"handover": "file", **FEW}, **WIDTHS),
    },
}


def write_images(folder: Path, count: int) -> dict[str, list[Path]]:
    """Cases of two channels with a hole and a border of 0: a turned stack of thick slices, and one as it is."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    found: dict[str, list[Path]] = {}
    grids_ = ((TURNED, (0.8, 1.3, 7.9)), (np.eye(3).ravel(), (1.1, 0.9, 2.0)))
    for case, (direction, spacing) in enumerate(grids_[:count]):
        for channel in range(2):
            z, y, x = np.indices((9 + case, 26, 29)) / 3
            array = np.sin(z + y + channel) * np.cos(x - case) * 40 + 20 + generator.normal(size=z.shape) * 9
            array[:, :4], array[3:5, 10:14, 10:14] = 0, 0
            image = sitk.GetImageFromArray(array.astype(np.float32))
            image.SetSpacing(spacing)
            image.SetOrigin((1, 2, 3))
            image.SetDirection(tuple(direction))
            found.setdefault(f"case{case}", []).append(folder / f"case{case}_{channel:04d}.nii.gz")
            sitk.WriteImage(image, str(found[f"case{case}"][-1]))
    return found


def run_bundle(bundle: Path, images_: Path, out: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    """`python -m monai.bundle run`, as what it calls, in this process."""
    monai_bundle = pytest.importorskip("monai.bundle")
    for name in [name for name in sys.modules if name.partition(".")[0] == "scripts"]:
        monkeypatch.delitem(sys.modules, name)
    with monkeypatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # monai's own, of code in configurations
        patch.setattr(sys, "path", [*sys.path])
        for name in ABSENT:
            patch.setitem(sys.modules, name, None)
        monai_bundle.run(
            config_file=str(bundle / "configs" / "inference.json"),
            bundle_root=str(bundle),
            dataset_dir=str(images_),
            output_dir=str(out),
            device="cpu",
            **changes,
        )
    for name in [name for name in sys.modules if name.partition(".")[0] == "scripts"]:
        del sys.modules[name]


@pytest.mark.parametrize("kind", KINDS)
def test_monai_predicts_the_same(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own: Mapping[str, Configuration] = KINDS[kind]
    labels = REGIONS if kind == "regions" else CLASSES
    chosen = ["3d_cascade_fullres"] if "cascade" in kind else None
    weights = {"weights": (0.7, 0.3)} if len(own) == 2 and chosen is None else {}
    model = packed(tmp_path, own, chosen, labels, selection=weights)
    cases = write_images(tmp_path / "images", 2 if kind.startswith("3d") else 1)
    written = export_monai(model, tmp_path / "bundle")
    run_bundle(tmp_path / "bundle", tmp_path / "images", tmp_path / "out", monkeypatch)
    assert [path.name for path in sorted((tmp_path / "out").iterdir())] == [f"{name}.nii.gz" for name in cases]
    predictor, seen = load(model, device="cpu"), set()
    for name, files in cases.items():
        expected = predictor.predict(files, force=True)
        result, source = sitk.ReadImage(str(tmp_path / "out" / f"{name}.nii.gz")), sitk.ReadImage(str(files[0]))
        for what in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection"):
            np.testing.assert_allclose(getattr(result, what)(), getattr(source, what)(), atol=1e-6)
        assert (sitk.GetArrayFromImage(result) == expected).mean() > 0.999
        seen |= set(np.unique(expected))
    assert len(seen) > 1
    assert written.differences


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, MonaiExport]:
    folder = tmp_path_factory.mktemp("monai")
    hostile = tuple(Channel(name=name) for name in ("$exit()", "@run"))
    model = packed(folder, {"3d_fullres": configuration()}, channels=hostile)
    return model, folder / "bundle", export_monai(model, folder / "bundle")


def test_scripts_import_nothing_else(exported: tuple[Path, Path, MonaiExport]) -> None:
    """Functions that no bundle calls may import what is not there."""
    seen = set()
    for path in (exported[1] / "scripts").rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        inside = {id(each) for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) for each in ast.walk(node)}
        checks = {id(each) for node in ast.walk(tree) if isinstance(node, ast.If) for each in ast.walk(node)}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.level:
                folder = path.parents[node.level - 1].joinpath(*(node.module or "").split("."))
                assert folder.is_dir() or folder.with_suffix(".py").is_file(), (path, node.module)
            elif isinstance(node, ast.Import | ast.ImportFrom) and not {id(node)} & (inside | checks):
                names = [each.name for each in node.names] if isinstance(node, ast.Import) else [str(node.module)]
                seen |= {name.partition(".")[0] for name in names}
    assert seen - set(sys.stdlib_module_names) == ALLOWED


def test_metadata_has_what_monai_asks_for(exported: tuple[Path, Path, MonaiExport]) -> None:
    """The keys of MONAI's specification of bundles; its schema is read from the network."""
    content = json.loads((exported[1] / "configs" / "metadata.json").read_text())
    for key in ("version", "changelog", "monai_version", "pytorch_version", "numpy_version", "task", "description",
                "required_packages_version", "authors", "copyright", "network_data_format"):  # fmt: skip
        assert content[key], key
    assert content["schema"] == SCHEMA
    formats = content["network_data_format"]
    for kind, name, count in (("inputs", "image", 2), ("outputs", "pred", 3)):
        found = formats[kind][name]
        assert found["num_channels"] == len(found["channel_def"]) == count
        assert found["spatial_shape"] == [8, 16, 20]
        assert {"type", "format", "dtype", "value_range", "is_patch_data"} < set(found)
    assert (exported[1] / "LICENSE").read_text().lstrip().startswith("Apache License")
    assert "monai.bundle run" in (exported[1] / "docs" / "README.md").read_text()


def test_no_name_of_the_model_is_run_by_monai(exported: tuple[Path, Path, MonaiExport]) -> None:
    """MONAI runs texts that begin with $, and replaces what begins with @ or %."""

    def texts(value: Any) -> list[str]:
        if isinstance(value, dict):
            return [text for pair in value.items() for each in pair for text in texts(each)]
        return [text for each in value for text in texts(each)] if isinstance(value, list) else [str(value)]

    found = texts(json.loads((exported[1] / "configs" / "metadata.json").read_text()))
    assert "_exit()" in found
    assert not any(sign in text for text in found for sign in "$@%")
    assert "exit" not in (exported[1] / "configs" / "inference.json").read_text()


def test_the_networks_are_the_models(exported: tuple[Path, Path, MonaiExport], tmp_path: Path) -> None:
    """`network_def` with `models/model.pt`, which holds tensors alone."""
    from autounet.interop.monai_scripts import predict

    model, bundle, _ = exported
    plan = records.read_plan(str(bundle), mirror="False")
    assert plan.configurations["3d_fullres"].inference.mirror_axes == ()
    networks = predict.load_networks(predict.Networks(plan), str(bundle / "models" / "model.pt"), torch.device("cpu"))
    image = torch.randn(2, 2, 8, 16, 20)
    found, folder = load_bundle(model)
    with torch.inference_mode():
        expected = torch.stack([each(image) for each in build_models(found, folder, "3d_fullres", None, "cpu")])
        torch.testing.assert_close(networks(image), expected.mean(0))


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_every_family_is_built_from_a_plan(name: str) -> None:
    """By the stand-ins of the records: the same tensors, and the same sizes."""
    family = FAMILIES[name]
    dims = 2 if 2 in family.dims else 3
    strides = ((1,) * dims, (2,) * dims, (2,) * dims)
    spec = family.propose(dims, 1, 3, strides, ((3,) * dims,) * 3, base_features=4)
    frozen = records._frozen({**spec.model_dump(mode="json"), "options": None})
    own = records.NetworkSpec(**{**vars(frozen), "options": spec.options})
    assert own.divisor == spec.divisor
    options = family.options(**spec.options)
    with torch.device("meta"):
        built, expected = family.network(own, options), family.build(spec)  # type: ignore[arg-type]
    assert {key: each.shape for key, each in built.state_dict().items()} == {
        key: each.shape for key, each in expected.state_dict().items()
    }


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(1, 60))
def test_splines_are_those_of_scipy(old: int, new: int) -> None:
    np.testing.assert_allclose(grids.cubic_matrix(old, new), cubic_operator(old, new).toarray(), atol=3e-6)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([(1, 9, 8), (5, 6, 7)]))
def test_holes_components_and_labels_are_ours(seed: int, shape: tuple[int, int, int]) -> None:
    generator = np.random.default_rng(seed)
    values = generator.integers(0, 3, shape)
    np.testing.assert_array_equal(grids.filled_mask(values[None]), filled(values[None]))
    steps = [
        PostprocessStep(name="a", values=(1, 2), keep="minimum", minimum=4.0),
        PostprocessStep(name="b", values=(1,), keep="minimum", minimum=2.5),
    ]
    expected = apply_steps(values, (2.0, 1.0, 0.5), steps)
    np.testing.assert_array_equal(grids.remove_components(values, (2.0, 1.0, 0.5), steps), expected)
    spec = PreprocessSpec(spacing=(2.0, 1.5, 0.7), normalisation=())
    new = tuple(generator.integers(1, 12, 3).tolist())
    grid = grids.Grid(np.zeros((1, *new), np.float32), spec, (0, 1, 2), (False,) * 3, (), shape, (2.0, 1.0, 1.0),
                      (2.0, 1.5, 0.7))  # fmt: skip
    np.testing.assert_array_equal(grids._resampled_labels(values, grid), resample_labels(values.astype(np.int8), new))


def test_files_become_cases(tmp_path: Path) -> None:
    """By numbers, by patterns in folders or in names; a channel that may be missing is None."""

    def plan(channels: int, patterns: Mapping[str, str] | None = None) -> Any:
        content = {"channels": [{"name": f"c{n}"} for n in range(channels)],
                   "channel_patterns": [list(each) for each in (patterns or {}).items()]}  # fmt: skip
        return records._frozen(content)

    def cases(folder: str, files: str, own: Any) -> dict[str, list[str | None]]:
        for name in files.split():
            path = tmp_path / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        found = images.find_cases(str(tmp_path / folder), own)
        return {
            each["name"]: [path and os.path.relpath(path, tmp_path / folder) for path in each["image"]]
            for each in found
        }  # fmt: skip

    assert cases("plain", "b.nii.gz a_0007.png notes.txt .hidden.nii", plan(1)) == {
        "b": ["b.nii.gz"], "a_0007": ["a_0007.png"]
    }  # fmt: skip
    assert cases("one", "a_0000.mha b_0000.mha", plan(1)) == {"a": ["a_0000.mha"], "b": ["b_0000.mha"]}
    assert cases("two", "a_0000.nii a_0001.nii b_0001.nii", plan(2)) == {
        "a": ["a_0000.nii", "a_0001.nii"], "b": [None, "b_0001.nii"]
    }  # fmt: skip
    named = {"T1": "*_t1.nii.gz", "T2": "*_t2.nii.gz"}
    assert cases("folders", "p1/x_t1.nii.gz p1/x_t2.nii.gz p2/y_t1.nii.gz p2/y_t2.nii.gz", plan(2, named)) == {
        "p1": ["p1/x_t1.nii.gz", "p1/x_t2.nii.gz"], "p2": ["p2/y_t1.nii.gz", "p2/y_t2.nii.gz"]
    }  # fmt: skip
    assert cases("flat", "x_t1.nii.gz x_t2.nii.gz y_t2.nii.gz", plan(2, named)) == {
        "x": ["x_t1.nii.gz", "x_t2.nii.gz"], "y": [None, "y_t2.nii.gz"]
    }  # fmt: skip
    with pytest.raises(ValueError, match="no image for the channels c0"):
        cases("empty", "notes.txt", plan(1))
    with pytest.raises(ValueError, match=r"a_0002\.nii is none of 2 channels"):
        cases("beyond", "a_0000.nii a_0001.nii a_0002.nii", plan(2))


def test_a_picture_keeps_its_plane_and_a_case_that_does_not_fit_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others are predicted."""
    spec = PreprocessSpec(spacing=(None, 1.0, 1.0), normalisation=configuration(2).preprocess.normalisation)
    own = configuration(2, preprocess=dict(spec))
    model = packed(tmp_path, {"2d": own}, file_kind="png", suffix=".png", image_pattern="*.png")
    export_monai(model, tmp_path / "bundle", folds=[1])
    (tmp_path / "images").mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (2, 25, 31), np.uint8)
    pair = [tmp_path / "images" / f"a_{place:04d}.png" for place in range(2)]
    for path, array in zip(pair, pixels, strict=True):
        sitk.WriteImage(sitk.GetImageFromArray(array), str(path))
    sitk.WriteImage(sitk.GetImageFromArray(pixels[0]), str(tmp_path / "images" / "b_0001.png"))
    with pytest.raises(RuntimeError) as caught:
        run_bundle(tmp_path / "bundle", tmp_path / "images", tmp_path / "out", monkeypatch)
    assert "1 of 2 cases were not predicted: b: b has no file for CT" in str(caught.value.__cause__)
    expected = load(model, device="cpu", folds=[1]).predict(pair, force=True)
    result = sitk.ReadImage(str(tmp_path / "out" / "a.png"))
    assert result.GetDimension() == 2
    np.testing.assert_array_equal(sitk.GetArrayFromImage(result)[None], expected)


def test_what_cannot_be_expressed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = labels_of_objects("cell")
    model = packed(tmp_path, {"2d": configuration(2, labels=labels)}, labels=labels)
    with pytest.raises(ModelError, match="objects are told apart"):
        export_monai(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    model = packed(tmp_path / "time", {"2d": configuration(2)}, time_points=True)
    with pytest.raises(ModelError, match="each time point"):
        export_monai(model, tmp_path / "out")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").touch()
    with pytest.raises(OptionError, match="is there already"):
        export_monai(model, tmp_path / "out")
    with pytest.raises(ModelError, match="no fold_7"):
        export_monai(model, tmp_path / "new", folds=[7])

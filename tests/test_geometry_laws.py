"""Where a voxel lies in space decides, never how a file stores it: from reading over prediction to writing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from orientations import ALL_48
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from autounet import api
from autounet.imageio import read_geometry, read_image, read_labels, write_image, write_labels
from autounet.inference.bundle import pack
from autounet.inference.export import export
from autounet.nets import FAMILIES
from autounet.ops.masks import encode
from autounet.ops.orient import (
    canonical_axes,
    orient,
    permute,
    regrid_image,
    regrid_labels,
    share_inside,
    voxel_map,
    world_matrix,
)
from autounet.preprocessing import prepare_case
from autounet.schema.dataset import Channel, Dataset
from autounet.schema.geometry import Geometry
from autounet.schema.labels import LabelClass, Labels
from autounet.schema.options import DataOptions, TrainOptions
from autounet.schema.plan import ChannelNormalisation, Configuration, PreprocessSpec
from autounet.schema.run import RunRecord
from autounet.schema.selection import Selection
from autounet.store.weights import save_weights

LABELS = Labels(classes=(LabelClass(name="background", value=0), LabelClass(name="organ", value=3)))
OBLIQUE = Rotation.from_euler("zyx", (17, -9, 23), degrees=True).as_matrix()


def geometry_of(matrix: np.ndarray, shape: tuple[int, ...], spacing: tuple[float, ...]) -> Geometry:
    """From the directions of the x, y and z index axes, as columns."""
    direction = tuple((matrix + 0.0).ravel().tolist())
    return Geometry(shape=shape, spacing=spacing, origin=(-31.5, 12.25, 40.0), direction=direction)


def stored(array: np.ndarray, geometry: Geometry, axes: tuple[int, ...], signs: tuple[float, ...]):
    """The same voxels in another order: stored axis i is axis `axes[i]`, run backwards where the sign is negative."""
    flips = tuple(sign < 0 for sign in signs)
    moved = orient(array, axes, flips)
    first = [geometry.shape[axis] - 1 if flip else 0 for axis, flip in zip(axes, flips, strict=True)]
    corner = np.zeros(4)
    corner[list(axes)], corner[3] = first, 1
    columns = np.reshape(geometry.direction, (3, 3))[:, ::-1][:, list(axes)] * signs  # for the stored z, y, x
    changes = {
        "shape": moved.shape[-3:],
        "spacing": permute(geometry.spacing, axes),
        "origin": tuple((world_matrix(geometry) @ corner)[:3].tolist()),
        "direction": tuple((columns[:, ::-1] + 0.0).ravel().tolist()),
    }
    return moved, geometry.model_copy(update=changes)


def back(array: np.ndarray, axes: tuple[int, ...], signs: tuple[float, ...]) -> np.ndarray:
    """Inverse of `stored`, written independently of ops.orient."""
    straight = np.flip(array, tuple(axis for axis, sign in enumerate(signs) if sign < 0))
    return np.moveaxis(straight, (0, 1, 2), axes)


# ---- prediction ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packed network with random weights that knows left from right and up from down."""
    folder = tmp_path_factory.mktemp("bundle")
    ones, twos = (1,) * 3, (2,) * 3
    plan = Configuration(
        preprocess=PreprocessSpec(spacing=(1.7, 1.0, 1.2), normalisation=(ChannelNormalisation(scheme="zscore"),)),
        prepared="3d",
        patch_size=(8, 8, 8),
        batch_size=2,
        network=FAMILIES["plain"].propose(3, 1, 2, (ones, twos), ((3,) * 3,) * 2, base_features=4),
        median_shape=(12, 12, 12),
        predicted_memory_bytes=0,
    )
    torch.manual_seed(3)
    path = folder / "3d" / "fold_0" / "weights.safetensors"
    save_weights(path, FAMILIES["plain"].build(plan.network).state_dict())
    RunRecord(
        configuration_name="3d", configuration=plan.key, fold=0, options=TrainOptions(), train_cases=(),
        validation_cases=(), device="cpu", steps=1, seconds=1, curve=(), parameters=1, peak_memory_bytes=None,
        versions={},
    ).save(path.with_name("record.json"))  # fmt: skip
    dataset = Dataset(
        root="/nowhere", name="laws", layout="pairs", channels=(Channel(name="mri"),), labels=LABELS,
        labels_declared=True, cases=(), image_pattern="images/*.nii.gz", file_kind="nifti", suffix=".nii.gz",
    )  # fmt: skip
    selection = Selection(chosen=("3d",), compared=(), reason="the only one")
    pack(folder / "model", dataset, DataOptions(), {"3d": plan}, selection, {"3d": {0: path}}, mean_dice=None)
    return folder / "model"


@pytest.mark.parametrize("direction", [np.eye(3), OBLIQUE], ids=["straight", "oblique"])
@pytest.mark.parametrize("ending", [".nii.gz", ".mha", ".nrrd"])
def test_a_prediction_does_not_depend_on_how_the_image_is_stored(
    model: Path, tmp_path: Path, direction: np.ndarray, ending: str
) -> None:
    image = gaussian_filter(np.random.default_rng(0).normal(size=(9, 13, 11)), 1.5).astype(np.float32)[None] * 100
    geometry = geometry_of(direction, image.shape[1:], (2.5, 1.0, 1.5))
    variants = ALL_48 if ending == ".nii.gz" else ALL_48[::7]
    for number, variant in enumerate(variants):
        write_image(tmp_path / "images" / f"{number:02d}{ending}", *stored(image, geometry, *variant))
    assert api.load(model, device="cpu").predict_files(tmp_path / "images", tmp_path / "out") == []
    found = []
    for number, variant in enumerate(variants):
        values, own = read_labels(tmp_path / "out" / f"{number:02d}{ending}")
        expected = stored(image, geometry, *variant)[1]
        assert own.shape == expected.shape
        for field in ("spacing", "origin", "direction"):
            np.testing.assert_allclose(getattr(own, field), getattr(expected, field), atol=1e-4)
        found.append(back(values, *variant))
    share = (found[0] == 3).mean()
    assert 0.1 < share < 0.9  # otherwise there is nothing to agree on
    assert set(np.unique(found)) == {0, 3}
    for values in found[1:]:
        np.testing.assert_array_equal(values, found[0])


# ---- reading, orientation, export ----------------------------------------------------------------------------


@st.composite
def geometries(draw: st.DrawFn) -> Geometry:
    """Any shape, spacing and origin; directions at right angles, oblique and mirrored ones among them."""
    shape = draw(st.tuples(*(st.integers(1, 7),) * 3).filter(lambda shape: max(shape) > 1))
    spacing = draw(st.tuples(*(st.floats(0.05, 12),) * 3))
    origin = draw(st.tuples(*(st.floats(-500, 500),) * 3))
    if draw(st.booleans()):
        axes, signs = draw(st.sampled_from(ALL_48))
        matrix = np.eye(3)[list(axes)] * signs
    else:
        quaternion = draw(st.tuples(*(st.floats(-1, 1),) * 4).filter(lambda q: np.linalg.norm(q) > 0.1))
        matrix = Rotation.from_quat(quaternion).as_matrix() * (1, 1, draw(st.sampled_from((1, -1))))
    direction = tuple((matrix + 0.0).ravel().tolist())
    return Geometry(shape=shape, spacing=spacing, origin=origin, direction=direction)


def places(geometry: Geometry) -> np.ndarray:
    """(Z, Y, X, 3) mm: where each voxel lies."""
    voxels = np.stack([*np.indices(geometry.shape), np.ones(geometry.shape)], axis=-1)
    return (voxels @ world_matrix(geometry).T)[..., :3]


@settings(max_examples=60)
@given(geometries(), st.sampled_from([".nii.gz", ".nrrd", ".mha"]), st.integers(0, 99))
def test_from_the_file_to_the_network_and_back_is_the_identity_in_space(
    tmp_path_factory: pytest.TempPathFactory, geometry: Geometry, ending: str, seed: int
) -> None:
    folder = tmp_path_factory.mktemp("laws")
    generator = np.random.default_rng(seed)
    values = generator.choice([0, 3], geometry.shape).astype(np.int32)
    write_image(folder / f"image{ending}", generator.uniform(1, 2, (1, *geometry.shape)).astype(np.float32), geometry)
    write_labels(folder / f"label{ending}", values, geometry)
    image, own = read_image(folder / f"image{ending}")
    drawn, _ = read_labels(folder / f"label{ending}")
    np.testing.assert_array_equal(drawn, values)
    np.testing.assert_allclose(places(own), places(geometry), atol=2e-3)

    axes, _ = canonical_axes(own.direction, own.dimension)
    spacing = permute(own.spacing, axes)
    spec = PreprocessSpec(spacing=spacing, normalisation=(ChannelNormalisation(scheme="none"),))
    prepared = prepare_case("a", "k", image, encode(drawn, LABELS), own, spec)
    assert prepared.properties.shape == permute(own.shape, axes)
    sure = (prepared.labels[None] == np.arange(2).reshape(-1, 1, 1, 1)).astype(np.float32)
    exported = export([(sure, prepared.properties)], LABELS)
    write_labels(folder / f"out{ending}", exported, own)
    again, written = read_labels(folder / f"out{ending}")
    np.testing.assert_array_equal(again, values)
    np.testing.assert_allclose(places(written), places(geometry), atol=2e-3)


@settings(max_examples=60)
@given(geometries())
def test_canonical_voxels_lie_where_they_lay_and_run_along_the_patient(geometry: Geometry) -> None:
    axes, flips = canonical_axes(geometry.direction)
    where = orient(np.moveaxis(places(geometry), -1, 0), axes, flips)  # (x y z, *canonical)
    for axis, world in enumerate((2, 1, 0)):
        steps = np.diff(where, axis=axis + 1)
        if steps.size:
            along = steps.reshape(3, -1).mean(axis=1)
            assert along[world] >= 0
    total = sum(abs(np.reshape(geometry.direction, (3, 3))[2 - world, 2 - axis]) for world, axis in enumerate(axes))
    # of 24 rotations of a cube one is within 62.8 degrees of any other (Mackenzie 1958): a trace of 1.914
    assert total >= 1.913


# ---- one grid to another -------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(geometries(), st.sampled_from(ALL_48), st.integers(0, 99))
def test_voxels_stored_in_another_order_come_back_exactly(geometry: Geometry, variant, seed: int) -> None:
    generator = np.random.default_rng(seed)
    values = generator.integers(0, 9, geometry.shape).astype(np.int32)
    image = generator.normal(size=(1, *geometry.shape)).astype(np.float32)
    moved, own = stored(values, geometry, *variant)
    np.testing.assert_array_equal(regrid_labels(moved, own, geometry), values)
    again = regrid_image(np.ascontiguousarray(stored(image, geometry, *variant)[0]), own, geometry)
    np.testing.assert_allclose(again, image, atol=1e-4)
    assert share_inside(np.argwhere(moved >= 0), own, geometry) == 1


@settings(max_examples=40)
@given(geometries(), geometries())
def test_the_map_between_two_grids_keeps_the_place(source: Geometry, target: Geometry) -> None:
    voxel = np.array([1.0, 2.0, 0.5, 1.0])
    np.testing.assert_allclose(
        world_matrix(source) @ voxel_map(source, target) @ voxel, world_matrix(target) @ voxel, atol=1e-5
    )


def test_what_lies_beyond_the_border_is_empty() -> None:
    geometry = Geometry(shape=(3, 4, 5))
    moved = geometry.model_copy(update={"origin": (3.0, 0.0, 0.0)})
    values = np.ones(geometry.shape, np.int32)
    found = regrid_labels(values, geometry, moved)
    assert found[..., :2].all()
    assert not found[..., 2:].any()
    assert share_inside(np.argwhere(values), geometry, moved) == pytest.approx(2 / 5)
    image = regrid_image(values[None].astype(np.float32) + np.arange(5), geometry, moved)
    np.testing.assert_array_equal(image[0, 0, 0], [4, 5, 1, 1, 1])


def test_a_header_is_read_without_the_voxels(tmp_path: Path) -> None:
    geometry = geometry_of(OBLIQUE, (3, 4, 5), (2.0, 0.5, 0.7))
    write_labels(tmp_path / "a.nii.gz", np.zeros(geometry.shape, int), geometry)
    np.testing.assert_allclose(places(read_geometry(tmp_path / "a.nii.gz")), places(geometry), atol=1e-4)

"""A cascade: what one stage hands to the next, samples that show it, and both stages from training to prediction."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from orientations import ALL_48, direction_of
from test_preprocessing import LABELS, NONE, stored_crop
from training_cases import configuration as tiny
from training_cases import task, write_case

from autounet import api
from autounet.datasets.synthetic import make_demo_dataset
from autounet.imageio import read_image, read_labels
from autounet.inference.archive import sealed
from autounet.inference.bundle import load_network, pack
from autounet.inference.export import append_one_hot, export, labels_for_next_stage
from autounet.inference.sliding_window import predict_scores
from autounet.ops.masks import encode
from autounet.preprocessing import prepare_case
from autounet.schema.bundle import ModelBundle
from autounet.schema.dataset import Dataset, Splits
from autounet.schema.errors import ModelError, OptionError, PlanError
from autounet.schema.geometry import Geometry
from autounet.schema.metrics import Metrics
from autounet.schema.options import DataOptions, PlannerOptions, RunOptions
from autounet.schema.plan import Configuration, InferenceSpec, Plan, PreprocessSpec, with_previous_stages
from autounet.schema.run import DeviceProfile, RunRecord
from autounet.schema.selection import Selection
from autounet.store import (
    open_prepared,
    open_stage_labels,
    read_properties,
    read_scores,
    stage_labels_file,
    write_scores,
    write_stage_labels,
)
from autounet.store.prepared import PreparedRecord
from autounet.store.run_folder import CascadeLabelsFolder, RunFolder
from autounet.training import Horizon, train_fold
from autounet.training import transforms as one_hot
from autounet.training.augment import Augmentation
from autounet.training.cases import CaseStore
from autounet.training.samples import SampleSource
from autounet.workflow.pipeline import run_pipeline
from autounet.workflow.read_status import read_status
from autounet.workflow.stages import cascade_labels

FIRST, SECOND = "3d_lowres", "3d_cascade_fullres"


# what is handed over


@st.composite
def two_grids(draw):
    """One case prepared twice: to any grid, and to the file's own voxels in any axis order."""
    shape = draw(st.tuples(*(st.integers(2, 10),) * 3))
    direction = direction_of(*draw(st.sampled_from(ALL_48)))
    geometry = Geometry(
        shape=shape, spacing=draw(st.tuples(*(st.sampled_from([0.5, 1.0, 2.5]),) * 3)), direction=direction
    )
    image = np.ones((1, *shape), np.float32)
    image[:, 0] = 0  # cropped away where there are more slices
    coarse = draw(st.tuples(*(st.sampled_from([0.7, 1.0, 3.0]),) * 3))
    orders = [tuple(draw(st.permutations(range(3)))) for _ in range(2)]
    kinds = [draw(st.sampled_from(["canonical", "as_stored", "ras"])) for _ in range(2)]
    source = prepare_case("a", "k", image, None, geometry, spec(coarse, orders[0], kinds[0])).properties
    axes = prepare_case("a", "k", image, None, geometry, spec((1.0, 1.0, 1.0), orders[1], kinds[1])).properties
    target = spec(axes.network_spacing, orders[1], kinds[1])
    return source, prepare_case("a", "k", image, None, geometry, target).properties


def spec(spacing, transpose=(0, 1, 2), orientation="canonical") -> PreprocessSpec:
    return PreprocessSpec(spacing=spacing, transpose=transpose, orientation=orientation, normalisation=NONE)


@settings(max_examples=40)
@given(two_grids(), st.integers(0, 99))
def test_handing_over_to_the_files_own_voxels_is_exporting(grids, seed):
    source, target = grids
    scores = np.random.default_rng(seed).normal(size=(LABELS.count, *source.shape)).astype(np.float32)
    found = labels_for_next_stage(scores, source, target)
    exported = stored_crop(encode(export([(scores, source)], LABELS), LABELS), target)
    assert found.dtype == np.int8
    assert (found == exported).mean() > 0.99  # flips round differently where two classes are equal
    assert found.shape == target.shape


def test_handing_over_interpolates_scores_not_labels():
    """Of 6 voxels from 2, the third lies a third of the way: nearer to the first, but the second is surer."""
    geometry = Geometry(shape=(1, 1, 6))
    image = np.ones((1, 1, 1, 6), np.float32)
    source = prepare_case("a", "k", image, None, geometry, spec((1.0, 1.0, 3.0))).properties
    target = prepare_case("a", "k", image, None, geometry, spec((1.0, 1.0, 1.0))).properties
    scores = np.array([[0.0, 3.0], [1.0, 0.0]], np.float32).reshape(2, 1, 1, 2)
    assert labels_for_next_stage(scores, source, target).ravel().tolist() == [1, 1, 0, 0, 0, 0]


def test_another_case_is_refused():
    image = np.ones((1, 4, 4, 4), np.float32)
    first, second = (
        prepare_case(name, "k", image, None, Geometry(shape=(4, 4, 4)), spec((1.0, 1.0, 1.0))).properties
        for name in "ab"
    )
    with pytest.raises(ValueError, match="different cases: a and b"):
        labels_for_next_stage(np.zeros((2, 4, 4, 4), np.float32), first, second)


def test_one_channel_a_class_without_the_background():
    image, segmentation = np.full((2, 1, 2, 2), 7.0, np.float32), np.array([[[0, 1], [3, 1]]], np.int8)
    joined = append_one_hot(image, segmentation, 4)
    assert joined.dtype == np.float32
    assert np.array_equal(joined[:2], image)
    assert np.array_equal(joined[2:], [segmentation == index for index in (1, 2, 3)])


def test_previous_stages_come_first_and_circles_are_refused():
    plain = tiny()
    stages = {
        name: plain.model_copy(update={"previous_stage": before}) for name, before in {"a": "b", "b": None}.items()
    }
    assert with_previous_stages(("a",), stages) == ("b", "a")
    assert with_previous_stages(("b", "a"), stages) == ("b", "a")
    with pytest.raises(PlanError, match=r"no configuration c as the previous stage of a\. Choose one of a"):
        with_previous_stages(("a",), {"a": plain.model_copy(update={"previous_stage": "c"})})
    with pytest.raises(PlanError, match="a needs itself"):
        with_previous_stages(("a",), {name: plain.model_copy(update={"previous_stage": "a"}) for name in "a"})


# samples


@pytest.fixture(scope="module")
def staged(tmp_path_factory) -> Path:
    """Three cases whose previous stage was right everywhere."""
    folder = tmp_path_factory.mktemp("staged")
    for number, name in enumerate("abc"):
        write_case(folder / "prepared", name, (12, 14 + number, 11), number)
        write_stage_labels(folder / "next", name, open_prepared(folder / "prepared", name).labels[:])
    return folder


def source(folder: Path, patch: tuple[int, ...], kind: str, memory: int = 2**20) -> SampleSource:
    augmentation = Augmentation(kind, patch, tuple(range(len(patch))), previous_classes=2)
    cases = CaseStore(folder / "prepared", tuple("abc"), memory, folder / "next")
    return SampleSource(cases, patch, 3, 0, 0, 1 / 3, augmentation)


@pytest.mark.parametrize("kind", ["full", "light", "none"])
@pytest.mark.parametrize("patch", [(8, 8, 8), (2, 8, 8), (16, 16, 16), (8, 8)])
def test_the_previous_stage_is_moved_with_the_labels(staged, monkeypatch, patch, kind):
    monkeypatch.setattr(one_hot, "P_OPERATOR", 0.0)
    monkeypatch.setattr(one_hot, "P_REMOVAL", 0.0)
    drawn = source(staged, patch, kind)
    for step in range(8):
        batch = drawn.batch(step)
        assert batch.image.shape == (3, 1 + 2, *patch)
        assert batch.image.dtype == torch.float32
        for index in (1, 2):
            assert torch.equal(batch.image[:, index], (batch.labels == index).float())


@pytest.mark.parametrize("patch", [(8, 8, 8), (8, 8)])
def test_staged_samples_are_functions_of_the_step_alone(staged, patch):
    first, second, on_disk = (source(staged, patch, "full", memory) for memory in (2**20, 2**20, 0))
    order = (5, 0, 4, 1, 3, 2)
    later = {step: second.batch(step) for step in order}
    for step in sorted(order):
        for other in (later[step], on_disk.batch(step)):
            batch = first.batch(step)
            assert torch.equal(batch.image, other.image)
            assert torch.equal(batch.labels, other.labels)


def test_the_previous_stage_is_made_worse_in_some_samples_only(staged):
    drawn, right, voxels = source(staged, (10, 10, 10), "light"), [], []
    for step in range(40):
        batch = drawn.batch(step)
        assert set(batch.image[:, 1:].unique().tolist()) <= {0.0, 1.0}
        assert batch.image[:, 1:].sum(1).max() <= 1  # a class that grows takes the place of others
        same = batch.image[:, 1:] == torch.stack([batch.labels == index for index in (1, 2)], 1).float()
        right += same.flatten(1).all(1).tolist()
        voxels.append(same.float().mean())
    assert 0.4 < np.mean(right) < 0.95
    assert np.mean(voxels) > 0.8


@settings(max_examples=30)
@given(st.integers(0, 2**31 - 1), st.sampled_from([(9, 9, 9), (20, 20)]))
def test_one_whole_small_component_of_a_class_is_removed_at_most(seed, shape):
    """Class 1 has two small components, class 2 one of more than the largest share that is removed."""
    image = np.zeros((3, *shape), np.float32)
    image[0] = np.random.default_rng(seed).normal(size=shape)
    image[1, :2, :2] = image[1, 4:6, 4:6] = 1
    image[2, 5:] = 1
    before = image.copy()
    np.random.seed(seed)
    torch.manual_seed(seed)
    found = one_hot.RemoveComponents([-2, -1])(image=torch.from_numpy(image))["image"].numpy()
    assert np.array_equal(found[[0, 2]], before[[0, 2]])
    left = [bool(found[1, :2, :2].all()), bool(found[1, 4:6, 4:6].all())]
    assert left != [False, False]
    assert found[1].sum() == before[1].sum() * sum(left) / 2


def test_a_task_has_both_a_previous_stage_and_its_labels_or_neither(tmp_path):
    with pytest.raises(ValueError, match="go together"):
        train_fold(*task(tmp_path, Horizon(steps=1), previous=tmp_path))
    second = tiny().model_copy(update={"previous_stage": "other"})
    with pytest.raises(ValueError, match="go together"):
        train_fold(*task(tmp_path, Horizon(steps=1), configuration=second))


# both stages, end to end


def stage(spacing, patch, previous: str | None = None) -> Configuration:
    """A tiny network for the demonstration's images (one channel, two organs)."""
    base = tiny(patch)
    network = base.network.model_copy(update={"in_channels": 1 if previous is None else 3})
    return base.model_copy(
        update={
            "preprocess": base.preprocess.model_copy(update={"spacing": spacing}),
            "prepared": FIRST if previous is None else SECOND,
            "network": network,
            "mirror_axes": (1, 2),
            "inference": InferenceSpec(mirror_axes=(1,)),
            "previous_stage": previous,
        }
    )


STAGES = {SECOND: stage((3.0, 1.6, 1.6), (8, 16, 16), FIRST), FIRST: stage((5.0, 2.5, 2.5), (4, 12, 12))}
"""the second stands first: order in the plan does not matter"""


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = make_demo_dataset(tmp_path_factory.mktemp("cascade") / "data", cases=4, test_cases=1)
    names = sorted(path.name.removesuffix(".nii.gz") for path in (folder / "labelsTr").iterdir())
    (folder.parent / "splits.json").write_text(json.dumps({"folds": [names[:2], names[2:]]}))
    return folder


def start(out: Path, stages: dict[str, Configuration] = STAGES) -> Path:
    """An output folder with a plan made by hand and a device that needs no probe."""
    device = DeviceProfile(
        device="cpu", name="test", cores=1, memory_bytes=2**32, precision="fp32", channels_last=False
    )
    device.save(out / "device.json")
    plan = Plan(configurations=stages, options=PlannerOptions(), reasons=(), fingerprint="by hand")
    plan.save(out / "plan.json")
    return out


def run(folder: Path, out: Path, **changes) -> None:
    given = {"iterations": 8, "data": DataOptions(splits=str(folder.parent / "splits.json"))}
    run_pipeline(folder, out, RunOptions(device="cpu", workers=0, **{**given, **changes}), until="select")


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory) -> Path:
    out = start(tmp_path_factory.mktemp("finished"))
    run(data, out)
    return out


@pytest.fixture
def copied(finished, tmp_path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "out"))


def handed(out: Path) -> Path:
    return out / "crossval" / FIRST / "next" / SECOND


def weights(out: Path, name: str, fold: int | str) -> Path:
    return out / "models" / name / f"fold_{fold}" / "weights.safetensors"


def times(*paths: Path) -> list[int]:
    return [path.stat().st_mtime_ns for path in paths]


def all_weights(out: Path, name: str) -> list[Path]:
    return [weights(out, name, fold) for fold in range(2)]


def test_every_case_gets_labels_from_the_network_that_did_not_see_it(finished):
    splits = Splits.load(finished / "splits.json")
    for fold, cases in enumerate(splits.folds):
        record = RunRecord.load(weights(finished, FIRST, fold).with_name("record.json"))
        model = load_network(STAGES[FIRST], weights(finished, FIRST, fold), "cpu")
        for name in cases:
            assert name not in record.train_cases
            prepared = open_prepared(finished / "prepared" / FIRST, name)
            scores = predict_scores([model], prepared.image[:], STAGES[FIRST], 3, "cpu")
            target = read_properties(finished / "prepared" / SECOND, name)
            expected = labels_for_next_stage(scores, prepared.properties, target)
            assert (open_stage_labels(handed(finished), name)[:] == expected).mean() > 0.999  # kept as float16


def test_out_of_fold_segmentations_of_the_second_stage_used_them(finished):
    labels = Dataset.load(finished / "dataset.json").labels
    name = Splits.load(finished / "splits.json").folds[1][0]
    prepared = open_prepared(finished / "prepared" / SECOND, name)
    model = load_network(STAGES[SECOND], weights(finished, SECOND, 1), "cpu")
    image = append_one_hot(prepared.image[:], open_stage_labels(handed(finished), name)[:], 3)
    scores = predict_scores([model], image, STAGES[SECOND], 3, "cpu")
    np.testing.assert_allclose(read_scores(finished / "crossval" / SECOND / "scores", name), scores, atol=0.02)
    written, _ = read_labels(finished / "crossval" / SECOND / f"{name}.nii.gz")
    assert np.array_equal(written, export([(scores, prepared.properties)], labels))


def test_both_stages_and_their_ensemble_are_compared(finished):
    compared = {candidate.configurations for candidate in Selection.load(finished / "selection.json").compared}
    assert compared == {(FIRST,), (SECOND,), (FIRST, SECOND)}
    assert len(Metrics.load(finished / "metrics.json").cases) == 4
    assert all(fold.state == "done" and fold.dice is not None for fold in read_status(finished).folds)


def test_results_of_an_earlier_training_are_not_those_of_the_one_that_goes_on(finished: Path, tmp_path: Path) -> None:
    copied = tmp_path / "copied"
    shutil.copytree(finished, copied)
    first = read_status(copied).folds[0]
    RunFolder(copied).fold(first.configuration, int(first.fold)).done.unlink()
    again = read_status(copied).folds[0]
    assert (again.state, again.dice, again.validated) == ("interrupted", None, False)
    assert not any("inf" in line.split() for line in read_status(copied).lines)


def packed(out: Path, folder: Path, *chosen: str, stages: dict[str, Configuration] = STAGES) -> Path:
    found = {name: dict(enumerate(all_weights(out, name))) for name in STAGES}
    dataset = Dataset.load(out / "dataset.json")
    selection = Selection(chosen=chosen, compared=(), reason="the test's")
    pack(folder, dataset, DataOptions(), stages, selection, found, None)
    return folder


@pytest.fixture(scope="module")
def model(finished, tmp_path_factory) -> Path:
    return packed(finished, tmp_path_factory.mktemp("packed") / "model", SECOND)


def test_selecting_the_second_stage_packs_the_first(model):
    bundle = ModelBundle.load(model / "bundle.json")
    assert bundle.selection.chosen == (SECOND,)
    assert list(bundle.configurations) == [FIRST, SECOND]
    assert [(member.configuration, member.fold) for member in bundle.members] == [
        (name, fold) for name in (FIRST, SECOND) for fold in range(2)
    ]


def test_a_new_image_goes_through_both_stages(data, finished, model, tmp_path):
    image = min((data / "imagesTs").iterdir())
    predictor = api.load(model, device="cpu")
    assert predictor.predict_files(data / "imagesTs", tmp_path) == []
    found, _ = read_labels(tmp_path / image.name.replace("_0000", ""))
    array, geometry = read_image(image)
    assert np.array_equal(predictor.predict(array, spacing=geometry.spacing), found)

    stages = [prepare_case("", "", array, None, geometry, STAGES[name].preprocess) for name in (FIRST, SECOND)]
    networks = [[load_network(STAGES[name], path, "cpu") for path in all_weights(finished, name)] for name in STAGES]
    coarse = predict_scores(networks[1], stages[0].image, STAGES[FIRST], 3, "cpu")
    previous = labels_for_next_stage(coarse, stages[0].properties, stages[1].properties)
    scores = predict_scores(networks[0], append_one_hot(stages[1].image, previous, 3), STAGES[SECOND], 3, "cpu")
    assert np.array_equal(export([(scores, stages[1].properties)], predictor.bundle.labels), found)

    first = api.load(model, device="cpu", configuration=FIRST).predict(array, spacing=geometry.spacing)
    assert np.array_equal(first, export([(coarse, stages[0].properties)], predictor.bundle.labels))
    one = api.load(model, device="cpu", folds=[1])
    assert [len(one.models[name]) for name in (FIRST, SECOND)] == [2, 1]


def test_a_model_without_its_previous_stage_is_refused(finished, model, tmp_path):
    with pytest.raises(ModelError, match=f"no configuration {FIRST} as the previous stage"):
        packed(finished, tmp_path / "model", SECOND, stages={SECOND: STAGES[SECOND]})
    shutil.copytree(model, tmp_path / "cut")
    whole = ModelBundle.load(model / "bundle.json")
    members = tuple(member for member in whole.members if member.configuration == SECOND)
    cut = whole.model_copy(update={"members": members})
    sealed(cut).save(tmp_path / "cut" / "bundle.json")
    with pytest.raises(ModelError, match=f"needs {FIRST} and holds no weights of it"):
        api.load(tmp_path / "cut", device="cpu")


def test_what_is_done_is_kept_and_what_is_lost_is_made_again(data, copied):
    everything = [*all_weights(copied, FIRST), *all_weights(copied, SECOND)]
    lost, other = Splits.load(copied / "splits.json").folds[0]
    kept = stage_labels_file(handed(copied), other)
    expected, before = open_stage_labels(handed(copied), lost)[:], times(*everything, kept)
    checked = [copied / "crossval" / name / "fold_0.json" for name in STAGES]
    measured = times(*checked)
    run(data, copied)
    assert times(*everything, kept, *checked) == before + measured
    stage_labels_file(handed(copied), lost).unlink()
    run(data, copied)
    assert np.array_equal(open_stage_labels(handed(copied), lost)[:], expected)
    assert times(*everything, kept) == before
    after = dict(zip(STAGES, zip(times(*checked), measured, strict=True), strict=True))
    assert after[FIRST][0] == after[FIRST][1]
    assert after[SECOND][0] > after[SECOND][1]  # its validation reads what was made again


def test_another_way_of_predicting_the_first_stage_trains_the_second_again(data, copied):
    kept, again = times(*all_weights(copied, FIRST)), times(*all_weights(copied, SECOND))
    labels = times(*sorted(handed(copied).glob("*.b2nd")))
    changed = STAGES[FIRST].model_copy(update={"inference": InferenceSpec(overlap=0.25)})
    start(copied, {**STAGES, FIRST: changed})
    run(data, copied)
    assert times(*all_weights(copied, FIRST)) == kept
    assert all(new > old for new, old in zip(times(*all_weights(copied, SECOND)), again, strict=True))
    assert all(new > old for new, old in zip(times(*sorted(handed(copied).glob("*.b2nd"))), labels, strict=True))
    assert (copied / "models" / SECOND / "fold_0.old_1").is_dir()


def test_cascade_labels_of_a_case_are_made_again_when_its_scores_or_grids_change(finished, tmp_path):
    labels, names = Dataset.load(finished / "dataset.json").labels, Splits.load(finished / "splits.json").folds[0]
    for folder in ("scores", FIRST, SECOND):
        source = finished / "crossval" / FIRST / folder if folder == "scores" else finished / "prepared" / folder
        shutil.copytree(source, tmp_path / folder)

    def changed() -> list[str]:
        files = [stage_labels_file(tmp_path / "next", name) for name in names]
        before = [file.stat().st_mtime_ns if file.exists() else 0 for file in files]
        folders = (tmp_path / folder for folder in ("scores", FIRST, SECOND))
        cascade_labels(
            labels, STAGES[FIRST].targets, names, *folders, CascadeLabelsFolder(tmp_path / "next"), workers=0
        )
        return [name for name, old, new in zip(names, before, times(*files), strict=True) if new > old]

    assert changed() == list(names)
    assert changed() == []
    write_scores(tmp_path / "scores", names[1], -read_scores(tmp_path / "scores", names[1]))
    assert changed() == [names[1]]
    grid = read_properties(tmp_path / SECOND, names[0])
    file = tmp_path / SECOND / f"{names[0]}.json"
    rekeyed = grid.model_copy(update={"key": "another"})
    PreparedRecord.load(file).model_copy(update={"properties": rekeyed}).save(file)
    assert changed() == [names[0]]


def test_new_names_of_classes_train_nothing_again(data, copied):
    before = times(*all_weights(copied, FIRST), *all_weights(copied, SECOND))
    named = DataOptions(splits=str(data.parent / "splits.json"), classes={"big": 1, "small": 2})
    run(data, copied, data=named)
    assert times(*all_weights(copied, FIRST), *all_weights(copied, SECOND)) == before
    assert set(Metrics.load(copied / "metrics.json").per_class) == {"big", "small"}


def test_one_fold_of_a_cascade_needs_all_of_its_first_stage(data, copied, tmp_path):
    with pytest.raises(OptionError, match=f"fold 1 of {FIRST} is neither asked for nor trained. Give --folds all"):
        run(data, start(tmp_path / "new"), folds="0", configurations=(SECOND,))
    assert not (tmp_path / "new" / "models").exists()
    before = times(*all_weights(copied, SECOND))
    run(data, copied, folds="0", configurations=(SECOND,))  # the other fold is there
    assert times(*all_weights(copied, SECOND)) == before
    assert {case.fold for case in Metrics.load(copied / "metrics.json").cases} == {0}


def test_auto_leaves_the_cascade_out_where_folds_are_missing(data, tmp_path, caplog):
    run(data, start(tmp_path), folds="0", iterations=1)
    assert f"{SECOND} is left out: it needs every fold" in caplog.text
    assert sorted(path.name for path in (tmp_path / "models").iterdir()) == [FIRST]
    assert [path.name for path in (tmp_path / "models" / FIRST).glob("fold_*")] == ["fold_0"]


@pytest.mark.parametrize("cases", [4, 1])
def test_full_cross_validates_the_first_stage_and_trains_the_second_on_all_cases(data, copied, tmp_path, cases):
    if cases == 1:
        single = make_demo_dataset(tmp_path / "single", cases=1)
        with pytest.raises(OptionError, match=f"{SECOND} learns from segmentations by {FIRST} of cases"):
            run(single, start(tmp_path / "new"), folds="full", configurations=(SECOND,), data=DataOptions())
        return
    before = times(*all_weights(copied, FIRST))
    run(data, copied, folds="full", configurations=(SECOND,))
    assert times(*all_weights(copied, FIRST)) == before
    record = RunRecord.load(weights(copied, SECOND, "all").with_name("record.json"))
    assert len(record.train_cases) == 4
    assert not (copied / "metrics.json").exists()
    predictor = api.load(copied / "model", device="cpu")
    assert [len(predictor.models[name]) for name in (FIRST, SECOND)] == [2, 1]
    states = {(fold.configuration, fold.fold): fold.state for fold in read_status(copied).folds}
    assert states == {(FIRST, 0): "done", (FIRST, 1): "done", (SECOND, "all"): "done"}

"""Regions, which may overlap: from the plan to the files that a model writes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from quick_runs import no_trials, one_probe  # noqa: F401 - used by every test here
from training_cases import configuration, labels, task

from autounet import api
from autounet.imageio import read_labels, write_image, write_labels
from autounet.inference.ensembling import PROBABILITIES, OrderedRegions, decision_for
from autounet.inference.export import export, labels_for_next_stage
from autounet.memory_model.measured_steps import step_loss
from autounet.nets import FAMILIES
from autounet.ops.masks import decode, encode
from autounet.planning import plan, validate
from autounet.preprocessing import prepare_case
from autounet.schema.dataset import ChannelKind
from autounet.schema.errors import PlanError
from autounet.schema.fingerprint import CaseFingerprint, ChannelFingerprint, Fingerprint
from autounet.schema.geometry import Geometry
from autounet.schema.labels import LabelClass, Labels, Region, counted_targets, overlapping_targets, targets_of
from autounet.schema.metrics import Metrics
from autounet.schema.options import DataOptions, PlannerOptions, RunOptions, TrainOptions
from autounet.schema.plan import ChannelNormalisation, Plan, PreprocessSpec
from autounet.schema.run import RunRecord
from autounet.step import Precision, configuration_loss
from autounet.training import Horizon, train_fold
from autounet.training.monitor import PatchMonitor
from autounet.training.sources import validation_source
from autounet.workflow.pipeline import run_pipeline

NONE = (ChannelNormalisation(scheme="none"),)
TUMOUR = Labels(
    classes=tuple(LabelClass(name=name, value=value) for value, name in enumerate(("background", "a", "b", "c"))),
    regions=(Region(name="whole", values=(1, 2, 3)), Region(name="core", values=(2, 3))),
)
"""targets: whole paints a, core paints b, c paints itself"""


@st.composite
def label_sets(draw) -> Labels:
    """Up to 5 classes with values that are not their indices, and any regions of them."""
    count = draw(st.integers(2, 5))
    values = (0, *range(10, 10 + count - 1))
    members = st.lists(st.sampled_from(values), min_size=1, max_size=count, unique=True)
    regions = draw(st.lists(members, min_size=1, max_size=4))
    return Labels(
        classes=tuple(LabelClass(name=f"class{index}", value=value) for index, value in enumerate(values)),
        regions=tuple(Region(name=f"region{index}", values=tuple(own)) for index, own in enumerate(regions)),
    )


def true_logits(dense: np.ndarray, of: Labels) -> np.ndarray:
    """(C, *S): above 0 in each channel's members."""
    members = [target.members for target in overlapping_targets(of)]
    return np.stack([np.where(np.isin(dense, own), 2.0, -3.0) for own in members]).astype(np.float32)


# ---- from scores to labels ------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(of=label_sets(), seed=st.integers(0, 99))
def test_exporting_the_true_channels_gives_the_labels_back(of, seed):
    dense = np.random.default_rng(seed).integers(0, of.count, (3, 4, 5)).astype(np.int16)
    values = decode(dense, of)
    geometry = Geometry(shape=dense.shape)
    spec = PreprocessSpec(spacing=(1.0, 1.0, 1.0), normalisation=NONE)
    prepared = prepare_case("a", "k", np.ones((1, *dense.shape), np.float32), dense, geometry, spec)
    assert prepared.labels is not None
    logits = true_logits(prepared.labels, of)
    assert np.array_equal(export([(logits, prepared.properties)], of, targets="regions"), values)


def painted(chances: np.ndarray, of: Labels) -> np.ndarray:
    """Dense classes from sigmoids (C, *S), by the definition."""
    dense = np.zeros(chances.shape[1:], int)
    for own, target in zip(chances, overlapping_targets(of), strict=True):
        dense[own > 0.5] = target.paints
    return dense


@pytest.mark.parametrize("weights", [None, (3.0, 1.0)])
def test_sources_are_averaged_as_sigmoids(weights):
    """One source has the grid of the file, where nothing is interpolated, the other one is twice as coarse."""
    generator = np.random.default_rng(2)
    geometry = Geometry(shape=(6, 8, 10))
    image = np.ones((1, 6, 8, 10), np.float32)
    sources = []
    for step in (1.0, 2.0):
        spec = PreprocessSpec(spacing=(step,) * 3, normalisation=NONE)
        properties = prepare_case("a", "k", image, None, geometry, spec).properties
        sources.append((generator.normal(size=(3, *properties.shape)).astype(np.float32), properties))
    fine, coarse = (torch.from_numpy(scores)[None] for scores, _ in sources)
    coarse = torch.nn.functional.interpolate(coarse, (6, 8, 10), mode="trilinear")
    shares = np.array(weights or (1.0, 1.0)) / sum(weights or (1.0, 1.0))
    chances = sum(
        share * torch.sigmoid(logits[0]).numpy() for share, logits in zip(shares, (fine, coarse), strict=True)
    )
    clear = (np.abs(chances - 0.5) > 1e-5).all(0)
    assert clear.mean() > 0.99
    found = encode(export(sources, TUMOUR, weights, "regions"), TUMOUR)
    assert np.array_equal(found[clear], painted(chances, TUMOUR)[clear])


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 999), st.integers(1, 5))
def test_the_last_channel_that_is_on_wins(seed, channels):
    scores = np.random.default_rng(seed).integers(-2, 3, (channels, 2, 3, 4)).astype(np.float32)
    decision = OrderedRegions(tuple(range(1, channels + 1)))
    expected = painted_last(scores)
    assert np.array_equal(decision.winners(scores), expected)
    flat = scores.reshape(channels, -1).T
    assert np.array_equal(decision.choose(flat), expected.ravel())
    assert np.array_equal(decision.choose(PROBABILITIES["regions"].from_logits(flat)), expected.ravel())


def painted_last(scores: np.ndarray) -> np.ndarray:
    found = np.zeros(scores.shape[1:], int)
    for channel, own in enumerate(scores, 1):
        found[own > 0] = channel
    return found


def test_a_next_stage_gets_dense_classes():
    """Through the file's grid and straight to the next one's, where both are the same."""
    generator = np.random.default_rng(3)
    image, geometry = np.ones((1, 8, 8, 8), np.float32), Geometry(shape=(8, 8, 8))
    source, target = (
        prepare_case(
            "a", "k", image, None, geometry, PreprocessSpec(spacing=(step,) * 3, normalisation=NONE)
        ).properties
        for step in (2.0, 1.0)
    )
    scores = generator.normal(size=(3, *source.shape)).astype(np.float32)
    handed = labels_for_next_stage(scores, source, target, decision_for(TUMOUR, "regions"))
    assert handed.dtype == np.int8
    assert np.array_equal(handed, encode(export([(scores, source)], TUMOUR, targets="regions"), TUMOUR))


# ---- the plan -------------------------------------------------------------------------------------------------


def make_plan(of: Labels, **options: object) -> tuple[Plan, Fingerprint]:
    cases = tuple(
        CaseFingerprint(
            identifier=f"case{index}",
            content_hash="",
            shape=(24, 32, 32),
            cropped_shape=(24, 32, 32),
            spacing=(1.0, 1.0, 1.0),
            voxels=(1,) * of.count,
        )
        for index in range(20)
    )
    fingerprint = Fingerprint(
        dimension=3,
        orientation=PlannerOptions(**options).orientation,
        channels=(ChannelFingerprint(name="MRI", kind=ChannelKind.mri),),
        cases=cases,
    )
    return plan(fingerprint, of, PlannerOptions(**options), TrainOptions()), fingerprint


@pytest.mark.parametrize("options", [{}, {"preset": "nnunet"}], ids=["default", "nnunet"])
def test_the_plan_has_an_output_for_each_target(options):
    made, fingerprint = make_plan(TUMOUR, **options)
    for each in made.configurations.values():
        assert (each.targets, each.network.out_channels) == ("regions", 3)
    assert any("sigmoid output for each of whole, core, c" in reason.text for reason in made.reasons)
    validate(made, fingerprint, TUMOUR)
    plain, _ = make_plan(TUMOUR.model_copy(update={"regions": ()}), **options)
    assert {each.targets for each in plain.configurations.values()} == {"classes"}
    assert not any("sigmoid" in reason.text for reason in plain.reasons)


def test_weights_of_classes_keep_the_key_they_had_before_there_were_targets():
    made, _ = make_plan(TUMOUR.model_copy(update={"regions": ()}))
    configuration = made.configurations["3d_fullres"]
    assert configuration.key != configuration.model_copy(update={"targets": "regions"}).key
    assert configuration.key != configuration.model_copy(update={"swap_axis": 2}).key
    old = json.loads(configuration.model_dump_json())
    del old["targets"], old["swap_axis"]
    assert type(configuration).model_validate(old).key == configuration.key


def edited(made: Plan, network: dict[str, object] | None = None, only: str | None = None, **changes: object) -> Plan:
    found = {}
    for name, each in made.configurations.items():
        update = {**changes, "network": each.network.model_copy(update=network or {})}
        found[name] = each.model_copy(update=update) if only in (None, name) else each
    return made.model_copy(update={"configurations": found})


def test_wrong_targets_of_an_edited_plan_are_refused():
    made, fingerprint = make_plan(TUMOUR)
    validate(edited(made, {"out_channels": 4}, targets="classes"), fingerprint, TUMOUR)
    with pytest.raises(PlanError, match="out_channels is 3, and there are 4 classes with background"):
        validate(edited(made, targets="classes"), fingerprint, TUMOUR)
    with pytest.raises(PlanError, match=r"out_channels is 4, and there are 3 targets \(whole, core, c\)"):
        validate(edited(made, {"out_channels": 4}), fingerprint, TUMOUR)
    with pytest.raises(PlanError, match="targets are classes and regions: give all configurations the same"):
        validate(edited(made, {"out_channels": 4}, only="2d", targets="classes"), fingerprint, TUMOUR)
    with pytest.raises(PlanError, match='the labels have none: give "classes" and out_channels 4'):
        validate(made, fingerprint, TUMOUR.model_copy(update={"regions": ()}))


def test_one_region_of_one_class_has_one_output():
    single = Labels(classes=TUMOUR.classes[:2], regions=(Region(name="all", values=(1,)),))
    made, fingerprint = make_plan(single)
    assert made.configurations["3d_fullres"].network.out_channels == 1
    validate(made, fingerprint, single)


def test_the_mean_goes_over_what_is_learnt():
    assert [target.name for target in counted_targets(TUMOUR)] == ["whole", "core", "c"]
    plain = TUMOUR.model_copy(update={"regions": ()})
    assert [target.name for target in counted_targets(plain)] == ["a", "b", "c"]
    ground = TUMOUR.model_copy(update={"regions": (Region(name="all", values=(0, 1)),)})
    assert [target.name for target in targets_of(ground, "regions")] == ["all", "a", "b", "c"]
    assert [target.name for target in counted_targets(ground)] == ["all", "a", "b", "c"]


# ---- training -------------------------------------------------------------------------------------------------

NESTED = labels().model_copy(update={"regions": (Region(name="both", values=(1, 2)),)})
"""of the cases of `training_cases`: both paints organ1, organ2 itself"""


def regional(of: Labels = NESTED):
    plain = configuration()
    network = FAMILIES["plain"].propose(
        3, 1, len(overlapping_targets(of)), plain.network.strides, plain.network.kernel_sizes, base_features=4
    )
    return plain.model_copy(update={"network": network, "targets": "regions"})


@pytest.mark.parametrize("ignore", [None, 9])
def test_a_fold_learns_regions(tmp_path, ignore):
    of = NESTED.model_copy(update={"ignore": ignore})
    given = task(tmp_path, Horizon(steps=30), configuration=regional(of), labels=of, options=TrainOptions())
    record = train_fold(*given)
    assert np.isfinite([line.loss for line in record.curve]).all()
    assert set(record.curve[-1].validation_dice or {}) == {"both", "organ2"}
    assert isinstance(RunRecord.load(given.folder / "record.json"), RunRecord)


def test_the_monitor_thresholds_each_channel(tmp_path):
    given = task(tmp_path, Horizon(steps=1), configuration=regional(), labels=NESTED)
    source = validation_source(given.inputs, given.place)
    assert source is not None

    class Oracle(torch.nn.Module):
        """Knows the labels of the patch from the intensities; `both` also where it is not."""

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            first, second = image > 0.5, image > 1.5
            return torch.cat((first.float() - 0.5, second.float() - 0.5), 1)

    dice = PatchMonitor(source, NESTED, Precision(), torch.device("cpu"), "regions").measure(Oracle())
    assert dice is not None
    assert dice["both"] > 0.9
    assert dice["organ2"] > 0.9


def test_memory_is_traced_with_the_loss_that_trains():
    of, chosen = NESTED, regional()
    loss = step_loss(chosen.network, of, TrainOptions())
    assert type(loss.pixelwise) is type(configuration_loss(chosen, of, TrainOptions()).pixelwise)  # type: ignore[attr-defined]
    exclusive = chosen.network.model_copy(update={"out_channels": of.count})
    assert type(step_loss(exclusive, of, TrainOptions()).pixelwise) is not type(loss.pixelwise)  # type: ignore[attr-defined]


# ---- everything -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """Discs (100) with a brighter core (200), and nothing else."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    geometry = Geometry(shape=(1, 33, 40), kind="png", dimension=2)
    y, x = np.mgrid[:33, :40]
    for case in range(4):
        distance = (y - rng.uniform(14, 18)) ** 2 + (x - rng.uniform(15, 25)) ** 2
        drawn = np.select([distance < 25, distance < 110], [200, 100]).astype(np.uint8)
        image = (drawn + rng.normal(0, 10, drawn.shape) + 30).clip(0, 255).astype(np.uint8)
        write_image(folder / "images" / f"{case}.png", image[None, None], geometry)
        write_labels(folder / "labels" / f"{case}.png", drawn[None], geometry)
    return folder


def test_regions_from_the_option_to_the_prediction(pictures, tmp_path):
    data = DataOptions(classes={"rim": 100, "core": 200}, regions={"disc": (100, 200)})
    given = RunOptions(device="cpu", workers=0, memory_bytes=700 * 2**20, iterations=30, folds="0", seed=1, data=data)
    run_pipeline(pictures, tmp_path, given)
    made = Plan.load(tmp_path / "plan.json").configurations["2d"]
    assert (made.targets, made.network.out_channels) == ("regions", 2)
    metrics = Metrics.load(tmp_path / "metrics.json")
    assert list(metrics.per_class) == ["rim", "core", "disc"]
    dice = {name: found.dice or 0 for name, found in metrics.per_class.items()}
    assert metrics.mean_dice == pytest.approx((dice["disc"] + dice["core"]) / 2)
    assert metrics.mean_dice > 0.7
    assert "disc" in (tmp_path / "report.html").read_text(encoding="utf-8")
    case = metrics.cases[0].case
    values, _ = read_labels(tmp_path / "crossval" / "2d" / f"{case}.png")
    assert set(np.unique(values)) <= {0, 100, 200}
    api.load(tmp_path / "model", device="cpu").predict_files(pictures / "images", tmp_path / "predicted")
    again, _ = read_labels(tmp_path / "predicted" / f"{case}.png")
    assert np.array_equal(values, again)  # the bundle holds the one fold that validated the case
    found = api.evaluate(tmp_path / "predicted", pictures / "labels", model=tmp_path / "model")
    assert found.mean_dice is not None
    assert found.per_class["disc"].dice is not None


def test_other_regions_make_another_plan_and_train_again(pictures, tmp_path):
    common = {"device": "cpu", "workers": 0, "memory_bytes": 700 * 2**20, "iterations": 1, "folds": "0"}
    run_pipeline(pictures, tmp_path, RunOptions(**common), until="plan")
    assert Plan.load(tmp_path / "plan.json").configurations["2d"].targets == "classes"
    data = DataOptions(regions={"disc": (100, 200)})
    run_pipeline(pictures, tmp_path, RunOptions(**common, data=data), until="train")
    assert Plan.load(tmp_path / "plan.json").configurations["2d"].targets == "regions"
    assert not (tmp_path / "models" / "2d" / "fold_0.old_1").exists()
    turned = DataOptions(regions={"inside": (200,)})
    run_pipeline(pictures, tmp_path, RunOptions(**common, data=turned), until="train")
    assert (tmp_path / "models" / "2d" / "fold_0.old_1").exists()

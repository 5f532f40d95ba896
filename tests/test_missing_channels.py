"""Cases may lack channels when the data set says so: prepared as zeros, trained by dropout, predicted with the rest."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from broken_sets import CASES, GEOMETRY, NONE, SHAPE, describe, drawn, image_file, pixels, volumes
from hypothesis import given
from hypothesis import strategies as st

from autounet.datasets import examine, find_inputs, load_case, load_input, scan
from autounet.datasets.checks.set_checks import check_dataset
from autounet.fingerprint import build_fingerprint
from autounet.imageio import write_image, write_labels
from autounet.preprocessing import prepare_case
from autounet.schema.bundle import ModelBundle
from autounet.schema.dataset import (
    Case,
    Channel,
    Dataset,
    channel_availability,
    channel_combinations,
    partial_availability,
)
from autounet.schema.errors import DataError
from autounet.schema.geometry import Geometry
from autounet.schema.labels import Labels
from autounet.schema.options import DataOptions
from autounet.schema.plan import ChannelNormalisation, PreprocessSpec
from autounet.training.augment import Augmentation
from autounet.training.cases import ChannelDropout, TrainCase, drop_channels
from autounet.training.samples import SampleSource
from autounet.workflow import dataset_stage as reading
from autounet.workflow.dataset_stage import check_data, fix_data

ALLOWED = DataOptions(missing_channels=True)
CHANNELS = ("T1", "T2", "FLAIR")


@pytest.fixture(autouse=True)
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "available_cores", lambda: 1)


@pytest.fixture
def lacking(tmp_path: Path) -> Path:
    """Three channels; c1 has no T2, c4 neither T1 nor FLAIR."""
    folder = volumes(tmp_path / "data", CHANNELS)
    for case, channel in (("c1", 1), ("c4", 0), ("c4", 2)):
        image_file(folder, case, channel).unlink()
    return folder


def test_a_case_without_a_channel_is_told_with_the_remedy(lacking: Path) -> None:
    found = {finding.case: finding for finding in check_data(lacking, NONE).findings}
    assert {(finding.code, finding.severity) for finding in found.values()} == {("missing-channel", "fatal")}
    assert found["c1"].message == "it has no file for channel 0001 (T2)"
    assert found["c4"].message == "it has no file for channel 0000 (T1), 0002 (FLAIR)"
    assert "--missing-channels" in found["c4"].remedy


def test_what_is_there_is_read_and_described(lacking: Path) -> None:
    dataset = scan(lacking, ALLOWED)
    assert [case.present for case in dataset.cases] == [None, (0, 2), None, None, (1,), None]
    assert [channel.name for channel in dataset.channels] == list(CHANNELS)
    facts = examine(dataset, workers=1)
    assert check_dataset(dataset, facts) == []
    assert [channel.minimum is None for channel in facts[1].channels] == [False, True, False]
    assert [sample.minimum is None for sample in facts[4].samples] == [True, False, True]
    fingerprint = build_fingerprint(dataset, facts, "ras")
    assert all(channel.mean is not None for channel in fingerprint.channels)
    image = load_case(dataset, "c1").image
    assert image.shape == (3, *SHAPE)
    assert not image[1].any()
    np.testing.assert_array_equal(image[2], pixels(12, SHAPE))


def test_presence_changes_the_content(lacking: Path) -> None:
    before = examine(scan(lacking, ALLOWED), workers=1)
    path = image_file(lacking, "c4", 1)
    path.rename(path.with_name("c4_0002.nii.gz"))
    after = examine(scan(lacking, ALLOWED), workers=1)
    assert before[4].image_hash == after[4].image_hash
    assert before[4].content_hash != after[4].content_hash


def one_folder_per_case(root: Path) -> DataOptions:
    for index in range(CASES):
        for channel in ("flair", "t1"):
            if (index, channel) != (3, "flair"):
                write_image(root / f"c{index}" / f"{channel}.nii.gz", pixels(index, (1, *SHAPE)), GEOMETRY)
        write_labels(root / f"c{index}" / "seg.nii.gz", drawn(), GEOMETRY)
    return ALLOWED


def patterns(root: Path) -> DataOptions:
    for index in range(CASES):
        for channel in ("flair", "t1"):
            if (index, channel) != (3, "flair"):
                write_image(root / f"{channel}/c{index}_{channel}.nii.gz", pixels(index, (1, *SHAPE)), GEOMETRY)
        write_labels(root / f"seg/c{index}_seg.nii.gz", drawn(), GEOMETRY)
    return DataOptions(channels={"flair": "flair/*", "t1": "t1/*"}, label="seg/*", missing_channels=True)


def bids(root: Path) -> DataOptions:
    for index in range(CASES):
        for channel in ("FLAIR", "T1w"):
            if (index, channel) != (3, "FLAIR"):
                path = root / f"sub-{index}/anat/sub-{index}_{channel}.nii.gz"
                write_image(path, pixels(index, (1, *SHAPE)), GEOMETRY)
        write_labels(root / f"derivatives/man/sub-{index}/anat/sub-{index}_dseg.nii.gz", drawn(), GEOMETRY)
    return ALLOWED


def table(root: Path) -> DataOptions:
    """An empty entry says it without an option."""
    one_folder_per_case(root)
    rows = [f"c{index},c{index}/flair.nii.gz,c{index}/t1.nii.gz,c{index}/seg.nii.gz" for index in range(CASES)]
    rows[3] = "c3,,c3/t1.nii.gz,c3/seg.nii.gz"
    (root / "cases.csv").write_text("\n".join(["case,flair,t1,label", *rows]))
    return NONE


@pytest.mark.parametrize("make", [one_folder_per_case, patterns, bids, table])
def test_every_layout_can_lack_channels(tmp_path: Path, make) -> None:
    options = make(tmp_path)
    dataset = scan(tmp_path, options)
    assert [case.present for case in dataset.cases] == [None, None, None, (1,), None, None]
    assert check_dataset(dataset, examine(dataset, workers=1)) == []
    if options.missing_channels:
        with pytest.raises(
            DataError, match=r"case \S*3\S*: it has no file for channel (flair|FLAIR)\. .*--missing-channels"
        ):
            scan(tmp_path, options.model_copy(update={"missing_channels": False}))


def test_repaired_data_say_it_themselves(lacking: Path, tmp_path: Path) -> None:
    found = fix_data(lacking, ALLOWED, tmp_path / "new")
    assert found.repairs == ()
    assert found.result.findings == ()
    assert channel_combinations(scan(tmp_path / "new", NONE)) == channel_combinations(scan(lacking, ALLOWED))


# ---- presence ------------------------------------------------------------------------------------------------


def dataset_of(*present: tuple[int, ...] | None) -> Dataset:
    cases = tuple(Case(identifier=f"c{index}", images=("a",), present=own) for index, own in enumerate(present))
    return Dataset(
        root="/", name="x", layout="pairs", channels=tuple(Channel(name=name) for name in CHANNELS), labels=Labels(),
        labels_declared=False, cases=cases, image_pattern="*", file_kind="nifti", suffix=".nii.gz",
    )  # fmt: skip


def test_combinations_are_those_that_occur() -> None:
    assert channel_combinations(dataset_of(None, None)) == ()
    assert channel_combinations(dataset_of(None, (0, 1, 2))) == ()
    assert channel_combinations(dataset_of(None, (1,), (0, 2), (1,))) == (
        (False, True, False), (True, False, True), (True, True, True)
    )  # fmt: skip
    assert channel_combinations(dataset_of((0,), (1,))) == ((False, True, False), (True, False, False))
    assert partial_availability(dataset_of(None, (1,))) == {"c1": (False, True, False)}
    assert channel_availability(Case(identifier="a", images=("a",)), 3) is None


def test_absent_channels_are_zero_after_normalisation() -> None:
    image = np.random.default_rng(0).uniform(50, 90, (3, *SHAPE)).astype(np.float32)
    image[1] = 0
    spec = PreprocessSpec(
        spacing=(1.0, 1.0, 1.0),
        normalisation=(
            ChannelNormalisation(scheme="zscore"),
            ChannelNormalisation(scheme="ct", lower=-10, upper=90, mean=40, std=7),
            ChannelNormalisation(scheme="unit", lower=20, upper=90),
        ),
    )
    geometry = Geometry(shape=SHAPE, spacing=(2.0, 1.0, 1.5))
    prepared = prepare_case("a", "k", image, None, geometry, spec, (True, False, True))
    assert not prepared.image[1].any()
    assert prepared.image[0].std() > 0.5
    assert prepared.properties.present == (True, False, True)
    whole = prepare_case("a", "k", image, None, geometry, spec)
    np.testing.assert_array_equal(prepared.image[[0, 2]], whole.image[[0, 2]])
    assert whole.image[1].any()  # what would be seen without the record


# ---- training ------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(*(st.booleans(),) * 3).filter(any), min_size=1, max_size=5, unique=True), st.integers(0, 99))
def test_a_sample_shows_channels_that_its_case_has_in_a_combination_that_occurs(occurring, seed: int) -> None:
    own = max(occurring, key=sum)
    dropout = ChannelDropout(tuple(sorted(occurring)), {"a": own})
    generator = np.random.default_rng(seed)
    for _ in range(20):
        shown = dropout.draw(generator, "a", 3) or (True,) * 3
        assert shown in occurring
        assert not any(there and not has for there, has in zip(shown, own, strict=True))


def test_every_combination_is_trained_on_cases_that_have_all_channels() -> None:
    occurring = ((False, True, False), (True, False, True), (True, True, True))
    dropout = ChannelDropout(occurring, {})
    generator = np.random.default_rng(0)
    shown = [dropout.draw(generator, "a", 3) for _ in range(400)]
    assert set(shown) == {None, *occurring[:2]}
    assert 150 < shown.count(None) < 250


def test_nothing_is_drawn_where_all_cases_have_all_channels() -> None:
    generator = np.random.default_rng(0)
    before = generator.bit_generator.state
    assert ChannelDropout().draw(generator, "a", 3) is None
    assert generator.bit_generator.state == before


def test_dropped_channels_are_zero_and_the_previous_stage_stays() -> None:
    image = drop_channels(torch.ones(5, 2, 2), (True, False, True))
    assert image.sum(dim=(1, 2)).tolist() == [4, 0, 4, 4, 4]
    assert drop_channels(torch.ones(2, 2), None).all()


def source(dropout: ChannelDropout) -> SampleSource:
    """Two cases of three channels and a previous stage; case b has no second channel."""
    generator = np.random.default_rng(0)
    cases = []
    for name in ("a", "b"):
        image = generator.normal(size=(3, 10, 12, 10)).astype(np.float32)
        image[1] *= name == "a"
        labels = generator.integers(0, 2, image.shape[1:]).astype(np.int8)
        cases.append(TrainCase(name, image, labels, {1: np.argwhere(labels == 1)}, previous=labels))
    augmentation = Augmentation("full", (8, 8, 8), (0, 1, 2), previous_classes=1)
    return SampleSource(cases, (8, 8, 8), 2, 0, 0, 0.33, augmentation, dropout=dropout)  # type: ignore[arg-type]


def test_samples_hold_zeros_for_channels_that_are_not_shown() -> None:
    both = ((True, False, True), (True, True, True))
    samples = source(ChannelDropout(both, {"b": both[0]}))
    dropped = previous = 0
    for step in range(20):
        batch = samples.batch(step)
        for image, case in zip(batch.image, batch.cases, strict=True):
            shown = [bool(channel.any()) for channel in image]
            assert (shown[0], shown[2], len(shown)) == (True, True, 4)  # the previous stage's channel comes last
            previous += shown[3]
            assert not (case == "b" and shown[1])
            dropped += case == "a" and not shown[1]
    assert 3 <= dropped <= 17  # of 20
    assert previous > 20  # of 40: the rest lost all of it to augmentation, none to dropout


def test_without_missing_channels_samples_are_what_they_were() -> None:
    first, second = source(ChannelDropout()).batch(3), source(ChannelDropout()).batch(3)
    assert torch.equal(first.image, second.image)
    generator = np.random.default_rng(5)
    ChannelDropout(((True, True),), {}).draw(generator, "a", 2)
    assert generator.random() == np.random.default_rng(5).random()


# ---- prediction ----------------------------------------------------------------------------------------------


def bundle(**changes: object) -> ModelBundle:
    values = {
        "channels": tuple(Channel(name=name) for name in CHANNELS), "suffix": ".nii.gz", "layout": "nnunet",
        "image_pattern": "imagesTr/*_0000.nii.gz", "channel_patterns": {}, "time_points": False,
        "channel_combinations": ((False, True, False), (True, True, True)),
    }  # fmt: skip
    return ModelBundle.model_construct(**{**values, **changes})


def test_images_with_a_trained_combination_are_predicted(lacking: Path) -> None:
    for case, number in (("c1", "0000"), ("c1", "0002")):
        (lacking / "imagesTr" / f"{case}_{number}.nii.gz").unlink()
    cases = find_inputs(lacking / "imagesTr", bundle())
    assert [case.present for case in cases] == [None, None, None, (1,), None]
    image, geometry = load_input(cases[3], bundle().channels)
    assert geometry.shape == SHAPE
    assert image[1].any()
    assert not image[[0, 2]].any()
    single = find_inputs(lacking / "imagesTr" / "c4_0001.nii.gz", bundle())
    assert single == [cases[3]]


def test_other_combinations_are_refused_with_those_that_were_trained(lacking: Path) -> None:
    told = [str(case.error) for case in find_inputs(lacking / "imagesTr", bundle()) if case.error]
    remedy = "Add it, or give T2 or T1 + T2 + FLAIR, which the model was trained with"
    assert told == [f"case c1: it has no file for channel T2. {remedy}"]
    told = [
        str(case.error) for case in find_inputs(lacking / "imagesTr", bundle(channel_combinations=())) if case.error
    ]
    assert told == [
        "case c1: it has no file for channel 0001 (T2). Add c1_0001.nii.gz",
        "case c4: it has no file for channel 0000 (T1), 0002 (FLAIR). Add c4_0000.nii.gz, c4_0002.nii.gz",
    ]


@pytest.mark.parametrize("layout", ["cases", "pairs", "table", "bids"])
def test_inputs_of_every_layout_can_lack_channels(tmp_path: Path, layout: str) -> None:
    make = {"cases": one_folder_per_case, "pairs": patterns, "table": table, "bids": bids}[layout]
    dataset = scan(tmp_path, make(tmp_path))
    model = bundle(
        layout=layout, channels=dataset.channels, channel_patterns=dataset.channel_patterns,
        image_pattern=dataset.image_pattern, channel_combinations=channel_combinations(dataset),
    )  # fmt: skip
    cases = find_inputs(tmp_path, model)
    assert len(cases) == CASES
    assert [case.present for case in cases if case.present] == [(1,)]


def test_a_description_may_say_it(lacking: Path) -> None:
    describe(lacking, CHANNELS)
    content = json.loads((lacking / "dataset.json").read_text())
    (lacking / "dataset.json").write_text(json.dumps({**content, "missing_channels": True}))
    assert scan(lacking, NONE).cases[4].present == (1,)

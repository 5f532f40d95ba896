"""Left and right classes change places in a mirror: in samples, in predictions, in what a previous stage hands over."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import nn
from training_cases import configuration, task, write_case

from autounet.datasets.labels import left_right_pairs
from autounet.inference.sliding_window import predict_scores
from autounet.planning import plan, validate
from autounet.schema.dataset import ChannelKind
from autounet.schema.errors import PlanError
from autounet.schema.fingerprint import CaseFingerprint, ChannelFingerprint, Fingerprint
from autounet.schema.labels import LabelClass, Labels, Region
from autounet.schema.options import PlannerOptions, TrainOptions
from autounet.schema.plan import InferenceSpec, Swap, prediction_swap, swapped_classes, swapped_outputs
from autounet.training import Horizon
from autounet.training.augment import Augmentation, ClassSwap, Excerpt
from autounet.training.sources import train_source

SIDES = Labels(
    classes=tuple(
        LabelClass(name=name, value=value)
        for value, name in enumerate(("background", "left lung", "heart", "right lung"))
    ),
    pairs=(("left lung", "right lung"),),
)
BOTH = Region(name="lungs", values=(1, 3))


def with_regions(*regions: Region) -> Labels:
    return SIDES.model_copy(update={"regions": regions})


# ---- which is which -------------------------------------------------------------------------------------------


def test_classes_and_outputs_that_change_places():
    assert swapped_classes(SIDES) == (0, 3, 2, 1)
    assert swapped_outputs(SIDES, "classes") == (0, 3, 2, 1)
    sides = with_regions(BOTH, Region(name="l", values=(1,)), Region(name="r", values=(3,)))
    assert swapped_outputs(sides, "regions") == (0, 2, 1, 3)  # lungs, l, r, heart
    # lungs paints the left one: the right one has a channel of its own, and the left one has none
    assert swapped_outputs(with_regions(BOTH), "regions") is None
    assert swapped_outputs(with_regions(Region(name="a", values=(2,))), "regions") == (0, 2, 1)


def test_pairs_name_each_class_once():
    assert left_right_pairs(["Left", "left", "Right"]) == (("Left", "Right"),)
    for pairs in ((("left lung", "nobody"),), (("left lung", "right lung"), ("heart", "left lung"))):
        with pytest.raises(ValidationError, match="pairs name a class twice, or none"):
            Labels.model_validate({**SIDES.model_dump(), "pairs": pairs})


# ---- the plan -------------------------------------------------------------------------------------------------


def fingerprint() -> Fingerprint:
    return Fingerprint(
        dimension=3,
        orientation="ras",
        channels=(ChannelFingerprint(name="CT", kind=ChannelKind.mri),),
        cases=tuple(
            CaseFingerprint(
                identifier=f"{index}", content_hash="", shape=(24, 32, 32), cropped_shape=(24, 32, 32),
                spacing=(1.0, 1.0, 1.0), voxels=(1, 1, 1, 1),
            )
            for index in range(20)
        ),
    )  # fmt: skip


def test_a_region_without_a_mirror_image_is_mirrored_in_training_only():
    made = plan(fingerprint(), with_regions(BOTH), PlannerOptions(), TrainOptions())
    volume = made.configurations["3d_fullres"]
    assert (volume.mirror_axes, volume.swap_axis, volume.inference.mirror_axes) == ((0, 1, 2), 2, (0, 1))
    assert any("not every region has a mirror image" in reason.text for reason in made.reasons)
    assert prediction_swap(volume, with_regions(BOTH)) is None
    mirrored = volume.model_copy(update={"inference": InferenceSpec(mirror_axes=(2,))})
    edited = made.model_copy(update={"configurations": {"3d_fullres": mirrored}})
    with pytest.raises(PlanError, match="leave out 2, since a region has no mirror image"):
        validate(edited, fingerprint(), with_regions(BOTH))
    with pytest.raises(PlanError, match=r"Remove 2 from inference\.mirror_axes"):
        prediction_swap(mirrored, with_regions(BOTH))


@pytest.mark.parametrize("axis", [0, 3])
def test_a_swap_along_another_axis_is_refused(axis):
    made = plan(fingerprint(), SIDES, PlannerOptions(), TrainOptions())
    validate(made, fingerprint(), SIDES)
    volume = made.configurations["3d_fullres"].model_copy(update={"swap_axis": axis})
    edited = made.model_copy(update={"configurations": {"3d_fullres": volume}})
    with pytest.raises(PlanError, match=f"swap_axis is {axis}: it must be the axis from left to right"):
        validate(edited, fingerprint(), SIDES)
    unpaired = SIDES.model_copy(update={"pairs": ()})
    with pytest.raises(PlanError, match="swap_axis is"):
        validate(made, fingerprint(), unpaired)


LIBRARIES = ("batchgeneratorsv2", "torch")


# ---- samples --------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**31 - 1), kind=st.sampled_from(["full", "light"]), staged=st.booleans(),
    by=st.sampled_from(LIBRARIES),
)  # fmt: skip
def test_samples_are_mirrored_with_their_classes(seed, kind, staged, by):
    """The labels are those mirrored along some axes, with left and right exchanged if the swap axis is one of them."""
    patch, swap = (4, 5, 6), ClassSwap(2, swapped_classes(SIDES))
    augmentation = Augmentation(kind, patch, (0, 1, 2), previous_classes=3 if staged else 0, swap=swap, by=by)
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(1, *patch, generator=generator)
    labels = torch.randint(-1, 4, patch, generator=generator).short()
    still = augmentation.draw(np.random.default_rng(seed))._replace(angles=None, scales=None, source_size=patch)
    found = augmentation.apply([Excerpt.of(still, image, labels, *([labels.clamp(min=0)] if staged else []))])
    exchanged = torch.tensor((*swap.classes, -1), dtype=torch.int16)
    possible = {}
    for axes in (chosen for count in range(4) for chosen in combinations(range(3), count)):
        mirrored = labels.flip(axes) if axes else labels
        possible[axes] = exchanged[mirrored.long()] if 2 in axes else mirrored
    drawn = [axes for axes, each in possible.items() if torch.equal(found.labels[0], each)]
    assert len(drawn) == 1
    assert found.swapped == (2 in drawn[0],)


@pytest.mark.parametrize("by", LIBRARIES)
def test_what_a_previous_stage_hands_over_changes_places_too(monkeypatch, by):
    monkeypatch.setattr("autounet.training.transforms.P_OPERATOR", 0)
    monkeypatch.setattr("autounet.training.transforms.P_REMOVAL", 0)
    augmentation = Augmentation("light", (4, 5, 6), (2,), 3, ClassSwap(2, swapped_classes(SIDES)), by=by)
    labels = torch.randint(0, 4, (4, 5, 6), generator=torch.Generator().manual_seed(0)).short()
    seen = set()
    for seed in range(8):
        still = augmentation.draw(np.random.default_rng(seed))._replace(angles=None, scales=None, source_size=(4, 5, 6))
        found = augmentation.apply([Excerpt.of(still, torch.zeros(1, 4, 5, 6), labels, labels)])
        one_hot = torch.stack([found.labels[0] == index for index in (1, 2, 3)]).float()
        assert torch.equal(found.images[0, 1:], one_hot)
        seen.add(*found.swapped)
    assert seen == {False, True}


def test_annotated_classes_change_places_with_their_labels(tmp_path):
    """Class 1 of the case was annotated, class 2, its mirror image, was not."""
    write_case(tmp_path / "prepared", "case0", (12, 12, 12))
    of = Labels(
        classes=tuple(LabelClass(name=name, value=value) for value, name in enumerate(("background", "l", "r"))),
        pairs=(("l", "r"),),
    )
    given = task(
        tmp_path, Horizon(steps=1), configuration=configuration().model_copy(update={"swap_axis": 2}), labels=of,
        train_cases=("case0",), validation_cases=(), annotated={"case0": (True, True, False)},
    )  # fmt: skip
    source, seen = train_source(given.inputs, given.place), set()
    for step in range(6):
        batch = source.batch(step)
        swapped = source.augmentation.apply([each.cut for each in source.readings(step)]).swapped
        assert batch.annotated is not None
        assert batch.annotated.tolist() == [[True, False, True] if each else [True, True, False] for each in swapped]
        seen |= set(swapped)
    assert seen == {False, True}


# ---- predictions ----------------------------------------------------------------------------------------------


class Random(nn.Module):
    """A convolution of every channel with every other, different on either side."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Conv3d(inputs, outputs, 3, padding=1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.layer(image)


def mirroring(inputs: int, patch=(4, 6, 8), axes=(0, 2), previous=None):
    """Tiles weigh the same everywhere: the middle of a Gaussian lies beside that of an even patch."""
    plain = configuration(patch)
    network = plain.network.model_copy(update={"in_channels": inputs, "out_channels": 4})
    return plain.model_copy(
        update={
            "network": network,
            "swap_axis": 2,
            "previous_stage": previous,
            "inference": InferenceSpec(mirror_axes=axes, weighting="uniform"),
        }
    )


@pytest.mark.parametrize("previous", [None, "3d_lowres"])
@pytest.mark.parametrize("width", [8, 12])
def test_a_mirrored_image_has_the_mirrored_prediction(previous, width):
    """For any network, in one tile and in several: the left of one image is the right of the other."""
    staged = 0 if previous is None else 3
    chosen = mirroring(1 + staged, previous=previous)
    swap = prediction_swap(chosen, SIDES)
    assert swap == Swap(2, (0, 3, 2, 1) if staged else (0,), (0, 3, 2, 1))
    image = np.random.default_rng(0).normal(size=(1 + staged, 4, 6, width)).astype(np.float32)
    mirrored = image[list(swap.inputs)][..., ::-1].copy()
    models = [Random(1 + staged, 4).eval()]
    straight = predict_scores(models, image, chosen, 4, "cpu", swap=swap)
    turned = predict_scores(models, mirrored, chosen, 4, "cpu", swap=swap)
    np.testing.assert_allclose(turned[list(swap.outputs)][..., ::-1], straight, atol=1e-5)
    once = mirroring(1 + staged, axes=(), previous=previous)
    assert not np.allclose(predict_scores(models, image, once, 4, "cpu"), straight, atol=1e-3)


def test_a_network_that_treats_both_sides_alike_gains_nothing():
    """Mirrored and exchanged, its prediction is the same as straight."""
    chosen, straight = mirroring(1), mirroring(1, axes=())
    model = nn.Conv3d(1, 4, 1).eval()
    with torch.no_grad():
        model.weight[3], model.bias[3] = model.weight[1], model.bias[1]
    image = np.random.default_rng(1).normal(size=(1, 4, 6, 8)).astype(np.float32)
    found = predict_scores([model], image, chosen, 4, "cpu", swap=prediction_swap(chosen, SIDES))
    np.testing.assert_allclose(found, predict_scores([model], image, straight, 4, "cpu"), atol=1e-6)


def test_an_axis_that_needs_a_swap_is_not_mirrored_without():
    with pytest.raises(ValueError, match="axis 2 is mirrored, and nothing says what changes places"):
        predict_scores([Random(1, 4).eval()], np.zeros((1, 4, 6, 8), np.float32), mirroring(1), 4, "cpu")

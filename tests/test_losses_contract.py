"""What every loss keeps to, for exclusive classes and for overlapping regions, in 2-D and in 3-D."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_cases import PATCH, channels, classes, random_batch, random_outputs, tumour
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional

from autounet.losses import BORDER_WEIGHTED, LOSSES, Batch, build_loss
from autounet.schema.labels import Labels, Region, overlapping_targets

FLAGS = (False, True)
every_loss = pytest.mark.parametrize("name", sorted(LOSSES))
both_kinds = pytest.mark.parametrize("overlapping", FLAGS, ids=["exclusive", "regions"])


def situations(name: str):
    """(ignore, weights, partial): every combination; losses that need weights get them."""
    return itertools.product(FLAGS, (True,) if name in BORDER_WEIGHTED else FLAGS, FLAGS)


def with_weights(name: str, batch: Batch) -> Batch:
    needed = name in BORDER_WEIGHTED and batch.weight is None
    return batch._replace(weight=torch.ones(batch.labels.shape)) if needed else batch


@every_loss
@both_kinds
@pytest.mark.parametrize("levels", [1, 3])
def test_emphasised_classes_weigh_more_until_they_no_longer_do(name, overlapping, levels):
    """As the same weights of the voxels, given with the batch, do; and without classes nothing is changed."""
    shape = (2, *PATCH[:3])
    for ignore, weights, partial in situations(name):
        labels = tumour(ignore)
        batch = random_batch(1, shape, ignore, weights, partial)
        outputs = random_outputs(2, shape, channels(labels, overlapping), levels)
        loss = build_loss(name, labels, False, levels, overlapping=overlapping)
        plain = loss(outputs, batch)
        loss.emphasise((1, 3), 4)
        emphasised = 1 + 3 * ((batch.labels == 1) | (batch.labels == 3)).float()
        expected = batch._replace(weight=emphasised if batch.weight is None else batch.weight * emphasised)
        assert torch.allclose(
            loss(outputs, batch), build_loss(name, labels, False, levels, overlapping=overlapping)(outputs, expected)
        )
        assert not torch.equal(loss(outputs, batch), plain)
        loss.emphasise((), 4)
        assert torch.equal(loss(outputs, batch), plain)


def true_logits(labels: torch.Tensor, overlapping: bool, size: float) -> torch.Tensor:
    """(B, C, *P) logits of +size and -size for the truth; ignored voxels count as class 0."""
    one_hot = functional.one_hot(labels.long().clamp(min=0), 4).movedim(-1, 1).double()
    if overlapping:
        one_hot = torch.stack([one_hot[:, list(t.members)].sum(1) for t in overlapping_targets(tumour())], 1)
    return size * (2 * one_hot - 1)


@every_loss
@both_kinds
@pytest.mark.parametrize("dims", [2, 3])
def test_value_and_gradient(name, overlapping, dims):
    """Scalar, finite, falls along its gradient, blind to ignored voxels, the same with weight 0 as with label -1."""
    shape = (2, *PATCH[:dims])
    for (ignore, weights, partial), levels in itertools.product(situations(name), (1, 3)):
        labels = tumour(ignore)
        batch = random_batch(1, shape, ignore, weights, partial)
        outputs = random_outputs(2, shape, channels(labels, overlapping), levels)
        loss = build_loss(name, labels, False, levels, overlapping=overlapping)
        value = loss(outputs, batch)
        value.backward()
        assert value.shape == ()
        assert torch.isfinite(value)
        used = outputs[: max(1, levels - 1)]
        assert [output.grad is not None for output in outputs] == [True] * len(used) + [False] * (levels - len(used))
        size = torch.stack([output.grad.norm() for output in used]).norm()
        moved = [o.detach() - (0 if o.grad is None else 1e-3 / size * o.grad) for o in outputs]
        assert loss(moved, batch) < value
        if ignore and levels == 1:
            hidden = batch.labels < 0
            assert not outputs[0].grad.movedim(1, -1)[hidden].any()
            weight = torch.ones(shape) if batch.weight is None else batch.weight
            masked = batch._replace(labels=batch.labels.clamp(min=0), weight=weight.masked_fill(hidden, 0))
            torch.testing.assert_close(loss(outputs, masked), value)


@every_loss
@both_kinds
@pytest.mark.parametrize("batch_dice", FLAGS)
def test_gradcheck(name, overlapping, batch_dice):
    shape = (2, 2, 3)
    for ignore, weights, partial in [(False, name in BORDER_WEIGHTED, False), (True, True, True)]:
        batch = random_batch(3, shape, ignore, weights, partial)
        if weights:
            batch = batch._replace(weight=batch.weight.double())
        labels = tumour(ignore)
        loss = build_loss(name, labels, batch_dice, 1, overlapping=overlapping)
        (logits,) = random_outputs(4, shape, channels(labels, overlapping))
        assert torch.autograd.gradcheck(lambda x, loss=loss, batch=batch: loss([x], batch), logits)


@every_loss
@both_kinds
@pytest.mark.parametrize("absent", FLAGS)
def test_a_perfect_prediction_is_a_minimum(name, overlapping, absent):
    """Also where a class is nowhere, and predicted nowhere: gradients vanish, and any other prediction costs more."""
    shape = (2, 6, 4)
    batch = with_weights(name, random_batch(5, shape, False, False, False))
    if absent:
        batch = batch._replace(labels=torch.where(batch.labels == 3, 0, batch.labels))
    logits = true_logits(batch.labels, overlapping, 40.0).requires_grad_()
    loss = build_loss(name, tumour(), False, 1, overlapping=overlapping)
    value = loss([logits], batch)
    value.backward()
    assert value.item() == pytest.approx(-1 if "dice" in name and "log" not in name else 0, abs=1e-5)
    assert logits.grad.abs().max() < 1e-6
    assert loss([logits.detach() / 40], batch) > value
    assert loss([-logits.detach()], batch) > loss([logits.detach() / 40], batch)


@every_loss
@both_kinds
@pytest.mark.parametrize("batch_dice", FLAGS)
def test_a_batch_without_any_label_has_no_gradient(name, overlapping, batch_dice):
    batch = with_weights(name, random_batch(6, (2, 4, 4), True, False, False))
    batch = batch._replace(labels=torch.full_like(batch.labels, -1))
    labels = tumour(ignore=True)
    loss = build_loss(name, labels, batch_dice, 1, overlapping=overlapping)
    (logits,) = random_outputs(7, (2, 4, 4), channels(labels, overlapping))
    value = loss([logits], batch)
    value.backward()
    assert torch.isfinite(value)
    assert not logits.grad.any()


@every_loss
@pytest.mark.parametrize("batch_dice", FLAGS)
def test_what_was_not_annotated_may_be_background_or_not(name, batch_dice):
    """Exclusive: only the sum of both probabilities is judged. Regions: channels that may hold it are not."""
    shape = (2, 5, 4)
    batch = with_weights(name, random_batch(8, shape, False, False, True))
    loss = build_loss(name, tumour(), batch_dice, 1)
    (logits,) = random_outputs(9, shape, 4)
    exchanged = torch.stack((logits[0, [1, 0, 2, 3]], logits[1]))
    torch.testing.assert_close(loss([exchanged], batch), loss([logits], batch))
    assert not torch.isclose(loss([torch.stack((logits[0], logits[1, [1, 0, 2, 3]]))], batch), loss([logits], batch))

    drawn = batch._replace(labels=batch.labels.clone())  # a label that should not be there is background too
    drawn.labels[0, :2] = 0
    stray = drawn._replace(labels=drawn.labels.clone())
    stray.labels[0, :2] = 1
    torch.testing.assert_close(loss([logits], stray), loss([logits], drawn))

    regions = build_loss(name, tumour(), batch_dice, 1, overlapping=True)
    (logits,) = random_outputs(9, shape, 3)
    torch.testing.assert_close(regions([logits], stray), regions([logits], drawn))
    (gradient,) = torch.autograd.grad(regions([logits], batch), logits)
    touched = gradient.abs().flatten(2).sum(-1) > 0
    assert not touched[0, 0]  # sample 0 does not know the whole tumour
    few = name == "topk"  # voxels, which need not be in every channel
    assert touched.any() if few else touched.flatten()[1:].all()


@every_loss
@both_kinds
def test_all_annotated_is_the_usual_case_and_nothing_annotated_leaves_the_background(name, overlapping):
    shape = (2, 5, 4)
    batch = with_weights(name, random_batch(10, shape, False, False, False))
    loss = build_loss(name, tumour(), False, 1, overlapping=overlapping)
    (logits,) = random_outputs(11, shape, channels(tumour(), overlapping))
    every = batch._replace(annotated=torch.ones(2, 4, dtype=torch.bool))
    torch.testing.assert_close(loss([logits], every), loss([logits], batch))
    none = batch._replace(annotated=torch.zeros(2, 4, dtype=torch.bool), labels=torch.zeros_like(batch.labels))
    value = loss([logits], none)
    value.backward()
    assert torch.isfinite(value)
    assert logits.grad.abs().max() < 1e-12


@every_loss
@both_kinds
@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_half_precision_outputs_are_judged_in_single(name, overlapping, kind):
    """Gradients come back in the type and memory order of the outputs, as those of the same numbers in float32."""
    shape = (2, 8, 6, 4)
    batch = with_weights(name, random_batch(16, shape, False, False, False))
    (exact,) = random_outputs(17, shape, channels(tumour(), overlapping))
    logits = exact.detach().to(kind).contiguous(memory_format=torch.channels_last_3d).requires_grad_()
    single = logits.detach().float().requires_grad_()
    loss = build_loss(name, tumour(), True, 1, overlapping=overlapping)
    values = loss([logits], batch), loss([single], batch)
    torch.testing.assert_close(*values)
    assert values[0].dtype == torch.float32
    for value in values:
        (1024 * value).backward()
    assert logits.grad.dtype == kind
    assert logits.grad.is_contiguous(memory_format=torch.channels_last_3d)
    torch.testing.assert_close(logits.grad.float(), single.grad, rtol=1e-2, atol=1e-5)


@every_loss
@both_kinds
def test_fake_tensors_go_through(name, overlapping):
    """Memory is traced without data: nothing may depend on them."""
    for ignore, weights, partial in situations(name):
        labels = tumour(ignore)
        loss = build_loss(name, labels, True, 2, overlapping=overlapping)
        with FakeTensorMode():
            sizes = ((8, 8), (4, 4))
            outputs = [torch.empty(2, channels(labels, overlapping), *s, requires_grad=True) for s in sizes]
            batch = Batch(
                torch.empty(2, 1, 8, 8),
                torch.empty(2, 8, 8, dtype=torch.int16),
                torch.ones(2, 4, dtype=torch.bool) if partial else None,
                torch.ones(2, 8, 8) if weights else None,
            )
            loss(outputs, batch).backward()
            assert outputs[0].grad.shape == outputs[0].shape


@pytest.mark.parametrize("name", ["dice_ce", "dice_topk"])
@both_kinds
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch's tracer does so itself
def test_compiles_into_one_graph(name, overlapping):
    shape = (2, 6, 4)
    labels = tumour(ignore=True)
    batch = random_batch(12, shape, True, True, True)
    (logits,) = random_outputs(13, shape, channels(labels, overlapping))
    loss = build_loss(name, labels, True, 1, overlapping=overlapping)
    compiled = torch.compile(lambda x, y, w, a: loss([x], Batch(batch.image, y, a, w)), backend="eager", fullgraph=True)
    expected, value = loss([logits], batch), compiled(logits, batch.labels, batch.weight, batch.annotated)
    torch.testing.assert_close(value, expected)
    gradients = [torch.autograd.grad(each, logits)[0] for each in (value, expected)]
    torch.testing.assert_close(*gradients)


def test_weights_are_demanded_where_they_are_the_point():
    batch = random_batch(0, (1, 4, 4), False, False, False)
    with pytest.raises(ValueError, match="weighted_ce needs a weight"):
        build_loss("weighted_ce", tumour(), False, 1)([torch.zeros(1, 4, 4, 4)], batch)


def test_targets_of_a_brain_tumour():
    assert [(t.name, t.members, t.paints) for t in overlapping_targets(tumour())] == [
        ("whole", (1, 2, 3), 1),
        ("core", (2, 3), 2),
        ("class3", (3,), 3),
    ]
    assert [t.members for t in overlapping_targets(classes(3))] == [(1,), (2,)]


@settings(max_examples=100, deadline=None)
@given(count=st.integers(2, 6), data=st.data())
def test_painting_the_targets_gives_the_labels_back(count, data):
    members = st.sets(st.integers(0, count - 1), min_size=1)
    regions = [Region(name=f"region{i}", values=tuple(v)) for i, v in enumerate(data.draw(st.lists(members)))]
    labels = Labels(classes=classes(count).classes, regions=tuple(regions))
    targets = overlapping_targets(labels)
    assert [target.name for target in targets[: len(regions)]] == [region.name for region in regions]
    assert all(target.paints in target.members for target in targets)
    for label in range(count):
        painted = 0
        for target in targets:
            painted = target.paints if label in target.members else painted
        assert painted == label

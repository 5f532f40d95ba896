"""Starting a network from the weights of a trained one: what is copied, what starts anew, what is refused."""

from __future__ import annotations

import pytest
import torch

from autounet.nets import FAMILIES
from autounet.nets.transfer import class_tensors, differences, input_tensors, transfer
from autounet.schema.errors import ModelError
from autounet.schema.plan import NetworkSpec


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)


def small(family: str, classes: int = 3, **changes: object) -> NetworkSpec:
    dims = min(FAMILIES[family].dims)
    strides = [(1,) * dims, (2,) * dims, (2,) * dims]
    proposed = FAMILIES[family].propose(dims, 1, classes, strides, [(3,) * dims] * 3, 4, family != "original")
    return proposed.model_copy(update=changes)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_all_but_what_depends_on_the_classes_is_copied(family: str) -> None:
    trained, spec = small(family, 3), small(family, 5)
    weights = FAMILIES[family].build(trained).state_dict()
    network = FAMILIES[family].build(spec)
    drawn = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    new = class_tensors(spec)
    assert 0 < len(new) < len(weights) / 2
    transfer(network, spec, weights, trained, new)
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, drawn[name] if name in new else weights[name]), name


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_with_the_same_classes_the_network_is_the_same(family: str) -> None:
    spec = small(family)
    trained, network = (FAMILIES[family].build(spec).eval() for _ in range(2))
    transfer(network, spec, trained.state_dict(), spec)
    image = torch.randn(1, 1, *FAMILIES[family].valid_size(spec, (16,) * spec.dims))
    with torch.no_grad():
        assert torch.equal(network(image), trained(image))


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_channels_that_were_known_are_copied_and_the_others_stay_as_drawn(family: str) -> None:
    trained, spec = small(family, in_channels=2), small(family, in_channels=3)
    weights, network = FAMILIES[family].build(trained).state_dict(), FAMILIES[family].build(spec)
    drawn = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    transfer(network, spec, weights, trained, channels=(1, None, 0))
    touched = input_tensors(spec)
    assert touched
    for name, tensor in network.state_dict().items():
        if name in touched:
            expected = torch.stack([weights[name][:, 1], drawn[name][:, 1], weights[name][:, 0]], 1)
            assert torch.equal(tensor, expected), name
        else:
            assert torch.equal(tensor, weights[name]), name


@pytest.mark.parametrize(("changes", "message"), [
    ({"features": (4, 8, 8)}, r"features are \(4, 8, 16\) here and \(4, 8, 8\) in the model"),
    ({"in_channels": 2}, "in_channels is 1 here and 2 in the model"),
    ({"kernel_sizes": ((1, 3), (3, 3), (3, 3))}, "kernel_sizes are"),
    ({"deep_supervision": False}, "deep_supervision is True here and False in the model"),
])  # fmt: skip
def test_every_difference_is_listed_and_nothing_is_changed(changes: dict, message: str) -> None:
    spec, trained = small("plain"), small("plain", **changes)
    network = FAMILIES["plain"].build(spec)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(ModelError, match=message):
        transfer(network, spec, FAMILIES["plain"].build(trained).state_dict(), trained)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_several_differences_and_those_that_do_not_count() -> None:
    spec = small("plain")
    found = differences(spec, spec.model_copy(update={"in_channels": 3, "decoder_blocks": (1, 1), "out_channels": 9}))
    assert [sentence.split()[0] for sentence in found] == ["in_channels", "decoder_blocks"]
    assert differences(spec, small("residual")) == ("family is plain here and residual in the model",)
    nested = small("nested")
    assert not differences(nested, nested.model_copy(update={"options": {"prune": 1}}))
    assert not differences(nested, nested.model_copy(update={"options": {"normalisation": "instance"}}))
    assert differences(nested, nested.model_copy(update={"options": {"normalisation": "batch"}}))
    assert differences(nested, small("nested", features=(4, 8), strides=nested.strides[:2]))


def mednext(kernel: int, classes: int = 2) -> NetworkSpec:
    strides = [(1, 1, 1), (1, 2, 2), (2, 2, 2)]
    return FAMILIES["mednext"].propose(3, 1, classes, strides, [(1, 3, 3), (3, 3, 3), (3, 3, 3)], 4, kernel=kernel)  # type: ignore[arg-type]


def test_kernels_of_a_mednext_may_be_larger_and_never_smaller() -> None:
    small_kernels, large = mednext(3), mednext(5, classes=4)
    assert large.kernel_sizes[0] == (1, 5, 5)
    weights = FAMILIES["mednext"].build(small_kernels).state_dict()
    name = "encoder.0.blocks.0.depthwise.weight"
    weights[name] = torch.full(weights[name].shape, 0.25)
    network, new = FAMILIES["mednext"].build(large), class_tensors(large)
    drawn = {each: network.state_dict()[each].clone() for each in new}
    transfer(network, large, weights, small_kernels, new)
    state = network.state_dict()
    torch.testing.assert_close(state[name], torch.full((4, 1, 1, 5, 5), 0.25))
    assert all(torch.equal(state[each], drawn[each]) for each in new)
    assert all(torch.equal(state[each], tensor) for each, tensor in weights.items() if state[each].ndim == 1
               and each not in new)  # fmt: skip
    assert differences(small_kernels, large)[0].startswith("kernel_sizes are ((1, 3, 3)")
    wider = ((3, 3, 3), *large.kernel_sizes[1:])
    assert differences(large.model_copy(update={"kernel_sizes": wider}), small_kernels)
    assert differences(small("plain", kernel_sizes=((5, 5),) * 3), small("plain"))


def test_weights_that_are_not_those_described_change_nothing() -> None:
    spec = small("plain")
    network, weights = FAMILIES["plain"].build(spec), FAMILIES["plain"].build(spec).state_dict()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    name = sorted(weights)[3]
    for wrong in ({**weights, name: torch.zeros(2)}, {key: weights[key] for key in weights if key != name}):
        with pytest.raises(ModelError, match=f"{name} does not fit"):
            transfer(network, spec, wrong, spec)
    assert all(torch.equal(tensor, before[key]) for key, tensor in network.state_dict().items())

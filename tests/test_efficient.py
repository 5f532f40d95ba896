"""The EfficientNet encoder: the published sizes, where strides go, timm's names, pretrained weights from a file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.nn import functional

from autounet.nets.efficient import (
    EFFICIENT,
    SCALES,
    EfficientOptions,
    for_channels,
    load_pretrained,
    round_features,
    stage_rows,
)
from autounet.nets.efficient_modules import BatchNorm
from autounet.schema.errors import ModelError, PlanError
from autounet.schema.plan import NetworkSpec
from autounet.store.weights import read_pretrained, save_weights

FULL = [(1, 1)] + [(2, 2)] * 5
KERNELS = [(3, 3)] * 6
MILLIONS = {"b0": 5.3, "b1": 7.8, "b4": 19, "b7": 66}
"""parameters with the classifier (Tan & Le 2019, Table 2)"""
B0 = [(3, 1, 16, 1), (3, 6, 24, 2), (5, 6, 40, 2), (3, 6, 80, 3), (5, 6, 112, 3), (5, 6, 192, 4), (3, 6, 320, 1)]
"""kernel, expansion, features, blocks (Tan & Le 2019, Table 1)"""


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)


def small(dims: int = 2, channels: int = 1) -> NetworkSpec:
    strides = [(1,) * dims, (2,) * dims, (1,) * (dims - 1) + (2,)]
    return EFFICIENT.propose(dims, channels, 2, strides, [(3,) * dims] * 3, base_features=4)


def timm_b0() -> dict[str, Tensor]:
    """What timm's efficientnet_b0 has: names and shapes as its source builds them, random values."""
    shapes: dict[str, tuple[int, ...]] = {"conv_stem.weight": (32, 3, 3, 3)}

    def norm(name: str, features: int) -> None:
        for part in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{name}.{part}"] = (features,)

    norm("bn1", 32)
    inputs = 32
    for stage, (kernel, expansion, outputs, blocks) in enumerate(B0):
        for block in range(blocks):
            name, hidden, squeezed = f"blocks.{stage}.{block}", inputs * expansion, inputs // 4
            order = ["conv_dw", "conv_pw"] if expansion == 1 else ["conv_pw", "conv_dw", "conv_pwl"]
            for index, conv in enumerate(order, start=1):
                of = {"conv_dw": (hidden, 1, kernel, kernel), order[-1]: (outputs, hidden, 1, 1)}
                shapes[f"{name}.{conv}.weight"] = of.get(conv, (hidden, inputs, 1, 1))
                norm(f"{name}.bn{index}", shapes[f"{name}.{conv}.weight"][0])
            shapes[f"{name}.se.conv_reduce.weight"] = (squeezed, hidden, 1, 1)
            shapes[f"{name}.se.conv_reduce.bias"] = (squeezed,)
            shapes[f"{name}.se.conv_expand.weight"] = (hidden, squeezed, 1, 1)
            shapes[f"{name}.se.conv_expand.bias"] = (hidden,)
            inputs = outputs
    shapes["conv_head.weight"] = (1280, 320, 1, 1)
    norm("bn2", 1280)
    shapes |= {"classifier.weight": (1000, 1280), "classifier.bias": (1000,)}
    return {name: torch.rand(shape) for name, shape in shapes.items()}


@pytest.mark.parametrize("variant", ["b0", "b1", "b4", "b7"])
def test_parameters_of_the_published_variants(variant: str) -> None:
    spec = EFFICIENT.propose(2, 3, 2, FULL, KERNELS, variant=variant)  # type: ignore[arg-type]
    with torch.device("meta"):
        encoder = EFFICIENT.build(spec).encoder
    count = sum(parameter.numel() for parameter in encoder.parameters())
    last, head = spec.features[-1], round_features(1280, SCALES[variant][0])  # type: ignore[index]
    before_classifier = count + last * head + 2 * head
    whole = before_classifier + 1000 * head + 1000
    assert whole / 1e6 == pytest.approx(MILLIONS[variant], rel=0.02)
    if variant == "b0":
        assert (count, before_classifier, whole) == (3_595_388, 4_007_548, 5_288_548)


def test_strides_go_where_efficientnet_halves() -> None:
    assert stage_rows(6) == ((0,), (1,), (2,), (3, 4), (5, 6))
    assert stage_rows(3) == ((0,), (1, 2, 3, 4, 5, 6))
    assert stage_rows(2) == ((0, 1, 2, 3, 4, 5, 6),)
    spec = EFFICIENT.propose(2, 3, 2, FULL, KERNELS)
    assert spec.features == (16, 16, 24, 40, 112, 320)
    assert spec.encoder_blocks == (1, 1, 2, 2, 6, 5)
    with torch.device("meta"):
        encoder = EFFICIENT.build(spec).encoder
    assert [row[0].conv_dw.stride for row in encoder.blocks] == [(s, s) for s in (1, 2, 2, 2, 1, 2, 1)]
    assert encoder.conv_stem.stride == (2, 2)


def test_every_block_is_used_however_deep_the_topology() -> None:
    counts = set()
    for stages in (2, 4, 6, 8):
        spec = EFFICIENT.propose(2, 3, 2, [(1, 1)] + [(2, 2)] * (stages - 1), [(3, 3)] * stages)
        assert len(spec.features) == min(stages, 6)
        with torch.device("meta"):
            counts.add(sum(parameter.numel() for parameter in EFFICIENT.build(spec).encoder.parameters()))
    assert counts == {3_595_388}


def test_kernels_keep_to_the_axes_that_are_convolved() -> None:
    spec = EFFICIENT.propose(3, 1, 2, [(1, 1, 1), (1, 2, 2), (2, 2, 2)], [(1, 3, 3), (1, 3, 3), (3, 3, 3)])
    with torch.device("meta"):
        encoder = EFFICIENT.build(spec).encoder
    assert encoder.conv_stem.kernel_size == (1, 3, 3)
    assert encoder.blocks[0][0].conv_dw.kernel_size == (1, 3, 3)
    assert encoder.blocks[2][0].conv_dw.kernel_size == (5, 5, 5)


def test_edits_that_contradict_the_variant_are_refused() -> None:
    spec = small()
    with pytest.raises(PlanError, match=r"network.features are .*EfficientNet-B0 of width 0.125"):
        EFFICIENT.build(spec.model_copy(update={"features": (8, 8, 48)}))
    with pytest.raises(PlanError, match=r"network.encoder_blocks"):
        EFFICIENT.build(spec.model_copy(update={"options": spec.options | {"variant": "b4"}}))
    deep = {"strides": ((2, 2),) * 7, "kernel_sizes": ((3, 3),) * 7, "features": (8,) * 7, "encoder_blocks": (1,) * 7}
    with pytest.raises(PlanError, match="7 stages"):
        EFFICIENT.build(spec.model_copy(update=deep))


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_pretrained_weights_come_from_a_file_in_timms_naming(tmp_path: Path, suffix: str) -> None:
    content = timm_b0()
    path = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        save_weights(path, content)
    else:
        torch.save({"state_dict": content}, path)
    network = EFFICIENT.build(EFFICIENT.propose(2, 3, 2, FULL, KERNELS))
    load_pretrained(network, read_pretrained(path))
    state = network.encoder.state_dict()
    loaded = {name for name in state if not name.endswith("num_batches_tracked")}
    assert loaded == {name for name in content if not name.startswith(("conv_head", "bn2", "classifier"))}
    assert all(torch.equal(state[name], content[name]) for name in loaded)


def test_the_stem_takes_other_numbers_of_channels() -> None:
    weight = torch.randn(4, 3, 3, 3)
    grey = torch.randn(1, 1, 6, 6)
    colours = grey.expand(1, 3, 6, 6)
    expected = functional.conv2d(colours, weight)
    torch.testing.assert_close(functional.conv2d(grey, for_channels(weight, 1)), expected)
    for channels in (2, 4, 7):
        changed = for_channels(weight, channels)
        assert changed.shape == (4, channels, 3, 3)
        torch.testing.assert_close(changed[:, -1], weight[:, (channels - 1) % 3] * 3 / channels)
    assert for_channels(weight, 3) is weight


def test_pretrained_weights_that_do_not_fit_are_named_and_change_nothing() -> None:
    network = EFFICIENT.build(EFFICIENT.propose(2, 1, 2, FULL, KERNELS))
    before = {name: value.clone() for name, value in network.encoder.state_dict().items()}
    content = timm_b0()
    name = "blocks.3.1.se.conv_reduce.weight"
    wrong = {
        "lack blocks.3.1.se.conv_reduce.weight": {key: value for key, value in content.items() if key != name},
        "hold blocks.6.1.conv_pw.weight": content | {"blocks.6.1.conv_pw.weight": torch.zeros(1)},
        r"blocks.3.1.se.conv_reduce.weight is \(1, 2\), and \(20, 480, 1, 1\)": content | {name: torch.zeros(1, 2)},
    }
    for message, weights in wrong.items():
        with pytest.raises(ModelError, match=message):
            load_pretrained(network, weights)
    after = network.encoder.state_dict()
    assert all(torch.equal(after[key], before[key]) for key in before)
    with pytest.raises(ModelError, match="two-dimensional"):
        load_pretrained(EFFICIENT.build(small(3)), content)


def test_files_that_hold_no_weights_are_refused(tmp_path: Path) -> None:
    for name, content in (("list.pth", [torch.zeros(1)]), ("mixed.pth", {"weight": torch.zeros(1), "epoch": 3})):
        torch.save(content, tmp_path / name)
        with pytest.raises(ModelError, match=f"{name} does not hold tensors by name"):
            read_pretrained(tmp_path / name)
    (tmp_path / "damaged.pth").write_bytes(b"no weights")
    for name in ("damaged.pth", "missing.pth", "missing.safetensors"):
        with pytest.raises(ModelError, match=f"{name} cannot be read"):
            read_pretrained(tmp_path / name)
    torch.save(EfficientOptions, tmp_path / "code.pth")
    with pytest.raises(ModelError, match=r"code\.pth cannot be read"):
        read_pretrained(tmp_path / "code.pth")


def test_batch_norm_is_torchs_and_survives_a_single_number() -> None:
    norm, reference = BatchNorm(3, 1e-3), torch.nn.BatchNorm2d(3, 1e-3)
    x = torch.randn(2, 3, 4, 5)
    torch.testing.assert_close(norm(x), reference(x))
    torch.testing.assert_close(norm.state_dict(), reference.state_dict())
    single = torch.randn(1, 3, 1, 1)
    torch.testing.assert_close(norm(single), reference.eval()(single))
    torch.testing.assert_close(norm.state_dict(), reference.state_dict())


def test_a_training_step_in_bf16_and_channels_last_can_be_traced() -> None:
    dims, layout = 3, torch.channels_last_3d
    with FakeTensorMode(), torch.autocast("cpu", dtype=torch.bfloat16):
        network = EFFICIENT.build(small(dims))
        outputs = network(torch.randn(2, 1, *(8,) * dims).to(memory_format=layout))
        sum(output.float().square().mean() for output in outputs).backward()
        assert all(parameter.grad is not None for parameter in network.parameters())


def test_it_learns() -> None:
    network = EFFICIENT.build(small())
    image = torch.randn(2, 1, 16, 16)
    target = (functional.avg_pool2d(image, 3, 1, 1) > 0).long()[:, 0]
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-2)
    losses = []
    for _ in range(30):
        loss = functional.cross_entropy(network(image)[0], target)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]

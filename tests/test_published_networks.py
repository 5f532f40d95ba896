"""Parameter counts and output sizes of the published networks, each with its source.

Nothing is computed here: networks of published size are built on torch's meta device.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import pytest
import torch
from torch import Tensor, nn

from autounet.nets import FAMILIES
from autounet.nets.attention_modules import AttentionGate
from autounet.schema.plan import NetworkSpec


def published(family: str, dims: int, channels: int, classes: int, stages: int, base: int, **changes) -> NetworkSpec:
    ones, twos, kernels = (1,) * dims, (2,) * dims, ((3,) * dims,) * stages
    spec = FAMILIES[family].propose(dims, channels, classes, (ones, *[twos] * (stages - 1)), kernels, base)
    return spec.model_copy(update=changes)


def on_meta(spec: NetworkSpec) -> nn.Module:
    with torch.device("meta"):
        return FAMILIES[spec.family].build(spec)


def count(parameters: Iterable[Tensor]) -> int:
    return sum(parameter.numel() for parameter in parameters)


def forward(network: nn.Module, *shape: int) -> tuple[int, ...]:
    return tuple(network.eval()(torch.empty(1, *shape, device="meta")).shape)


def test_the_network_of_2015() -> None:
    """Ronneberger et al., MICCAI 2015 (arXiv:1505.04597), figure 1: 572 x 572 in, 388 x 388 out, 64 to 1024 features.

    "In total the network has 23 convolutional layers" (section 2). The paper gives no number of parameters; the 31.0 M
    that are quoted everywhere are those of its figure 1, here with one channel and two classes, term by term:
    """
    spec = published("original", 2, 1, 2, stages=5, base=64)
    features = (64, 128, 256, 512, 1024)
    assert spec.features == features
    family = FAMILIES["original"]
    assert family.valid_size(spec, (572, 572)) == (572, 572)
    assert family.output_size(spec, (572, 572)) == (388, 388)
    network = on_meta(spec)
    assert forward(network, 1, 572, 572) == (1, 2, 388, 388)
    down = sum(9 * a * b + b + 9 * b * b + b for a, b in zip((1, *features), features, strict=False))
    up = sum(4 * 2 * b * b + b + 9 * 2 * b * b + b + 9 * b * b + b for b in features[:-1])
    assert count(network.parameters()) == down + up + 64 * 2 + 2 == 31_030_658
    layers = [module for module in network.modules() if type(module).__name__ in ("Conv2d", "UpConvolution")]
    assert len(layers) == 23
    assert not list(network.buffers())


def test_weights_of_2015_start_as_the_paper_says() -> None:
    """Section 3: a Gaussian of standard deviation sqrt(2 / N), "e.g. for a 3x3 convolution and 64 feature channels in
    the previous layer N = 9 * 64 = 576"."""
    torch.manual_seed(0)
    network = FAMILIES["original"].build(published("original", 2, 1, 2, stages=2, base=64))
    weight = network.encoder[0][1].conv.weight
    assert weight.shape == (64, 64, 3, 3)
    assert weight.std().item() == pytest.approx(math.sqrt(2 / 576), rel=0.02)
    assert network.decoder[0].up.weight.std().item() == pytest.approx(math.sqrt(2 / 128), rel=0.02)


def test_dropout_of_2015_is_at_the_end_of_the_contracting_path() -> None:
    """Section 3.1: "drop-out layers at the end of the contracting path"; active in training only."""
    network = FAMILIES["original"].build(published("original", 2, 1, 2, stages=4, base=2))
    seen = []
    network.dropout.register_forward_hook(lambda module, inputs, result: seen.append(result.shape[1]))
    image = torch.randn(1, 1, 108, 108)
    network.train()(image)
    assert seen == [8, 16]
    assert not torch.equal(network(image)[0], network(image)[0])
    assert torch.equal(network.eval()(image), network(image))


def test_the_3d_network_of_2016() -> None:
    """Çiçek et al., MICCAI 2016 (arXiv:1606.06650), section 2: 132 x 132 x 116 voxels with 3 channels in,
    44 x 44 x 28 out, 3 labels, "in total 19069955 parameters".

    That number is exactly met by all convolutions with biases and up-convolutions without, leaving out scale and
    shift of the batch norms, which the authors describe as a layer of its own. With them there are 4,672 more.
    """
    spec = published("unet3d", 3, 3, 3, stages=4, base=32)
    family = FAMILIES["unet3d"]
    assert spec.features == (64, 128, 256, 512)
    assert family.valid_size(spec, (132, 132, 116)) == (132, 132, 116)
    assert family.output_size(spec, (132, 132, 116)) == (44, 44, 28)
    network = on_meta(spec)
    assert forward(network, 3, 132, 132, 116) == (1, 3, 44, 44, 28)
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm3d)]
    assert len(norms) == 14
    of_norms = count(parameter for norm in norms for parameter in norm.parameters())
    assert count(network.parameters()) - of_norms == 19_069_955
    assert of_norms == 4_672
    widths = [tuple(unit.conv.out_channels for unit in stage) for stage in network.encoder]
    assert widths == [(32, 64), (64, 128), (128, 256), (256, 512)]


def test_unet_plus_plus() -> None:
    """Zhou et al., DLMIA 2018 (arXiv:1807.10165): features 32 to 512, 9.04 M parameters (table of results).

    One channel and one output, as in the authors' code; each head of deep supervision has 33 more.
    """
    spec = published("nested", 2, 1, 2, stages=5, base=32, out_channels=1, options={"normalisation": "none"})
    assert spec.features == (32, 64, 128, 256, 512)
    supervised = on_meta(spec)
    alone = on_meta(spec.model_copy(update={"deep_supervision": False}))
    assert round(count(alone.parameters()) / 1e6, 2) == round(count(supervised.parameters()) / 1e6, 2) == 9.04
    assert count(alone.parameters()) == 9_041_601
    assert count(supervised.parameters()) - count(alone.parameters()) == 3 * 33


def test_attention_unet() -> None:
    """Oktay et al., MIDL 2018 (arXiv:1804.03999), table of parameters: U-Net 5.88 M, with attention gates 6.40 M.

    Our network without its gates and its gating signal is that U-Net (16 to 256 features in 3-D, batch norm, linear
    interpolation on the way up): 5,886,994 parameters with one channel and two classes.

    The 6.40 M are not reproduced. Gates after equation (1) of the paper, as many features inside as the skip has, and
    the 1x1x1 unit before the first of them make 6.17 M. The authors' published networks
    (github.com/ozan-oktay/Attention-Gated-Networks) have 6.21 M with one gate a skip and 6.47 M with two, counted from
    their code: they add a 1x1x1 convolution with batch norm behind each gate and heads that are summed, which the
    equations do not have. None of these is 6.40 M; the paper does not say which network it counted.
    """
    options = {"normalisation": "batch", "upsampling": "linear"}
    spec = published("attention", 3, 1, 2, stages=5, base=16, options=options, deep_supervision=False)
    assert spec.features == (16, 32, 64, 128, 256)
    network = on_meta(spec)
    gates = [module for module in network.modules() if isinstance(module, AttentionGate)]
    in_gates = count(parameter for gate in gates for parameter in gate.parameters())
    signal = count(network.signal.parameters())
    assert count(network.parameters()) - in_gates - signal == 5_886_994
    pairs = ((32, 64), (64, 128), (128, 256))
    assert in_gates == sum(8 * x * x + x * g + x + x + 1 for x, g in pairs) == 215_491
    assert signal == 256 * 256 + 256 + 2 * 256

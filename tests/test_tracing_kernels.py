"""The short cuts of a trace give what torch's own shape functions give: size, type, memory order."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from autounet.memory_model.fake_tensors import KERNELS
from autounet.torch_private import CONVERT

aten = torch.ops.aten
LAYOUTS = {4: (torch.contiguous_format, torch.channels_last), 5: (torch.contiguous_format, torch.channels_last_3d)}
INPUTS = [
    (shape, layout, dtype)
    for shape in ((2, 3, 4, 6), (1, 4, 3, 2, 5))
    for layout, dtype in itertools.product(LAYOUTS[len(shape)], (torch.float32, torch.bfloat16))
]

SEVERAL = [((2, *shape[1:]), layout, dtype) for shape, layout, dtype in INPUTS]
"""the same with two samples: the stride of an axis of length 1 means nothing, and torch gives one or another"""


def made(shape, layout, dtype):
    return torch.empty(shape, dtype=dtype, device="meta").to(memory_format=layout)


def looks(value):
    if isinstance(value, torch.Tensor):
        return tuple(value.shape), value.dtype, value.stride()
    return tuple(looks(each) for each in value) if isinstance(value, tuple | list) else value


def same(operation, *args, **kwargs):
    assert looks(KERNELS[operation](*args, **kwargs)) == looks(operation(*args, **kwargs))


@pytest.mark.parametrize("operation", [aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor])
@pytest.mark.parametrize("given", INPUTS)
def test_arithmetic(operation, given):
    x = made(*given)
    integers = torch.empty(given[0], dtype=torch.int64, device="meta")
    others = [x, 2, 0.5, made(given[0], torch.contiguous_format, torch.float32), integers]
    others += [torch.empty(shape, device="meta") for shape in ((), given[0][-1:])]
    for other in others:
        same(operation, x, other)
    same(operation, integers, 0.5)
    same(operation, integers, x)


@pytest.mark.parametrize("given", INPUTS)
def test_activations_and_norms(given):
    x = made(*given)
    same(aten.leaky_relu_backward.default, x, x, 0.01, False)
    same(aten.gelu_backward.default, x, x)
    same(aten.linalg_vector_norm.default, x)
    same(aten.linalg_vector_norm.default, x, 2, None, False, dtype=torch.float32)
    same(aten.linalg_vector_norm.default, x, 2, [0, 1], True)


@pytest.mark.parametrize("given", SEVERAL)
def test_copies(given):
    x = made(*given)
    for operation in (aten.empty_like.default, aten.zeros_like.default):
        for more in ({}, {"dtype": torch.float32}, {"memory_format": torch.contiguous_format}):
            same(operation, x, **more)
            same(operation, x.transpose(0, 1), **more)
    same(aten.clone.default, x)
    same(aten.clone.default, x, memory_format=torch.contiguous_format)
    same(aten.clone.default, x[:, 1:])
    same(CONVERT, x, dtype=torch.bfloat16)
    same(aten.repeat.default, x, [1] * x.ndim)
    same(aten.repeat.default, x, [2, 3] + [1] * (x.ndim - 1))


@pytest.mark.parametrize("given", SEVERAL)
def test_joined(given):
    x, shape = made(*given), given[0]
    for dim in (0, 1, -1):
        same(aten.cat.default, [x, x], dim)
    same(aten.cat.default, [x, made(shape, torch.contiguous_format, given[2])], 1)
    same(aten.cat.default, [x, made(shape, given[1], torch.float32)], 1)


@pytest.mark.parametrize("given", SEVERAL)
@pytest.mark.parametrize("affine", [True, False])
def test_group_norm(given, affine):
    (batch, channels, *spatial), x = given[0], made(*given)
    weight = torch.empty(channels, device="meta") if affine else None
    for groups in (1, channels):
        same(aten.native_group_norm.default, x, weight, weight, batch, channels, math.prod(spatial), groups, 1e-5)


@pytest.mark.parametrize("given", INPUTS)
@pytest.mark.parametrize("training", [True, False])
def test_batch_norm(given, training):
    x = made(*given)
    vectors = [torch.empty(x.shape[1], device="meta") for _ in range(4)]
    same(aten.native_batch_norm.default, x, *vectors, training, 0.1, 1e-5)
    for wanted in ([True] * 3, [False, True, True], [True, False, False]):
        same(
            aten.native_batch_norm_backward.default, x, x, *vectors[:1], *vectors[2:], *vectors[:2], True, 1e-5, wanted
        )

"""The operator against plain float64 loops, its gradients against differences."""

import itertools
import re

import pytest
import torch

from mmattn.ops import cond_conv2d, use_backend
from tests.zoo import assert_close

BACKENDS = ["reference", "eager"]
each_backend = pytest.mark.parametrize("backend", BACKENDS)
GEOMETRIES = {
    "3x3": dict(kernel=(3, 3), padding=1),
    "odd": dict(kernel=(2, 3), stride=(2, 1), padding=(1, 2), dilation=(2, 1), groups=2),
    "1x1": dict(kernel=(1, 1), stride=2),
    "groups": dict(kernel=(1, 3), groups=4, dilation=(1, 2), stride=(1, 2)),
}


def draw(n, experts, size, kernel, groups=1, dtype=torch.float64, **_):
    generator = torch.Generator().manual_seed(0)
    shapes = (n, 4, *size), (experts, 8, 4 // groups, *kernel), (n, experts)
    return [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for s in shapes]


def arguments(geometry):
    return {k: v for k, v in geometry.items() if k != "kernel"}


def by_loops(x, weight, routing, stride=1, padding=0, dilation=1, groups=1):
    """Every product of the definition, one by one."""
    (sh, sw), (ph, pw), (dh, dw) = (
        (v, v) if isinstance(v, int) else v for v in (stride, padding, dilation)
    )
    experts, out_channels, per_group, kh, kw = weight.shape
    height = (x.shape[2] + 2 * ph - dh * (kh - 1) - 1) // sh + 1
    width = (x.shape[3] + 2 * pw - dw * (kw - 1) - 1) // sw + 1
    values, kernels, shares = x.tolist(), weight.tolist(), routing.tolist()
    y = torch.zeros(len(x), out_channels, height, width, dtype=torch.float64)
    for n, o, i, j in itertools.product(*map(range, y.shape)):
        total = 0.0
        first = o // (out_channels // groups) * per_group
        for c, a, b in itertools.product(range(per_group), range(kh), range(kw)):
            p, q = i * sh - ph + a * dh, j * sw - pw + b * dw
            if 0 <= p < x.shape[2] and 0 <= q < x.shape[3]:
                kernel = sum(shares[n][e] * kernels[e][o][c][a][b] for e in range(experts))
                total += kernel * values[n][first + c][p][q]
        y[n, o, i, j] = total
    return y


@each_backend
@pytest.mark.parametrize("name", GEOMETRIES)
def test_values(name, backend):
    geometry = GEOMETRIES[name]
    x, weight, routing = draw(3, 2, (5, 6), **geometry)
    with use_backend(backend):
        y = cond_conv2d(x, weight, routing, **arguments(geometry))
    assert_close(y, by_loops(x, weight, routing, **arguments(geometry)), 1e-12)


@each_backend
@pytest.mark.parametrize("name", GEOMETRIES)
def test_gradients(name, backend):
    geometry = GEOMETRIES[name]
    inputs = [t.requires_grad_() for t in draw(2, 2, (4, 5), **geometry)]
    with use_backend(backend):
        assert torch.autograd.gradcheck(
            lambda *leaves: cond_conv2d(*leaves, **arguments(geometry)), inputs
        )


@each_backend
@pytest.mark.parametrize("groups", [1, 2])
def test_no_samples(backend, groups):
    inputs = [t.requires_grad_() for t in draw(0, 3, (5, 6), (3, 3), groups)]
    with use_backend(backend):
        y = cond_conv2d(*inputs, stride=2, groups=groups)
    assert y.shape == (0, 8, 2, 2)
    y.sum().backward()
    assert [t.grad.shape for t in inputs] == [t.shape for t in inputs]
    assert not inputs[1].grad.any()


@each_backend
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(backend, dtype):
    """A routing in float32 is welcome; every gradient has the dtype of its input."""
    inputs = draw(3, 4, (6, 5), (3, 3), dtype=dtype)
    exact = [t.double().requires_grad_() for t in inputs]
    inputs = [t.requires_grad_() for t in inputs]
    routing = inputs[2].detach().float().requires_grad_()
    with use_backend(backend):
        y = cond_conv2d(*inputs[:2], routing, padding=1)
    expected = cond_conv2d(*exact, padding=1)
    dy = torch.randn(y.shape).to(dtype)
    y.backward(dy)
    expected.backward(dy.double())
    assert y.dtype == dtype
    assert routing.grad.dtype == torch.float32
    tolerance = 5e-3 if dtype == torch.float16 else 4e-2
    assert_close(y, expected, tolerance, "y")
    for t, e in zip((*inputs[:2], routing), exact, strict=True):
        assert_close(t.grad, e.grad, tolerance)


def test_autocast_mixes_the_kernels_in_full_precision():
    x, weight, routing = draw(2, 8, (6, 5), (3, 3), dtype=torch.float32)
    # shares and experts that half precision would lose: they cancel to a thousandth
    weight[1::2] = -weight[::2] * (1 + 1e-3)
    routing[:] = 1 / 3
    exact = cond_conv2d(x.double(), weight.double(), routing.double(), padding=1)
    with torch.autocast("cpu", torch.bfloat16):
        y = cond_conv2d(x, weight, routing, padding=1)
        from_half = cond_conv2d(x.bfloat16(), weight, routing, padding=1)
    assert y.dtype == from_half.dtype == torch.bfloat16
    assert exact.abs().max() < 0.05
    assert_close(1000 * y, 1000 * exact, 1e-2)


@each_backend
@pytest.mark.parametrize("kernel", [1, 3])
def test_memory_format(backend, kernel):
    x, weight, routing = draw(2, 2, (6, 5), (kernel, kernel))
    expected = by_loops(x, weight, routing)
    last = x.to(memory_format=torch.channels_last)
    sliced = torch.cat([x, x], 3)[..., :5]
    with use_backend(backend):
        y, y_last, y_sliced = (cond_conv2d(t, weight, routing) for t in (x, last, sliced))
    for actual in (y, y_last, y_sliced):
        assert_close(actual, expected, 1e-12)
    assert y.is_contiguous()
    assert y_sliced.is_contiguous()
    assert y_last.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (dict(x=torch.zeros(4, 5, 6)), ValueError, "a feature map (N, C, H, W), got shape (4, 5,"),
        (dict(x=torch.zeros(2, 4, 5, 6).long()), TypeError, "floating-point feature map, got"),
        (dict(groups=3), ValueError, "groups to divide the 4 channels, got 3"),
        (dict(groups=0), ValueError, "groups to divide the 4 channels, got 0"),
        (dict(weight=torch.zeros(8, 4, 3, 3)), ValueError, "weight (E, O, C / groups, kh, kw)"),
        (dict(weight=torch.zeros(3, 8, 5, 3, 3)), ValueError, "(E, O, 4, kh, kw) with O a mult"),
        (dict(weight=torch.zeros(3, 7, 2, 3, 3), groups=2), ValueError, "multiple of groups=2"),
        (dict(routing=torch.zeros(2, 4)), ValueError, "routing (N, E) = (2, 3), got (2, 4)"),
        (dict(routing=torch.zeros(1, 3)), ValueError, "routing (N, E) = (2, 3), got (1, 3)"),
        (dict(routing=torch.zeros(2, 3).long()), TypeError, "floating-point routing, got torch.in"),
        (dict(weight=torch.zeros(3, 8, 4, 3, 3).long()), TypeError, "floating-point weight, got"),
        (dict(x=torch.zeros(2, 4, 5, 6).double()), TypeError, "float64 and torch.float32; convert"),
        (dict(x=torch.zeros(2, 4, 2, 9)), ValueError, "kernel of (3, 3) pixels for a map of (2, 9"),
        (dict(x=torch.zeros(2, 4, 9, 2)), ValueError, "kernel of (3, 3) pixels for a map of (9, 2"),
        (dict(dilation=(1, 3)), ValueError, "kernel of (3, 7) pixels for a map of (5, 6)"),
        (dict(stride=0), ValueError, "stride to be an integer from 1 on, or two, got 0"),
        (dict(padding="same"), ValueError, "padding to be an integer from 0 on, or two, got 'sam"),
        (dict(dilation=1.0), ValueError, "dilation to be an integer from 1 on, or two, got 1.0"),
    ],
)
def test_bad_input(change, error, message):
    given = dict(x=torch.zeros(2, 4, 5, 6), weight=torch.zeros(3, 8, 4, 3, 3))
    given["routing"] = torch.zeros(2, 3)
    with pytest.raises(error, match=f"^cond_conv2d expects .*{re.escape(message)}"):
        cond_conv2d(**{**given, **change})

"""Squeeze-and-excitation with statistics in float32 or better.

Least traffic, in maps read or written: the gate needs all of x before y can be made of it, and its
gradient all of dy and x before dx: 3 forward (x, x, y), 4 backward (dy, x, dy, dx).
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from mmattn.ops._backend import scaled, statistics_dtype, without_autocast
from mmattn.ops._chunks import channel_mean, channel_products, scale_and_shift
from mmattn.ops._operator import pullback


def gate(z: Tensor, w1, b1, w2, b2, gate_scale) -> Tensor:
    """(N, C) -> (N, C), in the dtype of z."""
    w1, b1, w2, b2 = (None if p is None else p.to(z.dtype) for p in (w1, b1, w2, b2))
    s = F.linear(F.relu(F.linear(z, w1, b1)), w2, b2).sigmoid()
    return scaled(s, gate_scale)


@without_autocast
def se(
    x: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor, b2: Tensor | None, gate_scale
) -> Tensor:
    z = x.mean((2, 3), dtype=statistics_dtype(x))  # (N, C)
    return x * gate(z, w1, b1, w2, b2, gate_scale).to(x.dtype)[:, :, None, None]


@without_autocast
def forward(x, tensors, options):
    """Returns y and the means (N, C)."""
    z = channel_mean(x, statistics_dtype(x))
    return scale_and_shift(x, gate(z, *tensors).to(x.dtype), None), (z,)


@without_autocast
def backward(dy, x, tensors, saved, options, needs):
    """Returns the gradients of x and of the parameters."""
    (z,) = saved
    *parameters, gate_scale = tensors
    da = channel_products(dy, x, z.dtype)
    dz, *dparameters = pullback(lambda *p: gate(*p, gate_scale), (z, *parameters), (da,))
    dx = None
    if needs[0]:
        dz /= max(x.shape[2] * x.shape[3], 1)
        dx = scale_and_shift(dy, gate(z, *tensors), dz)
    return dx, *dparameters, None

"""Gated channel transformation with statistics in float32 or better.

Least traffic, in maps read or written: the gate needs all of x before y can be made of it, and its
gradient all of dy and x before dx, which needs both again: 3 forward (x, x, y), 5 backward
(dy, x, dy, x, dx).
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmattn.ops._backend import scaled, statistics_dtype, without_autocast
from mmattn.ops._chunks import Scratch, blocks, channel_products, channel_sums, scale_and_shift
from mmattn.ops._operator import pullback
from mmattn.ops.gct.reference import GATES


def gate_of(total: Tensor, alpha, gamma, beta, gate_scale, eps, norm, gate) -> Tensor:
    """Gate (N, C) of the sums of x^2, or of |x| (N, C)."""
    alpha, gamma, beta = (p.to(total.dtype).flatten() for p in (alpha, gamma, beta))
    if norm == "l2":
        e = alpha * (total + eps).sqrt()
        z = e * (gamma / (e.square().mean(1, keepdim=True) + eps).sqrt())
    else:
        e = alpha * total
        z = e * (gamma / (e.abs().mean(1, keepdim=True) + eps))
    return scaled(GATES[gate](z + beta), gate_scale)


@without_autocast
def gct(
    x: Tensor,
    alpha: Tensor,
    gamma: Tensor,
    beta: Tensor,
    gate_scale,
    eps: float,
    norm: str,
    after_relu: bool,
    gate: str,
) -> Tensor:
    wide = x.to(statistics_dtype(x))
    if norm == "l2":
        wide = wide.square()
    elif not after_relu:
        wide = wide.abs()
    a = gate_of(wide.sum((2, 3)), alpha, gamma, beta, gate_scale, eps, norm, gate)
    return x * a.to(x.dtype)[:, :, None, None]


@without_autocast
def forward(x, tensors, options):
    """Returns y and the sums (N, C)."""
    eps, norm, after_relu, gate = options
    dtype = statistics_dtype(x)
    total = channel_sums(x, dtype, 2 if norm == "l2" else 1, absolute=not after_relu)
    a = gate_of(total, *tensors, eps, norm, gate)
    return scale_and_shift(x, a.to(x.dtype), None), (total,)


@without_autocast
def backward(dy, x, tensors, saved, options, needs):
    """Returns the gradients of x, alpha, gamma and beta."""
    (total,) = saved
    eps, norm, after_relu, gate = options
    *parameters, gate_scale = tensors
    dtype = total.dtype

    def gates(*inputs):
        return gate_of(*inputs, gate_scale, eps, norm, gate)

    da = channel_products(dy, x, dtype)
    dtotal, *dparameters = pullback(gates, (total, *parameters), (da,))
    if not needs[0]:
        return None, *dparameters, None
    a = gates(total, *parameters)
    if norm == "l1" and after_relu:
        return scale_and_shift(dy, a, dtotal), *dparameters, None
    dx = torch.empty_like(x)
    a, dtotal = a[:, :, None, None], dtotal[:, :, None, None]
    first, second, third = Scratch(dtype), Scratch(dtype), Scratch(dtype)
    for at in blocks(x):
        part = first.wide(x[at])
        whole = dx[at] if x.dtype == dtype else second.like(part)
        torch.mul(third.wide(dy[at]), a[at[:2]], out=whole)
        if norm == "l2":
            whole.addcmul_(part, dtotal[at[:2]], value=2)
        else:
            whole.addcmul_(torch.sign(part, out=third.like(part)), dtotal[at[:2]])
        if whole.dtype != x.dtype:
            dx[at] = whole
    return dx, *dparameters, None

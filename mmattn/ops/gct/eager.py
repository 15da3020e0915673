"""Gated channel transformation with statistics in float32 or better."""

from __future__ import annotations

from torch import Tensor

from mmattn.ops._backend import scaled, statistics_dtype, without_autocast
from mmattn.ops.gct.reference import GATES


@without_autocast
def gct(
    x: Tensor,
    alpha: Tensor,
    gamma: Tensor,
    beta: Tensor,
    eps=1e-5,
    norm="l2",
    after_relu=False,
    gate="1+tanh",
    gate_scale=None,
) -> Tensor:
    dtype = statistics_dtype(x)
    alpha, gamma, beta = (p.to(dtype) for p in (alpha, gamma, beta))
    wide = x.to(dtype)
    if norm == "l2":
        e = alpha * (wide.square().sum((2, 3), keepdim=True) + eps).sqrt()
        z = e * (gamma / (e.square().mean(1, keepdim=True) + eps).sqrt())
    else:
        e = alpha * (wide if after_relu else wide.abs()).sum((2, 3), keepdim=True)
        z = e * (gamma / (e.abs().mean(1, keepdim=True) + eps))
    return x * scaled(GATES[gate](z + beta), gate_scale).to(x.dtype)

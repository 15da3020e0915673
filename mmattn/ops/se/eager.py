"""Squeeze-and-excitation with statistics in float32 or better."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from mmattn.ops._backend import scaled, statistics_dtype, without_autocast


@without_autocast
def se(
    x: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor, b2: Tensor | None, gate_scale=None
) -> Tensor:
    dtype = statistics_dtype(x)
    w1, b1, w2, b2 = (None if p is None else p.to(dtype) for p in (w1, b1, w2, b2))
    z = x.mean((2, 3), dtype=dtype)  # (N, C)
    s = F.linear(F.relu(F.linear(z, w1, b1)), w2, b2).sigmoid()
    return x * scaled(s, gate_scale).to(x.dtype)[:, :, None, None]

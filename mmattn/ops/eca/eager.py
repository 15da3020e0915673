"""Efficient channel attention with statistics in float32 or better."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from mmattn.ops._backend import scaled, statistics_dtype, without_autocast


@without_autocast
def eca(x: Tensor, weight: Tensor, gate_scale=None) -> Tensor:
    dtype = statistics_dtype(x)
    k = weight.shape[2]
    z = F.pad(x.mean((2, 3), dtype=dtype), (k // 2, k // 2))
    # not conv1d, which cuDNN rounds to TF32 by default
    s = (z.unfold(1, k, 1) @ weight.to(dtype).flatten()).sigmoid()  # (N, C)
    return x * scaled(s, gate_scale).to(x.dtype)[:, :, None, None]

"""Style pooling with statistics in float32 or better."""

from __future__ import annotations

from torch import Tensor

from mmattn.ops._backend import statistics_dtype, without_autocast


@without_autocast
def srm(x: Tensor, cfc: Tensor, eps=1e-5) -> Tensor:
    dtype = statistics_dtype(x)
    cfc = cfc.to(dtype)
    wide = x.to(dtype)
    mean = wide.mean((2, 3), keepdim=True)
    freedom = max(x.shape[2] * x.shape[3] - 1, 1)
    std = ((wide - mean).square().sum((2, 3)) / freedom + eps).sqrt()
    return cfc[:, 0] * mean[:, :, 0, 0] + cfc[:, 1] * std

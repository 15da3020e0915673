"""Spatial group-wise enhance with statistics in float32 or better, in any memory format."""

from __future__ import annotations

import torch
from torch import Tensor

from mmattn.ops._backend import scaled, statistics_dtype, without_autocast


@without_autocast
def sge(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps=1e-5, normalize=True, gate_scale=None
) -> Tensor:
    dtype = statistics_dtype(x)
    xg = x.unflatten(1, (groups, -1))  # a view in every memory format
    wide = xg.to(dtype)
    t = (wide.mean((3, 4), keepdim=True) * wide).sum(2)  # (N, G, H, W)
    if normalize:
        t = t - t.mean((2, 3), keepdim=True)
        # the unbiased spread of a single pixel would be 0/0; it is taken as 0
        freedom = max(t.shape[2] * t.shape[3] - 1, 1)
        std = torch.linalg.vector_norm(t, dim=(2, 3), keepdim=True) / freedom**0.5
        t = t / (std + eps)
    a = (weight.to(dtype) * t + bias.to(dtype)).sigmoid()
    y = xg * scaled(a, gate_scale).to(x.dtype).unsqueeze(2)
    if torch.jit.is_tracing():  # ONNX knows no _unsafe_view
        return y.flatten(1, 2)
    # not a view to autograd: mmdet adds in place to it, which a checkpoint refuses of a view
    return torch.ops.aten._unsafe_view(y, x.shape)

"""Spatial group-wise enhance as the paper writes it (arXiv 1905.09646, equations 1 to 6)."""

from __future__ import annotations

from torch import Tensor

from mmattn.ops._backend import scaled


def sge(
    x: Tensor, weight: Tensor, bias: Tensor, gate_scale, groups: int, eps: float, normalize: bool
) -> Tensor:
    n, c, h, w = x.shape
    xg = x.reshape(n, groups, c // groups, h, w)
    q = xg.mean((3, 4), keepdim=True)  # the group's descriptor: (N, G, C/G, 1, 1)
    t = (q * xg).sum(2)  # its likeness to each position: (N, G, H, W)
    if normalize:
        # the unbiased spread of a single pixel would be 0/0; it is taken as 0
        std = t.std((2, 3), correction=int(h * w > 1), keepdim=True)
        t = (t - t.mean((2, 3), keepdim=True)) / (std + eps)
    a = (weight * t + bias).sigmoid()
    return (xg * scaled(a, gate_scale).unsqueeze(2)).reshape(n, c, h, w)

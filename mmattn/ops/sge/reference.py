"""Spatial group-wise enhance as the paper writes it (arXiv 1905.09646, equations 1 to 6)."""

from __future__ import annotations

from torch import Tensor

from mmattn.ops._backend import scaled


def mask(
    x: Tensor, weight: Tensor, bias: Tensor, gate_scale, groups: int, eps: float, normalize: bool
) -> Tensor:
    """(N, G, H, W): what each position of a group is multiplied by."""
    n, c, h, w = x.shape
    xg = x.reshape(n, groups, c // groups, h, w)
    q = xg.mean((3, 4), keepdim=True)  # the group's descriptor: (N, G, C/G, 1, 1)
    t = (q * xg).sum(2)  # its likeness to each position: (N, G, H, W)
    if normalize:
        # the unbiased spread of a single pixel would be 0/0; it is taken as 0
        std = t.std((2, 3), correction=int(h * w > 1), keepdim=True)
        t = (t - t.mean((2, 3), keepdim=True)) / (std + eps)
    return scaled((weight * t + bias).sigmoid(), gate_scale)


def sge(
    x: Tensor, weight: Tensor, bias: Tensor, gate_scale, groups: int, eps: float, normalize: bool
) -> Tensor:
    a = mask(x, weight, bias, gate_scale, groups, eps, normalize)
    return (x.unflatten(1, (groups, -1)) * a.unsqueeze(2)).flatten(1, 2)

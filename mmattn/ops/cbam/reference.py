"""CBAM's two gates as the paper writes them (arXiv 1807.06521, equations 1 to 3)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from mmattn.ops._backend import scaled


def first_gate(x: Tensor, w1: Tensor, b1, w2: Tensor, b2, gate_scale) -> Tensor:
    """``sigmoid(mlp(mean_hw x) + mlp(max_hw x))``, (N, C, 1, 1)."""
    logits = sum(
        F.linear(F.relu(F.linear(pooled, w1, b1)), w2, b2)
        for pooled in (x.mean((2, 3)), x.amax((2, 3)))
    )
    return scaled(logits.sigmoid()[:, :, None, None], gate_scale)


def channel_gate(x: Tensor, w1: Tensor, b1, w2: Tensor, b2, gate_scale) -> Tensor:
    """``x * sigmoid(mlp(mean_hw x) + mlp(max_hw x))``."""
    return x * first_gate(x, w1, b1, w2, b2, gate_scale)


def gates(x: Tensor, w1: Tensor, b1, w2: Tensor, b2, gate_scale, layers) -> tuple[Tensor, Tensor]:
    """The channel gate (N, C, 1, 1), and ``sigmoid(layers([max_c x'; mean_c x']))`` after it."""
    scale = None if gate_scale is None else gate_scale.sqrt()
    first = first_gate(x, w1, b1, w2, b2, scale)
    x = x * first
    pooled = torch.cat([x.amax(1, keepdim=True), x.mean(1, keepdim=True)], 1)
    return first, scaled(layers(pooled).sigmoid(), scale)


def cbam(x: Tensor, w1: Tensor, b1, w2: Tensor, b2, gate_scale, layers) -> Tensor:
    """The channel gate, then the spatial one."""
    first, second = gates(x, w1, b1, w2, b2, gate_scale, layers)
    return x * first * second

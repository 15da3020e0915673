"""CBAM's two gates as the paper writes them (arXiv 1807.06521, equations 1 to 3)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from mmattn.ops._backend import scaled


def channel_gate(x: Tensor, w1: Tensor, b1, w2: Tensor, b2, gate_scale) -> Tensor:
    """``x * sigmoid(mlp(mean_hw x) + mlp(max_hw x))``."""
    logits = sum(
        F.linear(F.relu(F.linear(pooled, w1, b1)), w2, b2)
        for pooled in (x.mean((2, 3)), x.amax((2, 3)))
    )
    return x * scaled(logits.sigmoid()[:, :, None, None], gate_scale)


def cbam(x: Tensor, w1: Tensor, b1, w2: Tensor, b2, gate_scale, layers) -> Tensor:
    """The channel gate, then ``x' * sigmoid(layers([max_c x'; mean_c x']))``."""
    scale = None if gate_scale is None else gate_scale.sqrt()
    x = channel_gate(x, w1, b1, w2, b2, scale)
    pooled = torch.cat([x.amax(1, keepdim=True), x.mean(1, keepdim=True)], 1)
    return x * scaled(layers(pooled).sigmoid(), scale)

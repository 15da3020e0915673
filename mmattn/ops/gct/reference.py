"""Gated channel transformation as the paper writes it (arXiv 1909.11519, equations 3 to 6)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from mmattn.ops._backend import scaled

GATES = {
    "1+tanh": lambda z: 1 + torch.tanh(z),
    "sigmoid": torch.sigmoid,
    "1+elu": lambda z: 1 + F.elu(z),
}


def channel_gate(
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
    """(N, C, 1, 1): what each channel is multiplied by."""
    if norm == "l2":
        e = alpha * (x.square().sum((2, 3), keepdim=True) + eps).sqrt()
        n = gamma / (e.square().mean(1, keepdim=True) + eps).sqrt()
    else:
        e = alpha * (x if after_relu else x.abs()).sum((2, 3), keepdim=True)
        n = gamma / (e.abs().mean(1, keepdim=True) + eps)
    return scaled(GATES[gate](e * n + beta), gate_scale)


def gct(x: Tensor, *arguments) -> Tensor:
    return x * channel_gate(x, *arguments)

"""Squeeze-and-excitation as the paper writes it (arXiv 1709.01507, equations 2 to 4)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from mmattn.ops._backend import scaled


def gate(
    x: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor, b2: Tensor | None, gate_scale
) -> Tensor:
    """(N, C): what each channel is multiplied by."""
    z = x.mean((2, 3))  # squeeze: (N, C)
    s = F.linear(F.relu(F.linear(z, w1, b1)), w2, b2).sigmoid()  # excitation: (N, C)
    return scaled(s, gate_scale)


def se(
    x: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor, b2: Tensor | None, gate_scale
) -> Tensor:
    return x * gate(x, w1, b1, w2, b2, gate_scale)[:, :, None, None]

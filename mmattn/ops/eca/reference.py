"""Efficient channel attention as the paper writes it (arXiv 1910.03151)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from mmattn.ops._backend import scaled


def gate(x: Tensor, weight: Tensor, gate_scale=None) -> Tensor:
    """(N, C): what each channel is multiplied by."""
    z = x.mean((2, 3)).unsqueeze(1)  # (N, 1, C): the channels are the positions of a sequence
    s = F.conv1d(z, weight, padding=weight.shape[2] // 2).squeeze(1).sigmoid()
    return scaled(s, gate_scale)


def eca(x: Tensor, weight: Tensor, gate_scale=None) -> Tensor:
    return x * gate(x, weight, gate_scale)[:, :, None, None]

"""The simplified non-local block as the GCNet paper writes it (arXiv 1904.11492)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from mmattn.ops.gc.reference import pool


def term(x: Tensor, mask_weight: Tensor, mask_bias: Tensor, weight: Tensor) -> Tensor:
    """(N, C): what is added to every position."""
    return F.linear(pool(x, mask_weight, mask_bias), weight.flatten(1))


def snl(x: Tensor, mask_weight: Tensor, mask_bias: Tensor, weight: Tensor) -> Tensor:
    return x + term(x, mask_weight, mask_bias, weight)[:, :, None, None]

"""The simplified non-local block as the GCNet paper writes it (arXiv 1904.11492)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from mmattn.ops.gc.reference import pool


def snl(x: Tensor, mask_weight: Tensor, mask_bias: Tensor, weight: Tensor) -> Tensor:
    context = pool(x, mask_weight, mask_bias)
    return x + F.linear(context, weight.flatten(1))[:, :, None, None]

"""The simplified non-local block with statistics in float32 or better."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from mmattn.ops._backend import without_autocast
from mmattn.ops.gc.eager import pool


@without_autocast
def snl(x: Tensor, mask_weight: Tensor, mask_bias: Tensor, weight: Tensor) -> Tensor:
    context = pool(x, mask_weight, mask_bias)
    value = F.linear(context, weight.flatten(1).to(context.dtype))
    return x + value.to(x.dtype)[:, :, None, None]

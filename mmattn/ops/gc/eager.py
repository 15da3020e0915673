"""The global context block with statistics in float32 or better, in any memory format."""

from __future__ import annotations

import torch
from torch import Tensor

from mmattn.ops._backend import scaled, statistics_dtype, without_autocast
from mmattn.ops.gc.reference import transform


@without_autocast
def pool(x: Tensor, mask_weight: Tensor | None, mask_bias: Tensor | None) -> Tensor:
    """(N, C, H, W) -> (N, C), in float32 or better."""
    dtype = statistics_dtype(x)
    if mask_weight is None:
        return x.mean((2, 3), dtype=dtype)
    wide = x.to(dtype)
    logits = torch.einsum("nchw,c->nhw", wide, mask_weight.to(dtype).flatten())
    # the softmax does not see the bias: added only so that it has its gradient of zero
    mask = (logits + mask_bias.to(dtype)).flatten(1).softmax(1).view_as(logits)
    return torch.einsum("nchw,nhw->nc", wide, mask)


@without_autocast
def gc(
    x: Tensor, mask_weight: Tensor | None, mask_bias: Tensor | None, add, mul, gate_scale=None
) -> Tensor:
    context = pool(x, mask_weight, mask_bias)
    dtype = context.dtype
    y = x
    if mul is not None:
        gate = transform(context, mul.to(dtype)).sigmoid()
        y = y * scaled(gate, gate_scale).to(x.dtype)[:, :, None, None]
    if add is not None:
        y = y + transform(context, add.to(dtype)).to(x.dtype)[:, :, None, None]
    return y

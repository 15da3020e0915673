"""The global context block as the paper writes it (arXiv 1904.11492, equation 5)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from mmattn.ops._backend import scaled


def transform(context: Tensor, p) -> Tensor:
    """(N, C) -> (N, C): W2 relu(LN(W1 context))."""
    z = F.linear(context, p.w1.flatten(1), p.b1)
    z = F.layer_norm(z, z.shape[1:], p.norm_weight.flatten(), p.norm_bias.flatten())
    return F.linear(F.relu(z), p.w2.flatten(1), p.b2)


def pool(x: Tensor, mask_weight: Tensor | None, mask_bias: Tensor | None) -> Tensor:
    """(N, C, H, W) -> (N, C): the context, a softmax-weighted sum over the positions."""
    if mask_weight is None:
        return x.mean((2, 3))
    logits = F.conv2d(x, mask_weight, mask_bias).flatten(1)  # (N, HW)
    return (x.flatten(2) * logits.softmax(1).unsqueeze(1)).sum(2)


def gc(
    x: Tensor, mask_weight: Tensor | None, mask_bias: Tensor | None, add, mul, gate_scale=None
) -> Tensor:
    context = pool(x, mask_weight, mask_bias)
    y = x
    if mul is not None:
        y = y * scaled(transform(context, mul).sigmoid(), gate_scale)[:, :, None, None]
    if add is not None:
        y = y + transform(context, add)[:, :, None, None]
    return y

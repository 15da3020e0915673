"""The global context block as the paper writes it (arXiv 1904.11492, equation 5)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from mmattn.ops._backend import scaled


class GCTransform(NamedTuple):
    """Parameters of the bottleneck ``w2 relu(LayerNorm(w1 context + b1)) + b2``.

    Weights may be matrices or 1x1 kernels: (P, C) or (P, C, 1, 1), (P,) or (P, 1, 1).
    """

    w1: Tensor  # (P, C)
    b1: Tensor  # (P,)
    norm_weight: Tensor  # (P,)
    norm_bias: Tensor  # (P,)
    w2: Tensor  # (C, P)
    b2: Tensor  # (C,)

    def to(self, dtype: torch.dtype) -> GCTransform:
        """The same parameters in another dtype."""
        return GCTransform(*(p.to(dtype) for p in self))


def transform(context: Tensor, p: GCTransform) -> Tensor:
    """(N, C) -> (N, C): W2 relu(LN(W1 context))."""
    z = F.linear(context, p.w1.flatten(1), p.b1)
    z = F.layer_norm(z, p.b1.shape[:1], p.norm_weight.flatten(), p.norm_bias.flatten())
    return F.linear(F.relu(z), p.w2.flatten(1), p.b2)


def context_mask(x: Tensor, mask_weight: Tensor, mask_bias: Tensor) -> Tensor:
    """(N, C, H, W) -> (N, HW): the share of each position in the context."""
    return F.conv2d(x, mask_weight, mask_bias).flatten(1).softmax(1)


def pool(x: Tensor, mask_weight: Tensor | None, mask_bias: Tensor | None) -> Tensor:
    """(N, C, H, W) -> (N, C): the context, a softmax-weighted sum over the positions."""
    if mask_weight is None:
        return x.mean((2, 3))
    return (x.flatten(2) * context_mask(x, mask_weight, mask_bias).unsqueeze(1)).sum(2)


def unpacked(fusions: tuple) -> tuple[GCTransform | None, GCTransform | None]:
    """The parameters for 'add' and for 'mul' out of twelve tensors, six None for none."""
    return tuple(None if p[0] is None else GCTransform(*p) for p in (fusions[:6], fusions[6:]))


def fused(context: Tensor, add: GCTransform | None, mul: GCTransform | None, gate_scale):
    """What the channels are multiplied by and what is added to them, (N, C) or None each."""
    gate = None if mul is None else scaled(transform(context, mul).sigmoid(), gate_scale)
    return gate, None if add is None else transform(context, add)


def gc(x: Tensor, mask_weight: Tensor | None, mask_bias: Tensor | None, *rest) -> Tensor:
    *fusions, gate_scale = rest
    context = pool(x, mask_weight, mask_bias)
    gate, term = fused(context, *unpacked(fusions), gate_scale)
    y = x if gate is None else x * gate[:, :, None, None]
    return y if term is None else y + term[:, :, None, None]

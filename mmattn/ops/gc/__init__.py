"""The global context block."""

from __future__ import annotations

from torch import Tensor

from mmattn.ops._backend import check_map
from mmattn.ops._operator import Operator
from mmattn.ops.gc import eager, reference
from mmattn.ops.gc.reference import GCTransform

OPERATOR = Operator("gc", reference.gc, eager.gc, eager, "mmattn.ops.gc.triton")
_NONE = (None,) * 6


def gc(
    x: Tensor,
    mask_weight: Tensor | None,
    mask_bias: Tensor | None,
    add: GCTransform | None = None,
    mul: GCTransform | None = None,
    gate_scale: Tensor | None = None,
) -> Tensor:
    """Global context block: adds to, or scales, every position by one context of the whole map.

    ::

        ctx = sum_i softmax_i(mask_weight x_i + mask_bias) x_i   over the positions i
        f(ctx) = w2 relu(LayerNorm(w1 ctx + b1)) + b2            each fusion has its own f
        y = x * sigmoid(f_mul(ctx)) / gate_scale + f_add(ctx)

    Paper: GCNet, https://arxiv.org/abs/1904.11492.

    Args:
        x: Feature map (N, C, H, W).
        mask_weight: (1, C, 1, 1), or None for average pooling, ``ctx = mean_hw(x)``.
        mask_bias: (1,), or None with ``mask_weight``.
        add: Parameters of the additive fusion, or None.
        mul: Parameters of the multiplicative fusion, or None.
        gate_scale: Scalar that divides the multiplicative gate; None for 1.

    Returns:
        (N, C, H, W), dtype and memory format of ``x``.

    Raises:
        ValueError: ``x`` is not (N, C, H, W), or there is neither ``add`` nor ``mul``.
        TypeError: ``x`` is not floating point.
    """
    if add is None and mul is None:
        raise ValueError("gc expects parameters for add, mul, or both, got neither")
    check_map("gc", x, (add or mul).w1.shape[1])
    fusions = (*(_NONE if add is None else add), *(_NONE if mul is None else mul))
    return OPERATOR(x, (mask_weight, mask_bias, *fusions, gate_scale))


__all__ = ["OPERATOR", "GCTransform", "gc"]

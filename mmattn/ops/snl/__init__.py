"""The simplified non-local block."""

from __future__ import annotations

from torch import Tensor

from mmattn.ops._backend import check_map, select
from mmattn.ops.snl import eager, reference

_IMPLEMENTATIONS = {"reference": reference.snl, "eager": eager.snl}


def snl(x: Tensor, mask_weight: Tensor, mask_bias: Tensor, weight: Tensor) -> Tensor:
    """Simplified non-local block: adds one transformed context of the map to every position.

    ::

        ctx = sum_i softmax_i(mask_weight x_i + mask_bias) x_i   over the positions i
        y = x + weight ctx

    Paper: GCNet, https://arxiv.org/abs/1904.11492.

    Args:
        x: Feature map (N, C, H, W).
        mask_weight: (1, C, 1, 1).
        mask_bias: (1,).
        weight: (C, C) or (C, C, 1, 1).

    Returns:
        (N, C, H, W), dtype and memory format of ``x``.

    Raises:
        ValueError: ``x`` is not (N, C, H, W).
        TypeError: ``x`` is not floating point.
    """
    check_map("snl", x, weight.shape[1])
    return select("snl", _IMPLEMENTATIONS)(x, mask_weight, mask_bias, weight)

"""Spatial group-wise enhance."""

from __future__ import annotations

from torch import Tensor

from mmattn.ops._backend import check_map
from mmattn.ops._operator import Operator
from mmattn.ops.sge import eager, reference

OPERATOR = Operator("sge", reference.sge, eager.sge, eager, "mmattn.ops.sge.triton")


def sge(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    eps: float = 1e-5,
    normalize: bool = True,
    gate_scale: Tensor | None = None,
) -> Tensor:
    """Spatial group-wise enhance: scales each position of a group by its likeness to the group.

    Per group g of C/G channels::

        q = mean_hw(x_g)                               (C/G,)
        t = sum_c q_c x_c                              (H, W)
        t = (t - mean_hw t) / (std_hw t + eps)         if normalize; unbiased std
        y = x_g * sigmoid(weight_g t + bias_g) / gate_scale

    Paper: Spatial Group-wise Enhance, https://arxiv.org/abs/1905.09646.

    Args:
        x: Feature map (N, C, H, W).
        weight: (1, G, 1, 1).
        bias: (1, G, 1, 1).
        groups: G, a divisor of C.
        eps: Added to the standard deviation, outside the root.
        normalize: False leaves t as it is.
        gate_scale: Scalar that divides the gate; None for 1.

    Returns:
        (N, C, H, W), dtype and memory format of ``x``.

    Raises:
        ValueError: ``x`` is not (N, C, H, W), ``groups`` does not divide C, or ``weight`` or
            ``bias`` is not of G values.
        TypeError: ``x`` is not floating point.
    """
    check_map("sge", x)
    if weight.numel() != groups or bias.numel() != groups:
        raise ValueError(
            f"sge expects weight and bias of shape (1, {groups}, 1, 1) for groups={groups}, "
            f"got {tuple(weight.shape)} and {tuple(bias.shape)}"
        )
    if x.shape[1] % groups:
        raise ValueError(f"sge expects groups that divide the {x.shape[1]} channels, got {groups}")
    return OPERATOR(x, (weight, bias, gate_scale), (groups, eps, normalize))

"""Squeeze-and-excitation."""

from __future__ import annotations

from torch import Tensor

from mmattn.ops._backend import check_map
from mmattn.ops._operator import Operator
from mmattn.ops.se import eager, reference

OPERATOR = Operator("se", reference.se, eager.se, eager, "mmattn.ops.se.triton")


def se(
    x: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    gate_scale: Tensor | None = None,
) -> Tensor:
    """Squeeze-and-excitation: scales each channel by a gate made from all channels' means.

    ``y = x * sigmoid(w2 relu(w1 mean_hw(x) + b1) + b2) / gate_scale``

    Paper: Squeeze-and-Excitation Networks, https://arxiv.org/abs/1709.01507.

    Args:
        x: Feature map (N, C, H, W).
        w1: (P, C).
        b1: (P,), or None.
        w2: (C, P).
        b2: (C,), or None.
        gate_scale: Scalar that divides the gate; None for 1.

    Returns:
        (N, C, H, W), dtype and memory format of ``x``.

    Raises:
        ValueError: ``x`` is not (N, C, H, W).
        TypeError: ``x`` is not floating point.
    """
    check_map("se", x, w1.shape[1])
    return OPERATOR(x, (w1, b1, w2, b2, gate_scale))

"""Gated channel transformation."""

from __future__ import annotations

from torch import Tensor

from mmattn.ops._backend import check_map
from mmattn.ops._operator import Operator
from mmattn.ops.gct import eager, reference

OPERATOR = Operator("gct", reference.gct, eager.gct, eager, "mmattn.ops.gct.triton")

NORMS = ("l2", "l1")
GATES = tuple(reference.GATES)


def gct(
    x: Tensor,
    alpha: Tensor,
    gamma: Tensor,
    beta: Tensor,
    eps: float = 1e-5,
    norm: str = "l2",
    after_relu: bool = False,
    gate: str = "1+tanh",
    gate_scale: Tensor | None = None,
) -> Tensor:
    """Gated channel transformation: scales channels by their norm against the other channels'.

    ::

        norm='l2':  e = alpha sqrt(sum_hw x^2 + eps)    n = gamma / sqrt(mean_c e^2 + eps)
        norm='l1':  e = alpha sum_hw |x|                n = gamma / (mean_c |e| + eps)
        y = x * gate(e n + beta) / gate_scale           gate(z) = 1 + tanh(z)

    Paper: Gated Channel Transformation for Visual Recognition, https://arxiv.org/abs/1909.11519.

    Args:
        x: Feature map (N, C, H, W).
        alpha: (1, C, 1, 1).
        gamma: (1, C, 1, 1).
        beta: (1, C, 1, 1).
        eps: As in the formulas.
        norm: ``'l2'`` or ``'l1'``.
        after_relu: With ``'l1'``, x is known to be >= 0 and is summed as it is.
        gate: ``'1+tanh'``, ``'sigmoid'`` or ``'1+elu'``.
        gate_scale: Scalar that divides the gate; None for 1.

    Returns:
        (N, C, H, W), dtype and memory format of ``x``.

    Raises:
        ValueError: ``x`` is not (N, C, H, W), or ``norm`` or ``gate`` is unknown.
        TypeError: ``x`` is not floating point.
    """
    check_map("gct", x, alpha.shape[1])
    for name, value, allowed in (("norm", norm, NORMS), ("gate", gate, GATES)):
        if value not in allowed:
            raise ValueError(f"gct expects {name} to be one of {', '.join(allowed)}, got {value!r}")
    return OPERATOR(x, (alpha, gamma, beta, gate_scale), (eps, norm, after_relu, gate))

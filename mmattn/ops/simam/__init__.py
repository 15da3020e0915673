"""SimAM."""

from __future__ import annotations

from torch import Tensor

from mmattn.ops._backend import check_map, select
from mmattn.ops.simam import eager, reference

_IMPLEMENTATIONS = {"reference": reference.simam, "eager": eager.simam}


def simam(x: Tensor, e_lambda: float = 1e-4) -> Tensor:
    """SimAM: scales each value by how far it stands out from the mean of its channel.

    ::

        d = (x - mean_hw(x))^2
        y = x * sigmoid(d / (4 (sum_hw(d) / (HW - 1) + e_lambda)) + 1/2)

    Paper: SimAM, ICML 2021, https://proceedings.mlr.press/v139/yang21o.html.

    Args:
        x: Feature map (N, C, H, W).
        e_lambda: Added to the variance, above 0.

    Returns:
        (N, C, H, W), dtype and memory format of ``x``.

    Raises:
        ValueError: ``x`` is not (N, C, H, W).
        TypeError: ``x`` is not floating point.
    """
    check_map("simam", x)
    return select("simam", _IMPLEMENTATIONS)(x, e_lambda)

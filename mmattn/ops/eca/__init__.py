"""Efficient channel attention."""

from __future__ import annotations

from torch import Tensor

from mmattn.ops._backend import check_map, is_exporting, select
from mmattn.ops.eca import eager, reference

_IMPLEMENTATIONS = {"reference": reference.eca, "eager": eager.eca}


def eca(x: Tensor, weight: Tensor, gate_scale: Tensor | None = None) -> Tensor:
    """Efficient channel attention: scales each channel by a gate made from its neighbours' means.

    ``y = x * sigmoid(conv1d(mean_hw(x), weight)) / gate_scale``, the convolution running over
    the channels, with zeros beyond the first and the last.

    Paper: ECA-Net, https://arxiv.org/abs/1910.03151.

    Args:
        x: Feature map (N, C, H, W).
        weight: (1, 1, k), k odd.
        gate_scale: Scalar that divides the gate; None for 1.

    Returns:
        (N, C, H, W), dtype and memory format of ``x``.

    Raises:
        ValueError: ``x`` is not (N, C, H, W), or ``weight`` not (1, 1, k) with k odd.
        TypeError: ``x`` is not floating point.
    """
    check_map("eca", x)
    if weight.dim() != 3 or weight.shape[:2] != (1, 1) or weight.shape[2] % 2 == 0:
        raise ValueError(
            f"eca expects a weight of shape (1, 1, k) with k odd, got {tuple(weight.shape)}"
        )
    if is_exporting():  # the older exporter to ONNX knows no unfold
        return reference.eca(x, weight, gate_scale)
    return select("eca", _IMPLEMENTATIONS)(x, weight, gate_scale)

"""The non-local block."""

from __future__ import annotations

import torch
from torch import Tensor

from mmattn.ops._backend import check_map, is_exporting, is_untransformed, select
from mmattn.ops.non_local import eager, reference

_IMPLEMENTATIONS = {"reference": reference.non_local, "eager": eager.non_local}

MODES = ("embedded_gaussian", "gaussian", "dot_product", "concatenation")

Projection = tuple[Tensor, Tensor | None]


def non_local(
    x: Tensor,
    g: Projection,
    out: Projection,
    theta: Projection | None = None,
    phi: Projection | None = None,
    concat: Tensor | None = None,
    mode: str = "embedded_gaussian",
    use_scale: bool = True,
    sub_sample: bool = False,
) -> Tensor:
    """Non-local operation: at each position, a weighted sum over all positions of the map.

    What the block adds to its input, ``y = x + non_local(x, ...)``::

        out(sum_j f_ij g(x_j))
        embedded_gaussian:  f_ij = softmax_j(theta(x_i) . phi(x_j) / sqrt(P))
        gaussian:           f_ij = softmax_j(x_i . x_j)
        dot_product:        f_ij = theta(x_i) . phi(x_j) / M
        concatenation:      f_ij = relu(concat . [theta(x_i), phi(x_j)]) / M

    The memory is linear in HW in every mode, and in the last two the time as well.

    Paper: Non-local Neural Networks, https://arxiv.org/abs/1711.07971.

    Args:
        x: Feature map (N, C, H, W).
        g: Weight (P, C) or (P, C, 1, 1) and bias (P,) or None of a 1x1 convolution.
        out: The same from P to C channels.
        theta: The same as ``g``; None with ``mode='gaussian'``.
        phi: The same as ``g``; None with ``mode='gaussian'``.
        concat: (1, 2 P, 1, 1), with ``mode='concatenation'`` alone.
        mode: One of the four above.
        use_scale: The division by sqrt(P) in 'embedded_gaussian'. The paper has none.
        sub_sample: Take j from the map pooled by 2 (maximum), after phi and g.

    Returns:
        (N, C, H, W), dtype of ``x``.

    Raises:
        ValueError: ``x`` is not (N, C, H, W), ``mode`` is unknown, or ``theta``, ``phi`` or
            ``concat`` is missing or has no place in it.
        TypeError: ``x`` is not floating point.
    """
    check_map("non_local", x, g[0].shape[1])
    if mode not in MODES:
        raise ValueError(f"non_local expects mode to be one of {', '.join(MODES)}, got {mode!r}")
    for name, value, wanted in (
        ("theta", theta, mode != "gaussian"),
        ("phi", phi, mode != "gaussian"),
        ("concat", concat, mode == "concatenation"),
    ):
        if (value is not None) != wanted:
            raise ValueError(
                f"non_local with mode={mode!r} expects {name} to be "
                f"{'given' if wanted else 'left out'}"
            )
    run = select("non_local", _IMPLEMENTATIONS)
    if not torch.compiler.is_compiling() and not is_untransformed():
        run = reference.non_local  # PyTorch's attention kernels have no jvp
    if mode == "concatenation" and is_exporting():
        run = reference.non_local  # the older exporter to ONNX knows no searchsorted
    return run(x, g, out, theta, phi, concat, mode, use_scale, sub_sample)

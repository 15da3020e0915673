"""The two gates of the convolutional block attention module."""

from __future__ import annotations

from torch import Tensor, nn

from mmattn.ops._backend import check_map
from mmattn.ops._operator import Operator, wants_gradient
from mmattn.ops.cbam import eager, reference

# the channel gate alone; with both, it says who computes them
OPERATOR = Operator("cbam", reference.channel_gate, eager.channel_gate, eager)


def cbam(
    x: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    layers: nn.Module | None = None,
    gate_scale: Tensor | None = None,
) -> Tensor:
    """Convolutional block attention: a gate for each channel, then one for each position.

    ::

        x' = x * sigmoid(mlp(mean_hw x) + mlp(max_hw x))      mlp(z) = w2 relu(w1 z + b1) + b2
        y = x' * sigmoid(layers([max_c x'; mean_c x']))

    Values that tie for a maximum share its gradient.

    Paper: CBAM: Convolutional Block Attention Module, https://arxiv.org/abs/1807.06521.

    Args:
        x: Feature map (N, C, H, W).
        w1: (P, C).
        b1: (P,), or None.
        w2: (C, P).
        b2: (C,), or None.
        layers: The spatial gate's module, (N, 2, H, W) in float32 or better -> (N, 1, H, W): a
            convolution and a norm layer, or any other whose computation follows from its input,
            parameters and buffers. It runs once in a forward pass. None for the first gate alone.
        gate_scale: Scalar that divides the product of the gates, each of them by its root; None
            for 1.

    Returns:
        (N, C, H, W), dtype and memory format of ``x``.

    Raises:
        ValueError: ``x`` is not (N, C, H, W).
        TypeError: ``x`` is not floating point.
    """
    check_map("cbam", x, w1.shape[1])
    tensors = (w1, b1, w2, b2, gate_scale)
    if layers is None:
        return OPERATOR(x, tensors)
    everything = (*tensors, *layers.parameters(), *layers.buffers())
    implementation = OPERATOR.implementation(x, everything)
    if implementation == "reference":
        return reference.cbam(x, *tensors, layers)
    # as in Operator: no gradient for the gate's scale
    learns_scale = gate_scale is not None and gate_scale.requires_grad
    if implementation == "plain" or learns_scale or _hides_parameters(layers):
        return eager.cbam(x, *tensors, layers)
    return eager.fused(x, tensors, layers, wants_gradient(x, everything))


def _hides_parameters(layers: nn.Module) -> bool:
    """Whether some are plain attributes, as in DataParallel's replicas and under FSDP."""
    return any(
        isinstance(value, Tensor) and value.requires_grad
        for module in layers.modules()
        for value in vars(module).values()
    )

"""Conditionally parameterized convolution: every sample is convolved with a kernel of its own."""

from __future__ import annotations

import torch
from torch import Tensor

from mmattn.ops._backend import check_map, select
from mmattn.ops.cond_conv import eager, reference
from mmattn.ops.region_conv import pair
from mmattn.ops.region_conv.eager import memory_format

_IMPLEMENTATIONS = {"reference": reference.cond_conv2d, "eager": eager.cond_conv2d}


def cond_conv2d(
    x: Tensor,
    weight: Tensor,
    routing: Tensor,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
) -> Tensor:
    """Convolves every sample with its own mixture of the E experts' kernels.

    ``y_n = (sum_e routing_ne weight_e) * x_n``

    The kernels are mixed first, so the work is that of one convolution, whatever E is.

    Paper: CondConv, https://arxiv.org/abs/1904.04971.

    Args:
        x: Feature map (N, C, H, W).
        weight: The kernels of the experts (E, O, C / groups, kh, kw), of the dtype of ``x``.
        routing: (N, E), in any floating-point dtype.
        stride: As in ``torch.nn.functional.conv2d``, like the next three.
        padding: Integers only.
        dilation: As above.
        groups: As above.

    Returns:
        (N, O, H', W'), in the dtype and memory format of ``x``; under autocast, in its dtype.

    Raises:
        ValueError: A shape that does not fit, or a kernel larger than the padded map.
        TypeError: An input is not floating point, or the dtypes of ``x`` and ``weight`` differ.
    """
    geometry = [
        pair("cond_conv2d", name, value, least)
        for name, value, least in (
            ("stride", stride, 1),
            ("padding", padding, 0),
            ("dilation", dilation, 1),
        )
    ]
    _check(x, weight, routing, *geometry[1:], groups)
    run = select("cond_conv2d", _IMPLEMENTATIONS)
    y = run(x, weight, routing, *geometry, groups)
    return y.contiguous(memory_format=memory_format(x))


def _check(x, weight, routing, padding, dilation, groups) -> None:
    check_map("cond_conv2d", x)
    n, channels, *size = x.shape
    if isinstance(groups, bool) or not isinstance(groups, int) or groups < 1 or channels % groups:
        raise ValueError(
            f"cond_conv2d expects groups to divide the {channels} channels, got {groups!r}"
        )
    if weight.dim() != 5 or weight.shape[2] != channels // groups or weight.shape[1] % groups:
        raise ValueError(
            f"cond_conv2d expects weight (E, O, C / groups, kh, kw) = (E, O, {channels // groups}, "
            f"kh, kw) with O a multiple of groups={groups}, got {tuple(weight.shape)}"
        )
    if tuple(routing.shape) != (n, weight.shape[0]):
        raise ValueError(
            f"cond_conv2d expects routing (N, E) = {(n, weight.shape[0])}, "
            f"got {tuple(routing.shape)}"
        )
    for name, value in (("weight", weight), ("routing", routing)):
        if not value.is_floating_point():
            raise TypeError(f"cond_conv2d expects floating-point {name}, got {value.dtype}")
    autocast = x.device.type != "meta" and torch.is_autocast_enabled(x.device.type)
    if x.dtype != weight.dtype and not autocast:
        raise TypeError(
            "cond_conv2d expects x and weight of one dtype, "
            f"got {x.dtype} and {weight.dtype}; convert one, or use autocast"
        )
    kernel = tuple(d * (k - 1) + 1 for k, d in zip(weight.shape[3:], dilation, strict=True))
    padded = tuple(e + 2 * p for e, p in zip(size, padding, strict=True))
    if kernel[0] > padded[0] or kernel[1] > padded[1]:
        raise ValueError(
            "cond_conv2d expects a kernel that fits into the padded map, got a kernel of "
            f"{kernel} pixels for a map of {padded}"
        )


__all__ = ["cond_conv2d", "eager", "reference"]

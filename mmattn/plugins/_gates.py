"""What the gates with convolutions and norm layers inside have in common."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmattn.ops._backend import statistics_dtype
from mmattn.plugins.base import build_norm, check_positive_int, normalize


def check_bool(owner: str, name: str, value) -> bool:
    """Returns ``value``, or raises in the name of ``owner`` unless it is a bool."""
    if not isinstance(value, bool):
        raise TypeError(f"{owner} expects {name} to be a bool, got {value!r}")
    return value


def linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """``layer(x)`` in the dtype of ``x``."""
    return F.linear(x, layer.weight.to(x.dtype), layer.bias.to(x.dtype))


def conv(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """``layer(x)`` in the dtype of ``x``, for a layer with zero padding and one group."""
    bias = None if layer.bias is None else layer.bias.to(x.dtype)
    return F.conv2d(x, layer.weight.to(x.dtype), bias, layer.stride, layer.padding, layer.dilation)


def zero_affine(module: nn.Module, norm: nn.Module) -> None:
    """Zeroes the factor and the shift of ``norm``; raises if they alone could not learn again.

    In a frozen stage nothing of ``module`` learns, and it stays the identity.
    """
    affine = list(norm.parameters())
    learns = any(parameter.requires_grad for parameter in module.parameters())
    if not affine or (learns and not all(parameter.requires_grad for parameter in affine)):
        raise ValueError(
            f"{type(module).__name__} with identity_init=True starts the factor of its last norm "
            "layer at zero, so it must be there and learn: norm_cfg with affine=True and without "
            "requires_grad=False"
        )
    for parameter in affine:
        nn.init.zeros_(parameter)


def max_mean_conv(owner: str, kernel_size: int, norm_cfg: dict) -> nn.ModuleDict:
    """The layers ``conv`` and ``bn`` of a gate that is made from a maximum and a mean."""
    if check_positive_int(owner, "kernel_size", kernel_size) % 2 == 0:
        raise ValueError(
            f"{owner} expects kernel_size to be odd, so that the gate has the size of the map, "
            f"got {kernel_size}"
        )
    return nn.ModuleDict(
        {
            "conv": nn.Conv2d(2, 1, kernel_size, padding=kernel_size // 2, bias=False),
            "bn": build_norm(owner, norm_cfg, 1),
        }
    )


def max_mean_gate(layers: nn.ModuleDict, x: Tensor) -> Tensor:
    """``sigmoid(bn(conv([max; mean])))`` over dimension 1: (N, D, A, B) -> (N, 1, A, B).

    In float32 or better. The gradient of the maximum is shared among equal values.
    """
    dtype = statistics_dtype(x)
    pooled = [x.amax(1, keepdim=True).to(dtype), x.mean(1, keepdim=True, dtype=dtype)]
    return normalize(layers["bn"], conv(layers["conv"], torch.cat(pooled, 1))).sigmoid()

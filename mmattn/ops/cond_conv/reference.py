"""The definition (arXiv 1904.04971, equation 1): a kernel a sample, and its convolution."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def cond_conv2d(
    x: Tensor,  # (N, C, H, W)
    weight: Tensor,  # (E, O, C / groups, kh, kw)
    routing: Tensor,  # (N, E)
    stride=1,
    padding=0,
    dilation=1,
    groups=1,
) -> Tensor:
    if len(x) == 0:  # nothing to convolve, but a result of the right shape, with gradients
        kernel = torch.einsum("ne,e...->...", routing.to(weight.dtype), weight)
        return F.conv2d(x, kernel, None, stride, padding, dilation, groups)
    y = []
    for sample, shares in zip(x, routing, strict=True):
        kernel = sum(share * expert for share, expert in zip(shares, weight, strict=True))
        y.append(F.conv2d(sample[None], kernel, None, stride, padding, dilation, groups))
    return torch.cat(y)

"""The definition: all m convolutions everywhere, then the one of the pixel's region."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def region_conv2d(
    x: Tensor,  # (N, C, H, W)
    filters: Tensor,  # (N, m, O, C, kh, kw)
    region: Tensor,  # (N, H', W')
    stride=1,
    padding=0,
    dilation=1,
    guide: Tensor | None = None,  # (N, m, H', W')
    candidates: int | None = None,
) -> Tensor:
    """As :func:`mmattn.ops.region_conv2d`, with m-fold work and memory, by plain operators."""
    n, m, channels = filters.shape[:3]
    if n == 0:  # a convolution of no groups is none
        y = F.conv2d(x, filters.sum((0, 1)), None, stride, padding, dilation)
        return y if guide is None else y + 0 * guide[:, :1].to(y.dtype)  # all have a gradient
    # the samples stand side by side as channels, each with convolutions of its own
    one_map = x.reshape(1, -1, *x.shape[2:])
    bank = filters.reshape(-1, *filters.shape[3:])
    y = F.conv2d(one_map, bank, None, stride, padding, dilation, groups=n)
    y = y.reshape(n, m, channels, *y.shape[2:])
    selected = region[:, None] == torch.arange(m, device=region.device).view(m, 1, 1)
    share = selected.to(x.dtype)
    if guide is not None:
        soft = surrogate(guide, candidates).to(x.dtype)
        share = share + (soft - soft.detach())  # adds 0, and the gradient of the softmax
    return (share[:, :, None] * y).sum(1)


def surrogate(guide: Tensor, candidates: int | None) -> Tensor:
    """The softmax over the regions that stands for the one-hot in the backward pass."""
    if candidates is not None and candidates < guide.shape[1]:
        others = torch.ones_like(guide, dtype=torch.bool)
        others.scatter_(1, ranked(guide, candidates), False)
        guide = guide.masked_fill(others, float("-inf"))
    return guide.softmax(1)


def ranked(guide: Tensor, candidates: int) -> Tensor:
    """The regions of the highest scores (N, candidates, H', W'), the argmax first."""
    # of equal scores topk may name another one first than argmax does
    best = guide.argmax(1, keepdim=True)
    return guide.scatter(1, best, float("inf")).topk(candidates, dim=1).indices

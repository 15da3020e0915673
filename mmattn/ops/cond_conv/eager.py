"""All samples' convolutions as the groups of one."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from mmattn.ops._backend import without_autocast


def cond_conv2d(
    x: Tensor, weight: Tensor, routing: Tensor, stride=1, padding=0, dilation=1, groups=1
) -> Tensor:
    n = len(x)
    kernels = _mix(weight, routing)
    if n == 0:  # a convolution of no groups is none
        return F.conv2d(x, kernels.sum(0), None, stride, padding, dilation, groups)
    # the samples stand side by side as channels
    one_map = x.reshape(1, -1, *x.shape[2:])
    y = F.conv2d(one_map, kernels.flatten(0, 1), None, stride, padding, dilation, n * groups)
    return y.reshape(n, -1, *y.shape[2:])


@without_autocast  # which would round all the experts to mix a few
def _mix(weight: Tensor, routing: Tensor) -> Tensor:
    """The kernels of the samples (N, O, C / groups, kh, kw)."""
    mixed = routing.to(weight.dtype) @ weight.flatten(1)
    return mixed.unflatten(1, weight.shape[1:])

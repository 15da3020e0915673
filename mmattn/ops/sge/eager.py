"""Spatial group-wise enhance with statistics in float32 or better, in any memory format.

Least traffic, in maps read or written, if a group does not fit on chip: x for the statistics, x
for y and y forward (3), x and dy for the gradient of t, dy for dx and dx backward (4). If it does:
2 and 3. The mean of t is |q|^2, and its variance follows from the channels' covariance, which the
first pass could bring; that takes (C/G)^2 sums a group whose differences cancel, so that forward t
is made in a pass of its own (4).
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmattn.ops._backend import scaled, statistics_dtype, without_autocast
from mmattn.ops._chunks import Scratch, channel_sum, chunks, weighted_pixels, weighted_sum


@without_autocast
def sge(
    x: Tensor, weight: Tensor, bias: Tensor, gate_scale, groups: int, eps: float, normalize: bool
) -> Tensor:
    dtype = statistics_dtype(x)
    xg = x.unflatten(1, (groups, -1))  # a view in every memory format
    wide = xg.to(dtype)
    t = (wide.mean((3, 4), keepdim=True) * wide).sum(2)  # (N, G, H, W)
    if normalize:
        t = t - t.mean((2, 3), keepdim=True)
        # the unbiased spread of a single pixel would be 0/0; it is taken as 0
        freedom = x.shape[2] * x.shape[3] - 1
        # torch.jit.trace has sizes as tensors, of which max() would keep the value of today
        traced = isinstance(freedom, Tensor)
        freedom = freedom.clamp(min=1).to(dtype) if traced else max(freedom, 1)
        std = torch.linalg.vector_norm(t, dim=(2, 3), keepdim=True) / freedom**0.5
        t = t / (std + eps)
    a = (weight.to(dtype) * t + bias.to(dtype)).sigmoid()
    y = xg * scaled(a, gate_scale).to(x.dtype).unsqueeze(2)
    if torch.jit.is_tracing():  # ONNX knows no _unsafe_view
        return y.flatten(1, 2)
    # not a view to autograd: mmdet adds in place to it, which a checkpoint refuses of a view
    return torch.ops.aten._unsafe_view(y, x.shape)


@without_autocast
def forward(x, tensors, options):
    """Returns y and q (N, C), the mean of t and its spread (N, G)."""
    weight, bias, gate_scale = tensors
    groups, eps, normalize = options
    dtype = statistics_dtype(x)
    n, c, h, w = x.shape
    weight, bias = (p.to(dtype).flatten()[:, None, None] for p in (weight, bias))
    freedom = max(h * w - 1, 1)
    y = torch.empty_like(x)
    q = x.new_empty((n, groups, c // groups), dtype=dtype)
    mean = x.new_zeros((n, groups), dtype=dtype)
    std = x.new_ones((n, groups), dtype=dtype)
    xg, yg = x.unflatten(1, (groups, -1)), y.unflatten(1, (groups, -1))
    widened, scratch = Scratch(dtype), Scratch(dtype)
    for at in chunks(xg):
        part = widened.wide(xg[at])
        q[at] = part.mean((-2, -1))
        t = weighted_sum(part, q[at], scratch)
        if normalize:
            mean[at] = t.mean((-2, -1))
            t -= mean[at][..., None, None]
            std[at] = torch.linalg.vector_norm(t, dim=(-2, -1)) / freedom**0.5
            t /= (std[at] + eps)[..., None, None]
        a = t.mul_(weight[at[-1]]).add_(bias[at[-1]]).sigmoid_()
        torch.mul(xg[at], scaled(a, gate_scale).to(x.dtype).unsqueeze(-3), out=yg[at])
    return y, (q, mean, std)


@without_autocast
def backward(dy, x, tensors, saved, options, needs):
    """Returns the gradients of x, weight and bias."""
    weight, bias, gate_scale = tensors
    groups, eps, normalize = options
    q, mean, std = saved
    dtype = q.dtype
    pixels = x.shape[2] * x.shape[3]
    weight, bias = (p.to(dtype).flatten()[:, None, None] for p in (weight, bias))
    dx = torch.empty_like(x) if needs[0] else None
    dweight, dbias = torch.zeros_like(mean), torch.zeros_like(mean)
    xg, dyg, dxg = (None if v is None else v.unflatten(1, (groups, -1)) for v in (x, dy, dx))
    first, second, scratch = Scratch(dtype), Scratch(dtype), Scratch(dtype)
    for at in chunks(xg):
        part, upstream = first.wide(xg[at]), second.wide(dyg[at])
        t = weighted_sum(part, q[at], scratch)
        if normalize:
            t -= mean[at][..., None, None]
            t /= (std[at] + eps)[..., None, None]
        a = (t * weight[at[-1]]).add_(bias[at[-1]]).sigmoid_()
        dz = scaled(channel_sum(part, upstream, scratch), gate_scale)
        dz.mul_(a).mul_(1 - a)
        dbias[at] = dz.sum((-2, -1))
        dweight[at] = torch.mul(dz, t).sum((-2, -1))
        if dx is None:
            continue
        dt = dz.mul_(weight[at[-1]])
        if normalize:
            # through the mean, and through the spread
            spread = std[at][..., None, None]
            along = weight[at[-1]] * dweight[at][..., None, None] * (spread + eps) / spread
            along = torch.where(spread > 0, along, 0)
            dt.sub_(weight[at[-1]] * dbias[at][..., None, None] / pixels)
            dt.addcmul_(t, along, value=-1 / max(pixels - 1, 1))
            dt /= spread + eps
        dq = weighted_pixels(part, dt, scratch)
        whole = dxg[at] if x.dtype == dtype else scratch.like(part)
        # a number a channel stands alone in each: with two PyTorch computes value by value
        gate, dq = scaled(a, gate_scale).unsqueeze(-3), (dq / pixels)[..., None, None]
        torch.addcmul(dq, upstream, gate, out=whole)
        whole.addcmul_(q[at][..., None, None], dt.unsqueeze(-3))
        if whole.dtype != x.dtype:
            dxg[at] = whole
    return dx, dweight.sum(0), dbias.sum(0), None

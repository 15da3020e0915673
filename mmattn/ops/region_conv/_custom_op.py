"""The operator as PyTorch sees it: one node for autograd, compilers and opcheck."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from mmattn.ops.region_conv import eager
from mmattn.ops.region_conv.reference import ranked, surrogate


def convolve(
    x, filters, region, out_size, stride, padding, dilation, guide, candidates, backend
) -> Tensor:
    """Region-wise convolution of checked arguments by ``backend`` ('eager' or 'triton')."""
    order, offsets = plan(region, filters.shape[1])
    y = torch.ops.mmattn.region_conv2d(
        x, filters, guide, order, offsets, out_size, stride, padding, dilation, candidates, backend
    )
    return y


def plan(region: Tensor, m: int) -> tuple[Tensor, Tensor]:
    """Sorts the pixels by sample and region.

    Returns:
        The pixels' numbers (N H' W',) in that order, and where each of the N m groups starts
        in it, with the end of the last (N m + 1,).
    """
    n, pixels = region.shape[0], region.shape[1] * region.shape[2]
    # small integers sort faster, and m fits
    key, place = torch.sort(region.flatten(1).to(torch.int32), dim=1, stable=True)
    first = torch.arange(n, device=region.device)[:, None] * pixels
    names = torch.arange(m, device=region.device, dtype=torch.int32).expand(n, m).contiguous()
    starts = torch.searchsorted(key, names) + first
    end = starts.new_full((1,), n * pixels)
    return (place + first).flatten(), torch.cat([starts.flatten(), end]).to(torch.int32)


def _implementation(backend: str):
    if backend == "eager":
        return eager
    from mmattn.ops.region_conv import triton

    return triton


@torch.library.custom_op("mmattn::region_conv2d", mutates_args=())
def _forward(
    x: Tensor,
    filters: Tensor,
    guide: Tensor | None,
    order: Tensor,
    offsets: Tensor,
    out_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    candidates: int | None,
    backend: str,
) -> Tensor:
    run = _implementation(backend).forward
    return run(x, filters, order, offsets, out_size, stride, padding, dilation)


@_forward.register_fake
def _(x, filters, guide, order, offsets, out_size, *_):
    y = x.new_empty(x.shape[0], filters.shape[2], *out_size)
    return y.to(memory_format=eager.memory_format(x))


@torch.library.custom_op("mmattn::region_conv2d_backward", mutates_args=())
def _backward(
    dy: Tensor,
    x: Tensor,
    filters: Tensor,
    order: Tensor,
    offsets: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    need_x: bool,
    need_filters: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """Returns dx and dfilters; what is not needed comes back empty."""
    dx, dfilters = _implementation(backend).backward(
        dy, x, filters, order, offsets, stride, padding, dilation, need_x, need_filters
    )
    return x.new_empty(0) if dx is None else dx, x.new_empty(0) if dfilters is None else dfilters


@_backward.register_fake
def _(dy, x, filters, order, offsets, stride, padding, dilation, need_x, need_filters, backend):
    dx = torch.empty_like(x, memory_format=eager.memory_format(x)) if need_x else x.new_empty(0)
    dfilters = filters.new_empty(filters.shape) if need_filters else x.new_empty(0)
    return dx, dfilters


def _save(ctx, inputs, output):
    x, filters, guide, order, offsets, _, *ctx.geometry, ctx.candidates, ctx.backend = inputs
    if ctx.candidates is not None and ctx.candidates >= filters.shape[1]:
        ctx.candidates = None
    # the answer of a pixel's own region is y: one convolution less
    y = None if guide is None or ctx.candidates is None else output
    ctx.save_for_backward(x, filters, guide, order, offsets, y)


def _differentiate(ctx, dy):
    x, filters, guide, order, offsets, y = ctx.saved_tensors
    need_x, need_filters, need_guide = ctx.needs_input_grad[:3]
    dx = dfilters = dguide = None
    if need_x or need_filters:
        dx, dfilters = torch.ops.mmattn.region_conv2d_backward(
            dy, x, filters, order, offsets, *ctx.geometry, need_x, need_filters, ctx.backend
        )
    if guide is not None and need_guide:
        dguide = torch.ops.mmattn.region_conv2d_guide_backward(
            dy, y, x, filters, guide, *ctx.geometry, ctx.candidates, ctx.backend
        )
    return (
        dx if need_x else None,
        dfilters if need_filters else None,
        dguide,
        *[None] * 8,
    )


_forward.register_autograd(_differentiate, setup_context=_save)


@torch.library.custom_op("mmattn::region_conv2d_guide_backward", mutates_args=())
def _guide_gradient(
    dy: Tensor,
    y: Tensor | None,
    x: Tensor,
    filters: Tensor,
    guide: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    candidates: int | None,
    backend: str,
) -> Tensor:
    """The surrogate's gradient: each region's answer at each pixel, along the upstream gradient."""
    m = filters.shape[1]
    geometry = stride, padding, dilation
    with torch.autocast(x.device.type, enabled=False):
        share = surrogate(guide.to(torch.promote_types(guide.dtype, torch.float32)), candidates)
        answers = torch.zeros_like(share)
        if candidates is None:
            # one region and sample at a time: the memory of one output map
            for i in range(len(x)):
                for j in range(m):
                    answer = F.conv2d(x[i : i + 1], filters[i, j], None, *geometry)[0]
                    answers[i, j] = _dot(dy[i], answer)
        else:
            best = ranked(guide, candidates)
            for k in range(candidates):
                region = best[:, k]
                if k:
                    y = torch.ops.mmattn.region_conv2d(
                        *(x, filters, None, *plan(region, m), list(dy.shape[2:]), *geometry),
                        *(None, backend),
                    )
                answers.scatter_(1, region[:, None], _dot(dy, y, 1)[:, None].to(answers.dtype))
        mean = (share * answers).sum(1, keepdim=True)
        return (share * (answers - mean)).to(guide.dtype).contiguous()


@_guide_gradient.register_fake
def _(dy, y, x, filters, guide, *_):
    return torch.empty_like(guide, memory_format=torch.contiguous_format)


def _dot(a: Tensor, b: Tensor, dim: int = 0) -> Tensor:
    """Sums a b over the channels, in float32 or better."""
    return (a.to(torch.promote_types(a.dtype, torch.float32)) * b).sum(dim)

"""The global context block with statistics in float32 or better, in any memory format.

Least traffic, in maps read or written: the context needs all of x before y can be made, and its
gradient all of dy (with 'mul' of x, too) before dx: with 'add' 3 forward (x, x, y) and 4 backward
(dy, x, dy, dx), with 'mul' 3 and 5. A pixel's logit and its share of the context take two looks
at its channels, which is one read if they stay on chip in between.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmattn.ops._backend import scaled, statistics_dtype, without_autocast
from mmattn.ops._chunks import (
    Scratch,
    blocks,
    channel_mean,
    channel_products,
    channel_sums,
    outer,
    samples,
    scale_and_shift,
    weighted_pixels,
    weighted_sum,
)
from mmattn.ops._operator import pullback
from mmattn.ops.gc.reference import transform, unpacked


@without_autocast
def pool(x: Tensor, mask_weight: Tensor | None, mask_bias: Tensor | None) -> Tensor:
    """(N, C, H, W) -> (N, C), in float32 or better."""
    dtype = statistics_dtype(x)
    if mask_weight is None:
        return x.mean((2, 3), dtype=dtype)
    wide = x.to(dtype)
    logits = torch.einsum("nchw,c->nhw", wide, mask_weight.to(dtype).flatten())
    # the softmax does not see the bias: added only so that it has its gradient of zero
    mask = (logits + mask_bias.to(dtype)).flatten(1).softmax(1).view_as(logits)
    return torch.einsum("nchw,nhw->nc", wide, mask)


def factors(context: Tensor, fusions: tuple, gate_scale) -> tuple[Tensor | None, Tensor | None]:
    """The factor and the summand (N, C) of every position, None for a fusion that is not there."""
    add, mul = (None if p is None else p.to(context.dtype) for p in unpacked(fusions))
    a = None if mul is None else scaled(transform(context, mul).sigmoid(), gate_scale)
    return a, None if add is None else transform(context, add)


@without_autocast
def gc(x: Tensor, mask_weight: Tensor | None, mask_bias: Tensor | None, *rest) -> Tensor:
    *fusions, gate_scale = rest
    a, b = factors(pool(x, mask_weight, mask_bias), fusions, gate_scale)
    y = x
    if a is not None:
        y = y * a.to(x.dtype)[:, :, None, None]
    if b is not None:
        y = y + b.to(x.dtype)[:, :, None, None]
    return y


@without_autocast
def forward(x, tensors, options):
    """Returns y, the context (N, C) and the softmax (N, H, W), empty for plain means."""
    mask_weight, _, *fusions, gate_scale = tensors
    dtype = statistics_dtype(x)
    if mask_weight is None:
        context, mask = channel_mean(x, dtype), x.new_empty(0, dtype=dtype)
    else:
        mask = x.new_empty((len(x), *x.shape[2:]), dtype=dtype)
        context = x.new_empty(x.shape[:2], dtype=dtype)
        weight = mask_weight.to(dtype).flatten()
        scratch = Scratch(dtype)
        for at in samples(x):
            wide = scratch.wide(x[at])
            logits = weighted_sum(wide, weight)
            mask[at] = logits.flatten(-2).softmax(-1).view_as(logits)
            context[at] = weighted_pixels(wide, mask[at])
    a, b = factors(context, fusions, gate_scale)
    # rounded one by one where x is of half precision, as the equation is
    a, b = (None if v is None else v.to(x.dtype) for v in (a, b))
    return scale_and_shift(x, a, b), (context, mask)


@without_autocast
def backward(dy, x, tensors, saved, options, needs):
    """Returns the gradients of x, of mask_weight and mask_bias, and of the fusions."""
    mask_weight, mask_bias, *fusions, gate_scale = tensors
    context, mask = saved
    dtype = context.dtype
    pixels = x.shape[2] * x.shape[3]
    a, _ = factors(context, fusions, gate_scale)
    da = None if a is None else channel_products(dy, x, dtype)
    db = None if fusions[0] is None else channel_sums(dy, dtype)
    dcontext, *dfusions = pullback(
        lambda c, *f: factors(c, f, gate_scale), (context, *fusions), (da, db)
    )
    if mask_weight is None:
        dx = None
        if needs[0]:
            dcontext /= max(pixels, 1)
            dx = scale_and_shift(dy, a, dcontext)
        return dx, None, None, *dfusions, None
    weight = mask_weight.to(dtype).flatten()
    dweight = torch.zeros_like(weight)
    dx = torch.empty_like(x) if needs[0] else None
    mean = (dcontext * context).sum(1)[:, None, None]
    dlogits = torch.empty_like(mask)
    first, second = Scratch(dtype), Scratch(dtype)
    for at in samples(x):
        wide = first.wide(x[at])
        dlogits[at] = mask[at] * (weighted_sum(wide, dcontext[at]) - mean[at])
        if needs[1]:
            dweight += weighted_pixels(wide, dlogits[at]).view(-1, len(weight)).sum(0)
    if dx is None:
        return None, dweight, torch.zeros_like(mask_bias), *dfusions, None
    columns = torch.stack([dcontext, weight.expand_as(dcontext)], -1)  # (N, C, 2)
    rows = torch.stack([mask, dlogits], 1)  # (N, 2, H, W)
    for at in blocks(x):
        part = first.wide(dy[at])
        whole = outer(columns[at[:2]], rows[at[0]][..., at[2], :], second.like(part))
        out = dx[at] if x.dtype == dtype else whole
        if a is None:
            torch.add(whole, part, out=out)
        else:
            torch.addcmul(whole, part, a[at[:2]][..., None, None], out=out)
        if out is whole:
            dx[at] = whole
    dbias = torch.zeros_like(mask_bias)
    return dx, dweight, dbias, *dfusions, None

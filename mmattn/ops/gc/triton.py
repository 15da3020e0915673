"""The global context block as Triton kernels: statistics in float32, no atomics, repeatable.

Least traffic, in maps read or written, of a map too large to stay on chip. Forward: y needs the
context of the whole map, so x is read twice and y is written (3); pooling needs no more than one
reading, because the softmax is taken online. Backward: every dx_i needs the gradient of the
context, a function of the sum of dy over all pixels, so dy is read twice, x once (for the logits,
and for what the context's gradient says of each pixel) and dx is written (4); 'mul' reads x for
the gradient of the gate as well (5). Averages need no x for dx: 3 ('add'), 4 ('mul').

The kernels move just that, and small sums beside it:

* ``_pool_kernel`` and ``_dx_kernel`` hold a tile of *all* channels by ``BLOCK_P`` pixels in
  registers (at most 64 KiB, most with the next tile on its way), from which they take the logits
  (over channels) and then the sums over pixels, so nothing is looked at twice in any cache. A
  contiguous tile has 64 bytes of each channel, down to 32 (pooling, fp32) or 16 (the rest) at
  C = 2048, where the backward kernel also spills some registers in half precision; wider C is
  right but slower. With channels last a tile is one piece of memory.
* Programs share out the tiles of a sample in turns and write one partial sum of C values each,
  which the next kernel adds up in its first lines, in a fixed order.
* A sweep that follows one over the same map runs from its end to its start, where the L2 cache
  still holds what was read last.
* W1, LayerNorm and W2 on (N, C) take 2 kernels (forward) and 3 (backward, weights included) in
  place of the 5 and about 15 launches of PyTorch's operators, which would cost more than a pass
  over a map of the last stage. Launches: 4 forward, 5 backward; 'add' with 'mul' one more.

Block sizes are chosen from shapes and dtype; they are not yet measured on a GPU.
"""

# ruff: noqa: N803  (capitals are compile-time constants, as everywhere in Triton)
# no postponed annotations here: Triton 3.0's interpreter does not know tl.constexpr as a string

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from mmattn.ops._triton import (
    bucket,
    dense,
    dense_like,
    has_memory,
    is_channels_last,
    launch,
)
from mmattn.ops.gc.reference import GCTransform, unpacked

# Of an H100: a sweep over a map gives each as many programs as its registers hold.
_MULTIPROCESSORS = 132
# Partial sums that a program adds up at a time.
_PARTS = 64

# the map ------------------------------------------------------------------------------------------


@triton.jit
def _places(c, p, channels, pixels, LAST: tl.constexpr):
    """Where channels (C,) and pixels (P,) lie in a sample: (C, P)."""
    if LAST:
        return p.to(tl.int64)[None, :] * channels + c[:, None]
    return c.to(tl.int64)[:, None] * pixels + p[None, :]


@triton.jit(do_not_specialize=["rows", "splits"])
def _pool_kernel(
    x,
    mask_weight,  # (C,), or None for averages
    maxima,  # (N, splits)
    totals,  # (N, splits)
    sums,  # (N, splits, C)
    rows,
    channels,
    splits,
    ALIGN: tl.constexpr,
    LAST: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """Sums exp(logit - maximum) x and exp(logit - maximum) over the pixels of some tiles."""
    pixels = rows * ALIGN
    program = tl.program_id(0).to(tl.int64)
    sample = program // splits
    split = (program % splits).to(tl.int32)
    c = tl.arange(0, BLOCK_C)
    x += sample * channels * pixels
    if mask_weight is not None:
        weight = tl.load(mask_weight + c, mask=c < channels, other=0.0).to(tl.float32)
    maximum = float("-inf")
    total = 0.0
    context = tl.zeros((BLOCK_C,), dtype=tl.float32)
    p = split * BLOCK_P + tl.arange(0, BLOCK_P)
    mask = (c < channels)[:, None] & (p < pixels)[None, :]
    following = tl.load(x + _places(c, p, channels, pixels, LAST), mask=mask, other=0.0)
    for _ in range(split, tl.cdiv(pixels, BLOCK_P), splits):
        part = following.to(tl.float32)
        valid = p < pixels
        p += splits * BLOCK_P
        # the next tile is on its way while this one is summed
        mask = (c < channels)[:, None] & (p < pixels)[None, :]
        following = tl.load(x + _places(c, p, channels, pixels, LAST), mask=mask, other=0.0)
        if mask_weight is not None:
            logits = tl.sum(part * weight[:, None], 0)
            logits = tl.where(valid, logits, float("-inf"))
            higher = tl.maximum(maximum, tl.max(logits, 0))
            shrink = tl.exp(maximum - higher)
            share = tl.exp(logits - higher)
            total = total * shrink + tl.sum(share, 0)
            context = context * shrink + tl.sum(part * share[None, :], 1)
            maximum = higher
        else:
            total += tl.sum(valid.to(tl.float32), 0)
            context += tl.sum(part, 1)
    if mask_weight is None:
        maximum = 0.0
    tl.store(maxima + program, maximum)
    tl.store(totals + program, total)
    tl.store(sums + program * channels + c, context, mask=c < channels)


@triton.jit(do_not_specialize=["rows", "splits"])
def _dx_kernel(
    dy,
    x,
    mask_weight,  # (C,)
    maxima,  # (N,)
    totals,  # (N,)
    context,  # (N, C)
    dcontext,  # (N, C)
    scale,  # (N, C) or None
    dx,  # or None
    dmask,  # (N, splits, C) or None
    rows,
    channels,
    splits,
    ALIGN: tl.constexpr,
    LAST: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
    AHEAD: tl.constexpr,
):
    """Writes dx = dy scale + share dcontext + dlogit mask_weight, and sums of dlogit x."""
    pixels = rows * ALIGN
    program = tl.program_id(0).to(tl.int64)
    sample = program // splits
    split = (program % splits).to(tl.int32)
    c = tl.arange(0, BLOCK_C)
    start = sample * channels * pixels
    weight = tl.load(mask_weight + c, mask=c < channels, other=0.0).to(tl.float32)
    pull = tl.load(dcontext + sample * channels + c, mask=c < channels, other=0.0)
    mean = tl.load(context + sample * channels + c, mask=c < channels, other=0.0)
    mean = tl.sum(mean * pull, 0)  # the mean of what each pixel has along dcontext
    maximum = tl.load(maxima + sample)
    total = tl.load(totals + sample)
    if dx is not None and scale is not None:
        factor = tl.load(scale + sample * channels + c, mask=c < channels, other=0.0)
    dweight = tl.zeros((BLOCK_C,), dtype=tl.float32)
    tiles = tl.cdiv(pixels, BLOCK_P)
    p = (tiles - 1 - split) * BLOCK_P + tl.arange(0, BLOCK_P)
    if AHEAD:
        following = tl.load(
            x + start + _places(c, p, channels, pixels, LAST),
            mask=(c < channels)[:, None] & (p < pixels)[None, :],
            other=0.0,
        )
    for _ in range(split, tiles, splits):
        valid = p < pixels
        mask = (c < channels)[:, None] & valid[None, :]
        places = start + _places(c, p, channels, pixels, LAST)
        if AHEAD:
            part = following.to(tl.float32)
        else:
            part = tl.load(x + places, mask=mask, other=0.0).to(tl.float32)
        if dx is not None:
            upstream = tl.load(dy + places, mask=mask, other=0.0)
        p -= splits * BLOCK_P
        if AHEAD:  # the next tile is on its way while this one is summed
            following = tl.load(
                x + start + _places(c, p, channels, pixels, LAST),
                mask=(c < channels)[:, None] & (p >= 0)[None, :],
                other=0.0,
            )
        logits = tl.sum(part * weight[:, None], 0)
        along = tl.sum(part * pull[:, None], 0)
        share = tl.exp(tl.where(valid, logits - maximum, float("-inf"))) / total
        dlogits = share * (along - mean)
        if dmask is not None:
            dweight += tl.sum(part * dlogits[None, :], 1)
        if dx is not None:
            out = upstream.to(tl.float32)
            if scale is not None:
                out *= factor[:, None]
            out += pull[:, None] * share[None, :] + weight[:, None] * dlogits[None, :]
            tl.store(dx + places, out.to(dx.dtype.element_ty), mask=mask)
    if dmask is not None:
        tl.store(dmask + program * channels + c, dweight, mask=c < channels)


@triton.jit(do_not_specialize=["rows", "splits"])
def _sum_kernel(
    dy,
    x,
    plain,  # (N, splits, C) or None: sums of dy
    product,  # (N, splits, C) or None: sums of dy x
    rows,
    channels,
    splits,
    ALIGN: tl.constexpr,
    LAST: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """Sums over the pixels of some tiles, for a block of channels."""
    pixels = rows * ALIGN
    blocks = tl.cdiv(channels, BLOCK_C)
    program = (tl.program_id(0) // blocks).to(tl.int64)
    sample = program // splits
    split = (program % splits).to(tl.int32)
    c = tl.program_id(0) % blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    start = sample * channels * pixels
    sums = tl.zeros((BLOCK_C, BLOCK_P), dtype=tl.float32)
    products = tl.zeros((BLOCK_C, BLOCK_P), dtype=tl.float32)
    for tile in range(split, tl.cdiv(pixels, BLOCK_P), splits):
        p = tile * BLOCK_P + tl.arange(0, BLOCK_P)
        places = start + _places(c, p, channels, pixels, LAST)
        mask = (c < channels)[:, None] & (p < pixels)[None, :]
        upstream = tl.load(dy + places, mask=mask, other=0.0).to(tl.float32)
        if plain is not None:
            sums += upstream
        if product is not None:
            products += upstream * tl.load(x + places, mask=mask, other=0.0).to(tl.float32)
    if plain is not None:
        tl.store(plain + program * channels + c, tl.sum(sums, 1), mask=c < channels)
    if product is not None:
        tl.store(product + program * channels + c, tl.sum(products, 1), mask=c < channels)


@triton.jit(do_not_specialize=["rows", "samples"])
def _affine_kernel(
    x,
    scale,  # (N, C) or None
    shift,  # (N, C) or None
    y,
    rows,
    channels,
    samples,
    ALIGN: tl.constexpr,
    LAST: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """Writes y = x scale + shift, from the last pixels to the first."""
    pixels = rows * ALIGN
    blocks = tl.cdiv(channels, BLOCK_C)
    tile = tl.cdiv(pixels, BLOCK_P) - 1 - tl.program_id(0) // (samples * blocks)
    rest = tl.program_id(0) % (samples * blocks)
    sample = (rest // blocks).to(tl.int64)
    c = rest % blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    p = tile * BLOCK_P + tl.arange(0, BLOCK_P)
    places = sample * channels * pixels + _places(c, p, channels, pixels, LAST)
    mask = (c < channels)[:, None] & (p < pixels)[None, :]
    out = tl.load(x + places, mask=mask, other=0.0).to(tl.float32)
    if scale is not None:
        out *= tl.load(scale + sample * channels + c, mask=c < channels, other=0.0)[:, None]
    if shift is not None:
        out += tl.load(shift + sample * channels + c, mask=c < channels, other=0.0)[:, None]
    tl.store(y + places, out.to(y.dtype.element_ty), mask=mask)


# the bottleneck on (N, C) -------------------------------------------------------------------------


@triton.jit
def _sum_of_rows(parts, count, columns, i, BLOCK_R: tl.constexpr):
    """Adds up the rows of (count, columns) at the columns i, always in the same order."""
    total = tl.zeros((i.shape[0],), dtype=tl.float32)
    for start in range(0, count, BLOCK_R):
        r = start + tl.arange(0, BLOCK_R)
        part = tl.load(
            parts + r.to(tl.int64)[:, None] * columns + i[None, :],
            mask=(r < count)[:, None] & (i < columns)[None, :],
            other=0.0,
        )
        total += tl.sum(part, 0)
    return total


@triton.jit
def _contract(v, c, channels, weight, stride_c, stride_h, out, hidden, BLOCK_H: tl.constexpr):
    """Writes what the channels c add to each hidden value: sum_c weight[c, h] v_c."""
    for start in range(0, hidden, BLOCK_H):
        h = start + tl.arange(0, BLOCK_H)
        w = tl.load(
            weight + c[:, None] * stride_c + h[None, :] * stride_h,
            mask=(c < channels)[:, None] & (h < hidden)[None, :],
            other=0.0,
        ).to(tl.float32)
        tl.store(out + h, tl.sum(w * v[:, None], 0), mask=h < hidden)


@triton.jit
def _expand(v, h, hidden, weight, stride_c, stride_h, c, channels):
    """sum_h weight[c, h] v_h for the channels c."""
    w = tl.load(
        weight + c[:, None] * stride_c + h[None, :] * stride_h,
        mask=(c < channels)[:, None] & (h < hidden)[None, :],
        other=0.0,
    ).to(tl.float32)
    return tl.sum(w * v[None, :], 1)


@triton.jit
def _normalized(z, h, hidden):
    """LayerNorm without weight and bias, and the factor 1 / spread."""
    z = tl.where(h < hidden, z - tl.sum(z, 0) / hidden, 0.0)
    factor = tl.rsqrt(tl.sum(z * z, 0) / hidden + 1e-5)
    return z * factor, factor


@triton.jit(do_not_specialize=["splits"])
def _squeeze_kernel(
    maxima,  # (N, splits)
    totals,  # (N, splits)
    sums,  # (N, splits, C)
    add_w1,  # (P, C) or None
    mul_w1,
    maximum_out,  # (N,)
    total_out,  # (N,)
    context_out,  # (N, C)
    add_z,  # (N, blocks, P) or None
    mul_z,
    channels,
    splits,
    add_hidden,
    mul_hidden,
    BLOCK_C: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    """The context of a block of channels, and what it adds to w1 context."""
    blocks = tl.cdiv(channels, BLOCK_C)
    program = tl.program_id(0).to(tl.int64)
    sample = program // blocks
    block = (program % blocks).to(tl.int32)
    c = block * BLOCK_C + tl.arange(0, BLOCK_C)
    maxima += sample * splits
    totals += sample * splits
    sums += sample * splits * channels
    highest = tl.full((BLOCK_R,), float("-inf"), dtype=tl.float32)
    for start in range(0, splits, BLOCK_R):
        r = start + tl.arange(0, BLOCK_R)
        highest = tl.maximum(highest, tl.load(maxima + r, mask=r < splits, other=float("-inf")))
    maximum = tl.max(highest, 0)
    total = 0.0
    context = tl.zeros((BLOCK_C,), dtype=tl.float32)
    for start in range(0, splits, BLOCK_R):
        r = start + tl.arange(0, BLOCK_R)
        share = tl.exp(tl.load(maxima + r, mask=r < splits, other=float("-inf")) - maximum)
        part = tl.load(
            sums + r[:, None] * channels + c[None, :],
            mask=(r < splits)[:, None] & (c < channels)[None, :],
            other=0.0,
        )
        total += tl.sum(share * tl.load(totals + r, mask=r < splits, other=0.0), 0)
        context += tl.sum(share[:, None] * part, 0)
    context = context / total
    tl.store(context_out + sample * channels + c, context, mask=c < channels)
    if block == 0:
        tl.store(maximum_out + sample, maximum)
        tl.store(total_out + sample, total)
    if add_w1 is not None:
        z = add_z + program * add_hidden
        _contract(context, c, channels, add_w1, 1, channels, z, add_hidden, BLOCK_H)
    if mul_w1 is not None:
        z = mul_z + program * mul_hidden
        _contract(context, c, channels, mul_w1, 1, channels, z, mul_hidden, BLOCK_H)


@triton.jit
def _excited(
    parts, b1, norm_weight, norm_bias, w2, b2, z_out, sample, block, blocks_z, c, channels, hidden,
    HIDDEN: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """w2 relu(LayerNorm(z)) + b2 for the channels c; block 0 writes z = w1 context + b1."""
    h = tl.arange(0, HIDDEN)
    z = _sum_of_rows(parts + sample * blocks_z * hidden, blocks_z, hidden, h, BLOCK_R)
    z += tl.load(b1 + h, mask=h < hidden, other=0.0).to(tl.float32)
    if block == 0:
        tl.store(z_out + sample * hidden + h, z, mask=h < hidden)
    z, _ = _normalized(z, h, hidden)
    z *= tl.load(norm_weight + h, mask=h < hidden, other=0.0).to(tl.float32)
    z += tl.load(norm_bias + h, mask=h < hidden, other=0.0).to(tl.float32)
    z = tl.where(z < 0, 0.0, z)  # NaN stays, which a GPU's maximum drops
    out = _expand(z, h, hidden, w2, hidden, 1, c, channels)
    return out + tl.load(b2 + c, mask=c < channels, other=0.0).to(tl.float32)


@triton.jit
def _excite_kernel(
    add_parts,  # (N, blocks_z, P) or None
    add_b1,
    add_norm_weight,
    add_norm_bias,
    add_w2,
    add_b2,
    add_z,  # (N, P)
    shift,  # (N, C)
    mul_parts,
    mul_b1,
    mul_norm_weight,
    mul_norm_bias,
    mul_w2,
    mul_b2,
    mul_z,
    scale,
    gate_scale,
    channels,
    blocks_z,
    add_hidden,
    mul_hidden,
    ADD_HIDDEN: tl.constexpr,
    MUL_HIDDEN: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """What is added to each channel, and what it is multiplied by."""
    blocks = tl.cdiv(channels, BLOCK_C)
    sample = (tl.program_id(0) // blocks).to(tl.int64)
    block = tl.program_id(0) % blocks
    c = block * BLOCK_C + tl.arange(0, BLOCK_C)
    if add_parts is not None:
        out = _excited(
            add_parts, add_b1, add_norm_weight, add_norm_bias, add_w2, add_b2, add_z,
            sample, block, blocks_z, c, channels, add_hidden, ADD_HIDDEN, BLOCK_R,
        )  # fmt: skip
        tl.store(shift + sample * channels + c, out, mask=c < channels)
    if mul_parts is not None:
        out = _excited(
            mul_parts, mul_b1, mul_norm_weight, mul_norm_bias, mul_w2, mul_b2, mul_z,
            sample, block, blocks_z, c, channels, mul_hidden, MUL_HIDDEN, BLOCK_R,
        )  # fmt: skip
        # divisions as exact as IEEE's: a gate equal to its scale must give 1
        gate = tl.div_rn(tl.full((BLOCK_C,), 1.0, tl.float32), 1.0 + tl.exp(-out))
        if gate_scale is not None:
            neutral = tl.load(gate_scale).to(tl.float32)
            gate = tl.div_rn(gate, tl.zeros((BLOCK_C,), tl.float32) + neutral)
        tl.store(scale + sample * channels + c, gate, mask=c < channels)


@triton.jit(do_not_specialize=["splits"])
def _unexcite_kernel(
    plain,  # (N, splits, C) or None: sums of dy
    product,  # (N, splits, C) or None: sums of dy x
    scale,  # (N, C)
    gate_scale,
    add_w2,  # (C, P)
    mul_w2,
    add_dout,  # (N, C): the gradient of w2 h + b2
    mul_dout,
    add_dh,  # (N, blocks, P)
    mul_dh,
    channels,
    splits,
    add_hidden,
    mul_hidden,
    BLOCK_C: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    """The gradient of the bottleneck's outputs, and what they add to that of w2's input."""
    blocks = tl.cdiv(channels, BLOCK_C)
    program = tl.program_id(0).to(tl.int64)
    sample = program // blocks
    c = (program % blocks).to(tl.int32) * BLOCK_C + tl.arange(0, BLOCK_C)
    if plain is not None:
        dout = _sum_of_rows(plain + sample * splits * channels, splits, channels, c, BLOCK_R)
        tl.store(add_dout + sample * channels + c, dout, mask=c < channels)
        dh = add_dh + program * add_hidden
        _contract(dout, c, channels, add_w2, add_hidden, 1, dh, add_hidden, BLOCK_H)
    if product is not None:
        dout = _sum_of_rows(product + sample * splits * channels, splits, channels, c, BLOCK_R)
        gate = tl.load(scale + sample * channels + c, mask=c < channels, other=0.0)
        if gate_scale is not None:
            neutral = tl.load(gate_scale).to(tl.float32)
            gate *= neutral
            dout /= neutral
        dout *= gate * (1 - gate)
        tl.store(mul_dout + sample * channels + c, dout, mask=c < channels)
        dh = mul_dh + program * mul_hidden
        _contract(dout, c, channels, mul_w2, mul_hidden, 1, dh, mul_hidden, BLOCK_H)


@triton.jit
def _unexcited(
    parts, z, norm_weight, norm_bias, w1, states, sample, block, blocks_dh, c, channels, hidden,
    HIDDEN: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """The gradient of the context's channels c; block 0 writes what the weights' need."""
    h = tl.arange(0, HIDDEN)
    valid = h < hidden
    dh = _sum_of_rows(parts + sample * blocks_dh * hidden, blocks_dh, hidden, h, BLOCK_R)
    z = tl.load(z + sample * hidden + h, mask=valid, other=0.0)
    z, factor = _normalized(z, h, hidden)
    slope = tl.load(norm_weight + h, mask=valid, other=0.0).to(tl.float32)
    activation = z * slope + tl.load(norm_bias + h, mask=valid, other=0.0).to(tl.float32)
    dh = tl.where(activation > 0, dh, 0.0)
    dz = dh * slope
    dz -= tl.sum(dz, 0) / hidden + z * (tl.sum(dz * z, 0) / hidden)
    dz = tl.where(valid, dz * factor, 0.0)
    if block == 0:
        state = states + sample * 4 * hidden + h
        tl.store(state, tl.where(activation < 0, 0.0, activation), mask=valid)
        tl.store(state + hidden, dz, mask=valid)
        tl.store(state + 2 * hidden, dh * z, mask=valid)
        tl.store(state + 3 * hidden, dh, mask=valid)
    return _expand(dz, h, hidden, w1, 1, channels, c, channels)


@triton.jit
def _unsqueeze_kernel(
    add_dh,  # (N, blocks_dh, P) or None
    add_z,  # (N, P)
    add_norm_weight,
    add_norm_bias,
    add_w1,
    add_states,  # (N, 4, P): relu's output, and the gradients of z, norm weight and norm bias
    mul_dh,
    mul_z,
    mul_norm_weight,
    mul_norm_bias,
    mul_w1,
    mul_states,
    dcontext,  # (N, C)
    share,
    channels,
    blocks_dh,
    add_hidden,
    mul_hidden,
    ADD_HIDDEN: tl.constexpr,
    MUL_HIDDEN: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """The gradient of the context, times share."""
    blocks = tl.cdiv(channels, BLOCK_C)
    sample = (tl.program_id(0) // blocks).to(tl.int64)
    block = tl.program_id(0) % blocks
    c = block * BLOCK_C + tl.arange(0, BLOCK_C)
    total = tl.zeros((BLOCK_C,), dtype=tl.float32)
    if add_dh is not None:
        total += _unexcited(
            add_dh, add_z, add_norm_weight, add_norm_bias, add_w1, add_states,
            sample, block, blocks_dh, c, channels, add_hidden, ADD_HIDDEN, BLOCK_R,
        )  # fmt: skip
    if mul_dh is not None:
        total += _unexcited(
            mul_dh, mul_z, mul_norm_weight, mul_norm_bias, mul_w1, mul_states,
            sample, block, blocks_dh, c, channels, mul_hidden, MUL_HIDDEN, BLOCK_R,
        )  # fmt: skip
    tl.store(dcontext + sample * channels + c, total * share, mask=c < channels)


@triton.jit(do_not_specialize=["samples", "parts"])
def _weights_kernel(
    dout,  # (N, C)
    states,  # (N, 4, P)
    context,  # (N, C)
    mask_parts,  # (parts, C) or None
    dw1,  # (P, C)
    vectors,  # (3, P): the gradients of b1, norm weight and norm bias
    dw2,  # (C, P)
    db2,  # (C,)
    dmask,  # (C,)
    samples,
    parts,
    channels,
    hidden,
    BLOCK_C: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """The gradients of a block of the weights, summed over samples in order."""
    blocks = tl.cdiv(channels, BLOCK_C)
    block_c = tl.program_id(0) % blocks
    block_h = tl.program_id(0) // blocks
    c = block_c * BLOCK_C + tl.arange(0, BLOCK_C)
    h = block_h * BLOCK_H + tl.arange(0, BLOCK_H)
    grad_w1 = tl.zeros((BLOCK_H, BLOCK_C), dtype=tl.float32)
    grad_w2 = tl.zeros((BLOCK_C, BLOCK_H), dtype=tl.float32)
    for first in range(0, samples, 4):
        for k in tl.static_range(4):  # so that the loads of four samples are under way
            there = first + k < samples
            sample = tl.cast(first + k, tl.int64)
            state = states + sample * 4 * hidden + h
            activation = tl.load(state, mask=(h < hidden) & there, other=0.0)
            dz = tl.load(state + hidden, mask=(h < hidden) & there, other=0.0)
            inside = (c < channels) & there
            pooled = tl.load(context + sample * channels + c, mask=inside, other=0.0)
            d = tl.load(dout + sample * channels + c, mask=inside, other=0.0)
            grad_w1 += dz[:, None] * pooled[None, :]
            grad_w2 += d[:, None] * activation[None, :]
    mask = (c < channels)[:, None] & (h < hidden)[None, :]
    tl.store(dw2 + c[:, None] * hidden + h[None, :], grad_w2, mask=mask)
    mask = (h < hidden)[:, None] & (c < channels)[None, :]
    tl.store(dw1 + h[:, None] * channels + c[None, :], grad_w1, mask=mask)
    if block_h == 0:
        total = _sum_of_rows(dout, samples, channels, c, BLOCK_R)
        tl.store(db2 + c, total, mask=c < channels)
        if mask_parts is not None:
            total = _sum_of_rows(mask_parts, parts, channels, c, BLOCK_R)
            tl.store(dmask + c, total, mask=c < channels)
    if block_c == 0:
        # columns hidden to 4 hidden of (N, 4 hidden)
        for k in range(3):
            i = (k + 1) * hidden + tl.where(h < hidden, h, 3 * hidden)
            total = _sum_of_rows(states, samples, 4 * hidden, i, BLOCK_R)
            tl.store(vectors + k * hidden + h, total, mask=h < hidden)


# launching ----------------------------------------------------------------------------------------


class _Tensors(NamedTuple):
    mask_weight: Tensor | None
    add: GCTransform | None
    mul: GCTransform | None
    gate_scale: Tensor | None


def _unpack(tensors: tuple) -> _Tensors:
    """Parameters as dense vectors and matrices."""
    mask_weight, _, *fusions, gate_scale = tensors
    vectors = [None if p is None else p.reshape(-1).contiguous() for p in (mask_weight, *fusions)]
    return _Tensors(vectors[0], *unpacked(vectors[1:]), gate_scale)


def forward(x, tensors, options):
    """Returns y and the context (N, C), maximum and sum of its softmax (N,), z and the gate."""
    mask_weight, add, mul, gate_scale = _unpack(tensors)
    x = dense(x)
    y = torch.empty_like(x)
    n, c = x.shape[:2]
    new = _allocator(x)
    maximum, total, context = new(n), new(n), new(n, c)
    hidden = _widths(add, mul)
    add_z, mul_z = (new(n, p) if p else None for p in hidden)
    shift, scale = (new(n, c) if p else None for p in hidden)
    saved = tuple(t for t in (context, maximum, total, add_z, mul_z, scale) if t is not None)
    if not has_memory(x) or not x.numel():  # without memory, sizes may be symbols
        return y, saved

    splits, sweep, config = _tiles_of_all_channels(x, 8192, 16384, 1024)
    maxima, totals, sums = new(n, splits), new(n, splits), new(n, splits, c)
    launch(
        _pool_kernel, (n * splits,), x, mask_weight, maxima, totals, sums, *sweep, splits, **config
    )
    block = _small_block(c)
    blocks = triton.cdiv(c, block)
    add_parts, mul_parts = (new(n, blocks, p) if p else None for p in hidden)
    launch(
        _squeeze_kernel,
        (n * blocks,),
        *(maxima, totals, sums),
        *(None if f is None else f.w1 for f in (add, mul)),
        *(maximum, total, context, add_parts, mul_parts),
        *(c, splits, *hidden),
        BLOCK_C=block,
        BLOCK_R=_PARTS,
        BLOCK_H=64,
    )
    wide = _wide_block(hidden)
    launch(
        _excite_kernel,
        (n * triton.cdiv(c, wide),),
        *(add_parts, *(add or (None,) * 6)[1:], add_z, shift),
        *(mul_parts, *(mul or (None,) * 6)[1:], mul_z, scale, gate_scale),
        *(c, blocks, *hidden),
        **_padded(hidden),
        BLOCK_C=wide,
        BLOCK_R=_rows(hidden, blocks),
    )
    _affine(x, scale, shift, y)
    return y, saved


def backward(dy, x, tensors, saved, options, needs):
    """Returns the gradients of x and of every parameter."""
    mask_weight, add, mul, gate_scale = _unpack(tensors)
    x = dense(x)
    dy = dense_like(dy, x)
    context, maximum, total, *rest = saved
    add_z = None if add is None else rest.pop(0)
    mul_z, scale = (None, None) if mul is None else rest
    n, c = x.shape[:2]
    new = _allocator(x)
    hidden = _widths(add, mul)

    dx = torch.empty_like(x) if needs[0] else None
    dmask = new(c) if mask_weight is not None and needs[1] else None
    dbias = None
    if tensors[1] is not None and needs[2]:
        dbias = new(1).zero_()  # the softmax does not see the bias
    weights = [_Weights(None, None, None, None)] * 2
    if any(needs[1:]):
        weights = [
            _Weights(new(p, c), new(3, p), new(c, p), new(c)) if p else w
            for p, w in zip(hidden, weights, strict=True)
        ]
    gradients = dx, dmask, dbias, *weights[0].in_order(), *weights[1].in_order(), None
    if not has_memory(x):
        return gradients
    if not x.numel():
        for gradient in (dmask, *weights[0], *weights[1]):
            if gradient is not None:
                gradient.zero_()
        return gradients

    blocks, splits, sweep, config = _tiles(x)
    plain, product = (new(n, splits, c) if p else None for p in hidden)
    grid = (n * splits * blocks,)
    launch(_sum_kernel, grid, dy, x, plain, product, *sweep, splits, **config)
    block = _small_block(c)
    blocks = triton.cdiv(c, block)
    add_dout, mul_dout = (new(n, c) if p else None for p in hidden)
    add_dh, mul_dh = (new(n, blocks, p) if p else None for p in hidden)
    launch(
        _unexcite_kernel,
        (n * blocks,),
        *(plain, product, scale, gate_scale),
        *(None if f is None else f.w2 for f in (add, mul)),
        *(add_dout, mul_dout, add_dh, mul_dh),
        *(c, splits, *hidden),
        BLOCK_C=block,
        BLOCK_R=_PARTS,
        BLOCK_H=64,
    )
    dcontext = new(n, c)
    add_states, mul_states = (new(n, 4, p) if p else None for p in hidden)
    wide = _wide_block(hidden)
    launch(
        _unsqueeze_kernel,
        (n * triton.cdiv(c, wide),),
        *(add_dh, add_z, *_norm_and_w1(add), add_states),
        *(mul_dh, mul_z, *_norm_and_w1(mul), mul_states),
        # of a mean, every pixel has the same share
        *(dcontext, 1.0 if mask_weight is not None else 1.0 / (x.shape[2] * x.shape[3])),
        *(c, blocks, *hidden),
        **_padded(hidden),
        BLOCK_C=wide,
        BLOCK_R=_rows(hidden, blocks),
    )
    parts = None
    if mask_weight is None:
        if dx is not None:
            _affine(dy, scale, dcontext, dx)
    elif dx is not None or dmask is not None:
        splits, sweep, config = _tiles_of_all_channels(
            x, 4096, 32768 // x.itemsize, 2048 // x.itemsize
        )
        parts = None if dmask is None else new(n, splits, c)
        launch(
            _dx_kernel,
            (n * splits,),
            *(dy, x, mask_weight, maximum, total, context, dcontext, scale, dx, parts),
            *(*sweep, splits),
            **config,
            AHEAD=x.itemsize == 4 and c <= 1024,  # registers have room for a second tile
        )
    for p, w, dout, states in zip(
        hidden, weights, (add_dout, mul_dout), (add_states, mul_states), strict=True
    ):
        if w.dw1 is None:
            continue
        block_h = min(bucket(p), 64)
        launch(
            _weights_kernel,
            (triton.cdiv(c, 32) * triton.cdiv(p, block_h),),
            *(dout, states, context, parts, *w, dmask),
            *(n, 0 if parts is None else n * splits, c, p),
            BLOCK_C=32,
            BLOCK_H=block_h,
            BLOCK_R=_PARTS,
        )
        parts = None  # the first fusion's launch adds them up
    return gradients


class _Weights(NamedTuple):
    """The gradients of a fusion's parameters."""

    dw1: Tensor | None
    vectors: Tensor | None  # (3, P): of b1, norm_weight and norm_bias
    dw2: Tensor | None
    db2: Tensor | None

    def in_order(self) -> tuple:
        vectors = (None,) * 3 if self.vectors is None else self.vectors.unbind()
        return self.dw1, *vectors, self.dw2, self.db2


def _widths(*fusions: GCTransform | None) -> list[int]:
    return [0 if f is None else len(f.b1) for f in fusions]


def _norm_and_w1(fusion: GCTransform | None) -> tuple:
    return (None,) * 3 if fusion is None else (fusion.norm_weight, fusion.norm_bias, fusion.w1)


def _affine(x: Tensor, scale: Tensor | None, shift: Tensor | None, y: Tensor) -> None:
    blocks, _, (rows, channels), config = _tiles(x)
    tiles = triton.cdiv(x.shape[2] * x.shape[3], config["BLOCK_P"])
    grid = (tiles * len(x) * blocks,)
    launch(_affine_kernel, grid, x, scale, shift, y, rows, channels, len(x), **config)


def _allocator(x: Tensor):
    return lambda *shape: x.new_empty(shape, dtype=torch.float32)


# choosing blocks ----------------------------------------------------------------------------------


def _layout(x: Tensor) -> tuple[tuple[int, int], dict]:
    """((pixels / ALIGN, channels), {ALIGN, LAST}): how far a channel's pixels allow wide loads."""
    pixels = x.shape[2] * x.shape[3]
    last = is_channels_last(x)
    align = 1 if last else max(min(pixels & -pixels, 16 // x.itemsize), 1)
    return (pixels // align, x.shape[1]), dict(ALIGN=align, LAST=last)


def _tiles_of_all_channels(
    x: Tensor, elements: int, largest: int, elements_of_warp: int
) -> tuple[int, tuple[int, int], dict]:
    """How programs that hold all channels of some pixels share a sample: (splits, sweep, config).

    Args:
        x: The map.
        elements: Of a tile, if that makes pieces of memory of 64 bytes; else it is larger.
        largest: Elements to which it may grow for that.
        elements_of_warp: What a warp's registers hold beside what else is needed.
    """
    sweep, layout = _layout(x)
    pixels = x.shape[2] * x.shape[3]
    block_c = bucket(x.shape[1])
    block_p = elements // block_c
    if not layout["LAST"]:  # with channels last a tile is one piece of memory
        block_p = max(block_p, min(64 // x.itemsize, largest // block_c))
    block_p = min(max(block_p, 1), bucket(pixels))
    warps = min(max(block_c * block_p // elements_of_warp, 4), 16)
    tiles = triton.cdiv(pixels, block_p)
    programs = _MULTIPROCESSORS * 16 // warps  # as many as their registers allow at once
    turns = max(triton.cdiv(len(x) * tiles, programs), 1)
    splits = max(triton.cdiv(tiles, turns), 1)
    return splits, sweep, dict(**layout, BLOCK_C=block_c, BLOCK_P=block_p, num_warps=warps)


def _tiles(x: Tensor) -> tuple[int, int, tuple[int, int], dict]:
    """How programs that need a few channels share a map: (blocks of C, splits, sweep, config)."""
    sweep, layout = _layout(x)
    pixels = x.shape[2] * x.shape[3]
    if layout["LAST"]:
        block_c = min(bucket(x.shape[1]), 128)
        block_p = min(4096 // block_c, bucket(pixels))
    else:
        block_p = min(bucket(pixels), 512)
        block_c = min(4096 // block_p, bucket(x.shape[1]))
    blocks = triton.cdiv(x.shape[1], block_c)
    # one wave: as many as are sure to run at once
    programs = max(4 * _MULTIPROCESSORS // max(len(x) * blocks, 1), 1)
    splits = max(min(programs, triton.cdiv(pixels, block_p)), 1)
    warps = max(min(block_c * block_p // 512, 8), 1)
    return blocks, splits, sweep, dict(**layout, BLOCK_C=block_c, BLOCK_P=block_p, num_warps=warps)


def _small_block(channels: int) -> int:
    """Channels of a program that reduces over them: enough programs, and few parts to add up."""
    return 32 if channels <= 512 else 64


def _padded(hidden: list[int]) -> dict:
    return dict(zip(("ADD_HIDDEN", "MUL_HIDDEN"), (bucket(p) for p in hidden), strict=True))


def _wide_block(hidden: list[int]) -> int:
    """Channels of a program that holds all their weights to the hidden values."""
    return max(min(8192 // bucket(max(hidden)), 64), 1)


def _rows(hidden: list[int], count: int) -> int:
    return max(min(8192 // bucket(max(hidden)), bucket(count)), 1)

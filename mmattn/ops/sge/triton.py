"""Spatial group-wise enhance as Triton kernels, each map read as rarely as its dependence allows.

With z = w that + b, a = sigmoid(z) and s the gate scale, the sums of a group over its channels are
written sum_c, those over the pixels of its map sum_p::

    forward     q = mean_p x     t = sum_c q x     that = (t - mean t) / (std t + eps)
                y = x a / s
    backward    dz = sum_c(dy x) a (1 - a) / s     dw = sum_p dz that     db = sum_p dz
                dt = w (dz - mean dz) / (std + eps) - w dw that / ((P - 1) std)
                dq = sum_p dt x     dx = dy a / s + q dt + dq / P

Least traffic, in maps read or written, if the memory on chip holds one group but not all of them:
forward 2 (x, y), backward 3 (dy, x, dx). If it does not hold a group: forward 3 and backward 4,
since dq must be known before dx. Forward the spread of t follows from the channels' covariance, but
from (C/G)^2 sums a group whose differences cancel; here t takes a pass of its own (4).

What the kernels move, in maps, with C/G channels to a group and e bytes to an element:

- A group of at most 144 KiB (a c5 map of R50 in float32, c4 in half precision): one launch, in
  which a program takes a group (of channels_last maps as many as fill a sector of 32 bytes) and
  reads it three times, but the second and third time from the L1 or L2 cache: 2 forward. Backward
  the same with dy and x: 3.
- Larger: 4 forward, in three launches (sum_p x; sum_p of t - mean t and of its square; y). The
  mean of t is |q|^2 before t is known, so that the squares are of centred values. Each launch adds
  up the partial sums of the one before in its prologue, in a fixed order.
  Backward two launches. dt is affine in dz and that, so that dq follows from sum_p dz (x - q) and
  sum_p that (x - q): one pass over dy and x brings all sums. The second pass needs dz and that
  again. Either it reads x again (5 maps), or the first pass keeps both in float32, which costs
  16 / (C/G e) maps: kept if that is less than 1, for 4 + 16 / (C/G e) maps.
- Groups of more than 256 channels do not fit in the registers of a program: t is kept between the
  second and third launch forward, and sum_p is a pass of its own backward: 4 and 5 maps and as
  many launches, with one small sum for q.

The second pass over a map takes its programs from the last to the first; what the L2 still holds
then is not measured. A tile is (pixels, groups, channels of a group), with threads along whichever
lies side by side; of channels_last maps it covers 128 bytes of groups. No atomics, no tuning:
results repeat bit for bit. Blocks are chosen from shapes and dtype; they are not yet measured on a
GPU.
"""

# ruff: noqa: N803  (capitals are compile-time constants, as everywhere in Triton)
# no postponed annotations here: Triton 3.0's interpreter does not know tl.constexpr as a string

import math

import torch
import triton
import triton.language as tl

from mmattn.ops import _triton
from mmattn.ops._backend import without_autocast

# Bytes of x that a program may read again and expect in a cache: L1 has up to 228 KiB, and L2
# 50 MiB for the programs of 132 multiprocessors.
_ON_CHIP = 144 * 1024
# Channels of a group that a program holds at once.
_WIDEST = 256
# Programs that keep 132 multiprocessors evenly busy, several on each at a time.
_PROGRAMS = 2112
# Partial sums that a prologue adds; more are added up in between.
_SPLITS = tl.constexpr(16)
# Elements of a sample that 32 bits count, and some for what a tile reaches beyond the end.
_LONGEST = (1 << 31) - (1 << 24)


# Sizes of maps do not compile a kernel each: pixels come as units * ALIGN, of which the constant is
# what the width of loads hangs on.

# what a program works on ------------------------------------------------------------------------


@triton.jit
def _place(
    splits,
    groups,
    CHANNEL_BLOCKS: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_K: tl.constexpr,
    REVERSE: tl.constexpr,
):
    """Sample, split of the pixels, groups (BLOCK_G,) and first channel within a group."""
    i = tl.program_id(0)
    if REVERSE:
        i = tl.num_programs(0) - 1 - i
    first = i % CHANNEL_BLOCKS * BLOCK_K
    i = i // CHANNEL_BLOCKS
    blocks = tl.cdiv(groups, BLOCK_G)
    g = i % blocks * BLOCK_G + tl.arange(0, BLOCK_G)
    i = i // blocks
    return (i // splits).to(tl.int64), i % splits, g, first


@triton.jit
def _channels(g, groups, first, WIDTH: tl.constexpr, BLOCK_K: tl.constexpr):
    """Numbers of the channels (BLOCK_G, BLOCK_K) in a sample, and which of them there are."""
    k = first + tl.arange(0, BLOCK_K)
    return g[:, None] * WIDTH + k[None, :], (g < groups)[:, None] & (k < WIDTH)[None, :]


@triton.jit
def _tile(
    c,
    inside,
    start,
    pixels,
    channels,
    LAST: tl.constexpr,
    INDEX: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """Offsets (BLOCK_P, BLOCK_G, BLOCK_K) in a sample, and which of them there are."""
    p = start + tl.arange(0, BLOCK_P)
    if LAST:
        offsets = p.to(INDEX)[:, None, None] * channels + c[None, :, :]
    else:
        offsets = c.to(INDEX)[None, :, :] * pixels + p[:, None, None]
    return offsets, (p < pixels)[:, None, None] & inside[None, :, :]


@triton.jit
def _group_pixels(g, groups, start, pixels, INDEX: tl.constexpr, BLOCK_P: tl.constexpr):
    """Offsets (BLOCK_P, BLOCK_G) in a sample of (G, P), and which of them there are."""
    p = start + tl.arange(0, BLOCK_P)
    offsets = g.to(INDEX)[None, :] * pixels + p[:, None]
    return offsets, (p < pixels)[:, None] & (g < groups)[None, :]


@triton.jit
def _total(parts, offsets, mask, splits, stride):
    """Adds up partial sums, which lie ``stride`` apart."""
    s = tl.arange(0, _SPLITS)
    s = s[:, None] if len(offsets.shape) == 1 else s[:, None, None]
    mask = (s < splits) & tl.expand_dims(mask, 0)
    return tl.sum(tl.load(parts + s * stride + tl.expand_dims(offsets, 0), mask=mask, other=0.0), 0)


# the equation -----------------------------------------------------------------------------------


@triton.jit
def _load_parameters(weight, bias, gate_scale, g, groups):
    """Weight and bias (BLOCK_G,) and the gate's neutral value, in float32."""
    w = tl.load(weight + g, mask=g < groups, other=0.0).to(tl.float32)
    b = tl.load(bias + g, mask=g < groups, other=0.0).to(tl.float32)
    scale = 1.0 if gate_scale is None else tl.load(gate_scale).to(tl.float32)
    return w, b, scale


@triton.jit
def _sigmoid(z):
    # rounded like IEEE: a gate that is exactly gate_scale gives exactly 1
    return tl.div_rn(tl.full(z.shape, 1.0, tl.float32), 1.0 + tl.exp(-z))


@triton.jit
def _normalized(t, mean, std, eps, NORMALIZE: tl.constexpr):
    if NORMALIZE:
        t = (t - mean[None, :]) / (std + eps)[None, :]
    return t


@triton.jit
def _mean_and_std(centre, sums, squares, pixels):
    """Of t, from the sums of t - centre and of its square."""
    shift = sums / pixels
    variance = (squares - sums * shift) / tl.maximum(pixels - 1, 1)
    return centre + shift, tl.sqrt_rn(tl.maximum(variance, 0.0))


@triton.jit
def _pixel_sums(
    x,
    c,
    inside,
    begin,
    end,
    pixels,
    channels,
    LAST: tl.constexpr,
    INDEX: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """sum_p x: (BLOCK_G, BLOCK_K)."""
    total = tl.zeros((BLOCK_P, c.shape[0], c.shape[1]), dtype=tl.float32)
    for start in range(begin, end, BLOCK_P):
        offsets, mask = _tile(c, inside, start, pixels, channels, LAST, INDEX, BLOCK_P)
        total += tl.load(x + offsets, mask=mask, other=0.0).to(tl.float32)
    return tl.sum(total, 0)


@triton.jit
def _moments(
    x,
    q,
    centre,
    c,
    inside,
    begin,
    end,
    pixels,
    channels,
    LAST: tl.constexpr,
    INDEX: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """sum_p (t - centre) and sum_p (t - centre)^2: (BLOCK_G,)."""
    sums = tl.zeros((BLOCK_P, c.shape[0]), dtype=tl.float32)
    squares = tl.zeros((BLOCK_P, c.shape[0]), dtype=tl.float32)
    for start in range(begin, end, BLOCK_P):
        offsets, mask = _tile(c, inside, start, pixels, channels, LAST, INDEX, BLOCK_P)
        values = tl.load(x + offsets, mask=mask, other=0.0).to(tl.float32)
        there = (start + tl.arange(0, BLOCK_P) < pixels)[:, None]
        t = tl.where(there, tl.sum(values * q[None, :, :], 2) - centre[None, :], 0.0)
        sums += t
        squares += t * t
    return tl.sum(sums, 0), tl.sum(squares, 0)


@triton.jit
def _scale(
    x,
    y,
    likeness,
    q,
    mean,
    std,
    w,
    b,
    scale,
    g,
    groups,
    c,
    inside,
    begin,
    end,
    pixels,
    channels,
    eps,
    NORMALIZE: tl.constexpr,
    KEPT: tl.constexpr,
    LAST: tl.constexpr,
    INDEX: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """Writes y = x a / s; t is in ``likeness``, or follows from x and q."""
    for start in range(begin, end, BLOCK_P):
        offsets, mask = _tile(c, inside, start, pixels, channels, LAST, INDEX, BLOCK_P)
        values = tl.load(x + offsets, mask=mask, other=0.0, eviction_policy="evict_first")
        values = values.to(tl.float32)
        if KEPT:
            at, there = _group_pixels(g, groups, start, pixels, INDEX, BLOCK_P)
            t = tl.load(likeness + at, mask=there, other=0.0)
        else:
            t = tl.sum(values * q[None, :, :], 2)
        t = _normalized(t, mean, std, eps, NORMALIZE)
        gate = tl.div_rn(_sigmoid(w[None, :] * t + b[None, :]), scale)
        tl.store(y + offsets, (values * gate[:, :, None]).to(y.dtype.element_ty), mask=mask)


@triton.jit
def _dz(dy_x, t, w, b, scale):
    """sum_c(dy x) a (1 - a) / s."""
    a = _sigmoid(w[None, :] * t + b[None, :])
    return dy_x / scale * a * (1 - a)


@triton.jit
def _gradient_sums(
    dy,
    x,
    kept,
    map_stride,
    q,
    mean,
    std,
    w,
    b,
    scale,
    g,
    groups,
    c,
    inside,
    begin,
    end,
    pixels,
    channels,
    eps,
    NORMALIZE: tl.constexpr,
    KEEP: tl.constexpr,
    NEED_X: tl.constexpr,
    LAST: tl.constexpr,
    INDEX: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """sum_p of dz and dz that (BLOCK_G,), of dz (x - q) and that (x - q) (BLOCK_G, BLOCK_K).

    With KEEP that and dz go to ``kept``, ``map_stride`` apart. Not normalized, dt need not sum to
    0 over the pixels, and x stands for x - q.
    """
    dbias = tl.zeros((BLOCK_P, c.shape[0]), dtype=tl.float32)
    dweight = tl.zeros((BLOCK_P, c.shape[0]), dtype=tl.float32)
    along_dz = tl.zeros((BLOCK_P, c.shape[0], c.shape[1]), dtype=tl.float32)
    along_t = tl.zeros((BLOCK_P, c.shape[0], c.shape[1]), dtype=tl.float32)
    for start in range(begin, end, BLOCK_P):
        offsets, mask = _tile(c, inside, start, pixels, channels, LAST, INDEX, BLOCK_P)
        values = tl.load(x + offsets, mask=mask, other=0.0).to(tl.float32)
        upstream = tl.load(dy + offsets, mask=mask, other=0.0).to(tl.float32)
        t = _normalized(tl.sum(values * q[None, :, :], 2), mean, std, eps, NORMALIZE)
        dz = _dz(tl.sum(upstream * values, 2), t, w, b, scale)
        dbias += dz
        dweight += dz * t
        if KEEP:
            at, there = _group_pixels(g, groups, start, pixels, INDEX, BLOCK_P)
            tl.store(kept + at, t, mask=there)
            tl.store(kept + map_stride + at, dz, mask=there)
        if NEED_X:
            if NORMALIZE:
                values = tl.where(mask, values - q[None, :, :], 0.0)
                along_t += t[:, :, None] * values
            along_dz += dz[:, :, None] * values
    return tl.sum(dbias, 0), tl.sum(dweight, 0), tl.sum(along_dz, 0), tl.sum(along_t, 0)


@triton.jit
def _write_dx(
    dy,
    x,
    dx,
    kept,
    map_stride,
    q,
    mean,
    std,
    w,
    b,
    scale,
    dbias,
    dweight,
    along_dz,
    along_t,
    g,
    groups,
    c,
    inside,
    begin,
    end,
    pixels,
    channels,
    eps,
    NORMALIZE: tl.constexpr,
    KEPT: tl.constexpr,
    LAST: tl.constexpr,
    INDEX: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """Writes dx, from what :func:`_gradient_sums` found."""
    # dt = of_dz dz + of_one + of_t that
    of_dz, of_one, of_t = w, w * 0, w * 0
    if NORMALIZE:
        of_dz = w / (std + eps)
        of_one = -of_dz * dbias / pixels
        # a map without spread has no direction in which it changes
        freedom = tl.where(std > 0, tl.maximum(pixels - 1, 1) * std, 1.0)
        of_t = tl.where(std > 0, -w * dweight / freedom, 0.0)
    dq = (of_dz[:, None] * along_dz + of_t[:, None] * along_t) / pixels
    for start in range(begin, end, BLOCK_P):
        offsets, mask = _tile(c, inside, start, pixels, channels, LAST, INDEX, BLOCK_P)
        upstream = tl.load(dy + offsets, mask=mask, other=0.0, eviction_policy="evict_first")
        upstream = upstream.to(tl.float32)
        if KEPT:
            at, there = _group_pixels(g, groups, start, pixels, INDEX, BLOCK_P)
            t = tl.load(kept + at, mask=there, other=0.0)
            dz = tl.load(kept + map_stride + at, mask=there, other=0.0)
        else:
            values = tl.load(x + offsets, mask=mask, other=0.0, eviction_policy="evict_first")
            values = values.to(tl.float32)
            t = _normalized(tl.sum(values * q[None, :, :], 2), mean, std, eps, NORMALIZE)
            dz = _dz(tl.sum(upstream * values, 2), t, w, b, scale)
        gate = tl.div_rn(_sigmoid(w[None, :] * t + b[None, :]), scale)
        dt = of_dz[None, :] * dz + of_one[None, :] + of_t[None, :] * t
        out = upstream * gate[:, :, None] + (q[None, :, :] * dt[:, :, None] + dq[None, :, :])
        tl.store(dx + offsets, out.to(dx.dtype.element_ty), mask=mask)


# a group to a program ---------------------------------------------------------------------------


@triton.jit(do_not_specialize=["units"])
def _group_forward_kernel(
    x,
    weight,
    bias,
    gate_scale,
    y,
    q_out,  # (N, C)
    mean_out,  # (N, G)
    std_out,  # (N, G)
    groups,
    units,
    eps,
    WIDTH: tl.constexpr,
    NORMALIZE: tl.constexpr,
    ALIGN: tl.constexpr,
    LAST: tl.constexpr,
    INDEX: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    pixels = units * ALIGN
    n, _, g, first = _place(1, groups, 1, BLOCK_G, BLOCK_K, False)
    channels = groups * WIDTH
    c, inside = _channels(g, groups, first, WIDTH, BLOCK_K)
    w, b, scale = _load_parameters(weight, bias, gate_scale, g, groups)
    x += n * channels * pixels
    y += n * channels * pixels
    q = _pixel_sums(x, c, inside, 0, pixels, pixels, channels, LAST, INDEX, BLOCK_P) / pixels
    tl.store(q_out + n * channels + c, q, mask=inside)
    mean = tl.zeros((BLOCK_G,), dtype=tl.float32)
    std = tl.zeros((BLOCK_G,), dtype=tl.float32)
    if NORMALIZE:
        centre = tl.sum(q * q, 1)
        sums, squares = _moments(
            x, q, centre, c, inside, 0, pixels, pixels, channels, LAST, INDEX, BLOCK_P
        )
        mean, std = _mean_and_std(centre, sums, squares, pixels)
    tl.store(mean_out + n * groups + g, mean, mask=g < groups)
    tl.store(std_out + n * groups + g, std, mask=g < groups)
    # fmt: off
    _scale(
        x, y, x, q, mean, std, w, b, scale, g, groups, c, inside, 0, pixels, pixels, channels, eps,
        NORMALIZE, False, LAST, INDEX, BLOCK_P,
    )
    # fmt: on


@triton.jit(do_not_specialize=["samples", "units"])
def _group_backward_kernel(
    dy,
    x,
    q_in,  # (N, C)
    mean_in,  # (N, G)
    std_in,  # (N, G)
    weight,
    bias,
    gate_scale,
    dx,
    kept,  # (2, N, G, P)
    group_parts,  # (1, 2, N, G)
    samples,
    groups,
    units,
    eps,
    WIDTH: tl.constexpr,
    NORMALIZE: tl.constexpr,
    KEEP: tl.constexpr,
    NEED_X: tl.constexpr,
    ALIGN: tl.constexpr,
    LAST: tl.constexpr,
    INDEX: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    pixels = units * ALIGN
    n, _, g, first = _place(1, groups, 1, BLOCK_G, BLOCK_K, False)
    channels = groups * WIDTH
    c, inside = _channels(g, groups, first, WIDTH, BLOCK_K)
    w, b, scale = _load_parameters(weight, bias, gate_scale, g, groups)
    q = tl.load(q_in + n * channels + c, mask=inside, other=0.0)
    mean = tl.load(mean_in + n * groups + g, mask=g < groups, other=0.0)
    std = tl.load(std_in + n * groups + g, mask=g < groups, other=1.0)
    dy += n * channels * pixels
    x += n * channels * pixels
    map_stride = samples.to(tl.int64) * groups * pixels
    if KEEP:
        kept += n * groups * pixels
    # fmt: off
    dbias, dweight, along_dz, along_t = _gradient_sums(
        dy, x, kept, map_stride, q, mean, std, w, b, scale, g, groups, c, inside,
        0, pixels, pixels, channels, eps, NORMALIZE, KEEP, NEED_X, LAST, INDEX, BLOCK_P,
    )
    # fmt: on
    tl.store(group_parts + n * groups + g, dweight, mask=g < groups)
    tl.store(group_parts + (samples + n) * groups + g, dbias, mask=g < groups)
    if NEED_X:
        dx += n * channels * pixels
        if KEEP:
            tl.debug_barrier()  # what other threads of the program kept is read below
        # fmt: off
        _write_dx(
            dy, x, dx, kept, map_stride, q, mean, std, w, b, scale,
            dbias, dweight, along_dz, along_t, g, groups, c, inside,
            0, pixels, pixels, channels, eps, NORMALIZE, KEEP, LAST, INDEX, BLOCK_P,
        )
        # fmt: on


# larger groups: forward -------------------------------------------------------------------------


@triton.jit(do_not_specialize=["samples", "units", "splits"])
def _sum_kernel(
    x,
    parts,  # (S, N, C)
    samples,
    groups,
    units,
    splits,
    chunk,
    WIDTH: tl.constexpr,
    ALIGN: tl.constexpr,
    LAST: tl.constexpr,
    INDEX: tl.constexpr,
    CHANNEL_BLOCKS: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    pixels = units * ALIGN
    n, split, g, first = _place(splits, groups, CHANNEL_BLOCKS, BLOCK_G, BLOCK_K, False)
    channels = groups * WIDTH
    c, inside = _channels(g, groups, first, WIDTH, BLOCK_K)
    x += n * channels * pixels
    begin = split * chunk
    end = tl.minimum(begin + chunk, pixels)
    sums = _pixel_sums(x, c, inside, begin, end, pixels, channels, LAST, INDEX, BLOCK_P)
    tl.store(parts + (split * samples + n) * channels + c, sums, mask=inside)


@triton.jit(do_not_specialize=["samples", "units", "splits", "sum_splits"])
def _moments_kernel(
    x,
    parts,  # (S, N, C) sums of x
    moments,  # (S, 2, N, G)
    samples,
    groups,
    units,
    sum_splits,
    splits,
    chunk,
    WIDTH: tl.constexpr,
    ALIGN: tl.constexpr,
    LAST: tl.constexpr,
    INDEX: tl.constexpr,
    CHANNEL_BLOCKS: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    pixels = units * ALIGN
    n, split, g, first = _place(splits, groups, CHANNEL_BLOCKS, BLOCK_G, BLOCK_K, True)
    channels = groups * WIDTH
    c, inside = _channels(g, groups, first, WIDTH, BLOCK_K)
    x += n * channels * pixels
    begin = split * chunk
    end = tl.minimum(begin + chunk, pixels)
    stride = samples.to(tl.int64) * channels
    q = _total(parts, n * channels + c, inside, sum_splits, stride) / pixels
    sums, squares = _moments(
        x, q, tl.sum(q * q, 1), c, inside, begin, end, pixels, channels, LAST, INDEX, BLOCK_P
    )
    at = split * 2 * samples + n
    tl.store(moments + at * groups + g, sums, mask=g < groups)
    tl.store(moments + (at + samples) * groups + g, squares, mask=g < groups)


@triton.jit(do_not_specialize=["samples", "units", "splits", "sum_splits", "moment_splits"])
def _scale_kernel(
    x,
    parts,  # (S, N, C) sums of x
    moments,  # (S, 2, N, G)
    likeness,  # (N, G, P), if KEPT
    centres,  # (N, G), if KEPT
    weight,
    bias,
    gate_scale,
    y,
    q_out,  # (N, C)
    mean_out,  # (N, G)
    std_out,  # (N, G)
    samples,
    groups,
    units,
    sum_splits,
    moment_splits,
    splits,
    chunk,
    eps,
    WIDTH: tl.constexpr,
    NORMALIZE: tl.constexpr,
    KEPT: tl.constexpr,
    ALIGN: tl.constexpr,
    LAST: tl.constexpr,
    INDEX: tl.constexpr,
    CHANNEL_BLOCKS: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    pixels = units * ALIGN
    n, split, g, first = _place(splits, groups, CHANNEL_BLOCKS, BLOCK_G, BLOCK_K, False)
    channels = groups * WIDTH
    c, inside = _channels(g, groups, first, WIDTH, BLOCK_K)
    w, b, scale = _load_parameters(weight, bias, gate_scale, g, groups)
    begin = split * chunk
    end = tl.minimum(begin + chunk, pixels)
    stride = samples.to(tl.int64) * channels
    q = _total(parts, n * channels + c, inside, sum_splits, stride) / pixels
    tl.store(q_out + n * channels + c, q, mask=inside & (split == 0))
    mean = tl.zeros((BLOCK_G,), dtype=tl.float32)
    std = tl.zeros((BLOCK_G,), dtype=tl.float32)
    if NORMALIZE:
        at = n * groups + g
        stride = samples.to(tl.int64) * groups
        sums = _total(moments, at, g < groups, moment_splits, 2 * stride)
        squares = _total(moments + stride, at, g < groups, moment_splits, 2 * stride)
        centre = tl.load(centres + at, mask=g < groups, other=0.0) if KEPT else tl.sum(q * q, 1)
        mean, std = _mean_and_std(centre, sums, squares, pixels)
    # a group's first block of channels in its first split
    once = (g < groups) & (split == 0) & (first == 0)
    tl.store(mean_out + n * groups + g, mean, mask=once)
    tl.store(std_out + n * groups + g, std, mask=once)
    x += n * channels * pixels
    y += n * channels * pixels
    if KEPT:
        likeness += n * groups * pixels
    # fmt: off
    _scale(
        x, y, likeness, q, mean, std, w, b, scale, g, groups, c, inside, begin, end, pixels,
        channels, eps, NORMALIZE, KEPT, LAST, INDEX, BLOCK_P,
    )
    # fmt: on


@triton.jit(do_not_specialize=["samples", "units", "splits"])
def _wide_likeness_kernel(
    x,
    sums,  # (N, C) of x
    centres,  # (N, G)
    likeness,  # (N, G, P)
    moments,  # (S, 2, N, G)
    samples,
    groups,
    units,
    splits,
    chunk,
    WIDTH: tl.constexpr,
    ALIGN: tl.constexpr,
    LAST: tl.constexpr,
    INDEX: tl.constexpr,
    CHANNEL_BLOCKS: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Writes t of a group that is too wide for a tile, and its moments."""
    pixels = units * ALIGN
    n, split, g, _ = _place(splits, groups, CHANNEL_BLOCKS, BLOCK_G, BLOCK_K, True)
    channels = groups * WIDTH
    x += n * channels * pixels
    sums += n * channels
    likeness += n * groups * pixels
    centre = tl.load(centres + n * groups + g)
    total = tl.zeros((BLOCK_P, BLOCK_G), dtype=tl.float32)
    squares = tl.zeros((BLOCK_P, BLOCK_G), dtype=tl.float32)
    begin = split * chunk
    for start in range(begin, tl.minimum(begin + chunk, pixels), BLOCK_P):
        t = tl.zeros((BLOCK_P, BLOCK_G), dtype=tl.float32)
        for first in range(0, WIDTH, BLOCK_K):
            c, inside = _channels(g, groups, first, WIDTH, BLOCK_K)
            q = tl.load(sums + c, mask=inside, other=0.0) / pixels
            offsets, mask = _tile(c, inside, start, pixels, channels, LAST, INDEX, BLOCK_P)
            values = tl.load(x + offsets, mask=mask, other=0.0).to(tl.float32)
            t += tl.sum(values * q[None, :, :], 2)
        at, there = _group_pixels(g, groups, start, pixels, INDEX, BLOCK_P)
        tl.store(likeness + at, t, mask=there)
        t = tl.where(there, t - centre[None, :], 0.0)
        total += t
        squares += t * t
    at = (split * 2 * samples + n) * groups + g
    tl.store(moments + at, tl.sum(total, 0))
    tl.store(moments + samples * groups + at, tl.sum(squares, 0))


# larger groups: backward ------------------------------------------------------------------------


@triton.jit(do_not_specialize=["samples", "units", "splits"])
def _gradient_sums_kernel(
    dy,
    x,
    q_in,  # (N, C)
    mean_in,  # (N, G)
    std_in,  # (N, G)
    weight,
    bias,
    gate_scale,
    kept,  # (2, N, G, P)
    group_parts,  # (S, 2, N, G)
    channel_parts,  # (S, 2, N, C)
    samples,
    groups,
    units,
    splits,
    chunk,
    eps,
    WIDTH: tl.constexpr,
    NORMALIZE: tl.constexpr,
    KEEP: tl.constexpr,
    NEED_X: tl.constexpr,
    ALIGN: tl.constexpr,
    LAST: tl.constexpr,
    INDEX: tl.constexpr,
    CHANNEL_BLOCKS: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    pixels = units * ALIGN
    n, split, g, first = _place(splits, groups, CHANNEL_BLOCKS, BLOCK_G, BLOCK_K, False)
    channels = groups * WIDTH
    c, inside = _channels(g, groups, first, WIDTH, BLOCK_K)
    w, b, scale = _load_parameters(weight, bias, gate_scale, g, groups)
    q = tl.load(q_in + n * channels + c, mask=inside, other=0.0)
    mean = tl.load(mean_in + n * groups + g, mask=g < groups, other=0.0)
    std = tl.load(std_in + n * groups + g, mask=g < groups, other=1.0)
    dy += n * channels * pixels
    x += n * channels * pixels
    map_stride = samples.to(tl.int64) * groups * pixels
    if KEEP:
        kept += n * groups * pixels
    begin = split * chunk
    end = tl.minimum(begin + chunk, pixels)
    # fmt: off
    dbias, dweight, along_dz, along_t = _gradient_sums(
        dy, x, kept, map_stride, q, mean, std, w, b, scale, g, groups, c, inside,
        begin, end, pixels, channels, eps, NORMALIZE, KEEP, NEED_X, LAST, INDEX, BLOCK_P,
    )
    # fmt: on
    at = split * 2 * samples + n
    tl.store(group_parts + at * groups + g, dweight, mask=g < groups)
    tl.store(group_parts + (at + samples) * groups + g, dbias, mask=g < groups)
    if NEED_X:
        tl.store(channel_parts + at * channels + c, along_dz, mask=inside)
        tl.store(channel_parts + (at + samples) * channels + c, along_t, mask=inside)


@triton.jit(do_not_specialize=["samples", "units", "splits"])
def _wide_gradients_kernel(
    dy,
    x,
    q_in,  # (N, C)
    mean_in,  # (N, G)
    std_in,  # (N, G)
    weight,
    bias,
    gate_scale,
    kept,  # (2, N, G, P)
    group_parts,  # (S, 2, N, G)
    samples,
    groups,
    units,
    splits,
    chunk,
    eps,
    WIDTH: tl.constexpr,
    NORMALIZE: tl.constexpr,
    KEEP: tl.constexpr,
    ALIGN: tl.constexpr,
    LAST: tl.constexpr,
    INDEX: tl.constexpr,
    CHANNEL_BLOCKS: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Keeps that and dz of a group too wide for a tile; writes sums of dz that and dz."""
    pixels = units * ALIGN
    n, split, g, _ = _place(splits, groups, CHANNEL_BLOCKS, BLOCK_G, BLOCK_K, False)
    channels = groups * WIDTH
    w, b, scale = _load_parameters(weight, bias, gate_scale, g, groups)
    mean = tl.load(mean_in + n * groups + g)
    std = tl.load(std_in + n * groups + g)
    q_in += n * channels
    dy += n * channels * pixels
    x += n * channels * pixels
    map_stride = samples.to(tl.int64) * groups * pixels
    if KEEP:
        kept += n * groups * pixels
    dbias = tl.zeros((BLOCK_P, BLOCK_G), dtype=tl.float32)
    dweight = tl.zeros((BLOCK_P, BLOCK_G), dtype=tl.float32)
    begin = split * chunk
    for start in range(begin, tl.minimum(begin + chunk, pixels), BLOCK_P):
        t = tl.zeros((BLOCK_P, BLOCK_G), dtype=tl.float32)
        dy_x = tl.zeros((BLOCK_P, BLOCK_G), dtype=tl.float32)
        for first in range(0, WIDTH, BLOCK_K):
            c, inside = _channels(g, groups, first, WIDTH, BLOCK_K)
            q = tl.load(q_in + c, mask=inside, other=0.0)
            offsets, mask = _tile(c, inside, start, pixels, channels, LAST, INDEX, BLOCK_P)
            values = tl.load(x + offsets, mask=mask, other=0.0).to(tl.float32)
            upstream = tl.load(dy + offsets, mask=mask, other=0.0).to(tl.float32)
            t += tl.sum(values * q[None, :, :], 2)
            dy_x += tl.sum(upstream * values, 2)
        t = _normalized(t, mean, std, eps, NORMALIZE)
        dz = _dz(dy_x, t, w, b, scale)
        dbias += dz
        dweight += dz * t
        if KEEP:
            at, there = _group_pixels(g, groups, start, pixels, INDEX, BLOCK_P)
            tl.store(kept + at, t, mask=there)
            tl.store(kept + map_stride + at, dz, mask=there)
    at = split * 2 * samples + n
    tl.store(group_parts + at * groups + g, tl.sum(dweight, 0))
    tl.store(group_parts + (at + samples) * groups + g, tl.sum(dbias, 0))


@triton.jit(do_not_specialize=["samples", "units", "splits"])
def _wide_sums_kernel(
    x,
    q_in,  # (N, C)
    kept,  # (2, N, G, P)
    channel_parts,  # (S, 2, N, C)
    samples,
    groups,
    units,
    splits,
    chunk,
    WIDTH: tl.constexpr,
    NORMALIZE: tl.constexpr,
    ALIGN: tl.constexpr,
    LAST: tl.constexpr,
    INDEX: tl.constexpr,
    CHANNEL_BLOCKS: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """sum_p of dz (x - q) and that (x - q), with dz and that from ``kept``."""
    pixels = units * ALIGN
    n, split, g, first = _place(splits, groups, CHANNEL_BLOCKS, BLOCK_G, BLOCK_K, True)
    channels = groups * WIDTH
    c, inside = _channels(g, groups, first, WIDTH, BLOCK_K)
    q = tl.load(q_in + n * channels + c, mask=inside, other=0.0)
    x += n * channels * pixels
    map_stride = samples.to(tl.int64) * groups * pixels
    kept += n * groups * pixels
    along_dz = tl.zeros((BLOCK_P, BLOCK_G, BLOCK_K), dtype=tl.float32)
    along_t = tl.zeros((BLOCK_P, BLOCK_G, BLOCK_K), dtype=tl.float32)
    begin = split * chunk
    for start in range(begin, tl.minimum(begin + chunk, pixels), BLOCK_P):
        offsets, mask = _tile(c, inside, start, pixels, channels, LAST, INDEX, BLOCK_P)
        values = tl.load(x + offsets, mask=mask, other=0.0).to(tl.float32)
        at, there = _group_pixels(g, groups, start, pixels, INDEX, BLOCK_P)
        dz = tl.load(kept + map_stride + at, mask=there, other=0.0)
        if NORMALIZE:
            t = tl.load(kept + at, mask=there, other=0.0)
            values = tl.where(mask, values - q[None, :, :], 0.0)
            along_t += t[:, :, None] * values
        along_dz += dz[:, :, None] * values
    at = split * 2 * samples + n
    tl.store(channel_parts + at * channels + c, tl.sum(along_dz, 0), mask=inside)
    tl.store(channel_parts + (at + samples) * channels + c, tl.sum(along_t, 0), mask=inside)


@triton.jit(do_not_specialize=["samples", "units", "splits", "group_splits", "channel_splits"])
def _dx_kernel(
    dy,
    x,
    q_in,  # (N, C)
    mean_in,  # (N, G)
    std_in,  # (N, G)
    weight,
    bias,
    gate_scale,
    kept,  # (2, N, G, P), if KEPT
    group_parts,  # (S, 2, N, G)
    channel_parts,  # (S, 2, N, C)
    dx,
    samples,
    groups,
    units,
    group_splits,
    channel_splits,
    splits,
    chunk,
    eps,
    WIDTH: tl.constexpr,
    NORMALIZE: tl.constexpr,
    KEPT: tl.constexpr,
    ALIGN: tl.constexpr,
    LAST: tl.constexpr,
    INDEX: tl.constexpr,
    CHANNEL_BLOCKS: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    pixels = units * ALIGN
    n, split, g, first = _place(splits, groups, CHANNEL_BLOCKS, BLOCK_G, BLOCK_K, True)
    channels = groups * WIDTH
    c, inside = _channels(g, groups, first, WIDTH, BLOCK_K)
    w, b, scale = _load_parameters(weight, bias, gate_scale, g, groups)
    at = n * groups + g
    mean = tl.load(mean_in + at, mask=g < groups, other=0.0)
    std = tl.load(std_in + at, mask=g < groups, other=1.0)
    stride = samples.to(tl.int64) * groups
    dweight = _total(group_parts, at, g < groups, group_splits, 2 * stride)
    dbias = _total(group_parts + stride, at, g < groups, group_splits, 2 * stride)
    at = n * channels + c
    q = tl.load(q_in + at, mask=inside, other=0.0)
    stride = samples.to(tl.int64) * channels
    along_dz = _total(channel_parts, at, inside, channel_splits, 2 * stride)
    along_t = _total(channel_parts + stride, at, inside, channel_splits, 2 * stride)
    dy += n * channels * pixels
    x += n * channels * pixels
    dx += n * channels * pixels
    map_stride = samples.to(tl.int64) * groups * pixels
    if KEPT:
        kept += n * groups * pixels
    begin = split * chunk
    end = tl.minimum(begin + chunk, pixels)
    # fmt: off
    _write_dx(
        dy, x, dx, kept, map_stride, q, mean, std, w, b, scale,
        dbias, dweight, along_dz, along_t, g, groups, c, inside,
        begin, end, pixels, channels, eps, NORMALIZE, KEPT, LAST, INDEX, BLOCK_P,
    )
    # fmt: on


# their blocks and launches ----------------------------------------------------------------------


class _Plan:
    """How the maps of one shape, dtype and layout are cut into programs.

    Everything follows from these, so that the order of every sum, and the result, repeats.
    """

    def __init__(self, x, groups: int):
        self.samples, channels, height, width = x.shape
        self.groups, self.pixels = groups, height * width
        self.width = channels // groups
        self.last = _triton.is_channels_last(x)
        self.size = x.element_size()
        self.wide = self.width > _WIDEST
        # offsets in a sample; those of a sample are always of 64 bits
        index = tl.int32 if channels * self.pixels <= _LONGEST else tl.int64
        # of a contiguous map: what loads of 16 bytes hang on
        align = 1 if self.last else math.gcd(self.pixels, 16 // self.size)
        self.units = self.pixels // align
        self._common = dict(WIDTH=self.width, ALIGN=align, LAST=self.last, INDEX=index)
        # two float32 maps of a group, written and read, against x read once more
        self.keep = self.wide or self.width * self.size > 16
        self.group = not self.wide and (
            self._group_block(32) * self.width * self.pixels * self.size <= _ON_CHIP
        )

    def _group_block(self, contiguous: int) -> int:
        """Groups in a tile: of channels_last maps as many as fill that many bytes side by side."""
        if not self.last or self.wide:
            return 1
        wanted = triton.cdiv(contiguous, self.width * self.size)
        return _triton.bucket(min(wanted, self.groups), 1)

    def _tile(self, elements: int, contiguous: int) -> dict:
        block_g = self._group_block(contiguous)
        block_k = 128 if self.wide else _triton.bucket(self.width, 1)
        block_p = max(elements // (block_g * block_k), 8 if self.last else 32)
        block_p = min(block_p, _triton.bucket(self.pixels))
        warps = min(max(block_p * block_g * block_k // 512, 1), 16)
        return dict(BLOCK_P=block_p, BLOCK_G=block_g, BLOCK_K=block_k, num_warps=warps)

    def groups_each(self) -> tuple[tuple[int], dict]:
        """Grid and constants for programs that take whole groups."""
        tile = self._tile(8192, 32)
        programs = self.samples * triton.cdiv(self.groups, tile["BLOCK_G"])
        return (programs,), dict(**self._common, **tile)

    def split(self, whole_groups: bool = False) -> tuple[tuple[int], tuple[int, int], dict]:
        """Grid, (splits of the pixels, pixels of a split) and constants for tiles.

        Args:
            whole_groups: A program goes through all blocks of channels of a wide group.
        """
        tile = self._tile(2048, 128)
        blocks = 1 if whole_groups else triton.cdiv(self.width, tile["BLOCK_K"])
        programs = self.samples * triton.cdiv(self.groups, tile["BLOCK_G"]) * blocks
        tiles = triton.cdiv(self.pixels, tile["BLOCK_P"])
        splits = triton.cdiv(_PROGRAMS, programs)
        # more splits than a prologue adds up cost a launch, which somewhat fewer programs do not
        if splits > _SPLITS.value and programs * _SPLITS.value >= _PROGRAMS // 4:
            splits = _SPLITS.value
        chunk = min(max(triton.cdiv(tiles, splits), 2), tiles) * tile["BLOCK_P"]
        splits = triton.cdiv(self.pixels, chunk)
        constants = dict(CHANNEL_BLOCKS=blocks, **self._common, **tile)
        return (programs * splits,), (splits, chunk), constants


def _summed(parts):
    """As few partial sums as a prologue adds up."""
    return parts if parts.shape[0] <= _SPLITS.value else parts.sum(0, keepdim=True)


def _parameter_gradients(parts, needs):
    """Those of weight and bias, from parts (S, 2, N, G)."""
    return parts.sum((0, 2)) if any(needs[1:3]) else (None, None)


def _parameters(tensors):
    return *(t.reshape(-1).contiguous() for t in tensors[:2]), tensors[2]


@without_autocast
def forward(x, tensors, options):
    """Returns y and q (N, C), the mean of t and its spread (N, G)."""
    groups, eps, normalize = options
    x = _triton.dense(x)
    y = torch.empty_like(x)
    q = x.new_empty(x.shape[:2], dtype=torch.float32)
    mean = x.new_empty((x.shape[0], groups), dtype=torch.float32)
    std = torch.empty_like(mean)
    saved = q, mean, std
    if not _triton.has_memory(x):
        return y, saved
    if not x.numel():
        for t in saved:
            t.zero_()
        return y, saved
    plan = _Plan(x, groups)
    parameters = _parameters(tensors)
    if plan.group:
        grid, constants = plan.groups_each()
        _triton.launch(
            _group_forward_kernel,
            grid,
            *(x, *parameters, y, *saved, groups, plan.units, eps),
            NORMALIZE=normalize,
            **constants,
        )
        return y, saved
    sizes = plan.samples, groups, plan.units

    grid, cut, constants = plan.split()
    sums = x.new_empty((cut[0], *x.shape[:2]), dtype=torch.float32)
    _triton.launch(_sum_kernel, grid, x, sums, *sizes, *cut, **constants)
    likeness = centres = None
    moments = mean[None]  # never read if not normalized
    if plan.wide:
        sums = sums.sum(0, keepdim=True)
        centres = (sums / plan.pixels).view(-1, groups, plan.width).square().sum(2)
        likeness = x.new_empty((plan.samples, groups, plan.pixels), dtype=torch.float32)
        likeness_grid, likeness_cut, likeness_constants = plan.split(whole_groups=True)
        moments = x.new_empty((likeness_cut[0], 2, *mean.shape), dtype=torch.float32)
        _triton.launch(
            _wide_likeness_kernel,
            likeness_grid,
            *(x, sums, centres, likeness, moments, *sizes, *likeness_cut),
            **likeness_constants,
        )
        moments = _summed(moments)
    else:
        sums = _summed(sums)
        if normalize:
            moments = x.new_empty((cut[0], 2, *mean.shape), dtype=torch.float32)
            _triton.launch(
                _moments_kernel,
                grid,
                *(x, sums, moments, *sizes, sums.shape[0], *cut),
                **constants,
            )
            moments = _summed(moments)
    _triton.launch(
        _scale_kernel,
        grid,
        *(x, sums, moments, likeness, centres, *parameters, y, *saved),
        *(*sizes, sums.shape[0], moments.shape[0], *cut, eps),
        NORMALIZE=normalize,
        KEPT=plan.wide,
        **constants,
    )
    return y, saved


@without_autocast
def backward(dy, x, tensors, saved, options, needs):
    """Returns the gradients of x, weight and bias."""
    groups, eps, normalize = options
    x = _triton.dense(x)
    dx = torch.empty_like(x) if needs[0] else None
    if not _triton.has_memory(x) or not x.numel():
        zeros = (saved[1].new_zeros(groups) if need else None for need in needs[1:3])
        return dx, *zeros, None
    dy = _triton.dense_like(dy, x)
    plan = _Plan(x, groups)
    inputs = dy, x, *saved, *_parameters(tensors)
    sizes = plan.samples, groups, plan.units
    keep = plan.keep and needs[0]
    maps = (2, plan.samples, groups, plan.pixels)
    kept = x.new_empty(maps, dtype=torch.float32) if keep else None
    shape = 2, plan.samples, groups

    if plan.group:
        grid, constants = plan.groups_each()
        parts = x.new_empty((1, *shape), dtype=torch.float32)
        _triton.launch(
            _group_backward_kernel,
            grid,
            *(*inputs, dx, kept, parts, *sizes, eps),
            NORMALIZE=normalize,
            KEEP=keep,
            NEED_X=needs[0],
            **constants,
        )
        return dx, *_parameter_gradients(parts, needs), None

    grid, cut, constants = plan.split()
    channel_parts = None
    if needs[0]:
        channel_parts = x.new_empty((cut[0], 2, *x.shape[:2]), dtype=torch.float32)
    if plan.wide:
        wide_grid, wide_cut, wide_constants = plan.split(whole_groups=True)
        parts = x.new_empty((wide_cut[0], *shape), dtype=torch.float32)
        _triton.launch(
            _wide_gradients_kernel,
            wide_grid,
            *(*inputs, kept, parts, *sizes, *wide_cut, eps),
            NORMALIZE=normalize,
            KEEP=keep,
            **wide_constants,
        )
        if needs[0]:
            _triton.launch(
                _wide_sums_kernel,
                grid,
                *(x, saved[0], kept, channel_parts, *sizes, *cut),
                NORMALIZE=normalize,
                **constants,
            )
    else:
        parts = x.new_empty((cut[0], *shape), dtype=torch.float32)
        _triton.launch(
            _gradient_sums_kernel,
            grid,
            *(*inputs, kept, parts, channel_parts, *sizes, *cut, eps),
            NORMALIZE=normalize,
            KEEP=keep,
            NEED_X=needs[0],
            **constants,
        )
    if needs[0]:
        parts, channel_parts = _summed(parts), _summed(channel_parts)
        _triton.launch(
            _dx_kernel,
            grid,
            *(*inputs, kept, parts, channel_parts, dx),
            *(*sizes, parts.shape[0], channel_parts.shape[0], *cut, eps),
            NORMALIZE=normalize,
            KEPT=keep,
            **constants,
        )
    return dx, *_parameter_gradients(parts, needs), None

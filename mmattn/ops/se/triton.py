"""Squeeze-and-excitation as Triton kernels.

Least traffic, in maps read or written: the gate needs all of x before y can be made of it, and its
gradient all of dy and x before dx: 3 forward (x, x, y), 4 backward (dy, x, dy, dx). The kernels
move these and, between them, the two weight matrices and a few (N, C) and (N, P) numbers; what the
second pass of each direction still finds in the L2 it need not read from memory.

Launches: 4 forward (sums, hidden layer, gate, y) and 4 backward (sums of dy x; gradient of the
hidden layer; those of the means, weights and biases; dx). The matrix products are 2 C P N
multiplications for a few N: matrix times vector, bound by reading the weights. One program per
sample would read them all through one SM (2 MB, about 20 us, for C = 2048 and P = 128); a launch
per layer spreads them over the device. PyTorch's operators need about six launches forward (sum of
parts, two products with bias, ReLU, sigmoid, division) and twelve backward where two of each do.
Saved for backward: means and gates (N, C), hidden layer (N, P).

Block sizes are chosen from shapes; they are not yet measured on a GPU.
"""

# ruff: noqa: N803  (capitals are compile-time constants, as everywhere in Triton)
# no postponed annotations here: Triton 3.0's interpreter does not know tl.constexpr as a string

import triton
import triton.language as tl

from mmattn.ops import _triton
from mmattn.ops._channel_passes import add_parts, channel_sums, parts_at_a_time, scale_and_shift
from mmattn.ops._triton import has_memory

# Of a grid (samples, blocks): the second axis ends at 65,535.


@triton.jit
def _load(x, at, mask):
    return tl.load(x + at, mask=mask, other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=["splits", "stride", "pixels"])
def _hidden_kernel(
    parts,  # (splits, N, C): sums of x
    w1,  # (P, C)
    b1,  # (P,), or None
    mean,  # (N, C)
    hidden,  # (N, P)
    splits,
    stride,
    pixels,
    channels,
    width,
    HIDDEN: tl.constexpr,
    CHANNELS: tl.constexpr,
    SPLITS: tl.constexpr,
):
    sample = tl.program_id(0)
    h = tl.program_id(1) * HIDDEN + tl.arange(0, HIDDEN)
    total = tl.zeros((HIDDEN, CHANNELS), dtype=tl.float32)
    for first in range(0, channels, CHANNELS):
        c = first + tl.arange(0, CHANNELS)
        index = sample * channels + c
        z = add_parts(parts, splits, stride, index, c < channels, CHANNELS, SPLITS) / pixels
        tl.store(mean + index, z, mask=(c < channels) & (tl.program_id(1) == 0))
        mask = (h < width)[:, None] & (c < channels)[None, :]
        total += _load(w1, h[:, None] * channels + c[None, :], mask) * z[None, :]
    out = tl.sum(total, 1)
    if b1 is not None:
        out += _load(b1, h, h < width)
    out = tl.where(out < 0, 0.0, out)  # NaN stays
    tl.store(hidden + sample * width + h, out, mask=h < width)


@triton.jit
def _gate_kernel(
    hidden,  # (N, P)
    w2,  # (C, P)
    b2,  # (C,), or None
    scale,  # (), or None
    gate,  # (N, C)
    a,  # (N, C): gate / scale, or None
    channels,
    width,
    HIDDEN: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    sample = tl.program_id(0)
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    total = tl.zeros((CHANNELS, HIDDEN), dtype=tl.float32)
    for first in range(0, width, HIDDEN):
        h = first + tl.arange(0, HIDDEN)
        mask = (c < channels)[:, None] & (h < width)[None, :]
        layer = _load(hidden, sample * width + h, h < width)
        total += _load(w2, c[:, None] * width + h[None, :], mask) * layer[None, :]
    z = tl.sum(total, 1)
    if b2 is not None:
        z += _load(b2, c, c < channels)
    # rounded like IEEE: a gate that is exactly gate_scale gives exactly 1
    one = tl.full((CHANNELS,), 1.0, tl.float32)
    s = tl.div_rn(one, one + tl.exp(-z))
    tl.store(gate + sample * channels + c, s, mask=c < channels)
    if scale is not None:
        s = tl.div_rn(s, one * tl.load(scale).to(tl.float32))
        tl.store(a + sample * channels + c, s, mask=c < channels)


@triton.jit(do_not_specialize=["splits", "stride"])
def _hidden_gradient_kernel(
    parts,  # (splits, N, C): sums of dy x
    gate,  # (N, C)
    scale,  # (), or None
    hidden,  # (N, P)
    w2,  # (C, P)
    a,  # (N, C): gate / scale
    dgate,  # (N, C): gradient of what the sigmoid takes
    dhidden,  # (N, P): gradient of what the ReLU takes
    splits,
    stride,
    channels,
    width,
    HIDDEN: tl.constexpr,
    CHANNELS: tl.constexpr,
    SPLITS: tl.constexpr,
):
    sample = tl.program_id(0)
    h = tl.program_id(1) * HIDDEN + tl.arange(0, HIDDEN)
    total = tl.zeros((CHANNELS, HIDDEN), dtype=tl.float32)
    for first in range(0, channels, CHANNELS):
        c = first + tl.arange(0, CHANNELS)
        index = sample * channels + c
        s = _load(gate, index, c < channels)
        dz = add_parts(parts, splits, stride, index, c < channels, CHANNELS, SPLITS)
        dz = dz * s * (1 - s)
        if scale is not None:
            neutral = tl.load(scale).to(tl.float32)
            dz = dz / neutral
            s = tl.div_rn(s, s * 0.0 + neutral)
        once = (c < channels) & (tl.program_id(1) == 0)
        tl.store(a + index, s, mask=once)
        tl.store(dgate + index, dz, mask=once)
        mask = (c < channels)[:, None] & (h < width)[None, :]
        total += _load(w2, c[:, None] * width + h[None, :], mask) * dz[:, None]
    out = tl.where(_load(hidden, sample * width + h, h < width) > 0, tl.sum(total, 0), 0.0)
    tl.store(dhidden + sample * width + h, out, mask=h < width)


@triton.jit
def _mean_gradient(
    w1,
    dhidden,
    shift,
    sample,
    c,
    pixels,
    channels,
    width,
    HIDDEN: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Stores the gradient of each pixel through the mean, for one sample."""
    total = tl.zeros((HIDDEN, CHANNELS), dtype=tl.float32)
    for first in range(0, width, HIDDEN):
        h = first + tl.arange(0, HIDDEN)
        mask = (h < width)[:, None] & (c < channels)[None, :]
        dlayer = _load(dhidden, sample * width + h, h < width)
        total += _load(w1, h[:, None] * channels + c[None, :], mask) * dlayer[:, None]
    tl.store(shift + sample * channels + c, tl.sum(total, 0) / pixels, mask=c < channels)


@triton.jit
def _layer_gradient(
    dout,  # (N, rows)
    taken,  # (N, columns)
    dweight,  # (rows, columns)
    dbias,  # (rows,)
    i,
    j,
    rows,
    columns,
    samples,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Stores a tile of a layer's gradients: a sum over the samples, in their order."""
    weight = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    bias = tl.zeros((ROWS,), dtype=tl.float32)
    for first in range(0, samples, 4):
        for k in tl.static_range(4):  # so that the loads of four samples are under way
            sample = first + k
            there = sample < samples
            d = _load(dout, sample * rows + i, (i < rows) & there)
            value = _load(taken, sample * columns + j, (j < columns) & there)
            weight += d[:, None] * value[None, :]
            bias += d
    mask = (i < rows)[:, None] & (j < columns)[None, :]
    tl.store(dweight + i[:, None] * columns + j[None, :], weight, mask=mask)
    tl.store(dbias + i, bias, mask=i < rows)  # every tile of these rows has the same


@triton.jit(do_not_specialize=["samples", "mean_programs", "pixels"])
def _gradients_kernel(
    w1,  # (P, C)
    mean,  # (N, C)
    hidden,  # (N, P)
    dgate,  # (N, C)
    dhidden,  # (N, P)
    shift,  # (N, C)
    dw1,  # (P, C)
    db1,  # (P,)
    dw2,  # (C, P)
    db2,  # (C,)
    samples,
    mean_programs,  # N, or 0 if the gradient of x is not needed
    pixels,
    channels,
    width,
    HIDDEN: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    part = tl.program_id(0)
    if part < mean_programs:
        _mean_gradient(w1, dhidden, shift, part, c, pixels, channels, width, HIDDEN, CHANNELS)
    else:
        h = (part - mean_programs) * HIDDEN + tl.arange(0, HIDDEN)
        _layer_gradient(dhidden, mean, dw1, db1, h, c, width, channels, samples, HIDDEN, CHANNELS)
        _layer_gradient(dgate, hidden, dw2, db2, c, h, channels, width, samples, CHANNELS, HIDDEN)


def _layer_blocks(channels: int) -> dict[str, int]:
    """Of the kernels in which a program makes a few of the hidden layer from all channels."""
    block = _triton.bucket(channels, 16, 1024)
    warps = 8 if block > 512 else 4
    # 8 columns of w2 are one sector
    return dict(HIDDEN=8, CHANNELS=block, SPLITS=parts_at_a_time(block, warps), num_warps=warps)


def _channel_blocks(width: int) -> dict[str, int]:
    """Of the kernels in which a program makes 32 channels from the hidden layer."""
    return dict(HIDDEN=_triton.bucket(width, 16, 64), CHANNELS=32, num_warps=4)


def forward(x, tensors, options):
    """Returns y, the means (N, C), the hidden layer (N, P) and the gates (N, C)."""
    w1, b1, w2, b2, scale = (None if t is None else t.contiguous() for t in tensors)
    x = _triton.dense(x)
    n, channels, pixels = x.shape[0], x.shape[1], x.shape[2] * x.shape[3]
    width = w1.shape[0]
    parts = channel_sums(x)
    mean, gate = parts.new_empty((n, channels)), parts.new_empty((n, channels))
    hidden = parts.new_empty((n, width))
    a = gate if scale is None else parts.new_empty((n, channels))
    if has_memory(x):
        blocks = _layer_blocks(channels)
        _triton.launch(
            _hidden_kernel,
            (n, triton.cdiv(width, blocks["HIDDEN"])),
            *(parts, w1, b1, mean, hidden),
            *(parts.shape[0], n * channels, pixels, channels, width),
            **blocks,
        )
        blocks = _channel_blocks(width)
        _triton.launch(
            _gate_kernel,
            (n, triton.cdiv(channels, blocks["CHANNELS"])),
            *(hidden, w2, b2, scale, gate, None if scale is None else a),
            *(channels, width),
            **blocks,
        )
    return scale_and_shift(x, a), (mean, hidden, gate)


def backward(dy, x, tensors, saved, options, needs):
    """Returns the gradients of x, w1, b1, w2 and b2."""
    w1, _, w2, _, scale = (None if t is None else t.contiguous() for t in tensors)
    mean, hidden, gate = saved
    x = _triton.dense(x)
    dy = _triton.dense_like(dy, x)
    n, channels, pixels = x.shape[0], x.shape[1], x.shape[2] * x.shape[3]
    width = w1.shape[0]
    parts = channel_sums(dy, "product", x)
    a, dgate, shift = (parts.new_empty((n, channels)) for _ in range(3))
    dhidden = parts.new_empty((n, width))
    dw1, db1 = parts.new_empty((width, channels)), parts.new_empty((width,))
    dw2, db2 = parts.new_empty((channels, width)), parts.new_empty((channels,))
    if has_memory(x):
        blocks = _layer_blocks(channels)
        _triton.launch(
            _hidden_gradient_kernel,
            (n, triton.cdiv(width, blocks["HIDDEN"])),
            *(parts, gate, scale, hidden, w2, a, dgate, dhidden),
            *(parts.shape[0], n * channels, channels, width),
            **blocks,
        )
        blocks = _channel_blocks(width)
        mean_programs = n if needs[0] else 0
        weight_programs = triton.cdiv(width, blocks["HIDDEN"]) if any(needs[1:]) else 0
        _triton.launch(
            _gradients_kernel,
            (mean_programs + weight_programs, triton.cdiv(channels, blocks["CHANNELS"])),
            *(w1, mean, hidden, dgate, dhidden, shift, dw1, db1, dw2, db2),
            *(n, mean_programs, pixels, channels, width),
            **blocks,
        )
    dx = scale_and_shift(dy, a, shift) if needs[0] else None
    return dx, dw1, db1, dw2, db2, None

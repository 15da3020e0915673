"""Passes over a map (N, C, H, W) with one or two numbers per channel of a sample (Triton).

:func:`channel_sums` reads one map or two and leaves sums over the pixels; :func:`scale_and_shift`
reads one map or two and writes one. Between them an operator does its (N, C) arithmetic. Every
map is read and written once by each, in both layouts without a copy:

- Contiguous: a row is a channel of a sample, N C of them. A program takes a tile of rows x
  pixels: pixels are split over programs where rows are long, rows are joined where they are short.
- Channels_last: a row is a pixel. A program takes a tile of pixels x channels of one sample that
  spans 128 bytes of channels, which are whole sectors and one request of a warp.

Sums that are split over programs leave their parts in a small buffer (parts, N, C), which the
operator's next kernel adds in a fixed order with :func:`add_parts`. There are no atomics, and the
order depends on shapes alone: results repeat bit for bit.

How they fill the memory's queues: a program of 128 threads has 16 values of each map per thread
under way, 64 bytes in float32. The sums take about 2,048 programs, 15 per SM of an H100, each with
a stretch of pixels; the writing pass takes a tile per program, from the end of the map to its
start (which of the map the L2 still holds then is not measured).
Rows of H W pixels start anywhere: what divides their number (up to 16 bytes of them) is a
compile-time constant, so that loads are as wide as the rows allow; two to four variants.

Block sizes are chosen from shapes and dtype; they are not yet measured on a GPU.
"""

# ruff: noqa: N803  (capitals are compile-time constants, as everywhere in Triton)
# no postponed annotations here: Triton 3.0's interpreter does not know tl.constexpr as a string

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from mmattn.ops import _triton
from mmattn.ops._triton import has_memory

# Values of a map per program and step, for 128 threads.
_TILE = 2048
# Programs that a pass is split into, if its rows alone are fewer.
_PROGRAMS = 2048
_MOST_PARTS = 256

OF = ("x", "square", "abs", "product")
TIMES = ("one", "other", "sign")


@triton.jit
def _summand(x, at, other, mask, OF: tl.constexpr):
    value = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
    if OF == "square":
        value = value * value
    elif OF == "abs":
        value = tl.abs(value)
    elif OF == "product":
        value = value * tl.load(other + at, mask=mask, other=0.0).to(tl.float32)
    return value


@triton.jit
def _result(x, at, other, mask, a, b, TIMES: tl.constexpr):
    value = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
    if a is not None:
        value = value * a
    if b is not None:
        if TIMES == "one":
            value = value + b
        else:
            factor = tl.load(other + at, mask=mask, other=0.0).to(tl.float32)
            if TIMES == "sign":
                factor = tl.where(factor > 0, 1.0, tl.where(factor < 0, -1.0, 0.0))
            value = value + factor * b
    return value


# Sizes that change with every batch do not compile a kernel each; what alignment hangs on,
# the pixels of a row or the channels of a pixel, comes as units * ALIGN.
@triton.jit(do_not_specialize=["rows", "units", "splits", "steps"])
def _sum_rows_kernel(
    x,  # (rows, pixels)
    other,
    parts,  # (splits, rows)
    rows,
    units,
    splits,
    steps,
    OF: tl.constexpr,
    ALIGN: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    pixels = units * ALIGN
    split = tl.program_id(0) % splits
    row = tl.program_id(0) // splits * ROWS + tl.arange(0, ROWS)
    start = row.to(tl.int64)[:, None] * pixels
    first = split * (steps * BLOCK)
    total = tl.zeros((ROWS, BLOCK), dtype=tl.float32)
    for at in range(first, tl.minimum(first + steps * BLOCK, pixels), BLOCK):
        p = at + tl.arange(0, BLOCK)
        mask = (row < rows)[:, None] & (p < pixels)[None, :]
        total += _summand(x, start + p[None, :], other, mask, OF)
    tl.store(parts + split.to(tl.int64) * rows + row, tl.sum(total, 1), mask=row < rows)


@triton.jit(do_not_specialize=["samples", "pixels", "units", "splits", "steps"])
def _sum_columns_kernel(
    x,  # (samples, pixels, channels)
    other,
    parts,  # (splits, samples, channels)
    samples,
    pixels,
    units,
    splits,
    steps,
    OF: tl.constexpr,
    ALIGN: tl.constexpr,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    channels = units * ALIGN
    blocks = tl.cdiv(channels, CHANNELS)
    c = tl.program_id(0) % blocks * CHANNELS + tl.arange(0, CHANNELS)
    split = tl.program_id(0) // blocks % splits
    sample = (tl.program_id(0) // blocks // splits).to(tl.int64)
    x += sample * pixels * channels
    if OF == "product":
        other += sample * pixels * channels
    first = split * (steps * PIXELS)
    total = tl.zeros((PIXELS, CHANNELS), dtype=tl.float32)
    for at in range(first, tl.minimum(first + steps * PIXELS, pixels), PIXELS):
        p = at + tl.arange(0, PIXELS)
        mask = (p < pixels)[:, None] & (c < channels)[None, :]
        total += _summand(x, p.to(tl.int64)[:, None] * channels + c[None, :], other, mask, OF)
    place = parts + (split.to(tl.int64) * samples + sample) * channels + c
    tl.store(place, tl.sum(total, 0), mask=c < channels)


@triton.jit(do_not_specialize=["rows", "units"])
def _write_rows_kernel(
    x,  # (rows, pixels)
    other,
    a,  # (rows,)
    b,
    y,
    rows,
    units,
    TIMES: tl.constexpr,
    ALIGN: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    pixels = units * ALIGN
    blocks = tl.cdiv(pixels, BLOCK)
    index = tl.num_programs(0) - 1 - tl.program_id(0)  # from the end
    p = index % blocks * BLOCK + tl.arange(0, BLOCK)
    row = index // blocks * ROWS + tl.arange(0, ROWS)
    if a is not None:
        a = tl.load(a + row, mask=row < rows, other=0.0)[:, None]
    if b is not None:
        b = tl.load(b + row, mask=row < rows, other=0.0)[:, None]
    mask = (row < rows)[:, None] & (p < pixels)[None, :]
    at = row.to(tl.int64)[:, None] * pixels + p[None, :]
    value = _result(x, at, other, mask, a, b, TIMES)
    tl.store(y + at, value.to(y.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["pixels", "units"])
def _write_columns_kernel(
    x,  # (samples, pixels, channels)
    other,
    a,  # (samples, channels)
    b,
    y,
    pixels,
    units,
    TIMES: tl.constexpr,
    ALIGN: tl.constexpr,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    channels = units * ALIGN
    blocks = tl.cdiv(channels, CHANNELS)
    tiles = tl.cdiv(pixels, PIXELS)
    index = tl.num_programs(0) - 1 - tl.program_id(0)  # from the end
    c = index % blocks * CHANNELS + tl.arange(0, CHANNELS)
    p = index // blocks % tiles * PIXELS + tl.arange(0, PIXELS)
    sample = (index // blocks // tiles).to(tl.int64)
    if a is not None:
        a = tl.load(a + sample * channels + c, mask=c < channels, other=0.0)[None, :]
    if b is not None:
        b = tl.load(b + sample * channels + c, mask=c < channels, other=0.0)[None, :]
    mask = (p < pixels)[:, None] & (c < channels)[None, :]
    at = (sample * pixels + p)[:, None] * channels + c[None, :]
    value = _result(x, at, other, mask, a, b, TIMES)
    tl.store(y + at, value.to(y.dtype.element_ty), mask=mask)


@triton.jit
def add_parts(parts, splits, stride, index, mask, BLOCK: tl.constexpr, SPLITS: tl.constexpr):
    """Adds ``parts[:, index]`` of (splits, stride) numbers, ``SPLITS`` at a time.

    ``index`` and ``mask`` are vectors of ``BLOCK``.
    """
    total = tl.zeros((SPLITS, BLOCK), dtype=tl.float32)
    for first in range(0, splits, SPLITS):
        s = first + tl.arange(0, SPLITS)
        total += tl.load(
            parts + s.to(tl.int64)[:, None] * stride + index[None, :],
            mask=(s < splits)[:, None] & mask[None, :],
            other=0.0,
        )
    return tl.sum(total, 0)


def parts_at_a_time(block: int, warps: int = 4) -> int:
    """``SPLITS`` of :func:`add_parts`: a thread holds up to 32 numbers of a tile of parts."""
    return min(max(1024 * warps // block, 1), 64)


def channel_sums(x: Tensor, of: str = "x", other: Tensor | None = None) -> Tensor:
    """Sums over the pixels in float32: (N, C, H, W) -> (parts, N, C), whose sum over parts it is.

    Args:
        x: Contiguous or channels_last.
        of: ``'x'``, ``'square'`` or ``'abs'`` of x, or its ``'product'`` with ``other``.
        other: In the strides of ``x``; only for ``'product'``.
    """
    n, channels, pixels = x.shape[0], x.shape[1], x.shape[2] * x.shape[3]
    if not has_memory(x):  # sizes may be symbols
        return x.new_empty((1, n, channels), dtype=torch.float32)
    last = _triton.is_channels_last(x)
    blocks, (tile_rows, tile_columns), align = _tiles(x, last)
    step = blocks.get("BLOCK") or blocks["PIXELS"]
    base = n * tile_columns if last else tile_rows
    splits, steps = _splits(base, triton.cdiv(pixels, step))
    parts = x.new_empty((splits, n, channels), dtype=torch.float32)
    if last:
        sizes = n, pixels, channels // align, splits, steps
        kernel = _sum_columns_kernel
    else:
        sizes = n * channels, pixels // align, splits, steps
        kernel = _sum_rows_kernel
    constants = dict(OF=of, ALIGN=align, num_warps=4, **blocks)
    _triton.launch(kernel, (base * splits,), x, other, parts, *sizes, **constants)
    return parts


def scale_and_shift(
    x: Tensor,
    a: Tensor | None,
    b: Tensor | None = None,
    times: str = "one",
    other: Tensor | None = None,
) -> Tensor:
    """``x * a + b``, ``x * a + other * b`` or ``x * a + sign(other) * b``, like ``x``.

    Args:
        x: (N, C, H, W), contiguous or channels_last.
        a: (N, C), contiguous, float32; None for 1.
        b: (N, C), contiguous, float32; None for 0.
        times: ``'one'``, ``'other'`` or ``'sign'`` (0 at 0): what ``b`` is multiplied with.
        other: In the strides of ``x``; not for ``'one'``.
    """
    y = torch.empty_like(x)
    if not has_memory(x):
        return y
    n, channels, pixels = x.shape[0], x.shape[1], x.shape[2] * x.shape[3]
    last = _triton.is_channels_last(x)
    blocks, (tile_rows, tile_columns), align = _tiles(x, last)
    if last:
        sizes = pixels, channels // align
        kernel = _write_columns_kernel
        programs = n * tile_rows * tile_columns
    else:
        sizes = n * channels, pixels // align
        kernel = _write_rows_kernel
        programs = tile_rows * tile_columns
    constants = dict(TIMES=times, ALIGN=align, num_warps=4, **blocks)
    _triton.launch(kernel, (programs,), x, other, a, b, y, *sizes, **constants)
    return y


def _tiles(x: Tensor, last: bool) -> tuple[dict[str, int], tuple[int, int], int]:
    """Block sizes, tiles (down, across) that cover the rows of a map, and the rows' alignment.

    Channels_last: of one sample.
    """
    n, channels, pixels = x.shape[0], x.shape[1], x.shape[2] * x.shape[3]
    widest = 16 // x.element_size()
    if last:
        across = _triton.bucket(channels, 16, 128 // x.element_size())
        down = _TILE // across
        tiles = triton.cdiv(pixels, down), triton.cdiv(channels, across)
        return dict(PIXELS=down, CHANNELS=across), tiles, math.gcd(channels, widest)
    # a quarter of the next power of two: at most a third of a row's tiles is beyond its end
    across = _triton.bucket(pixels, 64, 4 * _TILE) // 4
    down = _TILE // across
    tiles = triton.cdiv(n * channels, down), triton.cdiv(pixels, across)
    return dict(ROWS=down, BLOCK=across), tiles, math.gcd(pixels, widest)


def _splits(base: int, steps: int) -> tuple[int, int]:
    """Programs that share the steps of one sum, and the steps of each."""
    most = triton.cdiv(steps, 4) if base >= _PROGRAMS // 4 else steps
    splits = max(1, min(_PROGRAMS // max(base, 1), _MOST_PARTS, most))
    each = max(triton.cdiv(steps, splits), 1)
    return max(triton.cdiv(steps, each), 1), each

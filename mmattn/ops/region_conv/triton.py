"""Region-wise convolution as implicit GEMMs over the pixels of one region (Triton).

``order`` lists the output pixels ``n * P + h * W' + w`` sorted by group ``n * m + region``, and
``offsets`` says where each group starts. A program takes a tile of one group's pixels, gathers
their channels-last input rows tap by tap and multiplies them by the group's filter, so that
neither work nor memory grows with the number of regions. The grid is an upper bound computed from
shapes: nothing waits for the device. There are no atomics, so results repeat bit for bit.

Block sizes are chosen from shapes and dtype; they are not yet measured on a GPU.
"""

# ruff: noqa: N803  (capitals are compile-time constants, as everywhere in Triton)
# no postponed annotations here: Triton 3.0's interpreter does not know tl.constexpr as a string

import torch
import triton
import triton.language as tl
from torch import Tensor

from mmattn.ops.region_conv.eager import memory_format

# Sizes that change with every batch: specialising on them would compile a kernel per map.
_VARYING = ["groups", "pixels", "height", "width", "out_width"]


@triton.jit
def _find_tile(offsets, groups, tile, BLOCK: tl.constexpr):
    """Group of a tile, and the part of ``order`` from the tile to the end of its group.

    The tiles of group g start at ``offsets[g] // BLOCK + g``: since floor(a + b) is at least
    floor(a) + floor(b), the distance to the next start is never less than the tiles g needs.
    """
    started = 0
    for i in range(0, groups, 128):
        g = i + tl.arange(0, 128)
        first_tile = tl.load(offsets + g, mask=g < groups, other=0) // BLOCK + g
        started += tl.sum(((first_tile <= tile) & (g < groups)).to(tl.int32), 0)
    group = started - 1
    first = tl.load(offsets + group)
    end = tl.load(offsets + group + 1)
    return group, first + (tile - (first // BLOCK + group)) * BLOCK, end


@triton.jit(do_not_specialize=_VARYING)
def _forward_kernel(
    x,  # (N, H, W, C)
    filters,  # (G, taps, O, C)
    order,  # (N * P,)
    offsets,  # (G + 1,)
    y,  # (N, P, O)
    groups,
    regions,
    pixels,
    height,
    width,
    out_width,
    in_channels,
    out_channels,
    stride_h,
    stride_w,
    pad_h,
    pad_w,
    dilation_h,
    dilation_w,
    KERNEL_W: tl.constexpr,
    TAPS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
):
    blocks_n = tl.cdiv(out_channels, BLOCK_N)
    group, first, end = _find_tile(offsets, groups, tl.program_id(0) // blocks_n, BLOCK_M)
    if first >= end:
        return
    sample = (group // regions).to(tl.int64)
    entry = first + tl.arange(0, BLOCK_M)
    valid = entry < end
    place = tl.load(order + entry, mask=valid, other=0).to(tl.int64)
    pixel = (place - sample * pixels).to(tl.int32)
    top = pixel // out_width * stride_h - pad_h
    left = pixel % out_width * stride_w - pad_w
    o = tl.program_id(0) % blocks_n * BLOCK_N + tl.arange(0, BLOCK_N)
    x += sample * height * width * in_channels
    filters += group.to(tl.int64) * TAPS * out_channels * in_channels
    chunks = tl.cdiv(in_channels, BLOCK_K)
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for k in range(0, TAPS * chunks):  # one flat loop, so that loads run ahead across taps
        tap = k // chunks
        c = (k - tap * chunks) * BLOCK_K + tl.arange(0, BLOCK_K)
        h = top + tap // KERNEL_W * dilation_h
        w = left + tap % KERNEL_W * dilation_w
        inside = valid & (h >= 0) & (h < height) & (w >= 0) & (w < width)
        row = (h * width + w).to(tl.int64) * in_channels
        a = tl.load(
            x + row[:, None] + c[None, :],
            mask=inside[:, None] & (c < in_channels)[None, :],
            other=0.0,
        )
        b = tl.load(
            filters + (tap * out_channels + o)[None, :] * in_channels + c[:, None],
            mask=(o < out_channels)[None, :] & (c < in_channels)[:, None],
            other=0.0,
        )
        acc = tl.dot(a.to(OPERAND), b.to(OPERAND), acc, input_precision=PRECISION)
    tl.store(
        y + (place * out_channels)[:, None] + o[None, :],
        acc.to(y.dtype.element_ty),
        mask=valid[:, None] & (o < out_channels)[None, :],
    )


# One tap a launch: the shifts take many values, none of which deserves a kernel of its own.
@triton.jit(do_not_specialize=[*_VARYING, "tap", "shift_h", "shift_w"])
def _backward_input_kernel(
    dy,  # (N, P, O)
    filters,  # (G, taps, C, O)
    order,  # (N * P,)
    offsets,  # (G + 1,)
    dx,  # (N, H, W, C)
    groups,
    regions,
    pixels,
    height,
    width,
    out_width,
    in_channels,
    out_channels,
    stride_h,
    stride_w,
    tap,
    shift_h,
    shift_w,
    TAPS: tl.constexpr,
    ACCUMULATE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
):
    blocks_n = tl.cdiv(in_channels, BLOCK_N)
    group, first, end = _find_tile(offsets, groups, tl.program_id(0) // blocks_n, BLOCK_M)
    if first >= end:
        return
    sample = (group // regions).to(tl.int64)
    entry = first + tl.arange(0, BLOCK_M)
    valid = entry < end
    place = tl.load(order + entry, mask=valid, other=0).to(tl.int64)
    pixel = (place - sample * pixels).to(tl.int32)
    h = pixel // out_width * stride_h + shift_h
    w = pixel % out_width * stride_w + shift_w
    inside = valid & (h >= 0) & (h < height) & (w >= 0) & (w < width)
    c = tl.program_id(0) % blocks_n * BLOCK_N + tl.arange(0, BLOCK_N)
    dy_rows = dy + (place * out_channels)[:, None]
    filters += (group.to(tl.int64) * TAPS + tap) * in_channels * out_channels
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for start in range(0, out_channels, BLOCK_K):
        o = start + tl.arange(0, BLOCK_K)
        a = tl.load(
            dy_rows + o[None, :],
            mask=inside[:, None] & (o < out_channels)[None, :],
            other=0.0,
        )
        b = tl.load(
            filters + c[None, :] * out_channels + o[:, None],
            mask=(c < in_channels)[None, :] & (o < out_channels)[:, None],
            other=0.0,
        )
        acc = tl.dot(a.to(OPERAND), b.to(OPERAND), acc, input_precision=PRECISION)
    row = (sample * height * width + h * width + w) * in_channels
    target = dx + row[:, None] + c[None, :]
    mask = inside[:, None] & (c < in_channels)[None, :]
    if ACCUMULATE:
        acc += tl.load(target, mask=mask, other=0.0)
    tl.store(target, acc.to(dx.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=[*_VARYING, "splits"])
def _backward_filters_kernel(
    dy,  # (N, P, O)
    x,  # (N, H, W, C)
    order,  # (N * P,)
    offsets,  # (G + 1,)
    dfilters,  # (splits, G, taps, O, C)
    groups,
    splits,
    regions,
    pixels,
    height,
    width,
    out_width,
    in_channels,
    out_channels,
    stride_h,
    stride_w,
    pad_h,
    pad_w,
    dilation_h,
    dilation_w,
    KERNEL_W: tl.constexpr,
    TAPS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
):
    blocks_m = tl.cdiv(out_channels, BLOCK_M)
    blocks_n = tl.cdiv(in_channels, BLOCK_N)
    # neighbours share their pixels: first the blocks of one filter, then splits, then groups
    index = tl.program_id(0)
    o = index % blocks_m * BLOCK_M + tl.arange(0, BLOCK_M)
    index = index // blocks_m
    c = index % blocks_n * BLOCK_N + tl.arange(0, BLOCK_N)
    index = index // blocks_n
    tap = index % TAPS
    index = index // TAPS
    split = index % splits
    group = index // splits

    first = tl.load(offsets + group)
    end = tl.load(offsets + group + 1)
    part = tl.cdiv(tl.cdiv(end - first, splits), BLOCK_K) * BLOCK_K
    first += split * part
    end = tl.minimum(first + part, end)
    sample = (group // regions).to(tl.int64)
    x += sample * height * width * in_channels
    shift_h = tap // KERNEL_W * dilation_h - pad_h
    shift_w = tap % KERNEL_W * dilation_w - pad_w
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for start in range(first, end, BLOCK_K):
        entry = start + tl.arange(0, BLOCK_K)
        valid = entry < end
        place = tl.load(order + entry, mask=valid, other=0).to(tl.int64)
        pixel = (place - sample * pixels).to(tl.int32)
        h = pixel // out_width * stride_h + shift_h
        w = pixel % out_width * stride_w + shift_w
        inside = valid & (h >= 0) & (h < height) & (w >= 0) & (w < width)
        row = (h * width + w).to(tl.int64) * in_channels
        a = tl.load(
            dy + (place * out_channels)[None, :] + o[:, None],
            mask=inside[None, :] & (o < out_channels)[:, None],
            other=0.0,
        )
        b = tl.load(
            x + row[:, None] + c[None, :],
            mask=inside[:, None] & (c < in_channels)[None, :],
            other=0.0,
        )
        acc = tl.dot(a.to(OPERAND), b.to(OPERAND), acc, input_precision=PRECISION)
    slot = ((split.to(tl.int64) * groups + group) * TAPS + tap) * out_channels * in_channels
    tl.store(
        dfilters + slot + o[:, None] * in_channels + c[None, :],
        acc.to(dfilters.dtype.element_ty),
        mask=(o < out_channels)[:, None] & (c < in_channels)[None, :],
    )


_INTERPRETED = not isinstance(_forward_kernel, triton.runtime.JITFunction)

_OPERANDS = {
    torch.float32: tl.float32,
    torch.float16: tl.float16,
    # the interpreter multiplies the bits of bfloat16 numbers as if they were integers
    torch.bfloat16: tl.float32 if _INTERPRETED else tl.bfloat16,
}


def forward(x, filters, order, offsets, out_size, stride, padding, dilation) -> Tensor:
    """Returns y (N, O, H', W'), in the memory format of ``x``."""
    _check(x, filters)
    n, m, out_channels, channels, *kernel_size = filters.shape
    y = _empty_rows(x, n, out_channels, *out_size)
    if not (x.numel() and filters.numel() and y.numel()):
        return y.zero_().contiguous(memory_format=memory_format(x))
    taps = kernel_size[0] * kernel_size[1]
    config = _pixel_tiles(x.dtype, order.numel() // (n * m), out_channels, channels)
    tiles = order.numel() // config["BLOCK_M"] + n * m  # never fewer than the groups fill
    with torch.cuda.device_of(x):
        _forward_kernel[(tiles * triton.cdiv(out_channels, config["BLOCK_N"]),)](
            x.contiguous(memory_format=torch.channels_last),
            # a copy, unless 1 x 1: C of one tap lie kh kw apart, and every tile would gather them
            filters.permute(0, 1, 4, 5, 2, 3).contiguous(),
            order,
            offsets,
            y,
            n * m,
            m,
            out_size[0] * out_size[1],
            *x.shape[2:],
            out_size[1],
            channels,
            out_channels,
            *stride,
            *padding,
            *dilation,
            KERNEL_W=kernel_size[1],
            TAPS=taps,
            **config,
        )
    return y.contiguous(memory_format=memory_format(x))


def backward(
    dy, x, filters, order, offsets, stride, padding, dilation, need_x, need_filters
) -> tuple[Tensor | None, Tensor | None]:
    """Returns dx (N, C, H, W) and dfilters (N, m, O, C, kh, kw), None where not needed."""
    dx = dfilters = None
    if need_x:
        dx = backward_input(dy, filters, order, offsets, x.shape[2:], stride, padding, dilation)
        dx = dx.contiguous(memory_format=memory_format(x))
    if need_filters and len(x):
        kernel_size = filters.shape[4:]
        dfilters = backward_filters(dy, x, order, offsets, kernel_size, stride, padding, dilation)
    elif need_filters:  # without samples the offsets do not tell how many regions there are
        dfilters = torch.zeros_like(filters)
    return dx, dfilters


def backward_input(dy, filters, order, offsets, in_size, stride, padding, dilation) -> Tensor:
    """Returns dx (N, C, H, W), in the memory format of ``dy``."""
    _check(dy, filters)
    n, m, out_channels, channels, *kernel_size = filters.shape
    out_size = dy.shape[2:]
    # where on the input the first output pixel's window has each tap
    taps = [
        (kh * kernel_size[1] + kw, kh * dilation[0] - padding[0], kw * dilation[1] - padding[1])
        for kh in range(kernel_size[0])
        for kw in range(kernel_size[1])
    ]
    # first the tap that lies on its own output pixel, if any: it writes all of dx
    taps.sort(key=lambda tap: tap[1:] != (0, 0))
    aligned = tuple(stride) == (1, 1) and tuple(in_size) == tuple(out_size)
    dx = _empty_rows(dy, n, channels, *in_size, dtype=torch.float32 if len(taps) > 1 else dy.dtype)
    if not (aligned and taps[0][1:] == (0, 0)):
        dx.zero_()
    if not (dy.numel() and filters.numel() and dx.numel()):
        return dx.zero_().to(dy.dtype, memory_format=memory_format(dy))
    dy_rows = dy.contiguous(memory_format=torch.channels_last)
    bank = filters.permute(0, 1, 4, 5, 3, 2).contiguous()
    config = _pixel_tiles(dy.dtype, order.numel() // (n * m), channels, out_channels)
    tiles = order.numel() // config["BLOCK_M"] + n * m
    with torch.cuda.device_of(dy):
        # for one tap no two output pixels share an input pixel, and launches keep their order
        for i, (tap, shift_h, shift_w) in enumerate(taps):
            _backward_input_kernel[(tiles * triton.cdiv(channels, config["BLOCK_N"]),)](
                dy_rows,
                bank,
                order,
                offsets,
                dx,
                n * m,
                m,
                out_size[0] * out_size[1],
                *in_size,
                out_size[1],
                channels,
                out_channels,
                *stride,
                tap,
                shift_h,
                shift_w,
                TAPS=len(taps),
                ACCUMULATE=i > 0,
                **config,
            )
    return dx.to(dy.dtype, memory_format=memory_format(dy))


def backward_filters(dy, x, order, offsets, kernel_size, stride, padding, dilation) -> Tensor:
    """Returns dfilters (N, m, O, C, kh, kw), contiguous; zero where a region is empty."""
    _check(dy, x)
    n, out_channels, *out_size = dy.shape
    channels = x.shape[1]
    groups = offsets.numel() - 1
    m = groups // max(n, 1)
    taps = kernel_size[0] * kernel_size[1]
    config = _filter_tiles(x.dtype, out_channels, channels)
    programs = groups * taps * triton.cdiv(out_channels, config["BLOCK_M"])
    programs *= triton.cdiv(channels, config["BLOCK_N"])
    splits = _splits(programs, out_size[0] * out_size[1])
    parts = x.new_empty(
        *(splits, n, m, *kernel_size, out_channels, channels),
        dtype=torch.float32 if splits > 1 else x.dtype,
    )
    if dy.numel() and x.numel() and parts.numel():
        with torch.cuda.device_of(x):
            _backward_filters_kernel[(programs * splits,)](
                dy.contiguous(memory_format=torch.channels_last),
                x.contiguous(memory_format=torch.channels_last),
                order,
                offsets,
                parts,
                groups,
                splits,
                m,
                out_size[0] * out_size[1],
                *x.shape[2:],
                out_size[1],
                channels,
                out_channels,
                *stride,
                *padding,
                *dilation,
                KERNEL_W=kernel_size[1],
                TAPS=taps,
                **config,
            )
    else:
        parts.zero_()
    total = parts.sum(0).to(x.dtype) if splits > 1 else parts[0]
    return total.permute(0, 1, 4, 5, 2, 3).contiguous()


def _empty_rows(x: Tensor, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
    """An uninitialised map whose pixels are rows of channels."""
    return torch.empty(
        shape, dtype=dtype or x.dtype, device=x.device, memory_format=torch.channels_last
    )


def _check(*tensors: Tensor) -> None:
    dtypes = {t.dtype for t in tensors}
    if len(dtypes) > 1 or not dtypes <= _OPERANDS.keys():
        raise TypeError(
            "region_conv2d with 'triton' expects tensors of one dtype, float32, float16 or "
            f"bfloat16, got {', '.join(sorted(map(str, dtypes)))}; convert them, or choose "
            "'eager' with mmattn.ops.use_backend, which takes float64 too"
        )
    if not (_INTERPRETED or all(t.is_cuda for t in tensors)):
        raise ValueError(
            "region_conv2d with 'triton' expects CUDA tensors, got "
            f"{', '.join(sorted({t.device.type for t in tensors}))}; choose 'eager' or 'auto' "
            "with mmattn.ops.use_backend"
        )


def _allows_tf32() -> bool:
    """Whether PyTorch may round float32 to TF32 in convolutions."""
    # torch 2.9 added fp32_precision; once it is used, reading the older switch may raise
    precision = getattr(getattr(torch.backends.cudnn, "conv", None), "fp32_precision", None)
    return torch.backends.cudnn.allow_tf32 if precision is None else precision == "tf32"


def _block(size: int, largest: int) -> int:
    return min(max(triton.next_power_of_2(size), 16), largest)


def _pixel_tiles(dtype: torch.dtype, pixels: int, columns: int, depth: int) -> dict:
    """Blocks for (pixels of a group, depth) x (depth, columns)."""
    if dtype == torch.float32 and not _allows_tf32():  # no tensor cores: more would spill
        blocks, warps = (64, _block(columns, 64), 16), 4
    else:
        # smaller tiles where a group has few pixels, which would leave large ones half empty
        rows, warps = (128, 8) if pixels >= 512 else (64, 4)
        blocks = rows, _block(columns, 128), _block(depth, 32 if dtype == torch.float32 else 64)
    return _config(dtype, blocks, warps, stages=3)


def _filter_tiles(dtype: torch.dtype, rows: int, columns: int) -> dict:
    """Blocks for (rows, pixels of a group) x (pixels of a group, columns)."""
    if dtype == torch.float32 and not _allows_tf32():
        blocks, warps = (_block(rows, 64), _block(columns, 64), 16), 4
    else:
        blocks = _block(rows, 128), _block(columns, 128), 32
        warps = 8 if blocks[0] * blocks[1] > 64 * 64 else 4
    # loads that wait for a loaded pixel number take up two more stages
    return _config(dtype, blocks, warps, stages=5)


def _config(dtype: torch.dtype, blocks: tuple[int, int, int], warps: int, stages: int) -> dict:
    tf32 = dtype == torch.float32 and _allows_tf32()
    return dict(
        zip(("BLOCK_M", "BLOCK_N", "BLOCK_K"), blocks, strict=True),
        OPERAND=_OPERANDS[dtype],
        PRECISION="tf32" if tf32 else "ieee",
        num_warps=warps,
        num_stages=stages,
    )


def _splits(programs: int, pixels: int) -> int:
    """In how many parts a group's pixels are summed, so that few filters still fill a GPU.

    A choice by shapes alone, so that the order of summation, and the result, repeats.
    """
    return max(1, min(16, 1024 // max(programs, 1), pixels // 1024))

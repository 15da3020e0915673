"""Passes over a feature map in chunks: on a CPU they stay in its caches between passes."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

# A pass that finds its chunk in the cache costs a fifth of one that does not; a fresh tensor of
# the size of a map costs five passes, since the system gives it page by page.
CHUNK = 1 << 22
# On a GPU a chunk only bounds what is held besides the map; it has to fill the device.
CUDA_CHUNK = 1 << 26


def chunks(x: Tensor) -> Iterator[tuple]:
    """Indices of the first two dimensions, (N, B, ...), that cut ``x`` into chunks.

    A chunk is several small samples, or lies in one and holds whole entries of B; where the
    channels of a pixel lie side by side, it is the sample.
    """
    if (several := _samples_together(x)) > 1:
        for n in range(0, len(x), several):
            yield (slice(n, n + several), slice(None))
        return
    step = max(1, _size(x) * x.shape[0] * x.shape[1] // max(x.nbytes, 1))
    if x.stride(1) < x.stride(-1):
        step = max(x.shape[1], 1)
    for n in range(x.shape[0]):
        for start in range(0, x.shape[1], step):
            yield (n, slice(start, start + step))


def _size(x: Tensor) -> int:
    """Bytes of a chunk of the map ``x``: on a CPU little beside the map."""
    if x.device.type != "cpu":
        return CUDA_CHUNK
    return min(CHUNK, max(x.nbytes // 8, 1 << 18))


def _samples_together(x: Tensor) -> int:
    """How many samples of ``x`` make a chunk."""
    return _size(x) * len(x) // max(x.nbytes, 1)


def samples(x: Tensor) -> Iterator[int | slice]:
    """Indices of the first dimension, one by one on a CPU, all at once elsewhere."""
    yield from range(len(x)) if x.device.type == "cpu" else [slice(None)]


def _rows(x: Tensor) -> Iterator[slice]:
    """Slices of the last dimension but one that cut ``x`` into chunks."""
    height = x.shape[-2]
    size = x.nbytes if x.nbytes <= CHUNK else _size(x)  # what is a chunk already stays whole
    step = max(1, size * height // max(x.nbytes, 1))
    for start in range(0, height, step):
        yield slice(start, start + step)


def _is_flat(x: Tensor) -> bool:
    """Whether the pixels of a channel lie side by side."""
    return x.stride(-1) == 1 and x.stride(-2) == x.shape[-1]


def _as_rows(x: Tensor) -> Tensor | None:
    """(C, H, W) as a matrix (pixels, C) without a copy, where a pixel's channels are adjacent."""
    rows = x.permute(1, 2, 0) if x.dim() == 3 else x
    return rows.flatten(0, 1) if x.dim() == 3 and rows.is_contiguous() else None


class Scratch:
    """One buffer for what every chunk needs and no chunk keeps.

    A buffer of its own would cost each chunk the system's time for fresh pages, up to three times
    that of the arithmetic.
    """

    def __init__(self, dtype: torch.dtype):
        self.dtype = dtype
        self._flat: Tensor | None = None

    def like(self, x: Tensor) -> Tensor:
        """An uninitialised tensor of the shape and layout of ``x``, until the next call."""
        if x.device.type != "cpu":
            return torch.empty_like(x, dtype=self.dtype)
        if self._flat is None or self._flat.numel() < x.numel():
            self._flat = x.new_empty(x.numel(), dtype=self.dtype)
        return self._flat.as_strided(x.shape, torch.empty_like(x, device="meta").stride())

    def wide(self, x: Tensor) -> Tensor:
        """``x`` in the dtype of the buffer: itself, or a copy."""
        return x if x.dtype == self.dtype else self.like(x).copy_(x)

    def product(self, a: Tensor, b: Tensor) -> Tensor:
        """``a * b`` in the buffer, where ``b`` broadcasts to ``a``."""
        return torch.mul(a, b, out=self.like(a))


def weighted_sum(x: Tensor, w: Tensor, scratch: Scratch | None = None) -> Tensor:
    """Sums over channels: (..., C, H, W) and (..., C) -> (..., H, W)."""
    if (rows := _as_rows(x)) is not None:
        return torch.mv(rows, w).view(x.shape[1:])
    if _is_flat(x):
        return torch.matmul(w.unsqueeze(-2), x.flatten(-2)).squeeze(-2).unflatten(-1, x.shape[-2:])
    return channel_sum(x, w[..., None, None], scratch)


def channel_sum(a: Tensor, b: Tensor, scratch: Scratch | None = None) -> Tensor:
    """Sums a product over channels: (..., C, H, W) and the same or (..., C, 1, 1)."""
    out = a.new_empty(*a.shape[:-3], *a.shape[-2:])
    scratch = scratch or Scratch(a.dtype)
    for rows in _rows(a):
        other = b if b.shape[-2] == 1 else b[..., rows, :]
        torch.sum(scratch.product(a[..., rows, :], other), -3, out=out[..., rows, :])
    return out


def weighted_pixels(x: Tensor, w: Tensor, scratch: Scratch | None = None) -> Tensor:
    """Sums over pixels: (..., C, H, W) and (..., H, W) -> (..., C)."""
    if (rows := _as_rows(x)) is not None:
        return torch.mv(rows.T, w.flatten())
    if x.dim() == 3 and _is_flat(x):
        return torch.mv(x.flatten(1), w.flatten())
    if _is_flat(x) and x.device.type != "cpu":
        return torch.matmul(x.flatten(-2), w.flatten(-2).unsqueeze(-1)).squeeze(-1)
    return pixel_sum(x, w.unsqueeze(-3), scratch)  # on a CPU six times as fast as that


def pixel_sum(a: Tensor, b: Tensor, scratch: Scratch | None = None) -> Tensor:
    """Sums a product over pixels: (..., C, H, W) and the same or (..., 1, H, W) -> (..., C)."""
    out = a.new_zeros(a.shape[:-2])
    scratch = scratch or Scratch(a.dtype)
    for rows in _rows(a):
        out += scratch.product(a[..., rows, :], b[..., rows, :]).sum((-2, -1))
    return out


def outer(columns: Tensor, rows: Tensor, out: Tensor) -> Tensor:
    """``columns @ rows``, (..., C, k) and (..., k, H, W), into the dense ``out`` (..., C, H, W)."""
    rows = rows.flatten(-2)
    if (found := _as_rows(out)) is not None:
        torch.mm(rows.T, columns.T, out=found)
    elif _is_flat(out):
        torch.matmul(columns, rows, out=out.flatten(-2))
    else:
        out.copy_(torch.matmul(columns, rows).view(out.shape))
    return out


def blocks(x: Tensor) -> Iterator[tuple]:
    """Indices of (N, C, H) that cut ``x`` into chunks, along the dimension that varies slowest."""
    whole = slice(None)
    if (several := _samples_together(x)) > 1:
        for n in range(0, len(x), several):
            yield slice(n, n + several), whole, whole
        return
    for n in range(x.shape[0]):
        if x.stride(1) < x.stride(-1):
            for rows in _rows(x[n]):
                yield n, whole, rows
        else:
            for _, channels in chunks(x[n : n + 1]):
                yield n, channels, whole


def channel_sums(x: Tensor, dtype: torch.dtype, power: int = 1, absolute: bool = False) -> Tensor:
    """Sums of x, |x| or x^2 over the pixels in ``dtype``: (N, C, H, W) -> (N, C)."""
    if x.device.type != "cpu":
        if power == 1 and not absolute:
            return x.sum((2, 3), dtype=dtype)
        norm = torch.linalg.vector_norm(x, power, dim=(2, 3), dtype=dtype)
        return norm.square_() if power == 2 else norm
    out = x.new_zeros(x.shape[:2], dtype=dtype)
    widened, powers = Scratch(dtype), Scratch(dtype)
    for at in blocks(x):
        wide = widened.wide(x[at])
        if power == 1 and not absolute:
            out[at[:2]] += wide.sum((-2, -1))
        elif _is_flat(wide):
            norm = torch.linalg.vector_norm(wide, power, dim=(-2, -1))
            out[at[:2]] += norm.square_() if power == 2 else norm
        else:
            change = torch.square if power == 2 else torch.abs
            out[at[:2]] += change(wide, out=powers.like(wide)).sum((-2, -1))
    return out


def channel_mean(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Means over the pixels in ``dtype``: (N, C, H, W) -> (N, C)."""
    if x.dtype == dtype or x.device.type != "cpu":
        return x.mean((2, 3), dtype=dtype)
    return channel_sums(x, dtype) / (x.shape[2] * x.shape[3])


def channel_products(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """Sums of a product over the pixels in ``dtype``: (N, C, H, W) twice -> (N, C)."""
    out = a.new_zeros(a.shape[:2], dtype=dtype)
    first, second, product = Scratch(dtype), Scratch(dtype), Scratch(dtype)
    for at in blocks(a):
        # the other converts on the way on a GPU, and is of the same dtype on a CPU
        other = b[at] if b.device.type != "cpu" else second.wide(b[at])
        out[at[:2]] += product.product(first.wide(a[at]), other).sum((-2, -1))
    return out


def scale_and_shift(x: Tensor, scale: Tensor | None, shift: Tensor | None) -> Tensor:
    """``x * scale + shift`` with (N, C), in the dtype and memory format of ``x``."""
    dtype = next(v.dtype for v in (scale, shift) if v is not None)
    scale, shift = (None if v is None else v[:, :, None, None] for v in (scale, shift))
    out = torch.empty_like(x)
    # on a GPU other dtypes are converted on the way
    if x.dtype == dtype or x.device.type != "cpu":
        if scale is None:
            return torch.add(x, shift, out=out)
        if shift is None:
            return torch.mul(x, scale, out=out)
        if x.device.type != "cpu":
            return torch.addcmul(shift, x, scale, out=out)
        for at in blocks(x):  # with two numbers a channel in one PyTorch computes value by value
            torch.mul(x[at], scale[at[:2]], out=out[at]).add_(shift[at[:2]])
        return out
    scratch = Scratch(dtype)
    for at in blocks(x):
        wide = scratch.wide(x[at])
        if scale is not None:
            wide = wide.mul_(scale[at[:2]])
        out[at] = wide if shift is None else wide.add_(shift[at[:2]])
    return out

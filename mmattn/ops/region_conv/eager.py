"""The work of one convolution: pixels sorted by region, one matrix product a region.

Rows are pixels, columns are (kh, kw, C): then a row is gathered as kh kw runs of C numbers.
The samples are taken one by one, the pixels of a region in chunks, so that the buffers stay
small beside x and y. A 1 x 1 kernel has no windows to gather: its pixels are sorted as they lie.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

# bytes of the buffer of gathered rows: within a core's reach on a CPU, enough to fill a GPU
_CHUNK_BYTES = {"cpu": 4 << 20, "cuda": 64 << 20}


def forward(x, filters, order, offsets, out_size, stride, padding, dilation) -> Tensor:
    """Returns y (N, O, H', W'), in the memory format of ``x``."""
    n, m, out_channels, channels, *kernel_size = filters.shape
    if kernel_size == [1, 1] and not any(padding):
        return _pointwise_forward(x[:, :, :: stride[0], :: stride[1]], filters, order, offsets)
    geometry = _Geometry(x.shape, kernel_size, out_size, stride, padding, dilation, x.device)
    y = x.new_empty(n, out_channels, *out_size).to(memory_format=memory_format(x))
    pixels = geometry.pixels
    if not y.numel():
        return y
    taps = geometry.taps.numel()
    columns = x.new_empty(_chunk_rows(pixels, taps * channels, x), taps, channels)
    bank = x.new_empty(out_channels, taps, channels)
    sorted_y = x.new_empty(pixels, out_channels)
    for i, sample, ends in _samples(n, m, order, offsets):
        rows = _rows(x[i], padding)
        places = geometry.corners[sample]
        for j in range(m):
            begin, end = ends[j : j + 2]
            if begin == end:
                continue
            weight = _as_rows(filters[i, j], bank).t()
            for a, b in _chunks(begin, end, len(columns)):
                gathered = geometry.gather(rows, places[a:b], columns)
                torch.mm(gathered, weight, out=sorted_y[a:b])
        natural = sorted_y.index_select(0, _inverse(sample))
        y[i].copy_(natural.unflatten(0, tuple(out_size)).permute(2, 0, 1))
    return y


def backward(
    dy, x, filters, order, offsets, stride, padding, dilation, need_x, need_filters
) -> tuple[Tensor | None, Tensor | None]:
    """Returns dx (N, C, H, W) and dfilters (N, m, O, C, kh, kw), None where not needed."""
    n, m, out_channels, channels, *kernel_size = filters.shape
    if kernel_size == [1, 1] and not any(padding):
        step = slice(None), slice(None), slice(None, None, stride[0]), slice(None, None, stride[1])
        read, dfilters = _pointwise_backward(
            dy, x[step], filters, order, offsets, need_x, need_filters
        )
        if not need_x or max(stride) == 1:
            return read, dfilters
        dx = torch.zeros_like(x, memory_format=memory_format(x))
        dx[step] = read
        return dx, dfilters
    geometry = _Geometry(x.shape, kernel_size, dy.shape[2:], stride, padding, dilation, x.device)
    dx = x.new_empty(x.shape).to(memory_format=memory_format(x)) if need_x else None
    dfilters = torch.empty_like(filters, memory_format=torch.contiguous_format)
    if not need_filters:
        dfilters = None
    pixels, taps = geometry.pixels, geometry.taps.numel()
    if not pixels or not n:
        return tuple(None if t is None else t.zero_() for t in (dx, dfilters))
    columns = x.new_empty(_chunk_rows(pixels, taps * channels, x), taps, channels)
    bank = x.new_empty(out_channels, taps, channels)
    # sums of halves in half precision would lose what they add
    accumulate = torch.float32 if x.element_size() < 4 else x.dtype
    dbank = torch.empty_like(bank, dtype=accumulate)
    for i, sample, ends in _samples(n, m, order, offsets):
        rows = _rows(x[i], padding) if need_filters else None
        drows = x.new_zeros(geometry.padded_pixels, channels, dtype=accumulate) if need_x else None
        places = geometry.corners[sample]
        sorted_dy = dy[i].flatten(1).t().contiguous().index_select(0, sample)
        for j in range(m):
            begin, end = ends[j : j + 2]
            if need_x and begin < end:
                weight = _as_rows(filters[i, j], bank)
            if need_filters:
                dbank.zero_()
            for a, b in _chunks(begin, end, len(columns)):
                if need_filters:
                    gathered = geometry.gather(rows, places[a:b], columns)
                    if accumulate == x.dtype:
                        dbank.flatten(1).addmm_(sorted_dy[a:b].t(), gathered)
                    else:
                        dbank.flatten(1).add_(torch.mm(sorted_dy[a:b].t(), gathered))
                if need_x:
                    gathered = columns[: b - a]
                    torch.mm(sorted_dy[a:b], weight, out=gathered.flatten(1))
                    geometry.scatter_add(drows, places[a:b], gathered.to(accumulate))
            if need_filters:
                dfilters[i, j].flatten(2).copy_(dbank.transpose(1, 2))
        if need_x:
            inner = drows.view(*geometry.padded_size, channels)[
                padding[0] : padding[0] + x.shape[2], padding[1] : padding[1] + x.shape[3]
            ]
            dx[i].copy_(inner.permute(2, 0, 1))
    return dx, dfilters


def _pointwise_forward(x, filters, order, offsets) -> Tensor:
    n, m, out_channels = filters.shape[:3]
    y = x.new_empty(n, out_channels, *x.shape[2:]).to(memory_format=memory_format(x))
    for i, sample, ends in _samples(n, m, order, offsets):
        sorted_x = _take(x[i].flatten(1), sample)
        sorted_y = _empty(y[i].flatten(1))
        for j in range(m):
            part = slice(*ends[j : j + 2])
            torch.mm(filters[i, j].flatten(1), sorted_x[:, part], out=sorted_y[:, part])
        _take(sorted_y, _inverse(sample), out=y[i].flatten(1))
    return y


def _pointwise_backward(dy, x, filters, order, offsets, need_x, need_filters):
    n, m = filters.shape[:2]
    dy = dy.contiguous(memory_format=memory_format(x))
    dx = torch.empty_like(x, memory_format=memory_format(x)) if need_x else None
    dfilters = torch.empty_like(filters, memory_format=torch.contiguous_format)
    for i, sample, ends in _samples(n, m, order, offsets):
        sorted_dy = _take(dy[i].flatten(1), sample)
        sorted_x = _take(x[i].flatten(1), sample) if need_filters else None
        sorted_dx = _empty(dx[i].flatten(1)) if need_x else None
        for j in range(m):
            part = slice(*ends[j : j + 2])
            if need_x:
                weight = filters[i, j].flatten(1).t()
                torch.mm(weight, sorted_dy[:, part], out=sorted_dx[:, part])
            if need_filters:
                out = dfilters[i, j].flatten(1)
                torch.mm(sorted_dy[:, part], sorted_x[:, part].t(), out=out)
        if need_x:
            _take(sorted_dx, _inverse(sample), out=dx[i].flatten(1))
    return dx, dfilters if need_filters else None


def _samples(n: int, m: int, order: Tensor, offsets: Tensor):
    """For each sample its number, its sorted pixels, and where its m regions begin and end."""
    ends = offsets.tolist()
    pixels = len(order) // max(n, 1)
    for i in range(n):
        first = i * pixels
        sample = order[first : first + pixels] - first
        yield i, sample, [end - first for end in ends[i * m : (i + 1) * m + 1]]


def _inverse(order: Tensor) -> Tensor:
    """Where each pixel went."""
    numbers = torch.arange(len(order), device=order.device)
    return torch.empty_like(order).scatter_(0, order, numbers)


def _take(matrix: Tensor, index: Tensor, out: Tensor | None = None) -> Tensor:
    """Columns of (C, P), in the layout of the matrix: both are transposed in channels_last."""
    if matrix.is_contiguous():
        return torch.index_select(matrix, 1, index, out=out)
    return torch.index_select(matrix.t(), 0, index, out=None if out is None else out.t()).t()


def _empty(matrix: Tensor) -> Tensor:
    """Uninitialised, in the layout of the matrix."""
    return matrix.new_empty(matrix.shape) if matrix.is_contiguous() else _empty(matrix.t()).t()


class _Geometry:
    """Which rows of the padded map an output pixel's window covers."""

    def __init__(self, x_shape, kernel_size, out_size, stride, padding, dilation, device):
        height, width = (x_shape[2] + 2 * padding[0], x_shape[3] + 2 * padding[1])
        self.padded_size = height, width
        self.padded_pixels = height * width
        self.pixels = out_size[0] * out_size[1]

        def places(rows, columns, steps):
            row = torch.arange(rows, device=device) * (steps[0] * width)
            return (row[:, None] + torch.arange(columns, device=device) * steps[1]).flatten()

        self.corners = places(*out_size, stride)  # (P,): the window's first row
        self.taps = places(*kernel_size, dilation)  # (kh kw,): the others' distance from it

    def _windows(self, corners: Tensor) -> Tensor:
        return (corners[:, None] + self.taps).flatten()

    def gather(self, rows: Tensor, corners: Tensor, out: Tensor) -> Tensor:
        """Returns the windows at ``corners`` as (T, kh kw C), in the memory of ``out``."""
        out = out[: len(corners)]
        torch.index_select(rows, 0, self._windows(corners), out=out.flatten(0, 1))
        return out.flatten(1)

    def scatter_add(self, rows: Tensor, corners: Tensor, windows: Tensor) -> None:
        """Adds ``windows`` (T, kh kw, C) to the rows that they cover, in a fixed order."""
        if rows.device.type == "cpu":
            rows.index_add_(0, self._windows(corners), windows.flatten(0, 1))
            return
        # one tap's rows are all different: no two atomic additions meet
        for k, tap in enumerate(self.taps):
            rows.index_add_(0, corners + tap, windows[:, k])


def _as_rows(weight: Tensor, bank: Tensor) -> Tensor:
    """A filter (O, C, kh, kw) as (O, kh kw C), in the memory of ``bank``."""
    return bank.copy_(weight.flatten(2).transpose(1, 2)).flatten(1)


def memory_format(x: Tensor) -> torch.memory_format:
    """That of the output: channels_last if the channels of ``x`` lie side by side, as in conv2d."""
    _, channel, row, column = x.stride()
    if not x.is_contiguous() and channel == 1 and channel < column <= row:
        return torch.channels_last
    return torch.contiguous_format


def _rows(x: Tensor, padding) -> Tensor:
    """(C, H, W) as the (H + 2 ph) (W + 2 pw) rows of C numbers of the zero-padded map."""
    rows = x.permute(1, 2, 0)
    if any(padding):
        rows = F.pad(rows, (0, 0, padding[1], padding[1], padding[0], padding[0]))
    return rows.contiguous().flatten(0, 1)


def _chunk_rows(pixels: int, row: int, x: Tensor) -> int:
    budget = _CHUNK_BYTES.get(x.device.type, _CHUNK_BYTES["cuda"])
    return min(pixels, max(128, budget // (row * x.element_size())))


def _chunks(begin: int, end: int, longest: int):
    """Splits a range into as few parts as may be, of nearly one length."""
    parts = -(-(end - begin) // longest)
    for k in range(parts):
        yield tuple(begin + (end - begin) * i // parts for i in (k, k + 1))

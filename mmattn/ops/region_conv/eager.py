"""The work of one convolution: pixels sorted by region, one matrix product a region.

Rows are pixels, columns are (kh, kw, C): then a row is gathered as kh kw runs of C numbers.
The samples are taken one by one, the pixels of a region in chunks, so that the buffers stay
small beside x and y. A 1 x 1 kernel has no windows: its pixels are gathered as they are.
"""

from __future__ import annotations

import torch
from torch import Tensor

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
    sorted_y, natural_y = x.new_empty(2, pixels, out_channels)
    padded = _Rows(x, padding)
    for i, sample, ends in _samples(n, m, order, offsets):
        rows = padded.read(i)
        places = geometry.corners[sample]
        for j in range(m):
            begin, end = ends[j : j + 2]
            if begin == end:
                continue
            weight = _as_rows(filters[i, j], bank).t()
            for a, b in _chunks(begin, end, len(columns)):
                gathered = geometry.gather(rows, places[a:b], columns)
                torch.mm(gathered, weight, out=sorted_y[a:b])
        torch.index_select(sorted_y, 0, _inverse(sample), out=natural_y)
        _put(natural_y, y[i])
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
    padded, upstream = _Rows(x, padding), _Rows(dy)
    sorted_dy = x.new_empty(pixels, out_channels)
    drows = x.new_empty(geometry.padded_pixels, channels, dtype=accumulate) if need_x else None
    for i, sample, ends in _samples(n, m, order, offsets):
        rows = padded.read(i) if need_filters else None
        if need_x:
            drows.zero_()
        places = geometry.corners[sample]
        torch.index_select(upstream.read(i), 0, sample, out=sorted_dy)
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
            inner = _inner(drows.view(*geometry.padded_size, channels), x, padding)
            dx[i].copy_(inner.permute(2, 0, 1))
    return dx, dfilters


def _pointwise_forward(x, filters, order, offsets) -> Tensor:
    n, m, out_channels, channels = filters.shape[:4]
    y = x.new_empty(n, out_channels, *x.shape[2:]).to(memory_format=memory_format(x))
    unpadded = _Rows(x)
    pixels = x.shape[2] * x.shape[3]
    sorted_x, sorted_y = x.new_empty(pixels, channels), x.new_empty(pixels, out_channels)
    # of sorted_x no more is needed by then
    natural_y = sorted_x if channels == out_channels else torch.empty_like(sorted_y)
    for i, sample, ends in _samples(n, m, order, offsets):
        torch.index_select(unpadded.read(i), 0, sample, out=sorted_x)
        for j in range(m):
            part = slice(*ends[j : j + 2])
            torch.mm(sorted_x[part], filters[i, j].flatten(1).t(), out=sorted_y[part])
        torch.index_select(sorted_y, 0, _inverse(sample), out=natural_y)
        _put(natural_y, y[i])
    return y


def _pointwise_backward(dy, x, filters, order, offsets, need_x, need_filters):
    n, m, out_channels, channels = filters.shape[:4]
    dx = torch.empty_like(x, memory_format=memory_format(x)) if need_x else None
    dfilters = torch.empty_like(filters, memory_format=torch.contiguous_format)
    unpadded, upstream = _Rows(x), _Rows(dy)
    pixels = x.shape[2] * x.shape[3]
    sorted_x, sorted_dy = x.new_empty(pixels, channels), x.new_empty(pixels, out_channels)
    sorted_dx = torch.empty_like(sorted_x)
    for i, sample, ends in _samples(n, m, order, offsets):
        torch.index_select(upstream.read(i), 0, sample, out=sorted_dy)
        if need_filters:
            torch.index_select(unpadded.read(i), 0, sample, out=sorted_x)
        for j in range(m):
            part = slice(*ends[j : j + 2])
            if need_x:
                torch.mm(sorted_dy[part], filters[i, j].flatten(1), out=sorted_dx[part])
            if need_filters:
                torch.mm(sorted_dy[part].t(), sorted_x[part], out=dfilters[i, j].flatten(1))
        if need_x:
            natural_dx = sorted_x  # of which no more is needed
            torch.index_select(sorted_dx, 0, _inverse(sample), out=natural_dx)
            _put(natural_dx, dx[i])
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


def _put(rows: Tensor, out: Tensor) -> None:
    """Writes rows of channels (P, C) into a map (C, H, W)."""
    out.copy_(rows.unflatten(0, tuple(out.shape[1:])).permute(2, 0, 1))


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


class _Rows:
    """The zero-padded maps (N, C, H, W), one at a time, as (H + 2 ph) (W + 2 pw) rows of C numbers.

    All are read into the memory of one: fresh memory costs more than the copy.
    """

    def __init__(self, x: Tensor, padding=(0, 0)):
        self.x = x
        size = (x.shape[2] + 2 * padding[0], x.shape[3] + 2 * padding[1], x.shape[1])
        self.padded = x.new_zeros(size)
        self.inner = _inner(self.padded, x, padding)

    def read(self, i: int) -> Tensor:
        self.inner.copy_(self.x[i].permute(1, 2, 0))
        return self.padded.flatten(0, 1)


def _inner(padded: Tensor, x: Tensor, padding) -> Tensor:
    """The part of a padded (height, width, C) that is the map."""
    (top, left), (height, width) = padding, x.shape[2:]
    return padded[top : top + height, left : left + width]


def _chunk_rows(pixels: int, row: int, x: Tensor) -> int:
    budget = _CHUNK_BYTES.get(x.device.type, _CHUNK_BYTES["cuda"])
    return min(pixels, max(128, budget // (row * x.element_size())))


def _chunks(begin: int, end: int, longest: int):
    """Splits a range into as few parts as may be, of nearly one length."""
    parts = -(-(end - begin) // longest)
    for k in range(parts):
        yield tuple(begin + (end - begin) * i // parts for i in (k, k + 1))

"""Which input pixel is in the middle of what a cell sees? Followed through every operator.

A cell of a ResNet's c5 has stride 32, but sees what lies around pixel 32 i, not around the middle
of the 32 pixels from 32 i on: its convolutions are padded to both sides. Half a stride is more
than a small object.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from mmattn.visualization.geometry import Grid

aten = torch.ops.aten
# Maps whose cells lie so far apart (px) and are added are placed exactly by their mean: the four
# of a focus layer. Of those of an FPN it depends on the weights.
FOCUS = 1.0
# they give cells another place, and a size that happens to be the same means nothing
MOVES = {
    aten.permute, aten.transpose, aten.t, aten.numpy_T, aten.view, aten._unsafe_view, aten.reshape,
    aten.flip, aten.roll, aten.gather, aten.index, aten.index_select, aten.matmul, aten.mm,
    aten.bmm, aten.as_strided, aten.unfold, aten.grid_sampler_2d,
}  # fmt: skip


class Following(TorchDispatchMode):
    """Keeps the :class:`Grid` of every map that is made from the tensors it was told of."""

    def __init__(self):
        super().__init__()
        self._grids = WeakTensorKeyDictionary()

    def place(self, tensor: Tensor, grid: Grid) -> None:
        """Says where the cells of a tensor (..., H, W) lie."""
        self._grids[tensor] = grid

    def grid(self, tensor: Tensor) -> Grid | None:
        """Where the cells of a tensor lie, or None if it was lost."""
        return self._grids.get(tensor)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Runs an operator, and places its results."""
        result = func(*args, **(kwargs or {}))
        inputs = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        known = [(x, grid) for x in inputs if (grid := self._grids.get(x)) is not None]
        if known:
            for output in tree_leaves(result):
                if isinstance(output, Tensor) and output.dim() >= 3:
                    grid = self._of(func, args, kwargs or {}, known, output)
                    if grid is not None:
                        self._grids[output] = grid
                    elif output in self._grids:  # changed in place
                        del self._grids[output]
        return result

    def _of(self, func, args, kwargs, known, output: Tensor) -> Grid | None:
        packet = func.overloadpacket
        if packet in RULES:
            first = self._grids.get(args[0]) if isinstance(args[0], Tensor) else None
            return None if first is None else RULES[packet](first, args, kwargs, output)
        if packet in MOVES:
            # a view that leaves height and width alone
            x = args[0]
            if packet in (aten.view, aten._unsafe_view, aten.reshape):
                same = isinstance(x, Tensor) and x.shape[-2:] == output.shape[-2:]
            else:  # the shuffle of a ShuffleNet turns channels over
                same = packet is aten.transpose and _leaves(x, args[1:3])
            return self._grids.get(x) if same else None
        like = [grid for x, grid in known if x.shape[-2:] == output.shape[-2:]]
        return _mean(like) if like else None


def _leaves(x: Tensor, turned: Sequence[int]) -> bool:
    """Whether height and width are none of the axes that change places."""
    return all(axis % x.dim() < x.dim() - 2 for axis in turned)


def _mean(grids: Sequence[Grid]) -> Grid:
    """The middle of maps that were added or put behind each other."""
    if len(grids) == 1 or all(grid == grids[0] for grid in grids):
        return grids[0]
    n = len(grids)
    return Grid(
        tuple(sum(grid.stride[i] for grid in grids) / n for i in (0, 1)),
        tuple(sum(grid.offset[i] for grid in grids) / n for i in (0, 1)),
        all(grid.exact for grid in grids) and _spread(grids) <= FOCUS,
    )


def _spread(grids: Sequence[Grid]) -> float:
    """How far the first cells of maps lie apart, in input px."""
    return max(max(g.offset[i] for g in grids) - min(g.offset[i] for g in grids) for i in (0, 1))


def _pair(value) -> tuple:
    value = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    return value * 2 if len(value) == 1 else value


def window(grid: Grid, kernel, stride, padding, dilation=1) -> Grid:
    """The grid of what slides a window over a map: a convolution, a pooling."""
    kernel, stride, padding, dilation = map(_pair, (kernel, stride, padding, dilation))
    shift = tuple((kernel[i] - 1) * dilation[i] / 2 - padding[i] for i in (0, 1))
    return grid.inner(tuple(map(float, stride)), shift)


def _convolution(grid: Grid, args, kwargs, output: Tensor) -> Grid | None:
    _, weight, _, stride, padding, dilation, transposed = args[:7]
    if weight.dim() != 4:
        return None
    if not transposed:
        return window(grid, weight.shape[2:], stride, padding, dilation)
    # output pixel j comes from input i where j = i stride - padding + k dilation
    step = tuple(1 / s for s in stride)
    middle = [(weight.shape[2 + i] - 1) * dilation[i] / 2 - padding[i] for i in (0, 1)]
    return grid.inner(step, tuple(-middle[i] * step[i] for i in (0, 1)))


def _pooling(grid: Grid, args, kwargs, output: Tensor) -> Grid:
    kernel = args[1]
    stride = args[2] if len(args) > 2 and args[2] else kernel
    padding = args[3] if len(args) > 3 else 0
    # an average has no dilation: ceil_mode stands there
    dilation = args[4] if len(args) > 4 and not isinstance(args[4], bool) else 1
    return window(grid, kernel, stride, padding, dilation)


def _resized(grid: Grid, args, kwargs, output: Tensor) -> Grid:
    sizes = [(args[0].shape[-2 + i], output.shape[-2 + i]) for i in (0, 1)]
    corners = kwargs.get("align_corners", any(a is True for a in args[2:3]))
    step, shift = [], []
    for old, new in sizes:
        ratio = (old - 1) / (new - 1) if corners and new > 1 else old / new
        step.append(ratio)
        shift.append(0.0 if corners else (ratio - 1) / 2)
    return grid.inner(tuple(step), tuple(shift))


def _padded(grid: Grid, args, kwargs, output: Tensor) -> Grid:
    pad = [*args[1], 0, 0]
    return grid.inner((1.0, 1.0), (-float(pad[2]), -float(pad[0])))


def _sliced(grid: Grid, args, kwargs, output: Tensor) -> Grid:
    x, dim = args[0], args[1] if len(args) > 1 else 0
    start = args[2] if len(args) > 2 and args[2] is not None else 0
    step = args[4] if len(args) > 4 else 1
    axis = dim % x.dim() - x.dim() + 2
    if axis < 0:  # of the batch or the channels
        return grid
    start = max(start + x.shape[dim], 0) if start < 0 else start
    steps, starts = [1.0, 1.0], [0.0, 0.0]
    steps[axis], starts[axis] = float(step), float(start)
    return grid.inner(tuple(steps), tuple(starts))


RULES: dict[object, Callable[..., Grid | None]] = {
    aten.convolution: _convolution,
    aten.max_pool2d_with_indices: _pooling,
    aten.avg_pool2d: _pooling,
    aten._adaptive_avg_pool2d: _resized,
    aten.upsample_nearest2d: _resized,
    aten._upsample_nearest_exact2d: _resized,
    aten.upsample_bilinear2d: _resized,
    aten.upsample_bicubic2d: _resized,
    aten.constant_pad_nd: _padded,
    aten.reflection_pad2d: _padded,
    aten.replication_pad2d: _padded,
    aten.slice: _sliced,
}


@contextlib.contextmanager
def following(model: nn.Module) -> Iterator[Following]:
    """Follows maps through a model in the block; tell it of the input by :meth:`Following.place`.

    Where an operator loses the place, the layer around it is asked: a convolution of any kind by
    its arguments, any other layer whose map has the size of its input by that.
    """
    mode = Following()
    seen: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()

    def after(module: nn.Module, args, output):
        x = next((a for a in args if isinstance(a, Tensor) and a.dim() == 4), None)
        if not isinstance(output, Tensor) or output.dim() != 4 or x is None:
            return
        if mode.grid(output) is not None or (grid := mode.grid(x)) is None:
            return
        parts = [getattr(module, key, None) for key in ("kernel_size", "stride", "padding")]
        if all(isinstance(part, (int, tuple)) for part in parts):
            dilation = getattr(module, "dilation", 1)
            made = window(grid, *parts, dilation)
            if _fits(x, output, made, grid):
                mode.place(output, made)
        elif x.shape[0] == output.shape[0] and x.shape[2:] == output.shape[2:]:
            mode.place(output, grid)

    handles = []
    for module in model.modules():
        if module not in seen:
            seen[module] = True
            handles.append(module.register_forward_hook(after))
    try:
        with mode:
            yield mode
    finally:
        for handle in handles:
            handle.remove()


def _fits(x: Tensor, output: Tensor, made: Grid, grid: Grid) -> bool:
    """Whether a map has the size that its stride says."""
    return all(
        abs(output.shape[2 + i] - math.ceil(x.shape[2 + i] * grid.stride[i] / made.stride[i])) <= 2
        for i in (0, 1)
    )

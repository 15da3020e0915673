"""What does a model cost: FLOPs, memory that a training keeps, time?

What is counted is what runs: every operator that reaches PyTorch's dispatcher in an eager
forward pass, by the conventions of mmengine's analysis (a multiply-add is one FLOP), and the
elementwise operators, which that analysis leaves out. It works on a trace, in which a region-wise
convolution is not what it is outside of one: all m convolutions.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import torch
import torchvision  # noqa: F401  registers its operators
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, register_flop_formula

from mmattn.ops import use_backend

Parts = Mapping[Hashable, Sequence[str]]
WHOLE: Parts = {"": [""]}

# what only makes, moves, pads or picks values
_MOVES = {
    *("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "resize"),
    *("zeros", "zeros_like", "new_zeros", "zero", "ones", "ones_like", "new_ones"),
    *("full", "full_like", "new_full", "fill", "scalar_tensor", "arange", "linspace", "eye"),
    *("copy", "clone", "_to_copy", "lift_fresh_copy", "cat", "stack", "repeat", "roll", "flip"),
    *("index", "index_select", "index_put", "_index_put_impl", "gather", "scatter", "embedding"),
    *("masked_select", "masked_fill", "where", "nonzero", "tril", "triu", "diag_embed"),
    *("constant_pad_nd", "reflection_pad2d", "replication_pad2d", "im2col", "pixel_shuffle"),
    *("_unsafe_view", "_reshape_alias", "_local_scalar_dense", "bernoulli", "uniform", "normal"),
    # kernels of a compiled mmcv, which no dispatcher sees: without one they count as little
    *("roi_align", "roi_pool", "nms"),
}
# operations an element where it is not one, as in mmengine
_PER_ELEMENT = {
    **dict.fromkeys(("native_batch_norm", "_native_batch_norm_legit"), 2),
    **dict.fromkeys(("native_layer_norm", "native_group_norm"), 5),
    **dict.fromkeys(("upsample_bilinear2d", "grid_sampler_2d"), 4),
}


def _region_conv2d(x, filters, *_, out_shape=None, **__) -> int:
    # a pixel meets the one filter of its region
    return 2 * prod(out_shape) * prod(filters[3:])


def _deform_conv2d(x, weight, *_, out_shape=None, **__) -> int:
    return 2 * prod(out_shape) * prod(weight[1:])


# torch.utils.flop_counter.FlopCounterMode then knows them, too
for _operator, _formula in (
    (torch.ops.mmattn.region_conv2d, _region_conv2d),
    (torch.ops.torchvision.deform_conv2d, _deform_conv2d),
):
    if _operator not in flop_registry:
        register_flop_formula(_operator)(_formula)


@dataclass(frozen=True)
class Flops:
    """The operations of a forward pass.

    Args:
        multiply_adds: Of convolutions and matrix products; a multiply-add is one, a bias none.
        elementwise: Of everything else: one for each element that an operator reads or writes,
            whichever are more; two for BatchNorm, five for LayerNorm and GroupNorm, four for
            bilinear sampling; none for what only moves values or computes on integers.
    """

    multiply_adds: int = 0
    elementwise: int = 0

    @property
    def total(self) -> int:
        """Both."""
        return self.multiply_adds + self.elementwise


def flops(model: nn.Module, *inputs, parts: Parts = WHOLE, **kwargs) -> dict[Hashable, Flops]:
    """Counts the operations of ``model(*inputs, **kwargs)`` without gradients, by part.

    On the meta device nothing is computed.

    Args:
        model: Any model, in the mode (``model.eval()``) that is meant.
        *inputs: Its arguments.
        parts: For each label the names of modules, ``''`` for the model itself.
        **kwargs: Its keywords.

    Returns:
        The operations of each label; a module inside another counts for both.
    """
    sums = {label: Counter() for label in parts}
    running: list[Hashable] = []
    with (
        torch.no_grad(),
        use_backend("eager"),
        _attention_in_plain_operators(),
        _watched(model, parts, running.append, running.remove),
        _Counting(sums, running),
    ):
        model(*inputs, **kwargs)
    return {label: Flops(**one) for label, one in sums.items()}


@contextlib.contextmanager
def _attention_in_plain_operators():
    """Has PyTorch's attention run as matrix products and a softmax, not as one unknown kernel."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


class _Counting(TorchDispatchMode):
    """Adds the work of each operator to the parts that are running."""

    def __init__(self, sums: Mapping[Hashable, Counter], running: Sequence[Hashable]):
        super().__init__()
        self.sums, self.running = sums, running

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = function(*args, **kwargs)
        kind, work = _work(function, args, kwargs, out)
        for label in set(self.running):
            self.sums[label][kind] += work
        return out


def _work(function, args, kwargs, out) -> tuple[str, int]:
    """What an operator does, in the words of :class:`Flops`, and how much of it."""
    space, name = function.name().split(".")[0].split("::")
    name = name.rstrip("_")  # in place or not
    packet = getattr(getattr(torch.ops, space), name, None)
    if packet in flop_registry:
        # the formulas of PyTorch count a multiply-add as two
        return "multiply_adds", flop_registry[packet](*args, **kwargs, out_val=out) // 2
    tensors = [t for t in tree_leaves((args, kwargs, out)) if isinstance(t, Tensor)]
    if function.is_view or name in _MOVES or not any(t.is_floating_point() for t in tensors):
        return "elementwise", 0
    return "elementwise", _PER_ELEMENT.get(name, 1) * max(t.numel() for t in tensors)


def activation_bytes(
    model: nn.Module, *inputs, parts: Parts = WHOLE, **kwargs
) -> dict[Hashable, int]:
    """Bytes that ``model(*inputs, **kwargs)`` keeps for its backward pass, by part.

    It is the memory of all tensors that autograd saves: each counts once, for the part that is
    the first to save it, whole if a part of it is saved, and even if no output depends on it
    (an RPN, whose losses are not computed here). Parameters and buffers do not count. Works on
    the meta device, but for PyTorch's attention, which makes the whole matrix there.

    Args:
        model: Any model, in the mode (``model.train()``) that is meant.
        *inputs: Its arguments.
        parts: As in :func:`flops`.
        **kwargs: Its keywords.

    Returns:
        The bytes of each label; what a module inside another saves counts for both.
    """
    sums = dict.fromkeys(parts, 0)
    running: list[Hashable] = []
    own = [t.untyped_storage() for t in (*model.parameters(), *model.buffers())]
    known = {storage._cdata: storage for storage in own}  # kept alive: no address comes twice

    def save(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in known:
            known[storage._cdata] = storage
            for label in set(running):
                sums[label] += storage.nbytes()
        return tensor

    with (
        torch.enable_grad(),
        torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor),
        _watched(model, parts, running.append, running.remove),
    ):
        model(*inputs, **kwargs)
    return sums


class Stopwatch:
    """Times forward passes of a model, and in them its parts, without gradients.

    Args:
        model: Any model.
        parts: As in :func:`flops`; the calls of all modules of a label are summed.
        device: Where the model is. On ``'cuda'`` the GPU's clock tells.

    Attributes:
        taken: For each label the milliseconds of each run.
    """

    def __init__(self, model: nn.Module, parts: Parts = WHOLE, device: str = "cpu"):
        self.model, self.parts, self.device = model, parts, device
        self.taken: dict[Hashable, list[float]] = {label: [] for label in parts}

    def run(self, *inputs, warm_up: bool = False, **kwargs) -> None:
        """Runs the model once; a warm-up is not kept."""
        marks: list[tuple[Hashable, object]] = []

        def mark(label: Hashable) -> None:
            if self.device == "cuda":
                moment = torch.cuda.Event(enable_timing=True)
                moment.record()
            else:
                moment = time.perf_counter()
            marks.append((label, moment))

        with torch.no_grad(), _watched(self.model, self.parts, mark, mark):
            self.model(*inputs, **kwargs)
        if self.device == "cuda":
            torch.cuda.synchronize()
        sums, started = dict.fromkeys(self.parts, 0.0), {}
        for label, moment in marks:
            if label not in started:
                started[label] = moment
                continue
            start = started.pop(label)
            cuda = self.device == "cuda"
            sums[label] += start.elapsed_time(moment) if cuda else 1e3 * (moment - start)
        for label in () if warm_up else self.parts:
            self.taken[label].append(sums[label])

    def medians(self) -> dict[Hashable, float | None]:
        """The median of the runs of each label, None without any."""
        return {
            label: statistics.median(runs) if runs else None for label, runs in self.taken.items()
        }


@contextlib.contextmanager
def _watched(model: nn.Module, parts: Parts, enter: Callable, leave: Callable):
    """Calls ``enter(label)`` and ``leave(label)`` around every call of a part's modules."""
    handles = []
    for label, names in parts.items():
        for name in names:
            part = model.get_submodule(name)

            def entered(*_, label=label):
                enter(label)

            def left(*_, label=label):
                leave(label)

            # outside of what mmattn.attach has put before and after the part
            handles.append(part.register_forward_pre_hook(entered, prepend=True))
            handles.append(part.register_forward_hook(left))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()

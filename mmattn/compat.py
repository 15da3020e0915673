"""What if mmcv has no compiled operators? Stand-ins for ``mmcv._ext`` on torchvision and PyTorch.

mmcv's pure-Python wheels import their operators from ``mmcv._ext``, which they do not contain.
:func:`install` appends a finder to the end of ``sys.meta_path`` that answers this one name, so a
compiled mmcv is always found first, and torch is imported only when mmcv asks for an operator.
It has to happen before ``import mmdet``; ``import mmattn`` does it. ``MMATTN_COMPAT=0`` keeps it
off.

The operators keep mmcv's calling conventions: they fill the buffers that mmcv's Python wrappers
hand them, on the CPU and on CUDA, and follow the equations of mmcv's kernels. Deviations:

- float16 and bfloat16 are computed in float32 and rounded once.
- The sigmoid focal loss is exact for logits beyond 16, where mmcv's float32 ``log(1 - p)`` is not.
- A focal-loss target that is no class has weight 1 (sigmoid) or loss 0 (softmax); mmcv reads
  beyond its buffers.
- An empty bin of a max pooling gives 0 and no gradient; in mmcv that depends on the device.
- Boxes with equal scores keep their order, which mmcv's sort leaves open.
- With ``torch.use_deterministic_algorithms(True)``, torchvision's backward kernels on CUDA raise.
"""

from __future__ import annotations

import functools
import importlib.util
import multiprocessing
import os
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from operator import itemgetter
from types import ModuleType
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from torch import Tensor

NAME = "mmcv._ext"
OPERATORS: dict[str, Callable] = {}


def install() -> None:
    """Offers the stand-ins at the end of ``sys.meta_path``, unless ``MMATTN_COMPAT=0``."""
    uninstall()
    if os.environ.get("MMATTN_COMPAT") != "0":
        sys.meta_path.append(Finder())


def uninstall() -> None:
    """Removes the finder; operators that were imported stay."""
    # by module, because reloading this one makes a new class
    sys.meta_path[:] = [f for f in sys.meta_path if type(f).__module__ != __name__]


class Finder:
    """Finds and loads ``mmcv._ext`` and nothing else."""

    def find_spec(self, fullname: str, path=None, target=None) -> ModuleSpec | None:
        """Answers for ``mmcv._ext``."""
        if fullname != NAME:
            return None
        return importlib.util.spec_from_loader(fullname, self, origin=__name__)

    def create_module(self, spec: ModuleSpec) -> None:
        """Leaves it to Python to create the module."""

    def exec_module(self, module: ModuleType) -> None:
        """Fills the module, and imports what the operators need."""
        global np, torch, torchvision
        import numpy as np
        import torch
        import torchvision

        module.__doc__ = __doc__
        module.__dict__.update(OPERATORS, __getattr__=_absent)
        _announce()


@functools.cache
def _announce() -> None:
    """Says once that the stand-ins are active, where mmengine logs: in one process of a run."""
    rank = os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or "0"
    # by name: a spawned worker imports the main script before it has a parent_process()
    if rank == "0" and multiprocessing.current_process().name == "MainProcess":
        from mmengine.logging import print_log

        print_log(
            "mmcv has no compiled operators; mmattn serves the usual ones with torchvision "
            f"{torchvision.__version__} (MMATTN_COMPAT=0 turns this off).",
            logger="current",
        )


def _absent(name: str) -> Callable:
    """``mmcv._ext.<name>`` of an operator without stand-in: exists, and raises when called."""
    if name.startswith("_"):
        raise AttributeError(f"module {NAME!r} has no attribute {name!r}")
    return functools.partial(_refuse, name)


def _refuse(name: str, *args, **kwargs) -> NoReturn:
    raise NotImplementedError(
        f"mmcv operator {name!r} has no stand-in in mmattn; it needs an mmcv with compiled "
        "operators: see docs/installation.md."
    )


def _operator(function: Callable) -> Callable:
    OPERATORS[function.__name__] = function
    return function


def _wide(*tensors: Tensor) -> list[Tensor]:
    """The tensors, with half precision widened to float32."""
    return [t.float() if t.dtype in (torch.float16, torch.bfloat16) else t for t in tensors]


@_operator
def get_compiler_version() -> str:
    """What mmcv's ``collect_env`` prints as its compiler."""
    return f"none, mmattn's operators on torchvision {torchvision.__version__}"


@_operator
def get_compiling_cuda_version() -> str:
    """What mmcv's ``collect_env`` prints as its CUDA compiler."""
    return "not available"


# ---------------------------------------------------------------- suppression of boxes


@_operator
def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Indices of the boxes kept, by falling score; a box is w = x2 - x1 + offset wide."""
    boxes, scores = _wide(boxes, scores)
    dtype = torch.promote_types(boxes.dtype, scores.dtype)
    if offset:
        # torchvision has no offset: move the far corner, in float64, where x2 + 1 is exact
        dtype = torch.float64
        boxes = boxes.to(dtype) + boxes.new_tensor([0, 0, offset, offset], dtype=dtype)
    # torchvision's threshold is a double: round it as the IoU is, so that equal stays equal
    threshold = torch.tensor(iou_threshold, dtype=dtype).item()
    return torch.ops.torchvision.nms(boxes.to(dtype), scores.to(dtype), threshold)


def _iou(box: np.ndarray, boxes: np.ndarray, offset: int) -> np.ndarray:
    """IoU of one box with many, in mmcv's order of operations; 0 / 0 is nan."""
    low, high = np.maximum(box[:2], boxes[:, :2]), np.minimum(box[2:4], boxes[:, 2:4])
    sides = np.maximum(high - low + offset, 0)
    inter = sides[:, 0] * sides[:, 1]
    sides = boxes[:, 2:4] - boxes[:, :2] + offset
    area = (box[2] - box[0] + offset) * (box[3] - box[1] + offset)
    with np.errstate(invalid="ignore", divide="ignore"):
        return inter / (area + sides[:, 0] * sides[:, 1] - inter)


@_operator
def softnms(
    boxes: Tensor,
    scores: Tensor,
    dets: Tensor,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    offset: int,
) -> Tensor:
    """Soft-NMS: the best box decays the scores of those that it overlaps, and so on.

    The factor is 0 (method 0) or 1 - IoU (1) from the threshold on, or exp(-IoU^2 / sigma) (2).
    Fills the first rows of ``dets`` with the boxes kept, and returns their indices.
    """
    rows = torch.cat(_wide(boxes, scores[:, None]), 1).numpy(force=True)
    index = np.arange(len(rows))
    done = 0
    while done < len(rows):
        score = rows[done:, 4]
        # the first of the largest; nan never beats a number
        best = done + np.where(score > score[0], score, score[0]).argmax()
        for array in rows, index:
            array[[done, best]] = array[[best, done]]
        overlap = _iou(rows[done], rows[done + 1 :], offset)
        done += 1
        score = rows[done:, 4]
        if method == 2:
            score *= np.exp(-overlap * overlap / sigma)
        else:
            score *= np.where(overlap >= iou_threshold, method * (1 - overlap), 1)
        keep = ~(score < min_score)
        if not keep.all():
            # like mmcv, close each gap with the last box that is left: it orders equal scores
            left = keep.sum()
            order = np.arange(left)
            order[~keep[:left]] = left + np.flatnonzero(keep[left:])[::-1]
            rows, index = (np.concatenate([a[:done], a[done:][order]]) for a in (rows, index))
    dets[: len(rows)] = torch.from_numpy(rows)
    return torch.from_numpy(index)


@_operator
def nms_match(dets: Tensor, iou_threshold: float) -> list[list[int]]:
    """Groups of a kept box and those that it suppresses (IoU >= threshold), by falling score."""
    boxes = _wide(dets)[0].numpy(force=True)
    order = dets[:, 4].argsort(descending=True, stable=True).numpy(force=True)
    groups = []
    while len(order):
        first, rest = order[0], order[1:]
        matched = _iou(boxes[first], boxes[rest], 0) >= iou_threshold
        groups.append([int(first), *rest[matched].tolist()])
        order = rest[~matched]
    return groups


# ---------------------------------------------------------------- pooling of regions


@_operator
def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Mean (pool_mode 1) or maximum (0) of bilinear samples in each bin of each region.

    The maximum also records the coordinates of its sample, -1 where there is none.
    """
    features, boxes = _wide(input, rois)
    size = aligned_height, aligned_width
    if pool_mode == 1:
        pooled = torch.ops.torchvision.roi_align(
            features, boxes, spatial_scale, *size, sampling_ratio, aligned
        )
        output.copy_(pooled)
        return
    start = boxes[:, [2, 1]] * spatial_scale - 0.5 * aligned  # y, x
    extent = boxes[:, [4, 3]] * spatial_scale - 0.5 * aligned - start
    if not aligned:
        extent = extent.clamp(min=1)
    bins = extent / extent.new_tensor(size)
    samples = torch.full_like(bins, sampling_ratio) if sampling_ratio > 0 else bins.ceil()
    for k, (image, *counts) in enumerate(torch.cat([boxes[:, :1], samples], 1).int().tolist()):
        if min(counts) <= 0:
            output[k], argmax_y[k], argmax_x[k] = 0, -1, -1
            continue
        # y: (bins, samples) of coordinates along the height; x: the same along the width
        y, x = (
            start[k, i] + bins[k, i] * (bins.new_ones(n * m).cumsum(0) - 0.5).view(n, m) / m
            for i, (n, m) in enumerate(zip(size, counts, strict=True))
        )
        values = features[image]
        for dim, position in (1, y), (2, x):
            low, high, weight = _neighbours(position.flatten(), values.shape[dim])
            weight = weight.unsqueeze(-1) if dim == 1 else weight
            pair = values.index_select(dim, low), values.index_select(dim, high)
            values = pair[0] * weight[0] + pair[1] * weight[1]
        output[k], argmax_y[k], argmax_x[k] = _largest(values, y, x)


def _neighbours(position: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """The pixels below and above each coordinate, and the weights of both (stacked).

    A coordinate up to one pixel outside counts as on the edge, one further out weighs nothing.
    """
    inside = (position >= -1) & (position <= size)
    position = position.clamp(0, size - 1)
    low = position.floor()
    upper = position - low
    low = low.long()
    return low, (low + 1).clamp(max=size - 1), torch.stack([1 - upper, upper]) * inside


def _largest(samples: Tensor, y: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The largest sample of each bin, the first in reading order if several are, and its y and x.

    Args:
        samples: (C, bins_h * samples_h, bins_w * samples_w).
        y: (bins_h, samples_h), where the samples lie.
        x: (bins_w, samples_w).
    """
    (bins_h, samples_h), (bins_w, samples_w) = y.shape, x.shape
    bins = samples.view(-1, bins_h, samples_h, bins_w, samples_w).transpose(2, 3)
    value, at = bins.reshape(-1, bins_h, bins_w, samples_h * samples_w).max(-1)
    row, column = (torch.arange(n, device=y.device) for n in (bins_h, bins_w))
    return value, y[row[:, None], at // samples_w], x[column, at % samples_w]


@_operator
def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Gradient of :func:`roi_align_forward` for its input."""
    grad, boxes, argmax_y, argmax_x = _wide(grad_output, rois, argmax_y, argmax_x)
    n, c, h, w = grad_input.shape
    if pool_mode == 1:
        pooled = torch.ops.torchvision._roi_align_backward(
            grad, boxes, spatial_scale, aligned_height, aligned_width, n, c, h, w,
            sampling_ratio, aligned,
        )  # fmt: skip
        grad_input.copy_(pooled)
        return
    grad = grad * (argmax_y != -1)
    *y, weight_y = _neighbours(argmax_y, h)
    *x, weight_x = _neighbours(argmax_x, w)
    plane = boxes[:, :1].long() * c + torch.arange(c, device=grad.device)  # (K, C)
    total = grad.new_zeros(n * c * h * w)
    for i in range(2):
        for j in range(2):
            pixel = (plane[:, :, None, None] * h + y[i]) * w + x[j]
            total.index_add_(0, pixel.flatten(), (grad * weight_y[i] * weight_x[j]).flatten())
    grad_input.copy_(total.view(n, c, h, w))


@_operator
def roi_pool_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """Maximum over the pixels that each bin of each region touches, and its flat index.

    A region ends at (x2 + 1) * scale and its corners are not rounded: torchvision's ``roi_pool``
    rounds them.
    """
    features, boxes = _wide(input, rois)
    size, limits = (pooled_height, pooled_width), features.shape[2:]
    start = boxes[:, [2, 1]] * spatial_scale  # y, x
    extent = (boxes[:, [4, 3]] + 1) * spatial_scale - start
    edges = []  # for y and x: (K, bins) of first pixels and of those after the last
    for i, (n, limit) in enumerate(zip(size, limits, strict=True)):
        step = torch.arange(n + 1, device=boxes.device) * (extent[:, i : i + 1] / n)
        step = step + start[:, i : i + 1]
        edges.append([e.clamp(0, limit).long() for e in (step[:, :-1].floor(), step[:, 1:].ceil())])
    full = [last > first for first, last in edges]
    argmax.fill_(-1)
    counts = [(last - first).amax(1) for first, last in edges]
    valid = (extent > 0).all(1) & (counts[0] > 0) & (counts[1] > 0)
    rows = torch.stack([boxes[:, 0].long(), valid.long(), *counts], 1).tolist()
    for k, (image, any_pixel, *longest) in enumerate(rows):
        if not any_pixel:
            output[k] = 0
            continue
        # indices (bins, longest bin); a shorter bin repeats its last pixel
        y, x = (
            torch.minimum(
                first[k, :, None] + torch.arange(m, device=boxes.device), last[k, :, None] - 1
            ).clamp(0, limit - 1)
            for (first, last), m, limit in zip(edges, longest, limits, strict=True)
        )
        values = features[image].index_select(1, y.flatten()).index_select(2, x.flatten())
        value, y, x = _largest(values, y, x)
        pooled = full[0][k, :, None] & full[1][k]
        output[k] = torch.where(pooled, value, 0)
        argmax[k] = torch.where(pooled, y * limits[1] + x, -1)


@_operator
def roi_pool_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax: Tensor,
    grad_input: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """Gradient of :func:`roi_pool_forward` for its input."""
    grad, boxes = _wide(grad_output, rois)
    pooled = torch.ops.torchvision._roi_pool_backward(
        grad, boxes, argmax, spatial_scale, pooled_height, pooled_width, *grad_input.shape
    )
    grad_input.copy_(pooled)


# ---------------------------------------------------------------- focal losses


def _sigmoid_terms(input: Tensor, target: Tensor, weight: Tensor, alpha: float):
    """The sign of each class' logit z, log p and 1 - p of p = sigmoid(+-z), and alpha * weight.

    The target's own class has sign 1 and factor alpha, the others -1 and 1 - alpha, so that one
    formula in z serves both.
    """
    logits, weight = _wide(input, weight)
    classes = torch.arange(logits.shape[1], device=logits.device)
    positive = (target[:, None] == classes).to(logits)
    factor = alpha * positive + (1 - alpha) * (1 - positive)
    if weight.numel():
        known = (target >= 0) & (target < len(weight))
        factor = factor * weight[target.where(known, 0)].where(known, 1)[:, None]
    sign = 2 * positive - 1
    z = sign * logits
    return sign, torch.nn.functional.logsigmoid(z), torch.sigmoid(-z), factor


@_operator
def sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """-alpha * (1 - p)^gamma * log p, per class; a target that is no class is background."""
    _, log_p, miss, factor = _sigmoid_terms(input, target, weight, alpha)
    output.copy_(-factor * miss**gamma * log_p)


@_operator
def sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """The sign times alpha * (1 - p)^gamma * (gamma * p * log p - (1 - p))."""
    sign, log_p, miss, factor = _sigmoid_terms(input, target, weight, alpha)
    grad_input.copy_(sign * factor * miss**gamma * (gamma * (1 - miss) * log_p - miss))


def _softmax_terms(softmax: Tensor, target: Tensor, weight: Tensor, alpha: float):
    """The target's p, log p and alpha * weight, which is 0 where the target is no class."""
    softmax, weight = _wide(softmax, weight)
    known = (target >= 0) & (target < softmax.shape[1])
    target = target.where(known, 0)
    p = softmax.gather(1, target[:, None]).squeeze(1)
    factor = alpha * known.to(p)
    if weight.numel():
        factor = factor * weight[target]
    return p, p.clamp(min=torch.finfo(p.dtype).tiny).log(), factor


@_operator
def softmax_focal_loss_forward(
    softmax: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """-alpha * (1 - p)^gamma * log p, with p the softmax at the target."""
    p, log_p, factor = _softmax_terms(softmax, target, weight, alpha)
    output.copy_(-factor * (1 - p) ** gamma * log_p)


@_operator
def softmax_focal_loss_backward(
    softmax: Tensor,
    target: Tensor,
    weight: Tensor,
    buff: Tensor,
    grad_input: Tensor,
    gamma: float,
    alpha: float,
) -> None:
    """Gradient for the logits: d loss / d log p * (one_hot(target) - softmax)."""
    p, log_p, factor = _softmax_terms(softmax, target, weight, alpha)
    miss = (1 - p).clamp(min=torch.finfo(p.dtype).tiny)  # 0 to a negative power is not finite
    slope = factor * (gamma * miss ** (gamma - 1) * p * log_p - (1 - p) ** gamma)
    one_hot = target[:, None] == torch.arange(softmax.shape[1], device=softmax.device)
    grad_input.copy_(slope[:, None] * (one_hot.to(p) - softmax.to(p)))


# ---------------------------------------------------------------- deformable convolution

# mmcv's keywords in the order of torchvision's arguments, for versions 1 and 2
_GEOMETRY = itemgetter(
    "dH", "dW", "padH", "padW", "dilationH", "dilationW", "group", "deformable_group"
)
_GEOMETRY2 = itemgetter(
    "stride_h", "stride_w", "pad_h", "pad_w", "dilation_h", "dilation_w", "group",
    "deformable_group",
)  # fmt: skip


def _deform(input, weight, offset, mask, bias, geometry):
    """The arguments of torchvision's ``deform_conv2d``; mask and bias may be None."""
    used = mask is not None
    mask = mask if used else input.new_zeros(len(input), 1)
    bias = bias if bias is not None else input.new_zeros(len(weight))
    return *_wide(input, weight, offset, mask, bias), *geometry, used


def _deform_gradients(grad_output, input, weight, offset, mask, bias, geometry):
    """Gradients for input, weight, offset, mask and bias."""
    arguments = _deform(input, weight, offset, mask, bias, geometry)
    gradients = torch.ops.torchvision._deform_conv2d_backward(*_wide(grad_output), *arguments)
    # At a position of exactly -1 (any border, as long as offsets are 0) the sample has a kink:
    # torchvision takes the derivative of the one side, mmcv 0.
    stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, _, deform_groups = geometry
    shape = len(offset), deform_groups, *weight.shape[2:], 2, *offset.shape[2:]
    grad, (dy, dx) = gradients[2].view(shape), arguments[2].reshape(shape).unbind(4)
    i, j, y, x = (torch.arange(n, device=grad.device) for n in (*shape[2:4], *shape[5:]))
    y = i[:, None, None, None] * dilation_h + y[:, None] * stride_h - pad_h
    x = j[:, None, None] * dilation_w + x * stride_w - pad_w
    grad.masked_fill_(((y + dy <= -1) | (x + dx <= -1)).unsqueeze(4), 0)
    return gradients


@_operator
def deform_conv_forward(input, weight, offset, output, columns, ones, **geometry) -> None:
    """Deformable convolution: each kernel element samples at its place plus an offset (y, x)."""
    arguments = _deform(input, weight, offset, None, None, _GEOMETRY(geometry))
    output.copy_(torch.ops.torchvision.deform_conv2d(*arguments))


@_operator
def deform_conv_backward_input(
    input, offset, grad_output, grad_input, grad_offset, weight, columns, **geometry
) -> None:
    """Gradients of :func:`deform_conv_forward` for input and offset."""
    gradients = _deform_gradients(
        grad_output, input, weight, offset, None, None, _GEOMETRY(geometry)
    )
    grad_input.copy_(gradients[0])
    grad_offset.copy_(gradients[2])
    # mmcv asks for the weight's gradient next, with the same scratch tensor: leave it there
    columns.weight_gradient = grad_output, gradients[1]


@_operator
def deform_conv_backward_parameters(
    input, offset, grad_output, grad_weight, columns, ones, scale=1, **geometry
) -> None:
    """Gradient of :func:`deform_conv_forward` for the weight, added to ``grad_weight``."""
    source, gradient = columns.__dict__.pop("weight_gradient", (None, None))
    if source is not grad_output:
        gradient = _deform_gradients(
            grad_output, input, grad_weight, offset, None, None, _GEOMETRY(geometry)
        )[1]
    grad_weight.add_(gradient, alpha=scale)


@_operator
def modulated_deform_conv_forward(
    input, weight, bias, ones, offset, mask, output, columns, *, with_bias, **geometry
) -> None:
    """Version 2: each sample is also multiplied by a mask."""
    bias = bias if with_bias else None
    arguments = _deform(input, weight, offset, mask, bias, _GEOMETRY2(geometry))
    output.copy_(torch.ops.torchvision.deform_conv2d(*arguments))


@_operator
def modulated_deform_conv_backward(
    input, weight, bias, ones, offset, mask, columns, grad_input, grad_weight, grad_bias,
    grad_offset, grad_mask, grad_output, *, with_bias, **geometry,
) -> None:  # fmt: skip
    """Gradients of :func:`modulated_deform_conv_forward` for all its tensors."""
    gradients = _deform_gradients(
        grad_output, input, weight, offset, mask, bias if with_bias else None, _GEOMETRY2(geometry)
    )
    buffers = [grad_input, grad_weight, grad_offset, grad_mask, grad_bias]
    for buffer, gradient in zip(buffers[: 4 + with_bias], gradients, strict=False):
        buffer.copy_(gradient)

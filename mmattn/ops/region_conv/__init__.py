"""Region-wise convolution: every pixel is convolved with the filter of its region."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from mmattn.ops._backend import check_map, is_exporting, is_untransformed, select, triton_runs
from mmattn.ops.region_conv import eager, reference
from mmattn.ops.region_conv._custom_op import convolve


def region_conv2d(
    x: Tensor,
    filters: Tensor,
    region: Tensor,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    *,
    guide: Tensor | None = None,
    candidates: int | None = None,
) -> Tensor:
    """Convolves every output pixel with the one filter, of its sample's m, that its region names.

    ::

        y[n, :, p] = sum_{c, t} filters[n, region[n, p], :, c, t] x[n, c, stride p + dilation t]

    ``x`` is zero-padded. The work is that of one plain convolution and the memory beside ``x``,
    ``y`` and ``filters`` does not grow with m, but for the gradient of ``guide``.

    ``guide`` holds the scores whose argmax is ``region``. The forward pass ignores it; in the
    backward pass the softmax s of it stands for the one-hot (the authors' surrogate)::

        dguide_j = s_j (q_j - sum_i s_i q_i),   q_j = sum_o dy_o y_{j,o}

    where y_j is what region j's filter would give at that pixel: that takes all m convolutions.

    Paper: Dynamic Region-Aware Convolution, https://arxiv.org/abs/2003.12243.

    Args:
        x: Feature map (N, C, H, W).
        filters: (N, m, O, C / groups, kh, kw), m >= 2, of the dtype of ``x``.
        region: Integers (N, H', W') from 0 to m - 1, H' x W' being the output's size. Any map:
            a region may be empty, or hold every pixel.
        stride: As in ``torch.nn.functional.conv2d``, like the next three.
        padding: Integers only.
        dilation: As above.
        groups: As above.
        guide: Scores (N, m, H', W'), or None for no gradient to them.
        candidates: The surrogate takes the softmax over so many regions of the highest score
            only, at the cost of as many convolutions; None for all m, as the authors.

    Returns:
        (N, O, H', W'), in the dtype and memory format of ``x``; under autocast, in its dtype.

    Raises:
        ValueError: A shape that does not fit, a region out of range (not looked for under
            ``torch.compile``, tracing and export), m < 2, a kernel larger than the padded map.
        TypeError: ``x`` or ``filters`` is not floating point, their dtypes differ, or
            ``region`` is no tensor of integers.
    """
    stride, padding, dilation = (
        pair("region_conv2d", name, value, least)
        for name, value, least in (
            ("stride", stride, 1),
            ("padding", padding, 0),
            ("dilation", dilation, 1),
        )
    )
    out_size = _check(x, filters, region, stride, padding, dilation, groups, guide, candidates)
    if guide is not None and not guide.requires_grad:
        guide = None
    autocast = x.device.type != "meta" and torch.is_autocast_enabled(x.device.type)
    if autocast and x.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(x.device.type)
        x, filters = x.to(dtype), filters.to(dtype)
    elif x.dtype != filters.dtype:
        raise TypeError(
            "region_conv2d expects x and filters of one dtype, "
            f"got {x.dtype} and {filters.dtype}; convert one, or use autocast"
        )
    n = len(x)
    memory_format = eager.memory_format(x)
    if groups > 1:
        # a group is a sample of its own, with the sample's regions
        x = x.reshape(n * groups, x.shape[1] // groups, *x.shape[2:])
        filters = filters.unflatten(2, (groups, -1)).transpose(1, 2).flatten(0, 1)
        region = region.repeat_interleave(groups, 0)
        guide = None if guide is None else guide.repeat_interleave(groups, 0)
    implementations = {"reference": _reference, "eager": _eager, "triton": _triton}
    run = select("region_conv2d", implementations)
    if run is _triton and (
        is_exporting() or not triton_runs("region_conv2d", "mmattn.ops.region_conv.triton", x, True)
    ):
        run = _eager
    # one node, which has neither vmap nor jvp nor a backward pass that is no plain tensor's
    if not torch.compiler.is_compiling() and not _is_plain(x, filters, guide):
        run = _reference
    if run is _eager and is_exporting():
        run = _reference  # plain operators, which every exporter knows
    y = run(x, filters, region, out_size, stride, padding, dilation, guide, candidates)
    if groups > 1:
        y = y.reshape(n, groups * y.shape[1], *out_size)
    return y.contiguous(memory_format=memory_format)


def _is_plain(*tensors: Tensor | None) -> bool:
    """Whether no transform of torch.func, no forward-mode AD and no fake tensor is about."""
    return is_untransformed() and not any(isinstance(t, FakeTensor) for t in tensors)


def _reference(x, filters, region, out_size, stride, padding, dilation, guide, candidates):
    return reference.region_conv2d(x, filters, region, stride, padding, dilation, guide, candidates)


def _eager(*args):
    return convolve(*args, backend="eager")


def _triton(*args):
    return convolve(*args, backend="triton")


def pair(owner: str, name: str, value, least: int) -> tuple[int, int]:
    """Returns an integer or two as (vertical, horizontal), or raises in the name of ``owner``."""
    two = (value, value) if isinstance(value, int) else value
    if (
        not isinstance(two, (tuple, list))
        or len(two) != 2
        or any(isinstance(v, bool) or not isinstance(v, int) or v < least for v in two)
    ):
        raise ValueError(
            f"{owner} expects {name} to be an integer from {least} on, or two, got {value!r}"
        )
    return tuple(two)


def _check(x, filters, region, stride, padding, dilation, groups, guide, candidates):
    """Returns (H', W'), or raises."""
    check_map("region_conv2d", x)
    n, channels, *size = x.shape
    if not filters.is_floating_point():
        raise TypeError(f"region_conv2d expects floating-point filters, got {filters.dtype}")
    if isinstance(groups, bool) or not isinstance(groups, int) or groups < 1 or channels % groups:
        raise ValueError(
            f"region_conv2d expects groups to divide the {channels} channels, got {groups!r}"
        )
    if filters.dim() != 6 or filters.shape[0] != n or filters.shape[3] != channels // groups:
        raise ValueError(
            f"region_conv2d expects filters (N, m, O, C, kh, kw) = ({n}, m, O, "
            f"{channels // groups}, kh, kw), got {tuple(filters.shape)}"
        )
    m, out_channels, _, *kernel_size = filters.shape[1:]
    if m < 2:
        raise ValueError(
            f"region_conv2d expects filters for at least 2 regions, got {m}; "
            "one region is a plain convolution"
        )
    if out_channels % groups:
        raise ValueError(
            f"region_conv2d expects groups to divide the {out_channels} output channels, "
            f"got {groups}"
        )
    out_size = output_size(size, kernel_size, stride, padding, dilation)
    if not isinstance(region, Tensor):
        raise TypeError(
            f"region_conv2d expects the region map as a tensor, got {type(region).__name__}"
        )
    if tuple(region.shape) != (n, *out_size):
        raise ValueError(
            f"region_conv2d expects a region map (N, H', W') = {(n, *out_size)}, the size of the "
            f"output, got {tuple(region.shape)}"
        )
    if region.is_floating_point() or region.dtype == torch.bool or region.is_complex():
        raise TypeError(f"region_conv2d expects an integer region map, got {region.dtype}")
    if guide is not None and tuple(guide.shape) != (n, m, *out_size):
        raise ValueError(
            f"region_conv2d expects a guide (N, m, H', W') = {(n, m, *out_size)}, "
            f"got {tuple(guide.shape)}"
        )
    if candidates is not None and not (
        isinstance(candidates, int) and not isinstance(candidates, bool) and 2 <= candidates <= m
    ):
        raise ValueError(
            f"region_conv2d expects candidates from 2 to m = {m}, or None for all, "
            f"got {candidates!r}"
        )
    # reading values would break the graph of a compiler, and a tracer keeps no branch
    traced = torch.compiler.is_compiling() or is_exporting() or region.is_meta
    traced = traced or not _is_plain(x, region)
    if not traced and region.numel():
        low, high = (int(v) for v in region.aminmax())
        if low < 0 or high >= m:
            raise ValueError(
                f"region_conv2d expects regions from 0 to {m - 1}, got values from {low} to {high}"
            )
    return out_size


def output_size(size, kernel_size, stride, padding, dilation) -> tuple[int, int]:
    """(H', W') of a convolution on a map of ``size``; raises if the kernel does not fit."""
    out = tuple(
        (extent + 2 * p - d * (k - 1) - 1) // s + 1
        for extent, k, s, p, d in zip(size, kernel_size, stride, padding, dilation, strict=True)
    )
    if min(out) < 1:
        raise ValueError(
            f"region_conv2d expects a kernel that fits into the padded map, got a kernel of "
            f"{tuple(d * (k - 1) + 1 for k, d in zip(kernel_size, dilation, strict=True))} pixels "
            f"for a map of {tuple(e + 2 * p for e, p in zip(size, padding, strict=True))}"
        )
    return out


__all__ = ["eager", "output_size", "pair", "reference", "region_conv2d"]

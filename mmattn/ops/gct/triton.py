"""Gated channel transformation as Triton kernels.

Least traffic, in maps read or written: the gate needs all of x before y can be made of it, and its
gradient all of dy and x before dx, which needs both again: 3 forward (x, x, y), 5 backward
(dy, x, dy, x, dx); one fewer backward if the norm is l1 after ReLU, where dx needs dy alone. The
kernels move these and, between them, a few (N, C) numbers; what the second pass of each direction
still finds in the L2 it need not read from memory.

Launches: 3 forward (sums, gate, y) and 4 backward (sums of dy x; gate, its gradient and the
parameters' of each sample; their sum over samples; dx). The gate of a channel hangs on all
channels of its sample, so that the kernel between the passes has one program per sample with all
its channels in registers. Saved for backward: the sums (N, C); the rest is cheaper to redo.

Block sizes are chosen from shapes; they are not yet measured on a GPU.
"""

# ruff: noqa: N803  (capitals are compile-time constants, as everywhere in Triton)
# no postponed annotations here: Triton 3.0's interpreter does not know tl.constexpr as a string

import torch
import triton
import triton.language as tl

from mmattn.ops import _triton
from mmattn.ops._channel_passes import add_parts, channel_sums, parts_at_a_time, scale_and_shift
from mmattn.ops._triton import has_memory


@triton.jit
def _sigmoid(z):
    return tl.div_rn(tl.full(z.shape, 1.0, tl.float32), 1.0 + tl.exp(-z))


@triton.jit
def _gate(z, GATE: tl.constexpr):
    """The gate, exact where it is neutral (z = 0), and its derivative."""
    if GATE == "1+tanh":  # = 2 sigmoid(2z)
        gate = 2 * _sigmoid(2 * z)
        slope = gate * (2 * _sigmoid(-2 * z))
    elif GATE == "sigmoid":
        gate = _sigmoid(z)
        slope = gate * _sigmoid(-z)
    else:
        low = tl.exp(tl.where(z > 0, 0.0, z))
        gate = tl.where(z > 0, 1 + z, low)
        slope = tl.where(z > 0, 1.0, low)
    return gate, slope


@triton.jit
def _embedding(total, alpha, channels, eps, NORM: tl.constexpr):
    """Norm of each channel, e = alpha times it, and what all channels' e is divided by."""
    if NORM == "l2":
        norm = tl.sqrt_rn(total + eps)
        e = alpha * norm
        divisor = tl.sqrt_rn(tl.sum(e * e, 0) / channels + eps)
    else:
        norm = total
        e = alpha * norm
        divisor = tl.sum(tl.abs(e), 0) / channels + eps
    return norm, e, divisor


@triton.jit(do_not_specialize=["splits", "stride", "eps"])
def _forward_kernel(
    parts,  # (splits, N, C)
    alpha,  # (C,)
    gamma,
    beta,
    scale,  # (), or None
    total,  # (N, C)
    a,  # (N, C)
    splits,
    stride,
    channels,
    eps,
    NORM: tl.constexpr,
    GATE: tl.constexpr,
    BLOCK: tl.constexpr,
    SPLITS: tl.constexpr,
):
    c = tl.arange(0, BLOCK)
    mask = c < channels
    index = tl.program_id(0) * channels + c
    found = add_parts(parts, splits, stride, index, mask, BLOCK, SPLITS)
    tl.store(total + index, found, mask=mask)
    weight = tl.load(alpha + c, mask=mask, other=0.0).to(tl.float32)
    _, e, divisor = _embedding(found, weight, channels, eps, NORM)
    z = e * (tl.load(gamma + c, mask=mask, other=0.0).to(tl.float32) / divisor)
    gate, _ = _gate(z + tl.load(beta + c, mask=mask, other=0.0).to(tl.float32), GATE)
    if scale is not None:
        gate = tl.div_rn(gate, gate * 0.0 + tl.load(scale).to(tl.float32))
    tl.store(a + index, gate, mask=mask)


@triton.jit(do_not_specialize=["splits", "stride", "eps"])
def _backward_kernel(
    parts,  # (splits, N, C): sums of dy x
    alpha,  # (C,)
    gamma,
    beta,
    scale,  # (), or None
    total,  # (N, C)
    a,  # (N, C): dx = dy a + b, times x, its sign or 1
    b,
    dparameters,  # (N, 3, C)
    splits,
    stride,
    channels,
    eps,
    NORM: tl.constexpr,
    GATE: tl.constexpr,
    BLOCK: tl.constexpr,
    SPLITS: tl.constexpr,
):
    c = tl.arange(0, BLOCK)
    mask = c < channels
    index = tl.program_id(0) * channels + c
    # the gate once more
    weight = tl.load(alpha + c, mask=mask, other=0.0).to(tl.float32)
    found = tl.load(total + index, mask=mask, other=0.0)
    norm, e, divisor = _embedding(found, weight, channels, eps, NORM)
    n = tl.load(gamma + c, mask=mask, other=0.0).to(tl.float32) / divisor
    gate, slope = _gate(e * n + tl.load(beta + c, mask=mask, other=0.0).to(tl.float32), GATE)
    dz = add_parts(parts, splits, stride, index, mask, BLOCK, SPLITS) * slope
    if scale is not None:
        neutral = tl.load(scale).to(tl.float32)
        gate = tl.div_rn(gate, gate * 0.0 + neutral)
        dz = dz / neutral
    # z = e gamma / divisor + beta, and the divisor is of all e
    along = tl.sum(dz * e * n, 0) / divisor / channels
    if NORM == "l2":
        de = dz * n - e * (along / divisor)
        shift = de * weight / norm  # d norm / dx = x / norm
    else:
        de = dz * n - tl.where(e > 0, along, tl.where(e < 0, -along, 0.0))
        shift = de * weight
    tl.store(a + index, gate, mask=mask)
    tl.store(b + index, shift, mask=mask)
    dparameters += tl.program_id(0) * 3 * channels + c
    tl.store(dparameters, de * norm, mask=mask)
    tl.store(dparameters + channels, dz * e / divisor, mask=mask)
    tl.store(dparameters + 2 * channels, dz, mask=mask)


@triton.jit(do_not_specialize=["samples"])
def _sum_samples_kernel(
    dparameters,  # (N, columns)
    sums,  # (columns,)
    samples,
    columns,
    BLOCK: tl.constexpr,
    SAMPLES: tl.constexpr,
):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = i < columns
    tl.store(sums + i, add_parts(dparameters, samples, columns, i, mask, BLOCK, SAMPLES), mask=mask)


def _launch(kernel, parts, tensors, outputs, options) -> None:
    eps, norm, _, gate = options
    splits, n, channels = parts.shape
    if has_memory(parts):
        block = _triton.bucket(channels)
        warps = min(max(block // 64, 4), 16)
        _triton.launch(
            kernel,
            (n,),
            parts,
            *(None if t is None else t.contiguous() for t in tensors),
            *outputs,
            *(splits, n * channels, channels, eps),
            NORM=norm,
            GATE=gate,
            BLOCK=block,
            SPLITS=parts_at_a_time(block, warps),
            num_warps=warps,
        )


def forward(x, tensors, options):
    """Returns y and the sums of x^2, |x| or x (N, C)."""
    _, norm, after_relu, _ = options
    x = _triton.dense(x)
    parts = channel_sums(x, "square" if norm == "l2" else "x" if after_relu else "abs")
    total, a = (parts.new_empty(parts.shape[1:]) for _ in range(2))
    _launch(_forward_kernel, parts, tensors, (total, a), options)
    return scale_and_shift(x, a), (total,)


def backward(dy, x, tensors, saved, options, needs):
    """Returns the gradients of x, alpha, gamma and beta."""
    (total,) = saved
    _, norm, after_relu, _ = options
    x = _triton.dense(x)
    dy = _triton.dense_like(dy, x)
    parts = channel_sums(dy, "product", x)
    n, channels = total.shape
    a, b = torch.empty_like(total), torch.empty_like(total)
    dparameters = total.new_empty((n, 3, channels))
    _launch(_backward_kernel, parts, tensors, (total, a, b, dparameters), options)
    dx = None
    if needs[0]:
        times = "other" if norm == "l2" else "one" if after_relu else "sign"
        dx = scale_and_shift(dy, a, b, times, None if times == "one" else x)
    sums = total.new_empty((3, channels))
    if any(needs[1:]) and has_memory(x):
        columns = 3 * channels
        grid = (triton.cdiv(columns, 128),)
        blocks = dict(BLOCK=128, SAMPLES=8, num_warps=4)
        _triton.launch(_sum_samples_kernel, grid, dparameters, sums, n, columns, **blocks)
    return dx, *sums.unbind(), None

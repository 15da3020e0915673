"""The non-local block without the (HW, M) matrix of weights."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from mmattn.ops._backend import statistics_dtype, without_autocast
from mmattn.ops.non_local import reference
from mmattn.ops.non_local.reference import conv, pool, tokens


def _cast(projection, dtype: torch.dtype):
    return projection and tuple(None if p is None else p.to(dtype) for p in projection)


def _softmax(queries: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
    # the fused kernels ask for a head dimension, dense rows and one width for all three;
    # without them PyTorch makes the whole matrix
    width = values.shape[2]
    values = F.pad(values, (0, keys.shape[2] - width))
    q, k, v = (t.contiguous().unsqueeze(1) for t in (queries, keys, values))
    return F.scaled_dot_product_attention(q, k, v, scale=scale)[:, 0, :, :width]


def _concatenation(queries: Tensor, keys: Tensor, values: Tensor, weight: Tensor) -> Tensor:
    """With a_i and b_j the two halves of the product, the sum over the j of b_j > -a_i.

    These j come first once b is sorted, so that two running sums hold every answer:
    sum_j relu(a_i + b_j) g_j = a_i sum_j g_j + sum_j b_j g_j.
    """
    if torch.are_deterministic_algorithms_enabled():  # CUDA has no such running sum
        return reference.concatenation(queries, keys, values, weight)
    first, second = weight.flatten().chunk(2)
    a, (b, order) = queries @ first, (keys @ second).sort(1, descending=True)
    values = values.gather(1, order.unsqueeze(2).expand_as(values))
    sums = torch.cat([values, b.unsqueeze(2) * values], 2).cumsum(1)
    sums = F.pad(sums, (0, 0, 1, 0))  # of the first 0, 1, ..., M
    count = torch.searchsorted(-b.detach(), a.detach())
    sums = sums.gather(1, count.unsqueeze(2).expand(-1, -1, sums.shape[2]))
    plain, weighted = sums.chunk(2, 2)
    return a.unsqueeze(2) * plain + weighted


@without_autocast
def non_local(
    x: Tensor, g, out, theta=None, phi=None, concat=None, mode="", use_scale=True, sub_sample=False
) -> Tensor:
    g, theta, phi = (_cast(p, x.dtype) for p in (g, theta, phi))
    queries = tokens(conv(x, theta) if theta else x)
    keys = tokens(pool(conv(x, phi) if phi else x, sub_sample))
    values = tokens(pool(conv(x, g), sub_sample))
    if mode in ("gaussian", "embedded_gaussian"):
        scaled = mode == "embedded_gaussian" and use_scale
        y = _softmax(queries, keys, values, queries.shape[2] ** -0.5 if scaled else 1.0)
    else:  # sums that leave the range of float16
        dtype = statistics_dtype(x)
        queries, keys, values = (t.to(dtype) for t in (queries, keys, values))
        values = values / values.shape[1]
        if mode == "dot_product":
            y = queries @ (keys.transpose(1, 2) @ values)  # (P, P) first: linear in HW
        else:
            y = _concatenation(queries, keys, values, concat.to(dtype))
    y = y.transpose(1, 2).unflatten(2, x.shape[2:])
    return conv(y, _cast(out, y.dtype)).to(x.dtype)

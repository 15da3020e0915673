"""The non-local block as the paper writes it (arXiv 1711.07971, section 3), weight by weight."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def conv(x: Tensor, projection) -> Tensor:
    """1x1 convolution with a pair of weight (O, C) or (O, C, 1, 1) and bias (O,) or None."""
    weight, bias = projection
    return F.conv2d(x, weight[:, :, None, None] if weight.dim() == 2 else weight, bias)


def pool(x: Tensor, sub_sample: bool) -> Tensor:
    """The largest of every 2 x 2 positions; a side of one pixel stays one pixel."""
    return F.max_pool2d(x, [min(2, side) for side in x.shape[2:]]) if sub_sample else x


def tokens(x: Tensor) -> Tensor:
    """(N, C, H, W) -> (N, HW, C)."""
    return x.flatten(2).transpose(1, 2)


def concatenated(queries: Tensor, keys: Tensor, weight: Tensor) -> Tensor:
    """(N, Q, M): relu(weight [theta_i, phi_j])."""
    # (P, 1) each: onnxruntime's optimizer miscomputes a product of a transpose and a vector
    first, second = weight.reshape(2, -1, 1)
    return F.relu(queries @ first + (keys @ second).transpose(1, 2))


def concatenation(queries: Tensor, keys: Tensor, values: Tensor, weight: Tensor) -> Tensor:
    """(N, HW, P): sum_j relu(weight [theta_i, phi_j]) g_j."""
    return concatenated(queries, keys, weight) @ values


def weights(queries: Tensor, keys: Tensor, concat=None, mode="", use_scale=True) -> Tensor:
    """(N, Q, M): f_ij, of each of Q queries (N, Q, P) for each of M keys (N, M, P)."""
    if mode == "concatenation":
        return concatenated(queries, keys, concat) / keys.shape[1]
    f = queries @ keys.transpose(1, 2)
    if mode == "dot_product":
        return f / keys.shape[1]
    scale = queries.shape[2] ** -0.5 if mode == "embedded_gaussian" and use_scale else 1
    return (f * scale).softmax(2)


def non_local(
    x: Tensor, g, out, theta=None, phi=None, concat=None, mode="", use_scale=True, sub_sample=False
) -> Tensor:
    queries = tokens(conv(x, theta) if theta else x)  # (N, HW, P)
    keys = tokens(pool(conv(x, phi) if phi else x, sub_sample))  # (N, M, P)
    values = tokens(pool(conv(x, g), sub_sample))  # (N, M, P)
    y = weights(queries, keys, concat, mode, use_scale) @ values
    return conv(y.transpose(1, 2).unflatten(2, x.shape[2:]), out)

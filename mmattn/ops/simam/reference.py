"""SimAM as the release computes it: the inverse energy of each value, through a sigmoid."""

from __future__ import annotations

from torch import Tensor


def gate(x: Tensor, e_lambda=1e-4) -> Tensor:
    """(N, C, H, W): what each value is multiplied by."""
    h, w = x.shape[2:]
    d = (x - x.mean((2, 3), keepdim=True)).square()
    # the unbiased variance of a single pixel would be 0/0; it is taken as 0
    v = d.sum((2, 3), keepdim=True) / max(h * w - 1, 1)
    return (d / (4 * (v + e_lambda)) + 0.5).sigmoid()


def simam(x: Tensor, e_lambda=1e-4) -> Tensor:
    return x * gate(x, e_lambda)

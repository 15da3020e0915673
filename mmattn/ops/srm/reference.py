"""Style pooling and style integration as the paper writes them (arXiv 1903.10829)."""

from __future__ import annotations

import torch
from torch import Tensor


def srm(x: Tensor, cfc: Tensor, eps=1e-5) -> Tensor:
    h, w = x.shape[2:]
    mean = x.mean((2, 3))
    # the unbiased variance of a single pixel would be 0/0; it is taken as 0
    std = (x.var((2, 3), correction=int(h * w > 1)) + eps).sqrt()
    t = torch.stack([mean, std], 2)  # style features: (N, C, 2)
    return (cfc * t).sum(2)  # each channel's own weights: (N, C)

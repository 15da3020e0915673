"""What activation checkpoints of a block with BatchNorm need."""

from __future__ import annotations

from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


@contextmanager
def running_statistics_kept(module: nn.Module):
    """Takes back what a BatchNorm of ``module`` adds to its running statistics."""
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.training]
    kept = [(buffer, buffer.clone()) for norm in norms for buffer in norm.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in kept:
                buffer.copy_(value)

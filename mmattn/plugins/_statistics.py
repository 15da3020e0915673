"""What computing something of a module again needs: a BatchNorm that does not move twice."""

from __future__ import annotations

from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


@contextmanager
def running_statistics_kept(module: nn.Module):
    """Has a BatchNorm of ``module`` add to a copy of its running statistics."""
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.training]
    kept = [(norm, *pair) for norm in norms for pair in norm.named_buffers(recurse=False)]
    try:
        # not written back: a backward pass may wait that needs the buffers as they are
        for norm, name, buffer in kept:
            setattr(norm, name, buffer.clone())
        yield
    finally:
        for norm, name, buffer in kept:
            setattr(norm, name, buffer)

"""Which implementation of an operator runs, and what every operator asks of its input."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from contextlib import nullcontext

import torch
from torch import Tensor

BACKENDS = ("auto", "reference", "eager", "triton")


def _validated(name: str, source: str) -> str:
    if name not in BACKENDS:
        raise ValueError(f"{source} must be one of {', '.join(BACKENDS)}, got {name!r}")
    return name


# A plain global rather than a ContextVar: torch.compile can guard on it.
_current = _validated(os.environ.get("MMATTN_BACKEND", "auto"), "MMATTN_BACKEND")


class use_backend:  # noqa: N801  (a function to its caller, like torch.no_grad)
    """Chooses the implementation of every operator, for a block or for the process.

    ``use_backend('reference')`` holds from the call on; ``with use_backend('reference'):``
    restores the earlier choice at the end of the block. The process starts with the
    environment variable ``MMATTN_BACKEND``, or ``'auto'``.

    Args:
        name: ``'reference'``: the paper's equation in the input's own dtype, the oracle.
            ``'eager'``: PyTorch with statistics in float32 or better, any device.
            ``'triton'``: CUDA kernels, where an operator has them.
            ``'auto'``: the fastest that the input allows.

    Raises:
        ValueError: The name is none of these.
    """

    def __init__(self, name: str):
        global _current
        self._previous = _current
        _current = _validated(name, "backend")

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_) -> None:
        global _current
        _current = self._previous


def get_backend() -> str:
    """The name that :class:`use_backend` or ``MMATTN_BACKEND`` chose."""
    return _current


def select(op: str, implementations: Mapping[str, Callable]) -> Callable:
    """Returns the implementation of ``op`` that the current backend asks for."""
    name = "eager" if _current == "auto" else _current
    if name not in implementations:
        raise ValueError(
            f"mmattn.ops.{op} has no {name!r} implementation, only {', '.join(implementations)}; "
            "choose one of these or 'auto' with mmattn.ops.use_backend or MMATTN_BACKEND"
        )
    return implementations[name]


def check_map(op: str, x: Tensor, channels: int | None = None) -> None:
    """Raises unless ``x`` is a floating-point (N, C, H, W) feature map of that many channels."""
    if x.dim() != 4 or (channels is not None and x.shape[1] != channels):
        raise ValueError(
            f"{op} expects a feature map (N, {channels or 'C'}, H, W), got shape {tuple(x.shape)}"
        )
    if not x.is_floating_point():
        raise TypeError(f"{op} expects a floating-point feature map, got {x.dtype}; use x.float()")


def statistics_dtype(x: Tensor) -> torch.dtype:
    """Float32 for half precisions, whose sums overflow or lose digits; else the own dtype."""
    return torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else x.dtype


def without_autocast(function: Callable) -> Callable:
    """Keeps autocast from rounding the small matrix products on statistics to half precision."""

    @functools.wraps(function)
    def wrapped(x: Tensor, *args, **kwargs):
        device = x.device.type
        # the meta device knows no autocast, not even whether it is on
        autocast = device != "meta" and torch.is_autocast_enabled(device)
        with torch.autocast(device, enabled=False) if autocast else nullcontext():
            return function(x, *args, **kwargs)

    return wrapped


def scaled(gate: Tensor, gate_scale: Tensor | None) -> Tensor:
    """The gate over its neutral value, so that a neutral gate is exactly 1."""
    return gate if gate_scale is None else gate / gate_scale

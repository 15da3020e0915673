"""Which implementation of an operator runs, and what every operator asks of its input."""

from __future__ import annotations

import functools
import importlib
import logging
import os
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from types import ModuleType

import torch
from torch import Tensor

# Bytes of a map from which eager's own passes are faster than PyTorch's operators one by one, as
# measured on a CPU; below, what they cost beside the arithmetic outweighs what they save.
EAGER_FROM = 4 << 20
# Bytes of a map from which (operator, dtype) was measured faster in Triton than in eager, on CUDA.
# Empty: none was measured on a GPU yet, so 'auto' takes none.
TRITON_FROM: dict[tuple[str, torch.dtype], int] = {}

BACKENDS = ("auto", "reference", "eager", "triton")


def _validated(name: str, source: str) -> str:
    if name not in BACKENDS:
        raise ValueError(f"{source} must be one of {', '.join(BACKENDS)}, got {name!r}")
    return name


# A plain global rather than a ContextVar: torch.compile can guard on it.
_current = _validated(os.environ.get("MMATTN_BACKEND") or "auto", "MMATTN_BACKEND")


class use_backend:  # noqa: N801  (a function to its caller, like torch.no_grad)
    """Chooses the implementation of every operator, for a block or for the process.

    ``use_backend('reference')`` holds from the call on; ``with use_backend('reference'):``
    restores the earlier choice at the end of the block, and ``@use_backend('reference')`` is for
    the calls of one function. The process starts with the
    environment variable ``MMATTN_BACKEND``, or ``'auto'``. All threads share the choice. The
    backward pass of activation checkpointing, which computes again, belongs into the block.

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
        self._name, self._previous = _validated(name, "backend"), _current
        _current = name

    def __enter__(self) -> None:
        global _current
        _current = self._name

    def __exit__(self, *_) -> None:
        global _current
        _current = self._previous

    def __call__(self, function: Callable) -> Callable:
        """As a decorator: for the calls of ``function`` only."""
        self.__exit__()
        name = self._name

        @functools.wraps(function)
        def wrapped(*args, **kwargs):
            with use_backend(name):
                return function(*args, **kwargs)

        return wrapped


def get_backend() -> str:
    """The name that :class:`use_backend` or ``MMATTN_BACKEND`` chose."""
    return _current


def select(op: str, implementations: Mapping[str, Callable]) -> Callable:
    """Returns the implementation of ``op`` that the current backend asks for, or eager."""
    name = "eager" if _current == "auto" else _current
    if name not in implementations:
        _say_once(op, f"mmattn.ops.{op} has no {name} kernels; it takes 'eager'")
        name = "eager"
    return implementations[name]


def triton_runs(op: str, module: str | None, x: Tensor, forced: bool) -> bool:
    """Whether the Triton kernels of ``op`` can take ``x``; if they should and can't, says why."""
    if module is None:
        reason = "has no triton kernels"
    elif x.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        reason = f"has no triton kernels for {x.dtype}"
    else:
        reason = _why_not_triton(x.device.type, x.device.index or 0)
        if reason:  # of no operator in particular: one line for all of them
            _say_once(reason, f"mmattn.ops {reason}; it takes 'eager'")
            return False
    if reason and forced:
        _say_once(f"{op} {reason}", f"mmattn.ops.{op} {reason}; it takes 'eager'")
    return not reason


@torch.compiler.assume_constant_result
def _why_not_triton(device: str, index: int) -> str:
    """Why no kernel runs on a device; '' if one does."""
    # trying one waits for the device, which a graph that is being captured forbids
    tried = (device, index) in _TRIED
    if device == "cuda" and not tried and torch.cuda.is_current_stream_capturing():
        return "was not tried out before a CUDA graph was captured: call the operator once before"
    return _try_triton(device, index)  # a compiler would look into what is cached itself


_TRIED: set[tuple[str, int]] = set()


@functools.cache
def _try_triton(device: str, index: int) -> str:
    """The same, found out once by running one."""
    _TRIED.add((device, index))
    try:
        from mmattn.ops import _triton

        if device != "cuda" and not _triton.INTERPRETED:
            return f"has no triton kernels for maps on the {device}"
        _triton.try_out(torch.device(device, index) if device == "cuda" else torch.device(device))
    except torch.cuda.OutOfMemoryError:  # no reason for the next time
        raise
    except Exception as error:  # whatever a driver, a compiler or an installation has to say
        text = str(error).strip().partition("\n")[0]
        return f"cannot use triton here ({type(error).__name__}: {text})"
    return ""


@functools.cache
def triton_module(name: str) -> ModuleType:
    """The module with the kernels of an operator."""
    return importlib.import_module(name)


def is_exporting() -> bool:
    """Whether ``torch.jit.trace``, an ONNX exporter or ``torch.export`` looks at what runs."""
    # torch.compiler.is_exporting() says yes under torch.compile, too; torch 2.4 has neither
    exporting = getattr(torch.compiler, "_is_exporting_flag", False)
    return torch.jit.is_tracing() or torch.onnx.is_in_onnx_export() or exporting


def is_untransformed() -> bool:
    """Whether no transform of ``torch.func`` and no forward-mode AD is about."""
    return (
        torch._C._functorch.peek_interpreter_stack() is None
        and torch.autograd.forward_ad._current_level < 0
    )


_said: set[str] = set()


def _say_once(key: str, line: str) -> None:
    if torch.compiler.is_compiling() or key in _said:
        return
    _said.add(key)
    try:  # into the log of a training, where there is one
        from mmengine.logging import print_log
    except ImportError:
        logging.getLogger("mmattn").warning(line)
    else:
        print_log(line, logger="current", level=logging.WARNING)


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

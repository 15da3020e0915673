"""What the tests of the fused operators run over: random tensors and options for every one.

A new operator fails ``test_implementations.py`` until it has an entry here.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

import mmattn.ops  # noqa: F401  the operators register themselves
from mmattn.ops._operator import _OPERATORS, Operator
from tests.zoo import PLUGINS, scramble

OPERATORS: dict[str, Operator] = dict(_OPERATORS)


class Inputs(NamedTuple):
    """The arguments of one call, and a random gradient of what it returns."""

    x: Tensor
    tensors: tuple
    options: tuple
    dy: Tensor

    def to(self, *args, **kwargs) -> Inputs:
        """Every floating-point tensor converted, like ``Tensor.to``."""
        tensors = tuple(None if t is None else t.to(*args, **kwargs) for t in self.tensors)
        return Inputs(
            self.x.to(*args, **kwargs), tensors, self.options, self.dy.to(*args, **kwargs)
        )


Draw = Callable[..., Tensor]


def _linear(draw: Draw, rows: int, columns: int, *kernel: int) -> tuple[Tensor, Tensor]:
    return draw(rows, columns, *kernel) / columns**0.5, draw(rows)


def _hidden(c: int) -> int:
    return c // 4 + 1


def _se(bias: bool = True, gate_scale=None):
    def build(draw: Draw, c: int):
        (w1, b1), (w2, b2) = _linear(draw, _hidden(c), c), _linear(draw, c, _hidden(c))
        return (w1, b1 if bias else None, w2, b2 if bias else None, _scale(gate_scale)), ()

    return build


def _sge(groups: int = 4, normalize: bool = True, gate_scale=None):
    def build(draw: Draw, c: int):
        tensors = draw(1, groups, 1, 1), draw(1, groups, 1, 1), _scale(gate_scale)
        return tensors, (groups, 1e-5, normalize)

    return build


def _gct(norm: str = "l2", after_relu: bool = False, gate: str = "1+tanh", gate_scale=None):
    def build(draw: Draw, c: int):
        tensors = *(draw(1, c, 1, 1) for _ in range(3)), _scale(gate_scale)
        return tensors, (1e-5, norm, after_relu, gate)

    return build


def _gc(fusion: tuple = ("add",), pooling: str = "att", kernel: tuple = (), gate_scale=None):
    def build(draw: Draw, c: int):
        p = _hidden(c)
        mask = (draw(1, c, 1, 1) / c**0.5, draw(1)) if pooling == "att" else (None, None)
        tensors = [*mask]
        for part in ("add", "mul"):
            (w1, b1), (w2, b2) = _linear(draw, p, c, *kernel), _linear(draw, c, p, *kernel)
            norm = draw(p, *kernel), draw(p, *kernel)
            tensors += (w1, b1, *norm, w2, b2) if part in fusion else (None,) * 6
        return (*tensors, _scale(gate_scale)), ()

    return build


def _scale(value: float | None) -> Tensor | None:
    return None if value is None else torch.tensor(value, dtype=torch.float64)


# operator: {variant: builder}; the first is the one for what needs no other
VARIANTS: dict[str, dict[str, Callable]] = {
    "se": {
        "bias": _se(),
        "no bias, gate scale": _se(bias=False, gate_scale=0.5),
    },
    "sge": {
        "4 groups": _sge(),
        "1 group, gate scale": _sge(groups=1, gate_scale=0.5),
        "not normalized": _sge(normalize=False),
        "2 groups, not normalized, gate scale": _sge(2, normalize=False, gate_scale=0.5),
    },
    # its channel gate; with both gates it is MODULES' last
    "cbam": {
        "bias": _se(),
        "no bias, gate scale": _se(bias=False, gate_scale=0.5),
    },
    "gct": {
        "l2": _gct(),
        "l1": _gct("l1"),
        "l1 after relu": _gct("l1", after_relu=True),
        "l2, sigmoid, gate scale": _gct(gate="sigmoid", gate_scale=0.5),
        "l1, 1+elu": _gct("l1", gate="1+elu"),
    },
    "gc": {
        "add": _gc(),
        "mul, 1x1 kernels": _gc(("mul",), kernel=(1, 1)),
        "add, mul, gate scale": _gc(("add", "mul"), gate_scale=0.5),
        "add, mean, 1x1 kernels": _gc(pooling="avg", kernel=(1, 1)),
        "mul, mean, gate scale": _gc(("mul",), "avg", gate_scale=0.5),
    },
}
# inputs that the operator is told are not negative
POSITIVE = {("gct", "l1 after relu")}

CASES = [(name, variant) for name in OPERATORS for variant in VARIANTS.get(name, ())]
FIRST = [(name, next(iter(VARIANTS[name]))) for name in OPERATORS if VARIANTS.get(name)]
every_case = pytest.mark.parametrize(("name", "variant"), CASES, ids=[": ".join(c) for c in CASES])
every_operator = pytest.mark.parametrize(
    ("name", "variant"), FIRST, ids=[name for name, _ in FIRST]
)


def draw_inputs(name: str, variant: str, shape: tuple, dtype=torch.float64, seed=0) -> Inputs:
    """Random values, the same in every dtype up to its rounding."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64)

    tensors, options = VARIANTS[name][variant](draw, shape[1])
    x, dy = draw(*shape), draw(*shape)
    x = x.abs() if (name, variant) in POSITIVE else x
    return Inputs(x, tensors, options, dy).to(dtype)


def run(function: Callable, inputs: Inputs, wanted: Callable[[int], bool] = lambda i: True):
    """Returns y and the gradients of x and of each tensor, None for what is not a parameter.

    Args:
        function: ``f(x, tensors, options)``.
        inputs: Its arguments.
        wanted: Which of (x, \\*tensors) ask for a gradient, by position. Scalars are buffers.
    """
    leaves = [
        t if t is None else t.detach().requires_grad_(bool(t.dim()) and wanted(i))
        for i, t in enumerate((inputs.x, *inputs.tensors))
    ]
    y = function(leaves[0], tuple(leaves[1:]), inputs.options)
    if y.requires_grad:
        y.backward(inputs.dy)
    return y.detach(), *(None if t is None else t.grad for t in leaves)


def reference(name: str, inputs: Inputs):
    """What :func:`run` returns for the equation in float64."""
    operator = OPERATORS[name]
    # not .to(): a layout does not matter to the equation, an expanded dy would to .to()
    return run(
        lambda x, tensors, options: operator.reference(x, *tensors, *options),
        inputs.to(torch.float64),
    )


class Layer(torch.nn.Module):
    """An operator with its tensors as parameters, and scalars as buffers."""

    def __init__(self, name: str, inputs: Inputs):
        super().__init__()
        self.name, self.options = name, inputs.options
        for i, t in enumerate(inputs.tensors):
            t = None if t is None else t.detach().clone()
            if t is None or t.dim():
                t = None if t is None else torch.nn.Parameter(t)
                self.register_parameter(f"tensor{i}", t)
            else:
                self.register_buffer(f"tensor{i}", t)
        self.num_tensors = len(inputs.tensors)

    def forward(self, x: Tensor) -> Tensor:
        tensors = tuple(getattr(self, f"tensor{i}") for i in range(self.num_tensors))
        return OPERATORS[self.name](x, tensors, self.options)


def build_module(name: str, variant: str) -> torch.nn.Module:
    """Computes an operator of 8 channels in float64, with its tensors as parameters."""
    if name not in OPERATORS:
        torch.manual_seed(0)
        norm = dict(type="GN", num_groups=1)
        module = PLUGINS[name](in_channels=8, ratio=2, kernel_size=3, norm_cfg=norm)
        return scramble(module.double())
    return Layer(name, draw_inputs(name, variant, (1, 8, 1, 1)))


MODULES = [*CASES, ("CBAM", "both gates")]
every_module = pytest.mark.parametrize(
    ("name", "variant"), MODULES, ids=[": ".join(c) for c in MODULES]
)
FIRST_MODULES = [*FIRST, MODULES[-1]]
every_first_module = pytest.mark.parametrize(
    ("name", "variant"), FIRST_MODULES, ids=[name for name, _ in FIRST_MODULES]
)


def why_no_kernels(name: str) -> str:
    """Why the Triton kernels of an operator do not run here; '' if they do."""
    module = OPERATORS[name].triton
    if module is None or importlib.util.find_spec(module) is None:
        return f"{name} has no Triton kernels"
    if importlib.util.find_spec("triton") is None:
        return "needs Triton"
    import numpy as np
    import triton
    from packaging.version import Version

    from mmattn.ops import _triton

    old = Version(triton.__version__) < Version("3.2")
    if _triton.INTERPRETED and old and Version(np.__version__) >= Version("2"):
        return "Triton's interpreter stores nothing before 3.2 with NumPy 2"
    if not _triton.INTERPRETED and not torch.cuda.is_available():
        return "needs a CUDA device, or TRITON_INTERPRET=1 before triton is imported"
    return ""

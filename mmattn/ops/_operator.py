"""One operator, its implementations, and how autograd, compilers and transforms see it."""

from __future__ import annotations

import ast
import functools
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor
from torch.nn import Parameter

from mmattn.ops import _backend

# forward(x, tensors, options) -> y and small tensors that the backward pass needs beside x
Forward = Callable[[Tensor, tuple, tuple], tuple[Tensor, tuple[Tensor, ...]]]
# backward(dy, x, tensors, saved, options, needs) -> the gradients of x and of each of tensors
Backward = Callable[[Tensor, Tensor, tuple, tuple, tuple, tuple], tuple[Tensor | None, ...]]

_ORDINARY = (
    (Tensor, Parameter, torch.nn.Buffer)
    if hasattr(torch.nn, "Buffer")
    else (
        Tensor,
        Parameter,
    )
)


@dataclass(frozen=True, eq=False)
class Operator:
    """A map (N, C, H, W) -> (N, C, H, W) with small parameters, and who computes it.

    Args:
        name: In messages and of the custom operators.
        reference: ``f(x, *tensors, *options)``, the paper's equation in the dtype of ``x``.
        plain: The same in PyTorch's own operators with statistics in float32 or better. What
            transforms, exporters and compilers see, and what a gradient of a gradient goes through.
        eager: A module with ``forward`` and ``backward`` for any device: two passes that save
            ``x`` and small statistics only.
        triton: The name of a module with the same two, as kernels; imported when it is needed.
    """

    name: str
    reference: Callable[..., Tensor]
    plain: Callable[..., Tensor]
    eager: ModuleType
    triton: str | None = None

    def __post_init__(self):
        _OPERATORS[self.name] = self
        if self.triton is not None:
            _register_custom_ops(self.name)

    def __call__(self, x: Tensor, tensors: tuple, options: tuple = ()) -> Tensor:
        """Computes the operator.

        Args:
            x: (N, C, H, W).
            tensors: Parameters and buffers, some of them None; the last divides the gate.
            options: Numbers, strings and bools.
        """
        implementation = self.implementation(x, tensors)
        if tensors[-1] is not None and tensors[-1].requires_grad and implementation != "reference":
            implementation = "plain"  # no backward pass of ours has a gradient for the gate's scale
        if implementation == "reference":
            return self.reference(x, *tensors, *options)
        if implementation == "plain":
            return self.plain(x, *tensors, *options)
        if wants_gradient(x, tensors):
            return _Fused.apply(self, implementation, options, x, *tensors)
        return self.forward(implementation, x, tensors, options)[0]

    def implementation(self, x: Tensor, tensors: tuple = ()) -> str:
        """``'reference'``, ``'plain'``, ``'eager'`` or ``'triton'``: who computes this input."""
        backend = _backend.get_backend()
        if backend == "reference":
            return "reference"
        compiling = torch.compiler.is_compiling()
        # torch.export compiles, too, but what it writes is to run where mmattn is not
        if _backend.is_exporting() or not (compiling or is_ordinary(x, tensors)):
            return "plain"
        if x.is_meta and backend == "triton":
            backend = "eager"
        if backend != "eager" and self._takes_triton(x, backend == "triton"):
            return "triton"
        # a compiler fuses the plain operators itself
        if (
            compiling
            or x.nbytes < _backend.EAGER_FROM
            or (x.is_meta and not wants_gradient(x, tensors))
        ):
            return "plain"
        return "eager"

    def _takes_triton(self, x: Tensor, forced: bool) -> bool:
        if not forced and (
            not x.is_cuda or x.nbytes < _backend.TRITON_FROM.get((self.name, x.dtype), float("inf"))
        ):
            return False
        return _backend.triton_runs(self.name, self.triton, x, forced)

    def forward(self, implementation: str, x: Tensor, tensors: tuple, options: tuple):
        """Returns y and what the backward pass needs beside x; nothing is differentiable."""
        if implementation == "triton" and torch.compiler.is_compiling():
            operator = getattr(torch.ops.mmattn, f"{self.name}_forward")
            y, *saved = operator(x, list(tensors), repr(options))
            return y, tuple(saved)
        return self._module(implementation).forward(x, tensors, options)

    def backward(self, implementation, dy, x, tensors, saved, options, needs):
        """Returns the gradients of x and of each tensor, None where ``needs`` says False."""
        if implementation == "triton" and torch.compiler.is_compiling():
            operator = getattr(torch.ops.mmattn, f"{self.name}_backward")
            found = iter(operator(dy, x, list(tensors), list(saved), repr(options), list(needs)))
            return tuple(next(found) if need else None for need in needs)
        gradients = self._module(implementation).backward(dy, x, tensors, saved, options, needs)
        return tuple(
            g.reshape(t.shape).to(t.dtype) if need else None
            for g, t, need in zip(gradients, (x, *tensors), needs, strict=True)
        )

    def _module(self, implementation: str) -> ModuleType:
        return _backend.triton_module(self.triton) if implementation == "triton" else self.eager


_OPERATORS: dict[str, Operator] = {}


class _Fused(torch.autograd.Function):
    """The operator as one node, which keeps ``x`` and small statistics."""

    @staticmethod
    def forward(ctx, operator, implementation, options, x, *tensors):
        y, saved = operator.forward(implementation, x, tensors, options)
        ctx.operator, ctx.implementation, ctx.options = operator, implementation, options
        ctx.num_tensors = len(tensors)
        ctx.save_for_backward(x, *tensors, *saved)
        return y

    @staticmethod
    def backward(ctx, dy):
        x, *rest = ctx.saved_tensors
        tensors, saved = tuple(rest[: ctx.num_tensors]), tuple(rest[ctx.num_tensors :])
        needs = tuple(ctx.needs_input_grad[3:])
        if needs_plain_backward(dy):
            gradients = plain_gradients(
                lambda *inputs: ctx.operator.plain(*inputs, *ctx.options), (x, *tensors), dy, needs
            )
        else:
            gradients = ctx.operator.backward(
                ctx.implementation, dy, x, tensors, saved, ctx.options, needs
            )
        return None, None, None, *gradients


def needs_plain_backward(dy: Tensor) -> bool:
    """Whether PyTorch alone can do it: a gradient to differentiate, or a batch of them."""
    if torch.compiler.is_compiling():
        return False
    return (
        torch.is_grad_enabled()  # create_graph=True
        or torch._C._functorch.is_legacy_batchedtensor(dy)  # is_grads_batched=True
        or torch._C._functorch.peek_interpreter_stack() is not None
    )


def plain_gradients(plain: Callable, inputs: tuple, dy: Tensor, needs: tuple) -> list:
    """The gradients through ``plain(*inputs)``, to be differentiated where that is asked."""
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        y = plain(*inputs)
    wanted = [t for t, need in zip(inputs, needs, strict=True) if need]
    found = torch.autograd.grad(y, wanted, dy, create_graph=create_graph, materialize_grads=True)
    found = iter(found)
    return [next(found) if need else None for need in needs]


def pullback(function: Callable, inputs: tuple, cotangents: tuple) -> list[Tensor | None]:
    """Gradients of a small function, computed anew, to each of its inputs that is not None.

    Args:
        function: ``f(*inputs)``, differentiable, returning a tensor or a tuple of them, some None.
        inputs: Tensors and None.
        cotangents: The gradient of each output; None where the output is.
    """
    with torch.enable_grad():
        leaves = [None if t is None else t.detach().requires_grad_() for t in inputs]
        outputs = function(*leaves)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    pairs = [(y, dy) for y, dy in zip(outputs, cotangents, strict=True) if y is not None]
    found = iter(
        torch.autograd.grad(
            [y for y, _ in pairs],
            [t for t in leaves if t is not None],
            [dy for _, dy in pairs],
            materialize_grads=True,
        )
    )
    return [None if t is None else next(found) for t in leaves]


def wants_gradient(x: Tensor, tensors: tuple) -> bool:
    """Whether autograd will ask for a gradient of x or of any tensor."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, *tensors))


def is_ordinary(x: Tensor, tensors: tuple) -> bool:
    """Whether plain tensors meet plain autograd: no tracer, transform, mode or subclass."""
    return not (
        _backend.is_exporting()
        or not _backend.is_untransformed()
        or torch._C._len_torch_dispatch_stack() > 0  # one that counts operators, say
        or any(t is not None and type(t) not in _ORDINARY for t in (x, *tensors))
    )


# what a compiler sees of the kernels -------------------------------------------------------------


def _register_custom_ops(name: str) -> None:
    """Registers ``mmattn::{name}_forward`` and ``_backward``, opaque to compilers."""

    def forward(x, tensors, options):
        y, saved = _module_of(name).forward(x, tuple(tensors), _parsed(options))
        return [y, *saved]

    def backward(dy, x, tensors, saved, options, needs):
        found = _module_of(name).backward(
            dy, x, tuple(tensors), tuple(saved), _parsed(options), tuple(needs)
        )
        gradients = [
            g.reshape(t.shape).to(t.dtype)
            for g, t, need in zip(found, (x, *tensors), needs, strict=True)
            if need
        ]
        # results of a custom operator share no memory; small ones may be parts of one buffer
        return [g if i == 0 and needs[0] else g.clone() for i, g in enumerate(gradients)]

    for part, function, schema in (
        ("forward", forward, "(Tensor x, Tensor?[] tensors, str options) -> Tensor[]"),
        (
            "backward",
            backward,
            "(Tensor dy, Tensor x, Tensor?[] tensors, Tensor[] saved, str options, bool[] needs)"
            " -> Tensor[]",
        ),
    ):
        operator = torch.library.custom_op(
            f"mmattn::{name}_{part}", function, mutates_args=(), schema=schema
        )
        # on tensors without memory the same function allocates, and launches nothing
        operator.register_fake(function)


def _module_of(name: str) -> ModuleType:
    return _backend.triton_module(_OPERATORS[name].triton)


@functools.lru_cache(maxsize=256)
def _parsed(options: str) -> tuple:
    return ast.literal_eval(options)

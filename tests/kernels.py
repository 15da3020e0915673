"""What the tests of the fused operators' Triton kernels share."""

from __future__ import annotations

import pytest
import torch

from mmattn.ops import use_backend
from tests.operators import OPERATORS, Inputs, draw_inputs, reference, run
from tests.zoo import assert_close

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
SHAPES = {
    "odd": (2, 6, 5, 7),
    "many channels": (1, 70, 3, 4),
    "long rows": (2, 3, 13, 25),
    "one pixel": (3, 5, 1, 1),
    "one channel": (2, 1, 4, 4),
    "no sample": (0, 6, 4, 5),
}
LAYOUTS = {
    "contiguous": lambda x: x.contiguous(),
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "sliced": lambda x: torch.nn.functional.pad(x, (1, 0, 2, 1), value=torch.nan)[..., 2:-1, 1:],
    "permuted": lambda x: x.permute(3, 0, 2, 1).contiguous().permute(1, 3, 2, 0),
}


def fill_with_nan(monkeypatch) -> None:
    """Memory that a kernel was to write and did not shows."""

    def filled(allocate):
        def allocate_filled(*args, **kwargs):
            t = allocate(*args, **kwargs)
            return t.fill_(float("nan")) if t.is_floating_point() and not t.is_meta else t

        return allocate_filled

    for owner, name in (
        (torch, "empty"),
        (torch, "empty_like"),
        (torch.Tensor, "new_empty"),
    ):
        monkeypatch.setattr(owner, name, filled(getattr(owner, name)))


def draw(name: str, variant: str, shape: tuple, dtype=torch.float32) -> Inputs:
    """Random inputs where the kernels run; parameters in float32, as amp has them."""
    inputs = draw_inputs(name, variant, shape).to(torch.float32).to(DEVICE)
    return inputs._replace(x=inputs.x.to(dtype), dy=inputs.dy.to(dtype))


def kernels(name: str, inputs: Inputs, wanted=lambda i: True):
    """The output and all gradients of the kernels, which did run."""
    with use_backend("triton"):
        assert OPERATORS[name].implementation(inputs.x, inputs.tensors) == "triton"
        return run(OPERATORS[name], inputs, wanted)


def compare(actual, expected, dtype: torch.dtype, what: str = "") -> None:
    """Of y, dx and the gradient of each tensor, which is a sum over the map and in float32."""
    assert actual[0].dtype == dtype, what
    for i, (a, b) in enumerate(zip(actual, expected, strict=True)):
        assert (a is None) == (b is None), f"{what}: {i}"
        if a is not None:
            tolerance = TOLERANCE[dtype] if i < 2 else 4 * TOLERANCE[torch.float32]
            assert_close(a.cpu(), b.cpu(), tolerance, f"{what}: {i}")


def check(name: str, inputs: Inputs, what: str = ""):
    """Compares with the equation in float64; returns what the kernels gave."""
    found = kernels(name, inputs)
    compare(found, reference(name, inputs), inputs.x.dtype, what)
    return found


def same(a, b) -> bool:
    """Whether two lists of tensors and None are equal to the bit."""
    return all(
        (p is None) == (q is None) and (p is None or torch.equal(p, q))
        for p, q in zip(a, b, strict=True)
    )


# what holds for every operator: a test of each calls them ----------------------------------------


def check_values(name: str, variant: str, dtype: torch.dtype, shapes=tuple(SHAPES)) -> None:
    formats = dict(contiguous=torch.contiguous_format, channels_last=torch.channels_last)
    for what in shapes:
        inputs = draw(name, variant, SHAPES[what], dtype)
        for layout, memory_format in formats.items():
            x, dy = LAYOUTS[layout](inputs.x), LAYOUTS[layout](inputs.dy)
            arranged = inputs._replace(x=x, dy=dy)
            found = check(name, arranged, f"{what}, {layout}")
            for t in found[:2]:
                assert t.is_contiguous(memory_format=memory_format), f"{what}, {layout}"


def check_layouts(name: str, variant: str, dtype: torch.dtype) -> None:
    inputs = draw(name, variant, (2, 6, 5, 7), dtype)
    expected = reference(name, inputs)
    pairs = [(layout, other) for layout in LAYOUTS for other in ("contiguous", "channels_last")]
    for of_x, of_dy in [*pairs, ("channels_last", "sliced"), ("contiguous", "permuted")]:
        arranged = inputs._replace(x=LAYOUTS[of_x](inputs.x), dy=LAYOUTS[of_dy](inputs.dy))
        compare(kernels(name, arranged), expected, dtype, f"x {of_x}, dy {of_dy}")
    expanded = inputs._replace(dy=inputs.dy[:1, :1, :1, :1].expand_as(inputs.x))  # of sum()
    check(name, expanded, "expanded")


def check_repeats(name: str, variant: str, dtype: torch.dtype) -> None:
    """Bit for bit, with no input changed."""
    for layout in ("contiguous", "channels_last"):
        inputs = draw(name, variant, (2, 3, 9, 11), dtype)
        inputs = inputs._replace(x=LAYOUTS[layout](inputs.x))
        everything = inputs.x, inputs.dy, *inputs.tensors
        before = [None if t is None else t.clone() for t in everything]
        first = kernels(name, inputs)
        assert same(kernels(name, inputs), first)
        assert same(everything, before)
        with use_backend("triton"), torch.no_grad():
            assert torch.equal(OPERATORS[name](*inputs[:3]), first[0])


def check_needs(name: str, variant: str) -> None:
    """A gradient for what asks, the same as when everything asks."""
    inputs = draw(name, variant, (2, 6, 5, 7))
    everything = kernels(name, inputs)
    learned = [i for i, g in enumerate(everything[1:]) if g is not None]
    for subset in (set(), {0}, set(learned) - {0}, *({i} for i in learned[1:])):
        found = kernels(name, inputs, subset.__contains__)
        wanted = [g if i in subset else None for i, g in enumerate(everything[1:])]
        assert same(found, [everything[0], *wanted]), subset


def launched(monkeypatch, name: str, inputs: Inputs, needs: tuple) -> tuple[int, int]:
    """Kernels that the forward and the backward pass launch."""
    from mmattn.ops import _backend, _triton

    count, launch = [0], _triton.launch

    def counted(*args, **kwargs):
        count[0] += 1
        launch(*args, **kwargs)

    monkeypatch.setattr(_triton, "launch", counted)
    module = _backend.triton_module(OPERATORS[name].triton)
    _, saved = module.forward(*inputs[:3])
    forward, count[0] = count[0], 0
    dx, *_ = module.backward(inputs.dy, *inputs[:2], saved, inputs.options, needs)
    assert (dx is not None) == needs[0]
    return forward, count[0]


def check_compiled(monkeypatch, name: str, variant: str) -> None:
    """One graph with the kernels in it, for maps of any size, and the same bits."""
    from mmattn.ops import _backend
    from tests.operators import Layer

    # found out beforehand: an interpreted kernel is nothing that a compiler can trace
    monkeypatch.setattr(_backend, "triton_runs", lambda *_: True)
    torch._dynamo.reset()
    layer = Layer(name, draw(name, variant, (2, 6, 5, 7)))

    def learned(call, inputs):
        x = inputs.x.clone().requires_grad_()
        layer.zero_grad()
        y = call(x)
        y.backward(inputs.dy)
        return [y.detach(), x.grad, *(p.grad.clone() for p in layer.parameters())]

    with use_backend("triton"):
        compiled = torch.compile(layer, backend="aot_eager", fullgraph=True, dynamic=True)
        for shape in ((2, 6, 5, 7), (3, 6, 4, 9)):
            inputs = draw(name, variant, shape)
            assert same(learned(compiled, inputs), learned(layer, inputs))


def small_tiles(monkeypatch, tile: int = 256) -> None:
    """Makes of a small map several tiles, parts and steps of each."""
    from mmattn.ops import _channel_passes

    monkeypatch.setattr(_channel_passes, "_TILE", tile)


def needs_kernels(name: str):
    """Marks a test file that runs kernels."""
    from tests.operators import why_no_kernels

    reason = why_no_kernels(name)
    return pytest.mark.skipif(bool(reason), reason=reason)

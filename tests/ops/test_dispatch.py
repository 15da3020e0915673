"""Who computes a fused operator, and that everything PyTorch does with operators still works."""

import copy
import functools
import importlib
import io
import os
import pickle
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

import mmattn.ops
from mmattn.ops import _backend, use_backend
from mmattn.ops._operator import Operator
from tests.operators import (
    FIRST,
    FIRST_MODULES,
    MODULES,
    OPERATORS,
    build_module,
    draw_inputs,
    every_first_module,
    every_module,
    every_operator,
    run,
    why_no_kernels,
)
from tests.zoo import assert_close

C = 8
SHAPE = (2, C, 3, 5)
OTHER = (3, C, 4, 2)


@pytest.fixture(params=["eager"])
def backend(request, monkeypatch):
    """Forces an implementation; 'triton' runs in its interpreter where there is no GPU."""
    name = request.node.callspec.params["name"]
    if request.param == "triton":
        reason = why_no_kernels(name) if name in OPERATORS else f"{name} is not one operator"
        if reason:
            pytest.skip(reason)
    monkeypatch.setattr(_backend, "EAGER_FROM", 0)
    with use_backend(request.param):
        yield request.param


every_backend = pytest.mark.parametrize("backend", ["eager", "triton"], indirect=True)
# the interpreter is slow: of kernels one variant
_ALL = [("eager", *m) for m in MODULES] + [("triton", *m) for m in FIRST]
every_module_and_backend = pytest.mark.parametrize(
    ("backend", "name", "variant"), _ALL, ids=[": ".join(c) for c in _ALL], indirect=["backend"]
)
DTYPES = {"eager": torch.float64, "triton": torch.float32}
TOLERANCE = {torch.float64: 1e-11, torch.float32: 2e-5}


def make(name, variant, dtype=torch.float64):
    return build_module(name, variant).to(dtype)


def draw(*shape, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    # GCT's 'after_relu' is told that nothing is negative
    return torch.rand(shape, generator=generator, dtype=torch.float64).to(dtype) + 0.1


def learned(module, x, dy, call=None):
    """The output, and the gradients of x and of every parameter."""
    x = x.detach().clone().requires_grad_()
    module.zero_grad()
    y = (module if call is None else call)(x)
    y.backward(dy)
    return [y.detach(), x.grad, *(p.grad for p in module.parameters())]


def expected(module, x, dy, call=None):
    """The same by the equations in float64."""
    with use_backend("reference"):
        module = copy.deepcopy(module).double()
        return learned(
            module,
            x.double(),
            dy.double(),
            None if call is None else functools.partial(call, module),
        )


def agree(found, wanted, tolerance, what=""):
    for i, (a, b) in enumerate(zip(found, wanted, strict=True)):
        assert_close(a, b, tolerance * (1 if i == 0 else 4), f"{what} {i}")


def as_function(module):
    """``f(x, *parameters)`` and the parameters."""
    names = [name for name, _ in module.named_parameters()]

    def function(x, *parameters):
        return functional_call(module, dict(zip(names, parameters, strict=True)), (x,))

    return function, tuple(p.detach() for p in module.parameters())


@pytest.fixture
def ran(monkeypatch):
    """What of an implementation ran, in order."""
    calls = []

    def note(part, function):
        @functools.wraps(function)
        def noted(*args):
            calls.append(part)
            return function(*args)

        return noted

    for operator in OPERATORS.values():
        for part in ("forward", "backward"):
            function = getattr(operator.eager, part)
            monkeypatch.setattr(operator.eager, part, note(f"eager {part}", function))
        for who in ("plain", "reference"):
            function = note(who, getattr(operator, who))
            monkeypatch.setitem(operator.__dict__, who, function)
    return calls


# who computes ------------------------------------------------------------------------------------


@every_operator
def test_auto_goes_by_size(name, variant, ran):
    operator = OPERATORS[name]
    with use_backend("auto"):
        for rows, who in ((1, ["plain"]), (_backend.EAGER_FROM // (C * 16 * 4), ["eager"])):
            inputs = draw_inputs(name, variant, (1, C, rows, 16), torch.float32)
            if inputs.x.is_cuda:
                pytest.skip("measured on a CPU")
            assert [operator.implementation(inputs.x, inputs.tensors)] == who
            run(operator, inputs)
            assert ran == (who if who == ["plain"] else ["eager forward", "eager backward"])
            ran.clear()


@every_operator
def test_a_forced_backend_holds(name, variant, ran):
    inputs = draw_inputs(name, variant, SHAPE, torch.float32)
    with use_backend("reference"):
        run(OPERATORS[name], inputs)
        assert ran == ["reference"]
    ran.clear()
    with use_backend("eager"), torch.no_grad():
        OPERATORS[name](*inputs[:3])
        assert set(ran) <= {"eager forward", "plain"}


@every_operator
def test_thresholds_decide_on_cuda(name, variant, monkeypatch):
    operator = OPERATORS[name]
    monkeypatch.setattr(_backend, "triton_runs", lambda op, module, x, forced: True)

    def takes(dtype, nbytes, is_cuda=True, forced=False):
        x = SimpleNamespace(dtype=dtype, nbytes=nbytes, is_cuda=is_cuda)
        return operator._takes_triton(x, forced)

    assert not takes(torch.float16, 1 << 40) or (name, torch.float16) in _backend.TRITON_FROM
    monkeypatch.setattr(_backend, "TRITON_FROM", {(name, torch.float16): 1000})
    assert takes(torch.float16, 1000)
    assert not takes(torch.float16, 999)
    assert not takes(torch.float32, 1 << 40)
    assert not takes(torch.float16, 1 << 40, is_cuda=False)
    assert takes(torch.float32, 1, forced=True)


@every_operator
def test_a_threshold_of_another_operator_does_not_count(name, variant, monkeypatch):
    monkeypatch.setattr(_backend, "TRITON_FROM", {("another", torch.float32): 0})
    x = SimpleNamespace(dtype=torch.float32, nbytes=1 << 40, is_cuda=True)
    assert not OPERATORS[name]._takes_triton(x, False)


def test_auto_on_a_cpu_never_imports_triton():
    code = """
import os, sys, torch
from mmattn.ops._operator import _OPERATORS
import mmattn.ops
before = "triton" in sys.modules  # PyTorch itself may
assert mmattn.ops.get_backend() == os.environ["MMATTN_BACKEND"]
x = torch.randn(2, 16, 64, 64, requires_grad=True)
mmattn.ops.sge(x, torch.ones(1, 4, 1, 1), torch.ones(1, 4, 1, 1), 4).sum().backward()
ones = torch.ones(1, 16, 1, 1)
mmattn.ops.gct(x, ones, ones, ones).sum().backward()
ours = [m for m in sys.modules if m.startswith("mmattn") and "triton" in m]
print(before or "triton" not in sys.modules, ours)
"""
    environment = {**os.environ, "MMATTN_BACKEND": "auto"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment
    )
    assert done.stdout.strip() == "True []", done.stderr


# what stands in the way of triton ----------------------------------------------------------------


@pytest.fixture
def said(monkeypatch):
    """The lines for the log, of a process that has said and found out nothing yet."""
    lines = []
    logging = pytest.importorskip("mmengine.logging")
    monkeypatch.setattr(logging, "print_log", lambda line, **_: lines.append(line))
    monkeypatch.setattr(_backend, "_said", set())
    monkeypatch.setattr(_backend, "EAGER_FROM", 0)
    _backend._try_triton.cache_clear()
    yield lines
    _backend._try_triton.cache_clear()


def falls_back(name, variant, ran, said, expected_line, dtype=torch.float32):
    inputs = draw_inputs(name, variant, SHAPE, dtype)
    with use_backend("eager"):
        wanted = run(OPERATORS[name], inputs)
    ran.clear()
    with use_backend("triton"):
        for _ in range(3):
            found = run(OPERATORS[name], inputs)
            assert ran == ["eager forward", "eager backward"]
            ran.clear()
            for a, b in zip(found, wanted, strict=True):
                assert (a is None and b is None) or torch.equal(a, b)
    assert len(said) == 1, said
    if OPERATORS[name].triton is None:
        expected_line = f"mmattn.ops.{name} has no triton kernels; it takes 'eager'"
    for part in expected_line.split("..."):
        assert part in said[0]


def forget(monkeypatch):
    monkeypatch.delitem(sys.modules, "mmattn.ops._triton", raising=False)
    monkeypatch.delattr(mmattn.ops, "_triton", raising=False)


@every_operator
def test_without_triton(name, variant, ran, said, monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    forget(monkeypatch)
    line = "mmattn.ops cannot use triton here (ModuleNotFoundError: ...triton...); it takes 'eager'"
    falls_back(name, variant, ran, said, line)


@every_operator
def test_with_a_broken_triton(name, variant, ran, said, monkeypatch):
    _triton = pytest.importorskip("mmattn.ops._triton")

    def broken(device):
        raise RuntimeError("no C compiler\nand much more about it")

    monkeypatch.setattr(_triton, "INTERPRETED", True)
    monkeypatch.setattr(_triton, "try_out", broken)
    line = "mmattn.ops cannot use triton here (RuntimeError: no C compiler); it takes 'eager'"
    falls_back(name, variant, ran, said, line)


@every_operator
def test_a_triton_that_breaks_when_imported(name, variant, ran, said, monkeypatch, tmp_path):
    """An installation for another Python or driver raises anything."""
    (tmp_path / "triton.py").write_text("raise OSError('libcuda.so: cannot open')")
    monkeypatch.syspath_prepend(tmp_path)
    for module in [m for m in sys.modules if m == "triton" or m.startswith("triton.")]:
        monkeypatch.delitem(sys.modules, module)
    forget(monkeypatch)
    falls_back(name, variant, ran, said, "(OSError: libcuda.so: cannot open); it takes 'eager'")


@every_operator
def test_on_a_cpu_without_the_interpreter(name, variant, ran, said, monkeypatch):
    _triton = pytest.importorskip("mmattn.ops._triton")
    monkeypatch.setattr(_triton, "INTERPRETED", False)
    falls_back(name, variant, ran, said, "mmattn.ops has no triton kernels for maps on the cpu; it")


@every_operator
def test_in_float64(name, variant, ran, said):
    line = f"mmattn.ops.{name} has no triton kernels for torch.float64; it takes 'eager'"
    falls_back(name, variant, ran, said, line, torch.float64)


def test_several_operators_say_a_common_reason_once(said, monkeypatch):
    """A detector of fifty blocks of several kinds has one line to say that Triton is broken."""
    _triton = pytest.importorskip("mmattn.ops._triton")
    monkeypatch.setattr(_triton, "INTERPRETED", True)
    monkeypatch.setattr(_triton, "try_out", lambda device: 1 / 0)
    x = torch.randn(SHAPE)
    with use_backend("triton"):
        for _ in range(2):
            for op in ("one", "another"):
                assert not _backend.triton_runs(op, "some.module", x, True)
    assert said == [
        "mmattn.ops cannot use triton here (ZeroDivisionError: division by zero); it takes 'eager'"
    ]


def test_auto_says_nothing(said):
    assert not _backend.triton_runs("some", None, torch.randn(SHAPE), False)
    assert not said


def test_a_process_with_triton_and_an_operator_without_kernels():
    code = """
import torch, mmattn.ops
x, weight = torch.randn(1, 4, 5, 5), torch.randn(1, 1, 3)
found = [mmattn.ops.eca(x, weight) for _ in range(3)]
mmattn.ops.use_backend("eager")
print(torch.equal(found[2], mmattn.ops.eca(x, weight)))
"""
    environment = {**os.environ, "MMATTN_BACKEND": "triton"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment
    )
    both = done.stdout + done.stderr
    assert "True" in done.stdout.split(), both
    assert both.count("eca has no triton kernels; it takes 'eager'") == 1, both


# autograd ----------------------------------------------------------------------------------------


@every_module_and_backend
def test_one_backward(name, variant, backend):
    """What the other tests compare to is not what they test."""
    dtype = DTYPES[backend]
    module = make(name, variant, dtype)
    x, dy = draw(*SHAPE, dtype=dtype), torch.randn(SHAPE, dtype=dtype)
    agree(learned(module, x, dy), expected(module, x, dy), TOLERANCE[dtype])


@every_module
def test_double_backward(name, variant, backend):
    function, parameters = as_function(make(name, variant))
    inputs = [t.clone().requires_grad_() for t in (draw(*SHAPE), *parameters)]
    assert torch.autograd.gradcheck(function, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


@every_first_module
@every_backend
def test_gradient_penalty(name, variant, backend):
    """The gradient of a gradient, also where kernels made the first one."""
    dtype = DTYPES[backend]
    module = make(name, variant, dtype)

    def penalty(module, x):
        x = x.requires_grad_()
        (dx,) = torch.autograd.grad(module(x).square().sum(), x, create_graph=True)
        return [
            t.detach() for t in torch.autograd.grad(dx.square().sum(), [x, *module.parameters()])
        ]

    x = draw(*SHAPE, dtype=dtype)
    with use_backend("reference"):
        wanted = penalty(copy.deepcopy(module).double(), x.double())
    for a, b in zip(penalty(module, x), wanted, strict=True):
        assert_close(a, b, 20 * TOLERANCE[dtype])


@every_module
def test_forward_mode(name, variant, backend):
    function, parameters = as_function(make(name, variant))
    inputs = [t.clone().requires_grad_() for t in (draw(*SHAPE), *parameters)]
    assert torch.autograd.gradcheck(
        function, inputs, check_forward_ad=True, check_backward_ad=False, fast_mode=True
    )


@every_first_module
@every_backend
def test_second_backward_of_a_retained_graph(name, variant, backend):
    dtype = DTYPES[backend]
    module = make(name, variant, dtype)
    x, dy = draw(*SHAPE, dtype=dtype).requires_grad_(), torch.randn(SHAPE, dtype=dtype)
    y = module(x)
    first = torch.autograd.grad(y, [x, *module.parameters()], dy, retain_graph=True)
    second = torch.autograd.grad(y, [x, *module.parameters()], dy)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(y, x, dy)


@every_first_module
@every_backend
def test_in_place_operators_around_it(name, variant, backend):
    """A block of mmdet adds in place to what the plug-in returns, and applies ReLU in place."""
    dtype = DTYPES[backend]
    module = make(name, variant, dtype)
    x, dy = draw(*SHAPE, dtype=dtype), torch.randn(SHAPE, dtype=dtype)

    def block(module, x):
        y = module(x * 1)
        y += x
        return torch.relu_(y)

    found = learned(module, x, dy, functools.partial(block, module))
    agree(found, expected(module, x, dy, block), TOLERANCE[dtype])
    # and what was saved is not to be written over unnoticed
    x = x.clone().requires_grad_()
    between = x * 1
    y = module(between)
    between.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward(dy)


@every_first_module
@every_backend
@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing(name, variant, backend, reentrant):
    dtype = DTYPES[backend]
    module = make(name, variant, dtype)
    x, dy = draw(*SHAPE, dtype=dtype), torch.randn(SHAPE, dtype=dtype)

    def call(x):
        y = checkpoint(module, x, use_reentrant=reentrant)
        y += x
        return y

    found = learned(module, x, dy, call)
    wanted = learned(module, x, dy, lambda x: module(x) + x)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


@every_first_module
@every_backend
def test_autocast(name, variant, backend):
    """A half map from a convolution, parameters and their gradients in float32."""
    module = make(name, variant, torch.float32)
    x, dy = draw(*SHAPE, dtype=torch.bfloat16), torch.randn(SHAPE).bfloat16()
    wanted = expected(module, x, dy)
    for during_backward in (False, True):
        leaf = x.clone().requires_grad_()
        module.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            y = module(leaf)
            if during_backward:
                y.backward(dy)
        if not during_backward:
            y.backward(dy)
        assert y.dtype == leaf.grad.dtype == torch.bfloat16
        assert {p.grad.dtype for p in module.parameters()} == {torch.float32}
        found = [y, leaf.grad, *(p.grad for p in module.parameters())]
        agree(found, wanted, 2e-2)
    # a map in float32 stays so, and so do its statistics
    x, dy = draw(*SHAPE, dtype=torch.float32), torch.randn(SHAPE)
    with torch.autocast("cpu", torch.bfloat16):
        found = learned(module, x, dy)
    agree(found, expected(module, x, dy), TOLERANCE[torch.float32])


@every_first_module
@every_backend
def test_without_gradients(name, variant, backend):
    dtype = DTYPES[backend]
    module = make(name, variant, dtype)
    x = draw(*SHAPE, dtype=dtype)
    y = module(x).detach()
    with torch.no_grad():
        assert torch.equal(module(x), y)
    with torch.inference_mode():
        assert torch.equal(module(x), y)
        assert torch.equal(module(x.clone()), y)
    frozen = copy.deepcopy(module).requires_grad_(False)
    assert torch.equal(frozen(x), y)
    assert not frozen(x).requires_grad


@every_first_module
@every_backend
def test_anomaly_mode_and_hooks_on_what_is_saved(name, variant, backend):
    dtype = DTYPES[backend]
    module = make(name, variant, dtype)
    x, dy = draw(*SHAPE, dtype=dtype), torch.randn(SHAPE, dtype=dtype)
    wanted = learned(module, x, dy)
    with torch.autograd.graph.save_on_cpu(), torch.autograd.detect_anomaly(check_nan=True):
        found = learned(module, x, dy)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


# torch.func --------------------------------------------------------------------------------------


@every_module_and_backend
def test_gradients_in_batches(name, variant, backend):
    """As jacobian(vectorize=True) asks for them."""
    dtype = DTYPES[backend]
    module = make(name, variant, dtype)
    x = draw(*SHAPE, dtype=dtype).requires_grad_()
    y = module(x)
    upstream = torch.stack([draw(*SHAPE, dtype=dtype, seed=i) for i in range(3)])
    each = torch.stack([torch.autograd.grad(y, x, dy, retain_graph=True)[0] for dy in upstream])
    (found,) = torch.autograd.grad(y, x, upstream, is_grads_batched=True, retain_graph=True)
    assert_close(found, each, TOLERANCE[dtype])
    found = torch.func.vmap(lambda dy: torch.autograd.grad(y, x, dy, retain_graph=True)[0])(
        upstream
    )
    assert_close(found, each, TOLERANCE[dtype])


@pytest.mark.parametrize(
    ("name", "variant"),
    # each tracing takes seconds, and follows the operator, not its options: by default gc, sge, and
    # CBAM, in which cbam is
    [
        pytest.param(
            *m, marks=[pytest.mark.slow] * (m not in FIRST_MODULES or m[0] in ("cbam", "se", "gct"))
        )
        for m in MODULES
    ],
    ids=[": ".join(m) for m in MODULES],
)
def test_compiled_autograd(name, variant, monkeypatch):
    """A compiler that follows the backward pass takes no other kernels than the forward did."""
    from torch._dynamo import compiled_autograd

    monkeypatch.setattr(_backend, "EAGER_FROM", 0)
    module = make(name, variant, torch.float64)
    x = draw(*SHAPE, dtype=torch.float64).requires_grad_()
    module(x).square().sum().backward()
    expected, x.grad = x.grad, None
    torch._dynamo.reset()
    with compiled_autograd._enable(torch.compile(backend="eager")):
        module(x).square().sum().backward()
    assert_close(x.grad, expected, 1e-12)


@every_module_and_backend
def test_function_transforms(name, variant, backend):
    dtype = DTYPES[backend]
    module = make(name, variant, dtype)
    function, parameters = as_function(module)
    xs = torch.stack([draw(*SHAPE, dtype=dtype, seed=i) for i in range(3)])
    tolerance = TOLERANCE[dtype]

    # over several maps, with one set of parameters and with one each
    assert_close(
        torch.func.vmap(module)(xs), torch.stack([module(x) for x in xs]).detach(), tolerance
    )
    each = [torch.stack([p + i / 10 for i in range(3)]) for p in parameters]
    found = torch.func.vmap(function)(xs, *each)
    for i in range(3):
        assert_close(found[i], function(xs[i], *(p[i] for p in each)), tolerance)

    # gradients, for each map by itself
    def loss(parameters, x):
        return function(x, *parameters).square().sum()

    found = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, xs)
    for i, x in enumerate(xs):
        wanted = torch.func.grad(loss)(parameters, x)
        leaf = x.clone()
        module.zero_grad()
        module(leaf).square().sum().backward()
        for a, b, p in zip(found, wanted, module.parameters(), strict=True):
            assert_close(a[i], b, 20 * tolerance)
            assert_close(b, p.grad, 20 * tolerance)


@every_first_module
def test_jacobians(name, variant, backend):
    function, parameters = as_function(make(name, variant))
    x = draw(1, C, 2, 2)
    wanted = torch.autograd.functional.jacobian(lambda x: function(x, *parameters), x)
    assert_close(torch.func.jacrev(function)(x, *parameters), wanted, 1e-11)
    assert_close(torch.func.jacfwd(function)(x, *parameters), wanted, 1e-11)
    y, pull = torch.func.vjp(function, x, *parameters)
    _, push = torch.func.jvp(
        function, (x, *parameters), tuple(map(torch.ones_like, (x, *parameters)))
    )
    gradients = pull(torch.ones_like(y))
    # the sum of all derivatives, both ways
    assert push.sum().item() == pytest.approx(sum(g.sum().item() for g in gradients), abs=1e-9)


# tracers, exporters, compilers -------------------------------------------------------------------


def no_custom_operators(graph) -> bool:
    return not any("mmattn" in str(node.target) for node in graph.nodes)


@every_module_and_backend
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_trace(name, variant, backend):
    """A traced module runs on maps of another size, and where mmattn is not."""
    dtype = DTYPES[backend]
    module = make(name, variant, dtype)
    traced = torch.jit.trace(module, draw(*SHAPE, dtype=dtype))
    file = io.BytesIO()
    torch.jit.save(traced, file)
    assert "mmattn::" not in str(traced.inlined_graph)
    file.seek(0)
    loaded = torch.jit.load(file)
    for shape in (SHAPE, OTHER):
        x, dy = draw(*shape, dtype=dtype), torch.randn(shape, dtype=dtype)
        for runs in (traced, loaded):
            found = learned(module, x, dy, runs)[:2]
            agree(found, expected(module, x, dy)[:2], TOLERANCE[dtype])


@every_first_module
@every_backend
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_onnx_of_the_tracer(name, variant, backend, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    module = make(name, variant, torch.float32).eval()
    file = str(tmp_path / "module.onnx")
    axes = {"x": {0: "n", 2: "h", 3: "w"}}
    torch.onnx.export(
        module, (draw(*SHAPE, dtype=torch.float32),), file,
        input_names=["x"], dynamo=False, dynamic_axes=axes,
    )  # fmt: skip
    session = runtime.InferenceSession(file, providers=["CPUExecutionProvider"])
    for shape in (SHAPE, OTHER):
        x = draw(*shape, dtype=torch.float32)
        with use_backend("reference"):
            assert_close(session.run(None, {"x": x.numpy()})[0], module(x), 1e-5)


@every_first_module
@every_backend
def test_export(name, variant, backend):
    """Into PyTorch's own operators, for maps of every size."""
    dtype = DTYPES[backend]
    module = make(name, variant, dtype).eval()
    dim = torch.export.Dim
    dynamic = {"x": {0: dim("n", min=1), 2: dim("h", min=1), 3: dim("w", min=1)}}
    for strict in (False, True)[: 1 + (backend == "triton")]:
        program = torch.export.export(
            module, (draw(*SHAPE, dtype=dtype),), dynamic_shapes=dynamic, strict=strict
        )
        assert no_custom_operators(program.graph)
        for shape in (SHAPE, OTHER):
            x = draw(*shape, dtype=dtype)
            with use_backend("reference"):
                assert_close(program.module()(x), module(x), TOLERANCE[dtype])


@pytest.mark.parametrize(("name", "variant"), [("sge", "4 groups"), ("CBAM", "both gates")])
def test_onnx_of_the_exporter(name, variant, tmp_path):
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    module = make(name, variant, torch.float32).eval()
    file = str(tmp_path / "module.onnx")
    with use_backend("triton"):
        torch.onnx.export(
            module, (draw(*SHAPE, dtype=torch.float32),), file,
            input_names=["x"], dynamo=True, verbose=False,
        )  # fmt: skip
    session = runtime.InferenceSession(file, providers=["CPUExecutionProvider"])
    x = draw(*SHAPE, dtype=torch.float32, seed=1)
    with use_backend("reference"):
        assert_close(session.run(None, {"x": x.numpy()})[0], module(x), 1e-5)


class Counter:
    """A compiler that counts its graphs and what they hold."""

    def __init__(self):
        from torch._dynamo.testing import CompileCounterWithBackend

        torch._dynamo.reset()
        self.counter = CompileCounterWithBackend("aot_eager")

    def compile(self, module):
        return torch.compile(module, backend=self.counter, fullgraph=True)


COMPILED = ("gc", "sge")


@pytest.mark.parametrize(
    ("name", "variant", "backend"),
    # kernels are one opaque operator each, and compiled alike: by default two, the others are
    # traced by test_custom_operators
    [
        pytest.param(*m, b, marks=[pytest.mark.slow] * (b == "triton" and m[0] not in COMPILED))
        for m in FIRST_MODULES
        for b in ("eager", "triton")
    ],
    indirect=["backend"],
)
def test_compile(name, variant, backend):
    """One graph; maps of a second size make it dynamic, and no further size compiles again."""
    dtype = DTYPES[backend]
    module = make(name, variant, dtype)
    compiler = Counter()
    compiled = compiler.compile(module)
    for i, shape in enumerate((SHAPE, OTHER, (4, C, 5, 4))):
        x, dy = draw(*shape, dtype=dtype), torch.randn(shape, dtype=dtype)
        agree(learned(module, x, dy, compiled), expected(module, x, dy), TOLERANCE[dtype], shape)
        assert compiler.counter.frame_count <= min(i + 1, 2)
    with torch.no_grad():
        assert_close(compiled(x), module(x), TOLERANCE[dtype])
    kernels = [g for g in compiler.counter.graphs if "mmattn" in str(g.graph)]
    assert bool(kernels) == (backend == "triton")


@every_first_module
@every_backend
def test_compiled_block(name, variant, backend):
    """With what mmdet does around it, in channels_last, with parts frozen, and in half."""
    dtype = DTYPES[backend]
    module = make(name, variant, dtype)

    def block(module, x):
        y = module(x * 1)
        y += x
        return torch.relu_(y)

    compiled = Counter().compile(functools.partial(block, module))
    x, dy = draw(*SHAPE, dtype=dtype), torch.randn(SHAPE, dtype=dtype)
    x = x.contiguous(memory_format=torch.channels_last)
    agree(learned(module, x, dy, compiled), expected(module, x, dy, block), TOLERANCE[dtype])
    first, *_ = module.parameters()
    first.requires_grad_(False)
    x = x.requires_grad_()
    module.zero_grad()
    compiled(x).backward(dy)
    with use_backend("eager"):
        wanted = learned(module, x, dy, functools.partial(block, module))
    module.zero_grad()
    assert first.grad is None
    assert wanted[2] is None
    assert_close(x.grad, wanted[1], 4 * TOLERANCE[dtype])


@every_operator
def test_a_compiled_module_follows_the_backend(name, variant):
    """Choosing another implementation compiles again."""
    module = make(name, variant, torch.bfloat16)
    compiler = Counter()
    compiled = compiler.compile(module)
    x = draw(*SHAPE, dtype=torch.bfloat16)
    with torch.no_grad():
        for backend, frames in (("eager", 1), ("reference", 2), ("eager", 2)):
            with use_backend(backend):
                assert torch.equal(compiled(x), module(x)), backend
            assert compiler.counter.frame_count == frames


@every_operator
def test_custom_operators(name, variant):
    """PyTorch's own checks of an operator: schema, tensors without memory, tracing."""
    if reason := why_no_kernels(name):
        pytest.skip(reason)
    inputs = draw_inputs(name, variant, SHAPE, torch.float32)
    tensors, options = list(inputs.tensors), repr(inputs.options)
    # tracing with unknown sizes takes seconds, and test_compile does it as well
    light = ("test_schema", "test_faketensor", "test_autograd_registration")
    tests = light if name in COMPILED else "ALL"
    torch.library.opcheck(
        getattr(torch.ops.mmattn, f"{name}_forward").default,
        (inputs.x, tensors, options),
        test_utils=tests,
    )
    y, *saved = getattr(torch.ops.mmattn, f"{name}_forward")(inputs.x, tensors, options)
    assert y.shape == inputs.x.shape
    learns = [t is not None and t.dim() > 0 for t in tensors]
    for needs in ([True, *learns], [False, *learns], [True, *(False for _ in learns)]):
        torch.library.opcheck(
            getattr(torch.ops.mmattn, f"{name}_backward").default,
            (inputs.dy, inputs.x, tensors, saved, options, needs),
            test_utils=tests if needs[0] and needs[1] else ("test_schema", "test_faketensor"),
        )


# tensors that are not ordinary -------------------------------------------------------------------


class Tagged(torch.Tensor):
    """A subclass that PyTorch passes through its operators."""


@every_first_module
@every_backend
def test_tensor_subclass(name, variant, backend):
    dtype = DTYPES[backend]
    module = make(name, variant, dtype)
    x = draw(*SHAPE, dtype=dtype)
    y = module(x.as_subclass(Tagged))
    assert type(y) is Tagged
    assert_close(y.as_subclass(torch.Tensor), module(x), TOLERANCE[dtype])


@every_first_module
@every_backend
def test_fake_tensors(name, variant, backend):
    from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

    dtype = DTYPES[backend]
    module = make(name, variant, dtype)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        x = mode.from_tensor(torch.empty(SHAPE, dtype=dtype)).requires_grad_()
        y = module(x)
        y.sum().backward()
    assert isinstance(y, FakeTensor)
    assert y.shape == x.grad.shape == SHAPE


@every_first_module
@every_backend
@pytest.mark.parametrize("last", [False, True])
def test_meta_tensors(name, variant, backend, last):
    """Shapes without memory, as a model is planned with: with a gradient and without."""
    dtype = DTYPES[backend]
    module = make(name, variant, dtype).to("meta")
    order = torch.channels_last if last else torch.contiguous_format
    x = torch.empty(SHAPE, dtype=dtype, device="meta").contiguous(memory_format=order)
    for y in (module(x), module.requires_grad_(False)(x)):
        assert (y.shape, y.dtype, y.device) == (x.shape, dtype, x.device)
    module.requires_grad_()
    y = module(x.requires_grad_())
    y.sum().backward()
    assert x.grad.shape == x.shape
    assert {p.grad.shape == p.shape for p in module.parameters()} == {True}


@every_first_module
@every_backend
def test_copies(name, variant, backend):
    dtype = DTYPES[backend]
    module = make(name, variant, dtype)
    x, dy = draw(*SHAPE, dtype=dtype), torch.randn(SHAPE, dtype=dtype)
    wanted = learned(module, x, dy)
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        found = learned(twin, x, dy)
        assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


# several processes, graphs of a GPU --------------------------------------------------------------


@pytest.fixture
def process_group():
    distributed = torch.distributed
    if not distributed.is_available() or distributed.is_initialized():
        pytest.skip("needs torch.distributed, not yet in use")
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@every_first_module
@every_backend
@pytest.mark.parametrize("static", [False, True])
def test_distributed_data_parallel(name, variant, backend, static, process_group):
    """Gradients reach the reducer; tests/test_distributed.py has two processes."""
    dtype = DTYPES[backend]
    module = make(name, variant, dtype)
    x, dy = draw(*SHAPE, dtype=dtype), torch.randn(SHAPE, dtype=dtype)
    wanted = learned(module, x, dy)
    parallel = nn.parallel.DistributedDataParallel(
        module, static_graph=static, gradient_as_bucket_view=static
    )
    for _ in range(2):
        found = learned(module, x, dy, parallel)
        assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


@every_first_module
@every_backend
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_graph(name, variant, backend):
    """Forward and backward are recorded: neither waits for the device, nor depends on values."""
    dtype = torch.float32
    module = make(name, variant, dtype).cuda()
    x, dy = draw(*SHAPE, dtype=dtype).cuda(), torch.randn(SHAPE).cuda()
    graphed = torch.cuda.make_graphed_callables(
        copy.deepcopy(module), (x.clone().requires_grad_(),)
    )
    for seed in range(2):
        x = draw(*SHAPE, dtype=dtype, seed=seed).cuda()
        found = learned(graphed, x, dy)
        agree(found, learned(module, x, dy), 1e-5)


# the class itself --------------------------------------------------------------------------------


def test_a_new_operator_is_found(monkeypatch):
    from mmattn.ops import _operator

    monkeypatch.setattr(_operator, "_OPERATORS", {})
    eager = importlib.import_module("mmattn.ops.se.eager")
    operator = Operator("anew", eager.se, eager.se, eager)
    assert {"anew": operator} == _operator._OPERATORS
    assert not hasattr(torch.ops.mmattn, "anew_forward")  # it has no kernels

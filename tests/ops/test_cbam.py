"""CBAM's gates: the passes of their own against the equation in float64, and what autograd does."""

import copy
import gc
import weakref

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from mmattn.ops import _backend, cbam, use_backend
from mmattn.ops._operator import Operator
from mmattn.plugins import CBAM
from tests.zoo import assert_close, scramble

C = 16
GN = dict(type="GN", num_groups=1)
VARIANTS = {
    "both gates": {},
    "channel gate": dict(spatial=False),
    "GN": dict(norm_cfg=GN, kernel_size=3),
    "identity_init": dict(identity_init=True),
}
each_variant = pytest.mark.parametrize("variant", VARIANTS)
LAYOUTS = {
    "contiguous": lambda x: x,
    "channels_last": lambda x: x.to(memory_format=torch.channels_last),
    "sliced": lambda x: torch.cat([x, x], 3)[..., : x.shape[3]],
    "permuted": lambda x: x.mT.contiguous().mT,
}
SPATIAL = ["SpatialGate.spatial.conv.weight", "SpatialGate.spatial.bn.weight"]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5, torch.float16: 3e-3, torch.bfloat16: 2e-2}


@pytest.fixture(autouse=True)
def small_maps_take_the_passes(monkeypatch):
    monkeypatch.setattr(_backend, "EAGER_FROM", 0)


@pytest.fixture(params=[1 << 20, 500], ids="chunks of {}".format)
def chunk(request, monkeypatch):
    monkeypatch.setattr("mmattn.ops._chunks.CHUNK", request.param)


def build(variant="both gates", dtype=torch.float64, training=True):
    torch.manual_seed(0)
    return scramble(CBAM(C, ratio=4, **VARIANTS[variant])).to(dtype).train(training)


def draw(shape=(2, C, 5, 7), dtype=torch.float64, ties=False, seed=1):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (x.relu() * 2).round().to(dtype) if ties else x.to(dtype)


def results(module, x, dy, backend="auto"):
    """y, the gradients of x and of every parameter, and the buffers."""
    x = x.detach().requires_grad_()
    module.zero_grad()
    with use_backend(backend):
        y = module(x)
        y.backward(dy)
    return [y, x.grad, *(p.grad for p in module.parameters()), *module.buffers()]


def by_reference(module, x, dy):
    return results(copy.deepcopy(module).double(), x.double(), dy.double(), "reference")


def assert_same(actual, expected, tolerance):
    for i, (a, b) in enumerate(zip(actual, expected, strict=True)):
        assert_close(a, b, tolerance * (1 if i == 0 else 8), f"result {i}")


@pytest.fixture
def unwritten_is_nan(monkeypatch):
    """Memory that was to be written and was not shows."""
    for name in ("empty", "empty_like"):
        allocate = getattr(torch, name)
        monkeypatch.setattr(torch, name, lambda *a, f=allocate, **k: f(*a, **k).fill_(float("nan")))


# values and gradients ----------------------------------------------------------------------------


@each_variant
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.usefixtures("chunk", "unwritten_is_nan")
def test_values_and_gradients_equal_the_equation(variant, dtype):
    for shape in ((2, C, 5, 7), (1, C, 1, 4), (3, C, 1, 1), (0, C, 3, 3)):
        if shape[2:] == (1, 1) and variant == "GN":
            continue  # which makes of one value 0, and a large number of its rounding
        x, dy = draw(shape, dtype, ties=shape[0] == 1), draw(shape, dtype, seed=2)
        module = build(variant, dtype)
        expected = by_reference(module, x, dy)
        for name, arrange in LAYOUTS.items():
            given, upstream = (
                arrange(x),
                dy if name != "contiguous" else LAYOUTS["channels_last"](dy),
            )
            before = given.clone()
            actual = results(copy.deepcopy(module), given, upstream)
            assert_same(actual, expected, TOLERANCE[dtype])
            assert actual[0].dtype == dtype
            assert torch.equal(given, before)
            if shape[0]:
                assert actual[0].stride() == torch.empty_like(given).stride()


@each_variant
def test_an_expanded_gradient(variant):
    module, x = build(variant), draw()
    dy = torch.tensor(0.7, dtype=x.dtype).expand_as(x)
    assert_same(results(copy.deepcopy(module), x, dy), by_reference(module, x, dy), 1e-12)


@each_variant
@pytest.mark.parametrize("training", [True, False])
def test_gradcheck(variant, training):
    module, x = build(variant, training=training), draw((2, C, 2, 3)).requires_grad_()
    names = [name for name, _ in module.named_parameters()]

    def function(x, *parameters):
        return functional_call(module, dict(zip(names, parameters, strict=True)), x)

    inputs = (x, *(p.detach().requires_grad_() for p in module.parameters()))
    assert gradcheck(function, inputs, fast_mode=True)
    assert gradgradcheck(function, inputs, fast_mode=True)


@pytest.mark.usefixtures("chunk")
def test_equal_values_share_the_gradient_of_a_maximum():
    x = draw()
    x[0, 3, 1, :2] = 9.0  # of a channel
    x[1] = 2.0  # of every channel
    x[0, :, 3, 2:4] = 0.0  # of pixels: whatever the gates, no channel is larger
    for variant in VARIANTS:
        module, dy = build(variant), draw(seed=2)
        dx = results(copy.deepcopy(module), x, dy)[1]
        assert_close(dx, results(copy.deepcopy(module), x, dy, "reference")[1], 1e-12)


@each_variant
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.usefixtures("chunk")
def test_neutral_gates_change_nothing(variant, dtype):
    if variant == "GN":
        return
    torch.manual_seed(0)
    module = CBAM(C, ratio=4, **VARIANTS[variant] | dict(identity_init=True)).to(dtype)
    for x in (draw(dtype=dtype), draw(dtype=dtype) * torch.finfo(dtype).smallest_normal):
        assert torch.equal(module(x), x)
        assert torch.equal(module(x.requires_grad_()), x)


@each_variant
def test_runs_repeat_to_the_bit(variant):
    x, dy = draw(dtype=torch.float32), draw(dtype=torch.float32, seed=2)
    first, second = (results(build(variant, torch.float32), x, dy) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@each_variant
def test_autocast_leaves_the_small_layers_in_full_precision(variant):
    x, dy = draw(dtype=torch.bfloat16), draw(dtype=torch.bfloat16, seed=2)
    module = build(variant, torch.float32)
    expected = results(copy.deepcopy(module), x, dy)
    with torch.autocast("cpu", torch.bfloat16):
        actual = results(module, x, dy)
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


# what autograd sees ------------------------------------------------------------------------------


def calls(module):
    """A list that grows whenever the norm layer runs."""
    seen = []
    module.SpatialGate["spatial"]["bn"].register_forward_hook(lambda *_: seen.append(1))
    return seen


def statistics(module):
    return {k: v.clone() for k, v in module.named_buffers()}


@each_variant
def test_keeps_x_and_small_tensors(variant):
    shapes = []

    def pack(tensor):
        shapes.append(tuple(tensor.shape))
        return tensor

    x = draw((2, C, 9, 8)).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = build(variant)(x)
    assert type(y.grad_fn).__name__ in ("_TwoGatesBackward", "_FusedBackward")
    whole = [s for s in shapes if s == x.shape]
    assert len(whole) == 1
    assert sum(torch.Size(s).numel() for s in shapes) < (1 + 12 / C) * x.numel() + 2000


@pytest.mark.parametrize("variant", ["both gates", "GN"])
@pytest.mark.parametrize("learns", ["x", "ChannelGate.mlp.1.bias", *SPATIAL])
def test_only_what_learns_gets_a_gradient(variant, learns):
    module, x, dy = build(variant), draw().requires_grad_(learns == "x"), draw(seed=2)
    expected = by_reference(module, x, dy)
    expected = dict(zip(["x", *(k for k, _ in module.named_parameters())], expected[1:]))  # noqa: B905
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name == learns)
    module(x).backward(dy)
    gradients = {"x": x.grad} | {k: p.grad for k, p in module.named_parameters()}
    assert [k for k, g in gradients.items() if g is not None] == [learns]
    assert_close(gradients[learns], expected[learns], 1e-11)


def test_nothing_learns():
    module = build().requires_grad_(False)
    x = draw()
    y = module(x)
    assert not y.requires_grad
    with torch.no_grad():
        assert torch.equal(build()(x), y)
    with torch.inference_mode():
        assert torch.equal(build()(x), y)


@each_variant
def test_a_second_backward(variant):
    module, x, dy = build(variant), draw().requires_grad_(), draw(seed=2)
    inputs = [x, *module.parameters()]
    y = module(x)
    before = statistics(module)
    first, second = (torch.autograd.grad(y, inputs, dy, retain_graph=True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    y.backward(dy)
    with pytest.raises(RuntimeError, match="a second time"):
        y.backward(dy)
    assert all(torch.equal(v, before[k]) for k, v in statistics(module).items())


def test_a_gradient_of_the_gradient_moves_no_running_statistics():
    module, x = build(), draw().requires_grad_()
    twin = copy.deepcopy(module)
    seen = calls(module)
    with use_backend("reference"):
        twin(x.detach())
    y = module(x)
    (dx,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    dx.square().sum().backward()
    assert len(seen) == 2
    for key, value in statistics(module).items():
        assert_close(value, dict(twin.named_buffers())[key], 1e-12, key)
    assert all(p.grad is not None for p in module.parameters())


def test_changed_parameters_are_noticed():
    for name in ("ChannelGate.mlp.1.weight", "SpatialGate.spatial.conv.weight"):
        module, x = build(), draw().requires_grad_()
        y = module(x)
        with torch.no_grad():
            module.get_parameter(name).mul_(2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.backward(draw(seed=2))


def test_a_hook_sees_a_gradient_once():
    module, x = build(), draw().requires_grad_()
    seen = []
    for name, parameter in module.named_parameters():
        parameter.register_hook(lambda g, name=name: seen.append(name))
    module(x).sum().backward()
    assert sorted(seen) == sorted(name for name, _ in module.named_parameters())


@each_variant
@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing(variant, reentrant):
    module, x, dy = build(variant), draw(), draw(seed=2)
    expected = results(copy.deepcopy(module), x, dy)
    runs = calls(module) if variant == "both gates" else []

    def block(x):
        return (2 * module(1 * x)).tanh()

    plain_x = x.clone().requires_grad_()
    block(plain_x).backward(dy)
    expected = [plain_x.grad, *(p.grad for p in module.parameters())]
    module.zero_grad()
    runs.clear()
    x.requires_grad_()
    checkpoint(block, x, use_reentrant=reentrant).backward(dy)
    actual = [x.grad, *(p.grad for p in module.parameters())]
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))
    assert len(runs) == (2 if variant == "both gates" else 0)


def test_tensors_saved_elsewhere():
    module, x, dy = build(), draw(), draw(seed=2)
    expected = results(copy.deepcopy(module), x, dy)
    with torch.autograd.graph.save_on_cpu():
        actual = results(module, x, dy)
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


def test_distributed_data_parallel(tmp_path):
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        module, x, dy = build(), draw(), draw(seed=2)
        expected = results(copy.deepcopy(module), x, dy)
        actual = results(nn.parallel.DistributedDataParallel(module), x, dy)
    finally:
        torch.distributed.destroy_process_group()
    assert_same(actual, expected, 1e-13)


# who else calls it -------------------------------------------------------------------------------


def composed(module, x):
    with use_backend("reference"):
        return module(x)


@each_variant
def test_transforms_take_the_plain_operators(variant):
    module, x, v = build(variant, training=False), draw(), draw(seed=2)
    twin = copy.deepcopy(module)
    primal, tangent = torch.func.jvp(module, (x,), (v,))
    expected = torch.func.jvp(lambda x: composed(twin, x), (x,), (v,))
    assert_close(primal, expected[0], 1e-12)
    assert_close(tangent, expected[1], 1e-11)
    dx = torch.func.grad(lambda x: module(x).square().sum())(x)
    assert_close(dx, torch.func.grad(lambda x: composed(twin, x).square().sum())(x), 1e-11)
    each = torch.func.vmap(lambda x: module(x[None])[0])(x)
    assert_close(each, composed(twin, x), 1e-12)


@pytest.mark.parametrize("variant", ["both gates", "channel gate"])
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_compilers_and_exporters(variant):
    module, x, dy = build(variant), draw(), draw(seed=2)
    expected = by_reference(module, x, dy)
    torch._dynamo.reset()
    compiled = torch.compile(copy.deepcopy(module), backend="aot_eager", fullgraph=True)
    assert_same(results(compiled, x, dy), expected, 1e-11)
    frozen = copy.deepcopy(module).eval()
    y = frozen(x)
    assert_close(torch.export.export(frozen, (x,)).module()(x), y, 1e-12)
    assert_close(torch.jit.trace(frozen, x)(x), y, 1e-12)


@each_variant
def test_meta_tensors(variant):
    with torch.device("meta"):
        module, x = build(variant), torch.empty(2, C, 5, 7, dtype=torch.float64)
    assert module(x).is_meta
    y = module(x.requires_grad_())
    y.backward(torch.empty_like(y))
    assert x.grad.shape == x.shape
    assert all(p.grad.shape == p.shape for p in module.parameters())


def test_a_function_call():
    layers = nn.Sequential(nn.Conv2d(2, 1, 3, padding=1), nn.Tanh()).double()
    x, w1, w2 = draw(), draw((4, C)), draw((C, 4))
    y = cbam(x.requires_grad_(), w1, None, w2, None, layers)
    with use_backend("reference"):
        expected = cbam(x, w1, None, w2, None, layers)
    assert_close(y, expected, 1e-12)
    (dx,), (expected,) = (torch.autograd.grad(v.square().sum(), x) for v in (y, expected))
    assert_close(dx, expected, 1e-11)
    with pytest.raises(ValueError, match=r"cbam expects a feature map \(N, 8, H, W\)"):
        cbam(x, w1[:, :8], None, w2, None)
    with pytest.raises(TypeError, match="floating-point"):
        cbam(x.long(), w1, None, w2, None)


def test_the_passes_run_where_they_should(monkeypatch):
    """Else the tests above compare the plain operators with themselves."""
    taken = []
    original = Operator.implementation
    monkeypatch.setattr(
        Operator, "implementation", lambda *a: taken.append(original(*a)) or taken[-1]
    )
    build()(draw())
    build("channel gate")(draw().requires_grad_())
    monkeypatch.setattr(_backend, "EAGER_FROM", 1 << 20)
    build()(draw())
    assert taken == ["eager", "eager", "plain"]


@pytest.mark.parametrize("backward", [True, False])
def test_nothing_is_kept_alive(backward):
    """The small graph inside the node goes with it: no cycle where no collector looks."""
    y = scramble(CBAM(in_channels=16))(torch.randn(2, 16, 5, 7, requires_grad=True))
    inner = weakref.ref(y.grad_fn.spatial)
    if backward:
        y.sum().backward()
    del y
    gc.collect()
    assert inner() is None


def test_parameters_that_are_plain_attributes_learn():
    """As in the replicas of DataParallel, and under FSDP."""
    module, x = scramble(CBAM(in_channels=16)), torch.randn(2, 16, 5, 7)
    weight = module.SpatialGate["spatial"]["conv"].weight
    module(x).square().sum().backward()
    expected, weight.grad = weight.grad, None
    del module.SpatialGate["spatial"]["conv"].weight
    module.SpatialGate["spatial"]["conv"].weight = weight * 1
    module(x).square().sum().backward()
    assert_close(weight.grad, expected, 1e-4)


def test_gradients_in_batches():
    module = scramble(CBAM(in_channels=8, ratio=4).double()).eval()
    x = torch.randn(1, 8, 2, 3, dtype=torch.float64, requires_grad=True)
    y = module(x)
    upstream = torch.randn(3, *y.shape, dtype=torch.float64)
    (found,) = torch.autograd.grad(y, x, upstream, is_grads_batched=True, retain_graph=True)
    for one, dy in zip(found, upstream, strict=True):
        assert_close(one, torch.autograd.grad(y, x, dy, retain_graph=True)[0], 1e-12)

"""The contract of a plug-in, generated for every registered one."""

import copy
import inspect
import io
import pickle
import warnings

import pytest
import torch
from mmcv.cnn import build_plugin_layer

from mmattn.ops import use_backend
from tests.zoo import (
    AMPLIFY,
    CASES,
    IDS,
    INERT,
    NEVER_IDENTITY,
    PLUGINS,
    assert_close,
    scramble,
)

C = 64
every_case = pytest.mark.parametrize(("name", "arguments"), CASES, ids=IDS)
IDENTITY = [i for i, (name, _) in enumerate(CASES) if name not in NEVER_IDENTITY]
every_identity_case = pytest.mark.parametrize(
    ("name", "arguments"), [CASES[i] for i in IDENTITY], ids=[IDS[i] for i in IDENTITY]
)
every_plugin = pytest.mark.parametrize("name", sorted(PLUGINS))

DTYPES = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}
LAYOUTS = {
    "contiguous": lambda x: x,
    "channels_last": lambda x: x.to(memory_format=torch.channels_last),
    "sliced": lambda x: torch.cat([x, x], 3)[..., : x.shape[3]],
    "sliced channels": lambda x: torch.cat([x, x], 1)[:, : x.shape[1]],
    "expanded batch": lambda x: x[:1].expand_as(x) if len(x) else x,
}
SHAPES = [(2, C, 7, 9), (3, C, 1, 1), (2, C, 1, 5), (0, C, 4, 4)]


def layouts_of(shape, dtype):
    """All of the first shape; of the others, so many that each dtype and each layout comes once."""
    i, j = SHAPES.index(shape), list(DTYPES).index(dtype)
    return [n for k, n in enumerate(LAYOUTS) if i == 0 or (i + k) % len(DTYPES) == j]


def build(name, arguments, **more):
    torch.manual_seed(0)
    _, module = build_plugin_layer(dict(type=f"mmattn.{name}", **arguments, **more), in_channels=C)
    return module


def run(module, x, dy):
    """Output, input gradient and parameter gradients for a random upstream gradient."""
    x = x.detach().requires_grad_()
    module.zero_grad()
    y = module(x)
    y.backward(dy)
    return y, x.grad, {k: p.grad for k, p in module.named_parameters()}


@every_case
@pytest.mark.filterwarnings("ignore:(std|var).*degrees of freedom")  # of references, for N = 0
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_values_gradients_dtype_and_layout(name, arguments, shape, dtype):
    """Equal to the equation in float64, whatever the dtype and layout of the input."""
    module = scramble(build(name, arguments)).to(dtype)
    values, dy = torch.randn(shape).to(dtype), torch.randn(shape).to(dtype)
    tolerance = DTYPES[dtype] * (AMPLIFY.get(name, 1) if dtype.itemsize == 2 else 1)
    expected = None
    for layout in layouts_of(shape, dtype):
        x = LAYOUTS[layout](values)
        # a BatchNorm over equal images has no spread, and would blow their rounding up
        module.train(layout != "expanded batch")
        # the others hold the same values
        if expected is None or layout == "expanded batch":
            with use_backend("reference"):
                expected = run(copy.deepcopy(module).double(), x.double(), dy.double())
        y, dx, gradients = run(module, x, dy)

        assert y.dtype == dtype, layout
        if y.numel():  # an empty map has no order
            last = layout == "channels_last"
            order = torch.channels_last if last else torch.contiguous_format
            assert y.is_contiguous(memory_format=order), layout
        assert_close(y, expected[0], tolerance, f"{layout}: y")
        assert_close(dx, expected[1], 4 * tolerance, f"{layout}: dx")
        largest = max((g.abs().max().item() for g in expected[2].values()), default=0.0)
        for key, gradient in gradients.items():
            assert torch.isfinite(gradient).all(), f"{layout}: {key}"
            # where gradients cancel by theory, their rounding stays
            inert = max(1.0, largest) if key in INERT.get(name, ()) else 1.0
            assert_close(gradient, expected[2][key], 8 * tolerance * inert, f"{layout}: {key}")


@every_case
@pytest.mark.parametrize("shape", [(1, C, 1, 1), (1, C, 3, 4)], ids=str)
def test_one_image_in_training_is_finite(name, arguments, shape):
    """There a BatchNorm may see one value a channel, of which there is no variance."""
    module = scramble(build(name, arguments))
    y, dx, gradients = run(module, torch.randn(shape), torch.randn(shape))
    assert y.isfinite().all()
    assert dx.isfinite().all()
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    assert all(buffer.isfinite().all() for buffer in module.buffers())


@every_case
def test_float16_does_not_overflow(name, arguments):
    """Sums over a large map leave float16's range long before its mean does."""
    module = build(name, arguments).half()
    x = (100 + 50 * torch.randn(1, C, 28, 28)).half()
    assert x.float().sum((2, 3)).min() > torch.finfo(torch.half).max
    y, dx, _ = run(module, x, torch.randn(x.shape).half())
    with use_backend("reference"):
        expected = copy.deepcopy(module).double()(x.double())
    assert_close(y, expected, 3e-3)
    assert torch.isfinite(dx).all()


@every_case
def test_autocast_keeps_statistics_in_full_precision(name, arguments):
    module = scramble(build(name, arguments))
    x = torch.randn(2, C, 7, 9)
    expected = module(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert_close(module(x), expected, 1e-5)
        y = module(x.bfloat16())
    assert y.dtype == torch.bfloat16
    assert_close(y, expected, 2e-2 * AMPLIFY.get(name, 1))


@every_identity_case
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("training", [True, False])
def test_identity_init_is_identity(name, arguments, dtype, training):
    module = build(name, arguments, identity_init=True).to(dtype).train(training)
    assert module.identity_at_init
    x = (3 * torch.randn(2, C, 7, 9)).to(dtype)
    assert torch.equal(module(x), x)
    assert torch.equal(module(x[..., :1, :1]), x[..., :1, :1])


@every_identity_case
def test_identity_init_learns_every_parameter(name, arguments):
    module = build(name, arguments, identity_init=True)
    # a parameter in front of a zero gets its first gradient only at the second step
    start = {k: p.detach().clone() for k, p in module.named_parameters()}
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    for _ in range(3):
        x = torch.randn(2, C, 7, 9)
        loss = (module(x) * torch.randn_like(x)).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for key, parameter in module.named_parameters():
        if key not in INERT.get(name, ()):
            moved = (parameter - start[key]).abs() > 0
            # a ReLU that is off for both samples leaves its unit where it was
            assert moved.float().mean() > 0.3, key


@every_case
def test_identity_at_init_tells_the_truth(name, arguments):
    for identity_init in (False,) if name in NEVER_IDENTITY else (False, True):
        module = build(name, arguments, identity_init=identity_init)
        x = torch.randn(2, C, 7, 9)
        assert module.identity_at_init == torch.equal(module(x), x), identity_init


@pytest.mark.parametrize("name", sorted(NEVER_IDENTITY))
def test_what_cannot_be_identity_says_so(name):
    with pytest.raises(ValueError, match=f"{name} .*cannot start as identity.*; leave it out"):
        build(name, {}, identity_init=True)


@every_case
def test_a_frozen_module_can_be_initialised(name, arguments):
    """frozen_stages freezes when a model is built, and init_weights comes after."""
    for identity_init in (False,) if name in NEVER_IDENTITY else (False, True):
        module = build(name, arguments, identity_init=identity_init).requires_grad_(False)
        module.init_weights()
        x = torch.randn(2, C, 5, 6)
        assert not identity_init or torch.equal(module(x), x)


@every_case
def test_init_weights_restores_the_initial_state(name, arguments):
    module = build(name, arguments)
    constant = {k: v for k, v in module.state_dict().items() if v.unique().numel() == 1}
    module.init_weights()
    torch.manual_seed(1)
    module.init_weights()
    first = copy.deepcopy(module.state_dict())
    scramble(module)
    torch.manual_seed(1)
    module.init_weights()
    for key, value in module.state_dict().items():
        assert torch.equal(value, first[key]), key
        assert key not in constant or torch.equal(value, constant[key]), key


@every_identity_case
def test_identity_init_weights_into_a_module_without_it(name, arguments):
    source = build(name, arguments, identity_init=True)
    target = build(name, arguments)
    if source.gate_scale is None:
        target.load_state_dict(source.state_dict())
    else:
        with pytest.raises(RuntimeError, match=r"gate_scale.*identity_init=True"):
            target.load_state_dict(source.state_dict(), strict=False)


@every_identity_case
def test_official_weights_into_a_module_with_identity_init(name, arguments):
    """The computation is the official one, not the official one over the neutral gate."""
    source = scramble(build(name, arguments)).eval()
    target = build(name, arguments, identity_init=True).eval()
    target.load_state_dict(source.state_dict(), strict=True)
    x = torch.randn(2, C, 7, 9)
    assert torch.equal(source(x), target(x))
    # and again through a checkpoint of the target
    again = build(name, arguments, identity_init=True).eval()
    again.load_state_dict(target.state_dict())
    assert torch.equal(source(x), again(x))


@every_identity_case
def test_weights_of_a_plain_model_leave_the_identity(name, arguments):
    model = torch.nn.ModuleDict(
        {"conv": torch.nn.Conv2d(3, C, 1), "plugin": build(name, arguments, identity_init=True)}
    )
    model.load_state_dict({f"conv.{k}": v for k, v in model["conv"].state_dict().items()}, False)
    x = torch.randn(2, C, 7, 9)
    assert torch.equal(model["plugin"](x), x)


@every_case
def test_copies_and_pickles_compute_the_same(name, arguments):
    module = scramble(build(name, arguments))
    x = torch.randn(2, C, 3, 4)
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(twin(x), module(x))


class Together(torch.nn.ModuleList):
    """Several modules on one map, which are compiled at once."""

    def forward(self, x):
        return [module(x) for module in self]


@every_plugin
def test_compiles_to_one_graph(name):
    """With each of its arguments."""
    modules = Together(scramble(build(*case)) for case in CASES if case[0] == name)
    x = torch.randn(2, C, 3, 4)
    torch._dynamo.reset()
    compiled = torch.compile(modules, backend="eager", fullgraph=True)
    for found, module in zip(compiled(x), modules, strict=True):
        assert_close(found, module(x), 1e-6)


@every_plugin
def test_bad_input(name):
    module = build(name, {})
    with pytest.raises(ValueError, match=rf"\(N, {C}, H, W\), got shape \(2, {C}, 5\)|\(N, C, H"):
        module(torch.randn(2, C, 5))
    with pytest.raises(ValueError, match=rf"\(N, {C}, H, W\), got shape \(2, 65, 3, 3\)"):
        module(torch.randn(2, C + 1, 3, 3))
    with pytest.raises(TypeError, match=r"floating-point .* got torch.int64"):
        module(torch.ones(2, C, 3, 3, dtype=torch.int64))
    for channels in (0, -1, 6.4, "64"):
        with pytest.raises(ValueError, match="in_channels to be an integer above 0"):
            PLUGINS[name](in_channels=channels)
    with pytest.raises(TypeError, match="unexpected keyword"):
        PLUGINS[name](in_channels=C, rato=4)
    with pytest.raises(TypeError, match="identity_init to be a bool"):
        PLUGINS[name](in_channels=C, identity_init="yes")


@pytest.mark.parametrize(
    "name", [n for n in sorted(PLUGINS) if "ratio" in inspect.signature(PLUGINS[n]).parameters]
)
def test_bad_ratio(name):
    with pytest.raises(ValueError, match="integer divisor.*ratio=16"):
        PLUGINS[name](in_channels=C, ratio=1 / 16)
    with pytest.raises(ValueError, match=r"at most the number of channels.*ratio=65.*64"):
        PLUGINS[name](in_channels=C, ratio=65)
    with pytest.raises(ValueError, match="ratio to be an integer above 0, got 0"):
        PLUGINS[name](in_channels=C, ratio=0)


@every_plugin
def test_signature_and_docstring(name):
    cls = PLUGINS[name]
    parameters = inspect.signature(cls).parameters
    assert next(iter(parameters)) == "in_channels"
    assert all(p.kind == p.POSITIONAL_OR_KEYWORD for p in parameters.values())
    assert parameters["identity_init"].default is False
    assert isinstance(cls.__dict__["_abbr_"], str)
    for section in (
        "Paper:", "Reference:", "Deviations:", "Identity at init:", "Cost:", "Args:", "Shape:",
        "Raises:",
    ):  # fmt: skip
        assert section in cls.__doc__, section
    arguments = cls.__doc__.split("Args:")[1].split("Shape:")[0]
    assert [line.split(":")[0].strip() for line in arguments.splitlines() if line[8:9].strip()] == (
        list(parameters)
    )


def test_one_log_line_a_load(caplog, monkeypatch):
    """Sixteen blocks of official weights are one line, not sixteen; a second load is another."""
    lines = []
    monkeypatch.setattr("mmattn.plugins.base.print_log", lambda text, **_: lines.append(text))
    official = torch.nn.Sequential(*(build("SGE", {}) for _ in range(3)))
    model = torch.nn.Sequential(*(build("SGE", {}, identity_init=True) for _ in range(3)))
    model.load_state_dict(official.state_dict())
    assert len(lines) == 1
    assert "gate_scale" in lines[0]
    model.load_state_dict(official.state_dict())
    assert len(lines) == 2
    model.load_state_dict(model.state_dict())
    assert len(lines) == 2


@every_case
def test_onnx_of_the_tracer(name, arguments):
    """The older exporter knows fewer operators than PyTorch has."""
    pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    module = scramble(build(name, arguments)).eval()
    x = torch.randn(1, C, 6, 7)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(module, (x,), file := io.BytesIO(), dynamo=False)
    session = onnxruntime.InferenceSession(file.getvalue())
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert_close(torch.from_numpy(found), module(x), 1e-4)

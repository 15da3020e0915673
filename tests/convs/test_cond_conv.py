"""CondConv2d against its equations, and in place of plain layers."""

import copy
import inspect
import itertools
import pickle

import pytest
import torch
from mmcv.cnn import ConvModule, build_conv_layer
from mmdet.models.backbones import ResNet, ResNeXt
from mmdet.registry import MODELS as MMDET_MODELS
from mmengine.runner import load_checkpoint
from torch import nn
from torch.nn import functional as F

import mmattn
from mmattn.convs import CondConv2d
from mmattn.ops import use_backend
from tests.convs.detector import train_a_step
from tests.zoo import assert_close, scramble

ODD = dict(kernel_size=(3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2))
OPTIONS = {
    "3x3": dict(kernel_size=3, padding=1),
    "1x1": dict(kernel_size=1, stride=2, bias=False, experts=2),
    "odd, groups": dict(groups=2, **ODD),
    "reflect": dict(kernel_size=3, padding=(1, 2), padding_mode="reflect", groups=2),
    "circular": dict(padding_mode="circular", experts=3, **ODD),
}
each_option = pytest.mark.parametrize("name", OPTIONS)


def build(*args, seed=0, **kwargs):
    torch.manual_seed(seed)
    return CondConv2d(*args, **kwargs)


def run(layer, x, dy):
    """Output, gradient of the input and of every parameter."""
    x = x.detach().requires_grad_()
    layer.zero_grad()
    y = layer(x)
    y.backward(dy)
    return [y, x.grad, *(p.grad for p in layer.parameters())]


def by_hand(layer, x):
    """The layer from its equations, a sample and an output pixel at a time."""
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    (sh, sw), (ph, pw), (dh, dw) = layer.stride, layer.padding, layer.dilation
    kh, kw = layer.kernel_size
    mean = x.sum((2, 3)) / (x.shape[2] * x.shape[3])
    logits = mean @ layer.routing_fc.weight.t() + layer.routing_fc.bias
    shares = 1 / (1 + torch.exp(-logits))
    x = F.pad(x, (pw, pw, ph, ph), mode)
    rows = (x.shape[2] - dh * (kh - 1) - 1) // sh + 1
    columns = (x.shape[3] - dw * (kw - 1) - 1) // sw + 1
    y = []
    for n, i, j in itertools.product(range(len(x)), range(rows), range(columns)):
        kernel = sum(r * expert for r, expert in zip(shares[n], layer.weight, strict=True))
        kernel = kernel.view(layer.out_channels, -1, kh, kw)
        top, left = i * sh, j * sw
        window = x[n, :, top : top + dh * kh : dh, left : left + dw * kw : dw][:, :kh, :kw]
        groups = zip(window.chunk(layer.groups), kernel.chunk(layer.groups), strict=True)
        y.append(torch.cat([(k * w).sum((1, 2, 3)) for w, k in groups]))
    y = torch.stack(y).view(len(x), rows, columns, -1).permute(0, 3, 1, 2)
    return y if layer.bias is None else y + layer.bias[:, None, None]


@pytest.mark.parametrize("backend", ["reference", "eager"])
@each_option
def test_equations(name, backend):
    """Every argument: output and all gradients."""
    layer = scramble(build(6, 4, **OPTIONS[name]).double(), seed=1)
    # off a mean of zero, so that the routing tells the samples apart
    x = torch.randn(2, 6, 7, 9, dtype=torch.float64) + torch.randn(2, 6, 1, 1)
    dy = torch.randn_like(layer(x))
    with use_backend(backend):
        results = run(layer, x, dy)
    twin = copy.deepcopy(layer)
    twin.forward = lambda x: by_hand(twin, x)
    names = ["y", "dx", *(k for k, _ in layer.named_parameters())]
    for key, a, b in zip(names, results, run(twin, x, dy), strict=True):
        assert_close(a, b, 1e-10, key)
        assert b.abs().max() > 1e-3, f"{key} tells nothing"


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("shape", [(0, 6, 5, 4), (3, 6, 1, 1), (1, 6, 2, 5)])
def test_small_maps(kernel, shape):
    layer = scramble(build(6, 4, kernel, padding=kernel // 2).double())
    x = torch.randn(shape, dtype=torch.float64)
    results = run(layer, x, torch.randn_like(layer(x)))
    assert results[0].shape == (shape[0], 4, *shape[2:])
    assert all(t.isfinite().all() for t in results)
    if len(x):
        assert_close(results[0], by_hand(layer, x), 1e-10)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("how", ["autocast", "layer"])
def test_half_precision(dtype, how):
    layer = scramble(build(6, 8, 3, padding=1), seed=2)
    x, dy = torch.randn(2, 6, 9, 7).to(dtype), torch.randn(2, 8, 9, 7).to(dtype)
    if how == "autocast":
        with torch.autocast("cpu", dtype):
            results = run(layer, x, dy)
        assert {t.dtype for t in results[2:]} == {torch.float32}
    else:
        results = run(layer.to(dtype), x, dy)
        assert {t.dtype for t in results} == {dtype}
    exact = run(copy.deepcopy(layer).double(), x.double(), dy.double())
    assert results[0].dtype == dtype
    tolerance = 5e-3 if dtype == torch.float16 else 4e-2
    for a, b in zip(results, exact, strict=True):
        assert_close(a, b, tolerance)


def test_routing_keeps_float32():
    """Under autocast, and of a map in half precision, whose mean is not rounded."""
    layer = scramble(build(6, 8, 3))
    x = (torch.randn(2, 6, 64, 64) + 3).bfloat16()
    expected = layer.routing(x.float())
    assert expected.shape == (2, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer.routing(x.float()), expected)
        assert_close(layer.routing(x), expected, 1e-6)


@pytest.mark.parametrize("shape", [(2, 6, 5, 7), (3, 6, 1, 5)])
def test_channels_last(shape):
    layer = scramble(build(6, 8, 3, padding=1)).to(memory_format=torch.channels_last)
    x = torch.randn(shape)
    y = layer(x)
    assert y.shape == (shape[0], 8, *shape[2:])
    last = layer(x.to(memory_format=torch.channels_last))
    assert y.is_contiguous()
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert_close(last, y, 1e-6)


def test_compiles_to_one_graph():
    torch._dynamo.reset()
    layer = scramble(build(6, 4, 3, padding=1, padding_mode="reflect").double())
    compiled = copy.deepcopy(layer)
    compiled.forward = torch.compile(compiled.forward, backend="eager", fullgraph=True)
    for n in (2, 3):
        x = torch.randn(n, 6, 5, 7, dtype=torch.float64)
        dy = torch.randn_like(layer(x))
        for a, b in zip(run(compiled, x, dy), run(layer, x, dy), strict=True):
            assert_close(a, b, 1e-12)


def test_copies_compute_the_same():
    layer = scramble(build(6, 4, 3))
    x = torch.randn(2, 6, 7, 9)
    y = layer(x)
    loaded = build(6, 4, 3, seed=5)
    loaded.load_state_dict(layer.state_dict(), strict=True)
    for twin in (loaded, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(twin(x), y)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_trace_and_onnx(tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    layer = scramble(build(6, 10, 3, 2, 1)).eval()
    x = torch.randn(2, 6, 7, 9)
    traced = torch.jit.trace(layer, x)
    file = str(tmp_path / "layer.onnx")
    torch.onnx.export(layer, (x,), file, input_names=["x"], dynamo=False)
    session = runtime.InferenceSession(file, providers=["CPUExecutionProvider"])
    for image in (x, torch.randn_like(x)):
        expected = layer(image)
        assert_close(traced(image), expected, 1e-5)
        assert_close(session.run(None, {"x": image.numpy()})[0], expected, 1e-5)


# initial values ----------------------------------------------------------------------------------


def assert_initial(layer):
    """What the docstring says."""
    fan_in = layer.weight.shape[1] / layer.out_channels
    for expert in layer.weight:
        assert expert.std().item() == pytest.approx((2 / fan_in) ** 0.5, rel=0.15)
        assert abs(expert.mean()) < 0.1 * expert.std()
    assert not torch.equal(layer.weight[0], layer.weight[1])
    bound = layer.in_channels**-0.5
    assert 0.9 * bound < layer.routing_fc.weight.abs().max() <= bound
    assert layer.routing_fc.bias.any()
    assert layer.bias is None or not layer.bias.any()


OVER_ALL = dict(type="Normal", layer=["Conv2d", "Linear", "CondConv2d"], std=9.0, bias=3.0)
MODELS_WITH_COND_CONV = {
    "dcn": lambda cfg: ResNet(
        50, base_channels=16, num_stages=2, strides=(1, 2), dilations=(1, 1), out_indices=(0, 1),
        dcn=cfg, stage_with_dcn=(False, True), init_cfg=OVER_ALL,
    ),
    # the shortcuts' convolutions are in an nn.Sequential, which hands no init_weights() on
    "conv_cfg": lambda cfg: ResNet(
        18, in_channels=16, base_channels=16, num_stages=2, strides=(1, 2), dilations=(1, 1),
        out_indices=(0, 1), conv_cfg=cfg, init_cfg=OVER_ALL,
    ),
    "neck": lambda cfg: MMDET_MODELS.build(
        dict(type="mmdet.FPN", in_channels=[16, 32], out_channels=16, num_outs=2, conv_cfg=cfg)
    ),
}  # fmt: skip


@pytest.mark.parametrize("experts", [2, 8])
def test_variance_of_the_output(experts):
    """E / 4 times that of a Kaiming-initialised convolution, as documented."""
    layer = build(64, 64, 3, experts=experts)
    plain = nn.Conv2d(64, 64, 3, bias=False)
    nn.init.kaiming_normal_(plain.weight, nonlinearity="relu")
    x = torch.randn(4, 64, 20, 20)
    assert (layer(x).var() / plain(x).var()).item() == pytest.approx(experts / 4, rel=0.1)


@pytest.mark.parametrize("name", MODELS_WITH_COND_CONV)
def test_a_parents_initialisation_leaves_the_layers_alone(name):
    torch.manual_seed(0)
    net = MODELS_WITH_COND_CONV[name](dict(type="mmattn.CondConv2d"))
    net.init_weights()
    layers = [m for m in net.modules() if isinstance(m, CondConv2d)]
    assert len(layers) == {"dcn": 4, "conv_cfg": 10, "neck": 4}[name]
    for layer in layers:
        assert_initial(layer)


def test_init_weights_restores_the_initial_state():
    layer = scramble(build(16, 32, 3))
    with torch.no_grad():
        layer.weight.mul_(3)
        layer.routing_fc.weight.fill_(1)
    layer.init_weights()
    assert_initial(layer)


# a plain layer's weights -------------------------------------------------------------------------


def load(how, model, state, tmp_path):
    if how == "mmengine":
        torch.save(dict(state_dict=state), tmp_path / "plain.pth")
        load_checkpoint(model, str(tmp_path / "plain.pth"), "cpu", strict=True)
    else:
        model.load_state_dict(state, strict=True, assign=how == "assign")


@pytest.mark.parametrize("how", ["torch", "assign", "mmengine"])
@pytest.mark.parametrize("bias", [True, False])
@each_option
def test_plain_weights_compute_the_plain_convolution(name, how, bias, tmp_path):
    options = OPTIONS[name] | dict(bias=bias)
    torch.manual_seed(0)
    geometry = {k: v for k, v in options.items() if k != "experts"}
    plain = nn.Sequential(nn.Conv2d(6, 8, **geometry), nn.BatchNorm2d(8))
    ours = nn.Sequential(CondConv2d(6, 8, **options), nn.BatchNorm2d(8))
    scramble(ours)
    state = plain.state_dict()
    keys = list(state)
    load(how, ours, state, tmp_path)
    assert list(state) == keys  # the caller's dict is as it was
    x = torch.randn(2, 6, 9, 8)
    y = plain[0](x)
    assert (ours[0](x) - y).abs().max() <= 1e-6 * y.abs().max()
    assert ours[0].routing(x).eq(0.5).all()


def test_in_float64_the_rounding_is_that_of_float64():
    torch.manual_seed(0)
    plain = nn.Conv2d(32, 16, 3).double()
    layer = CondConv2d(32, 16, 3).double()
    layer.load_state_dict(plain.state_dict())
    x = torch.randn(2, 32, 9, 8).double()
    assert_close(layer(x), plain(x), 1e-14)


def test_a_bias_that_the_plain_convolution_lacks_is_zero():
    plain, ours = nn.Conv2d(6, 8, 3, bias=False), scramble(CondConv2d(6, 8, 3))
    ours.load_state_dict(plain.state_dict(), strict=True)
    assert not ours.bias.any()


def test_the_experts_part_ways():
    """From weights that mix to one kernel, three steps give every sample its own."""
    torch.manual_seed(0)
    plain = nn.Conv2d(6, 8, 3, padding=1)
    layer = CondConv2d(6, 8, 3, padding=1, experts=4)
    layer.load_state_dict(plain.state_dict())
    start = copy.deepcopy(layer.state_dict())
    x = torch.randn(4, 6, 12, 12) + torch.randn(4, 6, 1, 1)
    target = torch.randn(4, 8, 12, 12)
    optimizer = torch.optim.SGD(layer.parameters(), 0.1)
    losses = []
    for _ in range(3):
        loss = F.mse_loss(layer(x), target)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses == sorted(losses, reverse=True)
    for key, value in layer.state_dict().items():
        assert (value - start[key]).abs().max() > 1e-5, f"{key} did not move"
    shares = layer.routing(x)
    assert (shares - 0.5).abs().min() > 0
    for i, j in itertools.combinations(range(4), 2):
        assert (shares[i] - shares[j]).abs().max() > 1e-5
        assert (shares[:, i] - shares[:, j]).abs().max() > 1e-5
        assert (layer.weight[i] - layer.weight[j]).std() > 0.5 / 2 * plain.weight.std()


def test_experts_lie_around_their_share_of_the_plain_kernel():
    """As far from it as it is wide; drawn again the same, but by the layer's name."""
    plain = nn.Conv2d(16, 32, 3)
    state = {f"{name}.{k}": v for name in "ab" for k, v in plain.state_dict().items()}
    models = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        models.append(nn.ModuleDict({name: CondConv2d(16, 32, 3) for name in "ab"}))
        models[-1].load_state_dict(state)
    one, two = models
    for name in "ab":
        assert torch.equal(one[name].weight, two[name].weight)
    noise = [4 * layer.weight.double() - plain.weight.double().flatten() for layer in one.values()]
    for n in noise:
        # the mean is taken out of 8 draws
        assert abs(n.std() / plain.weight.std() - (7 / 8) ** 0.5) < 0.03
    together = torch.corrcoef(torch.stack([n.flatten() for n in noise]))
    assert abs(together[0, 1]) < 0.05


def test_plain_weights_of_another_shape():
    layer = nn.Sequential(CondConv2d(6, 8, 3, groups=2))
    message = r"0\.weight: CondConv2d expects .* \(8, 3, 3, 3\), got \(8, 6, 3, 3\)"
    for strict in (True, False):
        with pytest.raises(RuntimeError, match=message):
            layer.load_state_dict(nn.Sequential(nn.Conv2d(6, 8, 3)).state_dict(), strict=strict)


def test_log_lines(monkeypatch):
    """One a load of plain weights, none for its own."""
    lines = []
    monkeypatch.setattr("mmattn.convs.cond_conv.print_log", lambda text, **_: lines.append(text))
    plain = nn.Sequential(*(nn.Conv2d(6, 6, 3) for _ in range(3)))
    model = nn.Sequential(*(scramble(CondConv2d(6, 6, 3)) for _ in range(3)))
    other = copy.deepcopy(model)
    model.load_state_dict(plain.state_dict())
    assert len(lines) == 1
    assert "0 (and others, if any) starts from the weight of a plain convolution" in lines[0]
    model.load_state_dict(plain.state_dict())
    assert len(lines) == 2
    model.load_state_dict(other.state_dict())
    assert len(lines) == 2
    for key, value in model.state_dict().items():
        assert torch.equal(value, other.state_dict()[key])


def test_what_is_missing_is_named():
    layer = nn.Sequential(build(6, 8, 3))
    for part in ("weight", "routing_fc"):
        state = {k: v for k, v in layer.state_dict().items() if not k.startswith(f"0.{part}")}
        with pytest.raises(RuntimeError, match=rf'Missing key.*"0\.{part}'):
            layer.load_state_dict(state)


# where it goes -----------------------------------------------------------------------------------


def test_as_a_plain_layer():
    layer = build_conv_layer(
        dict(type="mmattn.CondConv2d", experts=3),
        6, 8, kernel_size=(3, 1), stride=(2, 1), padding=(1, 0), dilation=1, groups=2, bias=False,
    )  # fmt: skip
    assert isinstance(layer, mmattn.CondConv2d)
    assert layer(torch.randn(2, 6, 9, 8)).shape == (2, 8, 5, 8)
    assert "groups=2, bias=False, experts=3" in repr(layer)
    assert list(layer.state_dict()) == ["weight", "routing_fc.weight", "routing_fc.bias"]
    assert layer.weight.shape == (3, 8 * 3 * 3)


def test_in_mmcv_conv_module():
    layer = ConvModule(
        4, 8, 3, stride=2, padding=1, groups=2,
        conv_cfg=dict(type="mmattn.CondConv2d"), norm_cfg=dict(type="BN"),
    )  # fmt: skip
    assert (layer.out_channels, layer.stride, layer.conv.padding) == (8, (2, 2), (1, 1))
    assert layer.conv.bias is None
    layer(torch.randn(2, 4, 6, 6)).square().sum().backward()
    assert all(p.grad is not None for p in layer.parameters())


def test_in_resnext_of_32_groups():
    net = ResNeXt(
        depth=50, groups=32, base_width=1, base_channels=32, num_stages=2, strides=(1, 2),
        dilations=(1, 1), out_indices=(0, 1), dcn=dict(type="mmattn.CondConv2d"),
        stage_with_dcn=(False, True),
    )  # fmt: skip
    layers = [m for m in net.modules() if isinstance(m, CondConv2d)]
    assert [layer.groups for layer in layers] == [32] * 4
    net.init_weights()
    sum(level.square().mean() for level in net(torch.randn(1, 3, 32, 32))).backward()
    for layer in layers:
        assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())


@pytest.mark.parametrize("style", ["pytorch", "caffe"])
def test_resnet_computes_the_plain_features(style, tmp_path):
    torch.manual_seed(0)
    options = dict(depth=50, base_channels=16, style=style, norm_eval=False)
    plain = ResNet(**options)
    plain.init_weights()
    for norm in plain.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.weight, 0.2, 0.8)
            nn.init.uniform_(norm.running_var, 0.5, 1.5)
    path = str(tmp_path / "plain.pth")
    torch.save(plain.state_dict(), path)
    ours = ResNet(
        dcn=dict(type="mmattn.CondConv2d", fallback_on_stride=False),
        stage_with_dcn=(False, False, True, True),
        init_cfg=dict(type="Pretrained", checkpoint=path),
        **options,
    )
    ours.init_weights()
    layers = [m for m in ours.modules() if isinstance(m, CondConv2d)]
    assert len(layers) == 9
    assert sum(layer.stride == (2, 2) for layer in layers) == (2 if style == "pytorch" else 0)
    x = torch.randn(2, 3, 64, 96)
    for training in (False, True):
        for net in (plain, ours):
            net.train(training)
        with torch.no_grad():
            for a, b in zip(plain(x), ours(x), strict=True):
                assert (a - b).abs().max() <= 2e-5 * a.abs().max()


def test_a_detector_trains():
    net = train_a_step(
        dict(
            dcn=dict(type="mmattn.CondConv2d"), stage_with_dcn=(False, False, True, True),
            base_channels=8,
        )
    )  # fmt: skip
    assert sum(isinstance(m, CondConv2d) for m in net.modules()) == 9


def test_documented_parameters():
    """Of ResNet-50 with c4 and c5, as the page in docs/modules says."""
    with torch.device("meta"):
        net = ResNet(
            50, dcn=dict(type="mmattn.CondConv2d"), stage_with_dcn=(False, False, True, True)
        )
    assert sum(p.numel() for p in net.parameters()) == 97_850_504


# messages ----------------------------------------------------------------------------------------

WRONG = {
    "in_channels, 0": (dict(in_channels=0), "in_channels to be an integer above 0, got 0"),
    "out_channels, a float": (dict(out_channels=8.0), "out_channels to be an integer .* got 8.0"),
    "groups, 0": (dict(groups=0), "groups to be an integer above 0, got 0"),
    "groups": (dict(groups=4), "groups to divide in_channels=6 and out_channels=8, got 4"),
    "groups, out": (dict(groups=3), "groups to divide in_channels=6 and out_channels=8, got 3"),
    "padding_mode": (dict(padding_mode="same"), "padding_mode .* 'reflect', .* got 'same'"),
    "experts, 1": (dict(experts=1), "experts to be an integer from 2 on, got 1"),
    "experts, a float": (dict(experts=8.0), "experts to be an integer from 2 on, got 8.0"),
    "experts, a bool": (dict(experts=True), "experts to be an integer from 2 on, got True"),
    "kernel_size, 0": (dict(kernel_size=0), "kernel_size to be an integer from 1 on, .* got 0"),
    "stride": (dict(stride=(1, 0)), r"stride to be an integer from 1 on, or two, got \(1, 0\)"),
    "padding": (dict(padding="same"), "padding to be an integer from 0 on, or two, got 'same'"),
    "dilation": (dict(dilation=0), "dilation to be an integer from 1 on, or two, got 0"),
}


@pytest.mark.parametrize("name", WRONG)
def test_bad_arguments(name):
    arguments, message = WRONG[name]
    with pytest.raises(ValueError, match=f"^CondConv2d expects .*{message}"):
        CondConv2d(**{**dict(in_channels=6, out_channels=8, kernel_size=3), **arguments})


def test_bad_input():
    layer = CondConv2d(6, 8, 3)
    x = torch.randn(2, 6, 7, 7)
    with pytest.raises(ValueError, match=r"CondConv2d .*\(N, 6, H, W\), got shape \(2, 7, 7\)"):
        layer(x[:, 0])
    with pytest.raises(ValueError, match=r"CondConv2d .*\(N, 6, H, W\), got shape \(2, 3, 7, 7\)"):
        layer(x[:, :3])
    with pytest.raises(TypeError, match=r"CondConv2d .*floating-point .* got torch.int64; use x"):
        layer(x.long())
    with pytest.raises(ValueError, match=r"kernel of \(3, 3\) pixels for a map of \(2, 7\)"):
        layer(x[:, :, :2])
    with pytest.raises(TypeError, match="one dtype, got torch.float64 and torch.float32"):
        layer(x.double())
    with pytest.raises(TypeError, match="unexpected keyword argument 'expert'"):
        CondConv2d(6, 8, 3, expert=4)


def test_signature_and_docstring():
    parameters = inspect.signature(CondConv2d).parameters
    assert list(parameters)[:9] == list(inspect.signature(nn.Conv2d).parameters)[:9]
    assert all(p.kind == p.KEYWORD_ONLY for p in list(parameters.values())[9:])
    for section in ("Paper:", "Reference:", "Deviations:", "Identity at init:", "Cost:", "Shape:",
                    "Raises:"):  # fmt: skip
        assert section in CondConv2d.__doc__, section
    arguments = CondConv2d.__doc__.split("Args:")[1].split("Shape:")[0]
    assert [line.split(":")[0].strip() for line in arguments.splitlines() if line[8:9].strip()] == (
        list(parameters)
    )

"""SKConv2d against its equations, and in place of plain layers."""

import copy
import inspect
import itertools
import pickle

import pytest
import torch
from mmcv.cnn import ConvModule, build_conv_layer
from mmdet.models.backbones import Res2Net, ResNet, ResNeXt
from mmdet.registry import MODELS as MMDET_MODELS
from mmengine.runner import load_checkpoint
from torch import nn
from torch.nn import functional as F

import mmattn
from mmattn.convs import SKConv2d
from mmattn.convs.sk_conv import select_kernel
from tests.convs.detector import train_a_step
from tests.zoo import assert_close, scramble

SMALL = dict(branch_groups=2, ratio=2)
ODD = dict(kernel_size=(3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2))
OPTIONS = {
    "3x3": dict(kernel_size=3, padding=1, bias=False),
    "1x1": dict(kernel_size=1, stride=2, ratio=8),
    "odd, groups": dict(groups=4, **ODD),
    "reflect": dict(kernel_size=3, padding=(1, 2), padding_mode="reflect"),
    "circular": dict(padding_mode="circular", branch_groups=4, **ODD),
}
each_option = pytest.mark.parametrize("name", OPTIONS)


def build(*args, seed=0, **kwargs):
    torch.manual_seed(seed)
    return SKConv2d(*args, **{**SMALL, **kwargs})


def lively(module, seed=0):
    """As scramble, and with running statistics off their initial state."""
    scramble(module, seed)
    generator = torch.Generator().manual_seed(seed)
    for name, buffer in module.named_buffers():
        if buffer.is_floating_point():
            noise = torch.rand(buffer.shape, generator=generator) + 0.5 * name.endswith("var")
            buffer.copy_(noise)
    return module


def run(layer, x, dy):
    """Output, gradient of the input and of every parameter."""
    x = x.detach().requires_grad_()
    layer.zero_grad()
    y = layer(x)
    y.backward(dy)
    return [y, x.grad, *(p.grad for p in layer.parameters())]


def conv_by_hand(layer, conv, groups, x):
    """An output pixel at a time."""
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    (sh, sw), (ph, pw), (dh, dw) = layer.stride, layer.padding, layer.dilation
    kh, kw = layer.kernel_size
    x = F.pad(x, (pw, pw, ph, ph), mode)
    rows = (x.shape[2] - dh * (kh - 1) - 1) // sh + 1
    columns = (x.shape[3] - dw * (kw - 1) - 1) // sw + 1
    y = []
    for i, j in itertools.product(range(rows), range(columns)):
        top, left = i * sh, j * sw
        window = x[:, :, top : top + dh * kh : dh, left : left + dw * kw : dw][:, :, :kh, :kw]
        pairs = zip(window.chunk(groups, 1), conv.weight.chunk(groups), strict=True)
        y.append(torch.cat([torch.einsum("ncab,ocab->no", w, k) for w, k in pairs], 1))
    return torch.stack(y, 2).view(len(x), -1, rows, columns)


def norm_by_hand(norm, x, training):
    if training:
        mean = x.mean((0, 2, 3), keepdim=True)
        variance = (x - mean).square().mean((0, 2, 3), keepdim=True)
    else:
        mean, variance = (t.view(1, -1, 1, 1) for t in (norm.running_mean, norm.running_var))
    weight, bias = (t.view(1, -1, 1, 1) for t in (norm.weight, norm.bias))
    return (x - mean) / (variance + norm.eps) ** 0.5 * weight + bias


def by_hand(layer, x, training=False):
    """The layer from its equations."""
    d1 = conv_by_hand(layer, layer.conv, layer.groups, x)
    d1 = norm_by_hand(layer.bn, d1, training).clamp(min=0)
    d2 = conv_by_hand(layer, layer.convg, layer.branch_groups, x)
    d2 = norm_by_hand(layer.bng, d2, training).clamp(min=0)
    pixels = d1.shape[2] * d1.shape[3]
    s = (d1.sum((2, 3)) + d2.sum((2, 3))) / pixels
    z = s @ layer.conv_fc1.weight[:, :, 0, 0].t()
    z = norm_by_hand(layer.bn_fc1, z[:, :, None, None], training)[:, :, 0, 0].clamp(min=0)
    logits = z @ layer.conv_fc2.weight[:, :, 0, 0].t()
    first, second = logits.exp().chunk(2, 1)  # the first O rows are the first branch's
    share = (first / (first + second))[:, :, None, None]
    y = share * d1 + (1 - share) * d2
    return y if layer.bias is None else y + layer.bias[:, None, None]


@pytest.mark.parametrize("training", [False, True])
@each_option
def test_equations(name, training):
    """Every argument: output and all gradients."""
    layer = lively(build(8, 16, **OPTIONS[name]).double(), seed=1).train(training)
    x = torch.randn(3, 8, 7, 9, dtype=torch.float64)
    before = copy.deepcopy(layer)
    dy = torch.randn_like(layer(x))
    layer.load_state_dict(before.state_dict())
    results = run(layer, x, dy)
    moved = {k: not torch.equal(v, before.get_buffer(k)) for k, v in layer.named_buffers()}
    assert moved == dict.fromkeys(moved, training)
    twin = copy.deepcopy(before)
    twin.forward = lambda x: by_hand(twin, x, training)
    names = ["y", "dx", *(k for k, _ in layer.named_parameters())]
    for key, a, b in zip(names, results, run(twin, x, dy), strict=True):
        assert_close(a, b, 1e-10, key)
        assert b.abs().max() > 1e-3, f"{key} tells nothing"


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("shape", [(0, 8, 5, 4), (1, 8, 2, 5), (1, 8, 1, 1)])
def test_small_maps(shape, training):
    """One value a channel: a BatchNorm uses its running statistics, and leaves them alone."""
    layer = lively(build(8, 16, 3, padding=1).double()).train(training)
    before = copy.deepcopy(layer)
    x = torch.randn(shape, dtype=torch.float64)
    results = run(layer, x, torch.randn(shape[0], 16, *shape[2:]).double())
    assert results[0].shape == (shape[0], 16, *shape[2:])
    assert all(t is not None and t.isfinite().all() for t in results)
    for key, value in layer.named_buffers():
        alone = key.startswith("bn_fc1") or x[:, 0].numel() <= 1
        assert torch.equal(value, before.get_buffer(key)) == (alone or not training), key
    if shape[0] and (x[0, 0].numel() == 1 or not training):
        assert_close(results[0], by_hand(before, x), 1e-10)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("how", ["autocast", "layer"])
def test_half_precision(dtype, how):
    layer = lively(build(8, 16, 3, padding=1), seed=2).eval()
    with torch.no_grad():  # far from the kink of ReLU, where a rounding turns gradients on and off
        for norm in (layer.bn, layer.bng, layer.bn_fc1):
            norm.weight.mul_(0.3)
            norm.bias.fill_(3)[::4] = -3
    x, dy = torch.randn(3, 8, 9, 7).to(dtype), torch.randn(3, 16, 9, 7).to(dtype)
    if how == "layer":
        layer.to(dtype)
    exact = run(copy.deepcopy(layer).double(), x.double(), dy.double())
    if how == "autocast":
        with torch.autocast("cpu", dtype):
            results = run(layer, x, dy)
        assert {t.dtype for t in results[2:]} == {torch.float32}
    else:
        results = run(layer, x, dy)
        assert {t.dtype for t in results} == {dtype}
    assert results[0].dtype == dtype
    tolerance = 5e-3 if dtype == torch.float16 else 4e-2
    names = ["y", "dx", *(k for k, _ in layer.named_parameters())]
    for name, a, b in zip(names, results, exact, strict=True):
        assert_close(a, b, tolerance, name)
    layer.train()
    with torch.autocast("cpu", dtype, enabled=how == "autocast"):
        assert all(t.isfinite().all() for t in run(layer, x, dy))


def test_the_choice_keeps_float32():
    """Under autocast, and of maps in half precision, whose means are not rounded."""
    layer = lively(build(8, 16, 1)).eval()
    with torch.no_grad():
        layer.conv_fc1.weight.mul_(10)  # a small change of a mean is a large one of a share
    maps = [torch.rand(2, 16, 9, 7) + mean for mean in (3, 0)]
    expected = select_kernel(*maps, layer)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(select_kernel(*maps, layer), expected)
        maps = [d.bfloat16() for d in maps]
        y = select_kernel(*maps, layer)
    exact = select_kernel(*(d.double() for d in maps), copy.deepcopy(layer).double())
    # the shares, the two products and their sum are rounded
    assert ((y.double() - exact).abs() <= 2**-7 * exact.abs()).all()


@pytest.mark.parametrize("shape", [(2, 8, 5, 7), (3, 8, 1, 5)])
def test_channels_last(shape):
    layer = lively(build(8, 16, 3, padding=1)).eval()
    x = torch.randn(shape)
    y = layer(x)
    assert y.is_contiguous()
    layer.to(memory_format=torch.channels_last)
    last = layer(x.to(memory_format=torch.channels_last))
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert_close(last, y, 1e-5)


@pytest.mark.parametrize("training", [False, True])
def test_compiles_to_one_graph(training):
    torch._dynamo.reset()
    layer = lively(build(8, 16, 3, padding=1).double()).train(training)
    compiled = copy.deepcopy(layer)
    compiled.forward = torch.compile(compiled.forward, backend="eager", fullgraph=True)
    for n in (3, 1):  # bn_fc1 sees one value a channel the second time
        x = torch.randn(n, 8, 5, 7, dtype=torch.float64)
        dy = torch.randn(n, 16, 5, 7, dtype=torch.float64)
        for a, b in zip(run(compiled, x, dy), run(layer, x, dy), strict=True):
            assert_close(a, b, 1e-12)


def test_copies_compute_the_same():
    layer = lively(build(8, 16, 3)).eval()
    x = torch.randn(2, 8, 7, 9)
    y = layer(x)
    loaded = build(8, 16, 3, seed=5).eval()
    loaded.load_state_dict(layer.state_dict(), strict=True)
    for twin in (loaded, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(twin(x), y)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_trace_and_onnx(tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    layer = lively(build(8, 16, 3, 2, 1)).eval()
    x = torch.randn(2, 8, 7, 9)
    traced = torch.jit.trace(layer, x)
    file = str(tmp_path / "layer.onnx")
    axes = {"x": {0: "n", 2: "h", 3: "w"}}
    torch.onnx.export(layer, (x,), file, input_names=["x"], dynamo=False, dynamic_axes=axes)
    session = runtime.InferenceSession(file, providers=["CPUExecutionProvider"])
    for image in (x, torch.randn(3, 8, 9, 6)):
        expected = layer(image)
        assert_close(traced(image), expected, 1e-5)
        assert_close(session.run(None, {"x": image.numpy()})[0], expected, 1e-5)


# initial values and loading ----------------------------------------------------------------------


def assert_initial(layer):
    """PyTorch's default, the bias zero."""
    for conv in (layer.conv, layer.convg, layer.conv_fc1, layer.conv_fc2):
        bound = conv.weight[0].numel() ** -0.5
        assert 0.8 * bound < conv.weight.abs().max() <= bound
    for norm in (layer.bn, layer.bng, layer.bn_fc1):
        assert norm.weight.eq(1).all()
        assert not norm.bias.any()
        assert norm.running_var.eq(1).all()
        assert not norm.running_mean.any()
    assert layer.bias is None or not layer.bias.any()


OVER_ALL = [
    dict(type="Normal", layer=["Conv2d", "SKConv2d"], std=9.0, bias=3.0),
    dict(type="Constant", layer=["_BatchNorm", "BatchNorm2d"], val=7.0, bias=3.0),
]
MODELS_WITH_SK = {
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


@pytest.mark.parametrize("name", MODELS_WITH_SK)
def test_a_parents_initialisation_leaves_the_layers_alone(name):
    torch.manual_seed(0)
    net = MODELS_WITH_SK[name](dict(type="mmattn.SKConv2d", branch_groups=4, ratio=4))
    net.init_weights()
    layers = [m for m in net.modules() if isinstance(m, SKConv2d)]
    assert len(layers) == {"dcn": 4, "conv_cfg": 10, "neck": 4}[name]
    for layer in layers:
        assert_initial(layer)
        assert not layer.identity_at_init


def test_init_weights_restores_the_initial_state():
    layer = lively(build(16, 32, 3))
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.fill_(9)
    layer.init_weights()
    assert_initial(layer)


@pytest.fixture
def lines(monkeypatch):
    """What is logged."""
    lines = []
    monkeypatch.setattr("mmattn.convs.sk_conv.print_log", lambda text, **_: lines.append(text))
    return lines


@pytest.mark.parametrize("how", ["torch", "assign", "mmengine"])
@pytest.mark.parametrize("bias", [True, False])
def test_a_plain_weight_goes_into_the_first_branch_and_is_told(how, bias, tmp_path, lines):
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(8, 16, 3, groups=2, bias=bias), nn.BatchNorm2d(16))
    ours = nn.Sequential(build(8, 16, 3, groups=2, bias=bias), nn.BatchNorm2d(16))
    twin = copy.deepcopy(ours)
    state = plain.state_dict()
    keys = list(state)
    if how == "mmengine":
        torch.save(dict(state_dict=state), tmp_path / "plain.pth")
        load_checkpoint(ours, str(tmp_path / "plain.pth"), "cpu", strict=False)
    else:
        result = ours.load_state_dict(state, strict=False, assign=how == "assign")
        assert not result.unexpected_keys
        new = {f"0.{k}" for k in ours[0].state_dict()} - {"0.conv.weight", "0.bias"}
        assert {k for k in new if not k.endswith("tracked")} == set(result.missing_keys)
    assert list(state) == keys  # the caller's dict is as it was
    for key, value in ours.state_dict().items():
        expected = state.get(key.replace("0.conv.weight", "0.weight"), twin.state_dict()[key])
        assert torch.equal(value, expected), key
    assert len(lines) == 1
    assert "0 (and others, if any) takes the weight of a plain convolution" in lines[0]
    assert "does NOT compute" in lines[0]
    # where everything has to be there, a plain checkpoint is refused
    with pytest.raises(RuntimeError, match=r'Missing key.*"0\.bn\.weight"'):
        twin.load_state_dict(state, strict=True)


def test_one_line_a_load_of_plain_weights_and_none_for_its_own(lines):
    plain = nn.Sequential(*(nn.Conv2d(8, 8, 3) for _ in range(3)))
    model = nn.Sequential(*(lively(build(8, 8, 3)) for _ in range(3)))
    other = copy.deepcopy(model)
    for count in (1, 2):
        model.load_state_dict(plain.state_dict(), strict=False)
        assert len(lines) == count
    model.load_state_dict(other.state_dict())
    assert len(lines) == 2
    for key, value in model.state_dict().items():
        assert torch.equal(value, other.state_dict()[key])


def test_a_plain_weight_of_another_shape():
    layer = nn.Sequential(build(8, 16, 3))
    state = nn.Sequential(nn.Conv2d(8, 16, 1)).state_dict()
    with pytest.raises(RuntimeError, match=r"size mismatch for 0\.conv\.weight"):
        layer.load_state_dict(state, strict=False)


# where it goes -----------------------------------------------------------------------------------


def test_as_a_plain_layer():
    layer = build_conv_layer(
        dict(
            type="mmattn.SKConv2d", branch_groups=4, ratio=2,
            norm_cfg=dict(type="GN", num_groups=2),
        ),
        8, 16, kernel_size=(3, 1), stride=(2, 1), padding=(1, 0), dilation=1, groups=2, bias=False,
    )  # fmt: skip
    assert isinstance(layer, mmattn.SKConv2d)
    assert layer(torch.randn(2, 8, 9, 8)).shape == (2, 16, 5, 8)
    assert "groups=2, bias=False, branch_groups=4" in repr(layer)
    assert {k: tuple(v.shape) for k, v in layer.state_dict().items() if "conv" in k} == {
        "conv.weight": (16, 4, 3, 1),
        "convg.weight": (16, 2, 3, 1),
        "conv_fc1.weight": (8, 16, 1, 1),
        "conv_fc2.weight": (32, 8, 1, 1),
    }
    for name in ("bn", "bng", "bn_fc1"):
        assert isinstance(layer.get_submodule(name), nn.GroupNorm)


def test_defaults():
    layer = SKConv2d(64, 128, 3)
    assert layer.convg.groups == 32
    assert layer.conv_fc1.out_channels == 8
    assert isinstance(layer.bn_fc1, nn.BatchNorm2d)
    assert layer.bias is not None


def test_in_mmcv_conv_module():
    layer = ConvModule(
        8, 16, 3, stride=2, padding=1,
        conv_cfg=dict(type="mmattn.SKConv2d", **SMALL), norm_cfg=dict(type="BN"),
    )  # fmt: skip
    assert (layer.out_channels, layer.stride, layer.conv.padding) == (16, (2, 2), (1, 1))
    assert layer.conv.bias is None
    layer(torch.randn(2, 8, 6, 6)).square().sum().backward()
    assert all(p.grad is not None for p in layer.parameters())


@pytest.mark.parametrize("style", ["pytorch", "caffe"])
def test_in_resnet_bottlenecks(style):
    """The stride is where the ResNet puts it, and the size of the maps stays."""
    options = dict(
        depth=50, base_channels=16, num_stages=2, strides=(1, 2), dilations=(1, 2),
        out_indices=(0, 1), style=style, norm_eval=False,
    )  # fmt: skip
    net = ResNet(
        dcn=dict(type="mmattn.SKConv2d", fallback_on_stride=False, branch_groups=8),
        stage_with_dcn=(False, True),
        **options,
    )
    layers = [m for m in net.modules() if isinstance(m, SKConv2d)]
    assert len(layers) == 4
    strided = (2, 2) if style == "pytorch" else (1, 1)
    for layer, stride in zip(layers, [strided, (1, 1), (1, 1), (1, 1)], strict=True):
        for conv in (layer.conv, layer.convg):
            assert (conv.stride, conv.padding, conv.dilation) == (stride, (2, 2), (2, 2))
    net.init_weights()
    x = torch.randn(2, 3, 64, 64)
    levels = net(x)
    assert [y.shape for y in levels] == [y.shape for y in ResNet(**options)(x)]
    sum(y.square().mean() for y in levels).backward()
    # zero-initialised residuals give their branch no gradient yet: the norms that follow do
    for block in net.layer2:
        nn.init.constant_(block.norm3.weight, 0.5)
    net.zero_grad()
    sum(y.square().mean() for y in net(x)).backward()
    for layer in layers:
        assert all(p.grad.any() and p.grad.isfinite().all() for p in layer.parameters())


def test_in_resnext_and_res2net():
    resnext = ResNeXt(
        depth=50, groups=8, base_width=4, base_channels=32, num_stages=2, strides=(1, 2),
        dilations=(1, 1), out_indices=(0, 1), dcn=dict(type="mmattn.SKConv2d"),
        stage_with_dcn=(False, True),
    )  # fmt: skip
    layers = [m for m in resnext.modules() if isinstance(m, SKConv2d)]
    assert [(layer.conv.groups, layer.convg.groups) for layer in layers] == [(8, 32)] * 4
    options = dict(depth=50, num_stages=1, strides=(1,), dilations=(1,), out_indices=(0,))
    res2net = Res2Net(
        dcn=dict(type="mmattn.SKConv2d", branch_groups=2), stage_with_dcn=(True,), **options
    )
    for net in (resnext, res2net):
        net.init_weights()
        assert all(y.isfinite().all() for y in net(torch.randn(2, 3, 32, 32)))
    with pytest.raises(ValueError, match="branch_groups to divide in_channels=26 and out_ch.* 32"):
        Res2Net(dcn=dict(type="mmattn.SKConv2d"), stage_with_dcn=(True,), **options)


def test_a_detector_trains():
    net = train_a_step(
        dict(
            dcn=dict(type="mmattn.SKConv2d", branch_groups=16),
            stage_with_dcn=(False, False, True, True),
            base_channels=8,
        )
    )
    assert sum(isinstance(m, SKConv2d) for m in net.modules()) == 9


def test_documented_parameters():
    """Of ResNet-50 with c4 and c5, as the page in docs/modules says."""
    with torch.device("meta"):
        net = ResNet(
            50, dcn=dict(type="mmattn.SKConv2d"), stage_with_dcn=(False, False, True, True)
        )
    assert sum(p.numel() for p in net.parameters()) == 24_073_664


# messages ----------------------------------------------------------------------------------------

WRONG = {
    "in_channels, 0": (dict(in_channels=0), "in_channels to be an integer above 0, got 0"),
    "groups": (dict(groups=3), "groups to divide in_channels=8 and out_channels=16, got 3"),
    "branch_groups": (
        dict(branch_groups=32),
        "branch_groups to divide in_channels=8 and out_channels=16, got 32",
    ),
    "branch_groups, 0": (dict(branch_groups=0), "branch_groups to be an integer above 0, got 0"),
    "ratio, a fraction": (dict(ratio=1 / 16), "an integer divisor .* 0.0625; .* give ratio=16"),
    "ratio, 0": (dict(ratio=0), "ratio to be an integer above 0, got 0"),
    "ratio, large": (dict(ratio=17), "at most the number of channels, got ratio=17 for 16"),
    "norm type": (dict(norm_cfg=dict(type="BNN")), "registered norm layer .* got 'BNN'"),
    "padding_mode": (dict(padding_mode="same"), "padding_mode .* 'reflect', .* got 'same'"),
    "kernel_size, 0": (dict(kernel_size=0), "kernel_size to be an integer from 1 on, .* got 0"),
    "stride": (dict(stride=(1, 0)), r"stride to be an integer from 1 on, or two, got \(1, 0\)"),
    "padding": (dict(padding="same"), "padding to be an integer from 0 on, or two, got 'same'"),
    "dilation": (dict(dilation=0), "dilation to be an integer from 1 on, or two, got 0"),
}


@pytest.mark.parametrize("name", WRONG)
def test_bad_arguments(name):
    arguments, message = WRONG[name]
    with pytest.raises(ValueError, match=f"^SKConv2d expects .*{message}"):
        build(**{**dict(in_channels=8, out_channels=16, kernel_size=3), **arguments})


def test_bad_norms():
    with pytest.raises(TypeError, match=r"SKConv2d expects norm_cfg as dict\(type='BN'.*'BN'"):
        build(8, 16, 3, norm_cfg="BN")
    with pytest.raises(ValueError, match="SKConv2d cannot build .* for 8 channels"):
        build(8, 16, 3, norm_cfg=dict(type="GN", num_groups=16))
    for norm_cfg in (dict(type="GN", num_groups=8), dict(type="IN")):
        with pytest.raises(ValueError, match="SKConv2d normalises 8 .* fewer groups than 8"):
            build(8, 16, 3, norm_cfg=norm_cfg)
    with pytest.raises(TypeError, match="unexpected keyword argument 'branches'"):
        build(8, 16, 3, branches=4)


def test_bad_input():
    layer = build(8, 16, 3)
    x = torch.randn(2, 8, 7, 7)
    with pytest.raises(ValueError, match=r"SKConv2d .*\(N, 8, H, W\), got shape \(2, 7, 7\)"):
        layer(x[:, 0])
    with pytest.raises(ValueError, match=r"SKConv2d .*\(N, 8, H, W\), got shape \(2, 3, 7, 7\)"):
        layer(x[:, :3])
    with pytest.raises(TypeError, match=r"SKConv2d .*floating-point .* got torch.int64; use x"):
        layer(x.long())


def test_signature_and_docstring():
    parameters = inspect.signature(SKConv2d).parameters
    assert list(parameters)[:9] == list(inspect.signature(nn.Conv2d).parameters)[:9]
    assert all(p.kind == p.KEYWORD_ONLY for p in list(parameters.values())[9:])
    for section in ("Paper:", "Reference:", "Deviations:", "Identity at init:", "Cost:", "Shape:",
                    "Raises:"):  # fmt: skip
        assert section in SKConv2d.__doc__, section
    arguments = SKConv2d.__doc__.split("Args:")[1].split("Shape:")[0]
    assert [line.split(":")[0].strip() for line in arguments.splitlines() if line[8:9].strip()] == (
        list(parameters)
    )

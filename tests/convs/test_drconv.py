"""DRConv2d against the authors' values, against its equations, and in place of plain layers."""

import copy
import inspect
import itertools
import pickle
import re

import numpy as np
import pytest
import torch
from mmcv.cnn import ConvModule, build_conv_layer
from mmdet.models.backbones import ResNet, ResNeXt
from mmdet.registry import MODELS as MMDET_MODELS
from mmdet.structures import DetDataSample
from mmengine.hub import get_config
from mmengine.model import BaseModule
from mmengine.registry import DefaultScope
from mmengine.runner import load_checkpoint
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import mmattn
from mmattn.convs import DRConv2d
from mmattn.ops import use_backend
from tests.data import GOLDEN
from tests.zoo import assert_close, scramble

GENERATORS = ["template", "paper"]
each_generator = pytest.mark.parametrize("generator", GENERATORS)


def build(*args, seed=0, **kwargs):
    torch.manual_seed(seed)
    return DRConv2d(*args, **kwargs)


def run(layer, x, dy, *guide):
    """Output, gradient of every input and of every parameter."""
    leaves = [t.detach().requires_grad_() for t in (x, *guide)]
    layer.zero_grad()
    y = layer(*leaves)
    y.backward(dy)
    return [y, *(t.grad for t in leaves), *(p.grad for p in layer.parameters())]


# values ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["reference", "eager"])
@pytest.mark.parametrize(
    "name", sorted(path.stem for path in (GOLDEN / "modules").glob("drconv_*.npz"))
)
def test_values_and_gradients_equal_the_authors(name, backend):
    generator, kernel, stride, regions = re.fullmatch(
        r"drconv_(\w+)_k(\d)s(\d)m(\d)", name
    ).groups()
    golden = {
        # the template's convolution and its guide are two modules there
        k.replace("/conv.", "/"): torch.from_numpy(v)
        for k, v in np.load(GOLDEN / "modules" / f"{name}.npz").items()
    }
    x = golden["x"].requires_grad_()
    layer = DRConv2d(
        x.shape[1], golden["y"].shape[1], int(kernel), int(stride), int(kernel) // 2,
        bias=generator == "template", regions=int(regions), generator=generator,
    ).double()  # fmt: skip
    layer.load_state_dict(
        {k.removeprefix("param/"): v for k, v in golden.items() if k.startswith("param/")}
    )
    with use_backend(backend):
        y = layer(x)
    y.backward(golden["dy"])
    assert_close(y, golden["y"], 1e-9, "y")
    assert_close(x.grad, golden["dx"], 1e-9, "dx")
    gradients = {k for k in golden if k.startswith("dparam/")}
    assert gradients == {f"dparam/{k}" for k, _ in layer.named_parameters()}
    for key, parameter in layer.named_parameters():
        assert_close(parameter.grad, golden[f"dparam/{key}"], 1e-9, key)


def test_the_golden_files_are_there():
    names = [path.name for path in (GOLDEN / "modules").glob("drconv_*.npz")]
    assert [sum(g in name for name in names) for g in GENERATORS] == [2, 3]


def by_hand(layer, x, guide=None):
    """The layer from its equations, with m convolutions everywhere and the softmax's gradient."""
    p = dict(layer.named_parameters())
    n, m, (kh, kw) = len(x), layer.regions, layer.kernel_size
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode

    def pad(x, h, w):
        return F.pad(x, (w, w, h, h), mode)

    shape = n, m, layer.out_channels, layer.in_channels // layer.groups, kh, kw
    if layer.generator == "template":
        routing = x.mean((2, 3)) @ p["routing_fc.weight"].T + p["routing_fc.bias"]
        routing = 2 / layer.templates * torch.sigmoid(routing).view(n, m, layer.templates)
        filters = torch.einsum("nmk,sk->nms", routing, p["weight"]).reshape(shape)
        if guide is None:
            guide = F.conv2d(x, p["masknet.weight"], padding=p["masknet.weight"].shape[2] // 2)
    else:
        z = F.adaptive_avg_pool2d(x, (kh, kw))
        z = torch.sigmoid(F.conv2d(z, p["conv_kernel.1.weight"], p["conv_kernel.1.bias"]))
        z = F.conv2d(z, p["conv_kernel.3.weight"], p["conv_kernel.3.bias"], groups=m)
        filters = z.reshape(shape) + p.get("weight", 0)
        if guide is None:
            weight, bias = p["conv_guide.weight"], p["conv_guide.bias"]
            if tuple(weight.shape[2:]) == (kh, kw):
                padding, dilation = layer.padding, layer.dilation
            else:
                padding, dilation = [k // 2 for k in weight.shape[2:]], 1
            guide = F.conv2d(pad(x, *padding), weight, bias, layer.stride, 0, dilation)
    padded = pad(x, *layer.padding)
    answers = torch.stack(
        [
            torch.cat(
                [
                    F.conv2d(s[None], f, p.get("bias"), layer.stride, 0, layer.dilation,
                             layer.groups)
                    for s, f in zip(padded, filters[:, j], strict=True)
                ]
            )
            for j in range(m)
        ],
        1,
    )  # fmt: skip
    rows, columns = (
        torch.arange(out) * size // out
        for out, size in zip(answers.shape[3:], guide.shape[2:], strict=True)
    )
    guide = guide[:, :, rows][..., columns]
    hard = F.one_hot(guide.argmax(1), m).movedim(-1, 1).to(x.dtype)
    if layer.guide_candidates:
        best = guide.topk(layer.guide_candidates, 1).values[:, -1:]
        guide = guide - 1e9 * (guide < best)
    soft = guide.softmax(1)
    share = hard + soft - soft.detach()
    return (share[:, :, None] * answers).sum(1)


ODD = dict(kernel_size=(3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2))
OPTIONS = [
    dict(kernel_size=3, padding=1),
    dict(kernel_size=1),
    dict(kernel_size=1, stride=2, bias=False),
    dict(groups=2, **ODD),
    dict(kernel_size=3, padding=1, groups=2, padding_mode="reflect"),
    dict(padding_mode="circular", **ODD),
    dict(padding_mode="replicate", regions=3, templates=5, **ODD),
    dict(guide_kernel_size=1, **ODD),
    dict(guide_kernel_size=3, **ODD),
    dict(kernel_size=3, padding=1, guide_kernel_size=3),
    dict(kernel_size=3, stride=2, padding=1, guide_kernel_size=5),
    dict(kernel_size=3, guide_candidates=2),
    dict(shared_guide=True, **ODD),
    dict(kernel_size=1, shared_guide=True, guide_candidates=3),
    dict(kernel_size=3, padding=1, base_filter=True, groups=2),
]


@pytest.mark.parametrize(
    ("generator", "options"),
    [c for c in itertools.product(GENERATORS, OPTIONS) if c != ("template", OPTIONS[-1])],
    ids=str,
)
def test_equations(generator, options):
    """Every argument: output and all gradients."""
    options = dict(regions=4) | options
    layer = scramble(build(6, 4, generator=generator, **options).double(), seed=1)
    x = torch.randn(2, 6, 7, 9, dtype=torch.float64)
    guide = []
    if layer.shared_guide:  # neither the input's size nor the output's
        guide = [torch.randn(2, layer.regions, 5, 4, dtype=torch.float64)]
    dy = torch.randn_like(layer(x, *guide))
    results = run(layer, x, dy, *guide)
    twin = copy.deepcopy(layer)
    twin.forward = lambda *inputs: by_hand(twin, *inputs)
    if not layer.shared_guide:
        k = options.get("guide_kernel_size")
        default = (1, 1) if generator == "template" else layer.kernel_size
        assert layer._guide_conv.kernel_size == ((k, k) if k else default)
    names = ["y", "dx", *["dguide" for _ in guide], *(k for k, _ in layer.named_parameters())]
    for name, a, b in zip(names, results, run(twin, x, dy, *guide), strict=True):
        assert_close(a, b, 1e-10, name)
        assert b.abs().max() > 1e-6, f"{name} tells nothing"


@each_generator
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("shape", [(0, 6, 5, 4), (3, 6, 1, 1), (1, 6, 2, 5)])
def test_small_maps(generator, kernel, shape):
    layer = scramble(build(6, 4, kernel, padding=kernel // 2, generator=generator).double())
    x = torch.randn(shape, dtype=torch.float64)
    results = run(layer, x, torch.randn_like(layer(x)))
    assert results[0].shape == (shape[0], 4, *shape[2:])
    assert results[1].shape == shape
    if len(x):
        assert_close(results[0], by_hand(layer, x), 1e-10)


def test_surrogate_of_a_resized_guide():
    """dF = s (q - sum_j s_j q_j), summed over the pixels that a score stands for."""
    layer = scramble(build(3, 2, 3, padding=1, regions=3, shared_guide=True).double())
    x, guide = torch.randn(2, 3, 6, 8).double(), torch.randn(2, 3, 3, 2).double()
    dy = torch.randn_like(layer(x, guide))
    dguide = run(layer, x, dy, guide)[2]
    with torch.no_grad():
        filters = layer.filters(x)
        q = torch.stack(
            [
                torch.stack([F.conv2d(s[None], f, padding=1)[0] for f in bank])
                for s, bank in zip(x, filters, strict=True)
            ]
        )  # N, m, O, H, W
        q = (dy[:, None] * q).sum(2)
        s = guide.softmax(1).repeat_interleave(2, 2).repeat_interleave(4, 3)
        expected = s * (q - (s * q).sum(1, keepdim=True))
        expected = expected.view(2, 3, 3, 2, 2, 4).sum((3, 5))
    assert_close(dguide, expected, 1e-12)
    # the same in bfloat16, where only the rounding of its numbers is lost
    layer, x, guide, dy = (t.bfloat16() for t in (layer, x, guide, dy))
    half = run(layer, x, dy, guide)
    assert all(t.dtype == torch.bfloat16 for t in half)
    exact = run(copy.deepcopy(layer).double(), x.double(), dy.double(), guide.double())
    for a, b in zip(half, exact, strict=True):
        assert_close(a, b, 3e-2)


@each_generator
@pytest.mark.parametrize("autocast", [True, False])
def test_bfloat16(generator, autocast):
    """Under autocast, and as a layer of bfloat16: the same regions given, the same output."""
    layer = scramble(build(6, 8, 3, padding=1, generator=generator, shared_guide=True), seed=2)
    x, guide, dy = torch.randn(2, 6, 9, 7), torch.randn(2, 8, 9, 7), torch.randn(2, 8, 9, 7)
    full = run(layer, x, dy, guide)
    if autocast:
        with torch.autocast("cpu", torch.bfloat16):
            results = run(layer, x, dy.bfloat16(), guide)
        assert [t.dtype for t in results[1:]] == [torch.float32] * len(results[1:])
    else:
        layer.to(torch.bfloat16)
        results = run(layer, x.bfloat16(), dy.bfloat16(), guide.bfloat16())
        assert {t.dtype for t in results} == {torch.bfloat16}
        full = run(copy.deepcopy(layer).double(), *(t.bfloat16().double() for t in (x, dy, guide)))
    assert results[0].dtype == torch.bfloat16
    assert not torch.equal(results[0].double(), full[0].double())
    for a, b in zip(results, full, strict=True):
        assert_close(a, b, 4e-2)


def test_routing_keeps_float32_under_autocast():
    """Of a map in bfloat16, too: its mean is not rounded."""
    layer = scramble(build(6, 8, 3))
    x = torch.randn(2, 6, 9, 7).bfloat16()
    expected = layer._routing(x.float())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer._routing(x.float()), expected)
        assert_close(layer._routing(x), expected, 1e-6)


@pytest.mark.parametrize("options", [{}, dict(stride=2), dict(generator="paper", stride=2)])
def test_region_map(options):
    layer = build(6, 4, 3, padding=1, **options)
    x = torch.randn(2, 6, 8, 6)
    layer(x)
    assert layer.region_map is None
    layer.keep_region_map = True
    y = layer(x)
    guide = layer.masknet(x) if layer.generator == "template" else layer.conv_guide(x)
    if guide.shape[2:] != y.shape[2:]:
        guide = guide[:, :, ::2, ::2]  # its nearest values
    assert torch.equal(layer.region_map, guide.argmax(1))
    assert layer.region_map.unique().numel() > 2
    assert not layer.region_map.is_floating_point()
    layer.keep_region_map = False
    layer(x)
    assert layer.region_map is None


# around PyTorch ----------------------------------------------------------------------------------


@each_generator
@pytest.mark.parametrize("kernel", [1, 3])
def test_compiles_to_one_graph(generator, kernel):
    torch._dynamo.reset()
    layer = scramble(build(6, 4, kernel, padding=kernel // 2, generator=generator).double())
    compiled = copy.deepcopy(layer)
    # a backend that needs no compiler of C++
    compiled.forward = torch.compile(compiled.forward, backend="aot_eager", fullgraph=True)
    x = torch.randn(2, 6, 5, 7, dtype=torch.float64)
    dy = torch.randn_like(layer(x))
    for a, b in zip(run(compiled, x, dy), run(layer, x, dy), strict=True):
        assert_close(a, b, 1e-12)


@each_generator
@pytest.mark.parametrize("use_reentrant", [True, False])
def test_activation_checkpointing(generator, use_reentrant):
    class Checkpointed(nn.Sequential):
        def forward(self, x):
            return checkpoint(self[0], x, use_reentrant=use_reentrant)

    layer = scramble(build(6, 4, 3, generator=generator))
    x, dy = torch.randn(2, 6, 7, 9), torch.randn(2, 4, 5, 7)
    for a, b in zip(run(Checkpointed(layer), x, dy), run(layer, x, dy), strict=True):
        assert torch.equal(a, b)


@each_generator
def test_deterministic_algorithms(generator):
    layer = scramble(build(6, 4, 3, padding=1, stride=2, generator=generator))
    x, dy = torch.randn(2, 6, 12, 9), torch.randn(2, 4, 6, 5)
    if torch.cuda.is_available():
        layer, x, dy = layer.cuda(), x.cuda(), dy.cuda()
    torch.use_deterministic_algorithms(True)
    try:
        for a, b in zip(run(layer, x, dy), run(layer, x, dy), strict=True):
            assert torch.equal(a, b)
    finally:
        torch.use_deterministic_algorithms(False)


@each_generator
def test_copies_compute_the_same(generator):
    layer = scramble(build(6, 4, 3, generator=generator))
    layer.keep_region_map = True
    x = torch.randn(2, 6, 7, 9)
    y = layer(x)
    loaded = build(6, 4, 3, generator=generator, seed=5)
    assert not torch.equal(loaded(x), y)
    result = loaded.load_state_dict(layer.state_dict(), strict=True)
    assert not result.missing_keys
    for twin in (loaded, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(twin(x), y)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize(
    ("generator", "kernel", "dynamo"),
    # every two values meet
    [(g, (1, 3)[(i + d) % 2], bool(d)) for i, g in enumerate(GENERATORS) for d in range(2)],
)
def test_onnx(generator, kernel, dynamo, tmp_path):
    onnx = pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    if dynamo:
        pytest.importorskip("onnxscript")
    layer = scramble(build(6, 10, kernel, 2, kernel // 2, generator=generator)).eval()
    x = torch.randn(2, 6, 7, 9)
    file = str(tmp_path / "layer.onnx")
    torch.onnx.export(layer, (x,), file, input_names=["x"], dynamo=dynamo, verbose=False)
    assert {node.domain for node in onnx.load(file).graph.node} <= {"", "ai.onnx"}
    session = runtime.InferenceSession(file, providers=["CPUExecutionProvider"])
    for image in (x, torch.randn_like(x)):
        y = torch.from_numpy(session.run(None, {"x": image.numpy()})[0])
        assert_close(y, layer(image), 1e-5)


# initial values ----------------------------------------------------------------------------------


def energy(layer):
    """The mean square of the output for unit-variance input, without borders."""
    x = torch.randn(4, layer.in_channels, 18, 18, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        y = F.conv2d(x, layer.weight, None, 1, 0, 1, layer.groups) if (
            isinstance(layer, nn.Conv2d)
        ) else copy.deepcopy(layer)(x)  # fmt: skip
    return y.square().mean().item()


def assert_energy_of_kaiming(layer):
    plain = nn.Conv2d(
        layer.in_channels, layer.out_channels, layer.kernel_size, groups=layer.groups, bias=False
    )
    nn.init.kaiming_normal_(plain.weight, nonlinearity="relu")
    expected = energy(plain)
    assert 1.5 < expected < 2.6
    assert expected / 2 < energy(layer) < 2 * expected


@each_generator
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize(("channels", "groups"), [((16, 48), 1), ((48, 16), 1), ((32, 64), 8)])
@pytest.mark.parametrize(
    "options", [{}, dict(regions=2), dict(templates=3, regions=16), dict(base_filter=True)], ids=str
)
def test_variance_of_the_output(generator, kernel, channels, groups, options):
    if "base_filter" in options and generator == "template":
        return
    layer = build(*channels, kernel, groups=groups, generator=generator, **options)
    assert_energy_of_kaiming(layer)
    scramble(layer)
    layer.init_weights()
    assert_energy_of_kaiming(layer)
    # the regions' filters are different ones from the start, but for those around one filter
    filters = layer.filters(torch.randn(1, channels[0], 9, 9))[0].flatten(1)
    spread = filters.std(0).mean() / filters.std()
    assert spread == 0 if "base_filter" in options else spread > 1e-3


@each_generator
def test_init_weights_restores_the_initial_state(generator):
    layer = build(6, 4, 3, generator=generator, base_filter=generator == "paper")
    first = copy.deepcopy(layer.state_dict())
    scramble(layer)
    torch.manual_seed(0)
    layer.init_weights()
    for key, value in build(6, 4, 3, generator=generator, seed=1).state_dict().items():
        if value.unique().numel() == 1:  # a constant
            assert torch.equal(layer.state_dict()[key], first[key]), key
    for key, value in layer.state_dict().items():
        assert abs(value.std() - first[key].std()) <= 0.3 * first[key].std(), key


OVER_ALL = [
    dict(type="Kaiming", layer=["Conv2d", "Linear"]),
    dict(type="Normal", layer=["Conv2d", "Linear"], std=0.5, bias=3.0),
]
MODELS_WITH_DRCONV = {
    "dcn": lambda dr: ResNet(
        50, base_channels=16, num_stages=2, strides=(1, 2), dilations=(1, 1), out_indices=(0, 1),
        dcn=dr, stage_with_dcn=(False, True),
    ),
    # the shortcuts' convolutions are in an nn.Sequential, which hands no init_weights() on
    "conv_cfg": lambda dr: ResNet(18, base_channels=16, conv_cfg=dr),
    "under nn.Linear's and nn.Conv2d's": lambda dr: ResNet(
        18, base_channels=16, conv_cfg=dr, init_cfg=OVER_ALL
    ),
    "neck": lambda dr: MMDET_MODELS.build(
        dict(type="mmdet.FPN", in_channels=[16, 32], out_channels=16, num_outs=2, conv_cfg=dr)
    ),
}  # fmt: skip


@each_generator
@pytest.mark.parametrize("base_filter", [False, True])
@pytest.mark.parametrize("name", MODELS_WITH_DRCONV)
def test_a_parents_initialisation_leaves_the_layers_alone(generator, base_filter, name):
    if base_filter and generator == "template":
        return
    torch.manual_seed(0)
    cfg = dict(type="mmattn.DRConv2d", generator=generator, base_filter=base_filter)
    net = MODELS_WITH_DRCONV[name](cfg)
    assert isinstance(net, BaseModule)
    net.init_weights()
    layers = {k: m for k, m in net.named_modules() if isinstance(m, DRConv2d)}
    assert len(layers) == {"dcn": 4, "neck": 4}.get(name, 20)
    for layer in layers.values():
        if layer.in_channels * layer.kernel_size[0] > 8:  # else by chance
            assert_energy_of_kaiming(layer)
        constants = [layer.bias] if layer.bias is not None else []
        if generator == "template":
            constants.append(layer.routing_fc.bias)
            assert 0.005 < layer.routing_fc.weight.std() < 0.02
        else:
            constants.append(layer.conv_kernel[3].bias)
            if base_filter:
                constants.append(layer.conv_kernel[3].weight)
        assert not any(c.any() for c in constants)


# a plain layer's weights -------------------------------------------------------------------------

INSERTED = {
    "template": dict(generator="template"),
    "template, 5 of 3": dict(generator="template", regions=5, templates=3),
    "template, shared guide": dict(generator="template", shared_guide=True),
    "paper": dict(generator="paper", base_filter=True),
}


def load(how, model, state, tmp_path):
    if how == "torch":
        model.load_state_dict(state, strict=True)
    elif how == "assign":
        model.load_state_dict(state, strict=True, assign=True)
    else:
        torch.save(dict(state_dict=state), tmp_path / "plain.pth")
        load_checkpoint(model, str(tmp_path / "plain.pth"), "cpu", strict=True)


@pytest.mark.parametrize("how", ["torch", "assign", "mmengine"])
@pytest.mark.parametrize("name", INSERTED)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "geometry",
    [
        dict(kernel_size=3, padding=1, groups=2),
        dict(kernel_size=1, stride=2),
        dict(padding_mode="circular", **ODD),
    ],
    ids=str,
)
def test_plain_weights_compute_the_plain_convolution(how, name, bias, geometry, tmp_path):
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(6, 8, bias=bias, **geometry), nn.BatchNorm2d(8))
    ours = nn.Sequential(DRConv2d(6, 8, bias=bias, **INSERTED[name], **geometry), plain[1])
    ours = scramble(copy.deepcopy(ours))
    state = plain.state_dict()
    keys = list(state)
    load(how, ours, state, tmp_path)
    assert list(state) == keys  # the caller's dict is as it was
    layer = ours[0]
    x = torch.randn(2, 6, 9, 8)
    guide = [torch.randn(2, layer.regions, 4, 4)] if layer.shared_guide else []
    y = plain[0](x)
    assert (layer(x, *guide) - y).abs().max() <= 1e-6 * y.abs().max()
    filters = layer.filters(x)
    assert filters.shape[:2] == (2, layer.regions)
    error = (filters - plain[0].weight).abs().max()
    assert error <= 1e-6 * plain[0].weight.abs().max()
    assert torch.equal(ours[1].running_var, plain[1].running_var)


def test_a_bias_that_the_plain_convolution_lacks_is_zero():
    plain, ours = nn.Conv2d(6, 8, 3, bias=False), scramble(DRConv2d(6, 8, 3))
    ours.load_state_dict(plain.state_dict(), strict=True)
    x = torch.randn(2, 6, 9, 8)
    assert not ours.bias.any()
    assert_close(ours(x), plain(x), 1e-6)


@pytest.mark.parametrize("name", ["template", "paper"])
def test_the_regions_part_ways(name):
    """From one filter in every region, three steps make as many as there are regions."""
    torch.manual_seed(0)
    plain = nn.Conv2d(6, 8, 3, padding=1)
    layer = DRConv2d(6, 8, 3, padding=1, regions=4, **INSERTED[name])
    layer.load_state_dict(plain.state_dict())
    layer.keep_region_map = True
    start = copy.deepcopy(layer.state_dict())
    x, target = torch.randn(4, 6, 12, 12), torch.randn(4, 8, 12, 12)
    optimizer = torch.optim.SGD(layer.parameters(), 0.1)
    losses = []
    for _ in range(3):
        loss = F.mse_loss(layer(x), target)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses == sorted(losses, reverse=True)
    assert layer.region_map.unique().numel() == 4
    width = plain.weight.std()
    filters = layer.filters(x)
    for i, j in itertools.combinations(range(4), 2):
        assert ((filters[:, i] - filters[:, j]).flatten(1).std(1) > 1e-5 * width).all(), (i, j)
    for key, value in layer.state_dict().items():
        assert (value - start[key]).abs().max() > 1e-8, f"{key} did not move"
    if name == "template":
        templates = layer.weight
        moved = templates - start["weight"]
        for i, j in itertools.combinations(range(layer.templates), 2):
            assert (templates[:, i] - templates[:, j]).std() > width
            assert not torch.equal(moved[:, i], moved[:, j])


def test_templates_lie_around_the_plain_filter():
    """As far from it as it is wide; drawn again the same, but by the layer's name."""
    plain = nn.Conv2d(16, 32, 3)
    state = {f"{name}.{k}": v for name in "ab" for k, v in plain.state_dict().items()}
    models = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        models.append(nn.ModuleDict({name: DRConv2d(16, 32, 3) for name in "ab"}))
        models[-1].load_state_dict(state)
    one, two = models
    assert torch.equal(one["a"].weight, two["a"].weight)
    assert torch.equal(one["b"].weight, two["b"].weight)
    noise = [
        layer.weight.double() - plain.weight.double().flatten()[:, None] for layer in one.values()
    ]
    for n in noise:
        # the mean is taken out of 8 draws
        assert abs(n.std() / plain.weight.std() - (7 / 8) ** 0.5) < 0.03
    together = torch.corrcoef(torch.stack([n.flatten() for n in noise]))
    assert abs(together[0, 1]) < 0.05
    alone = DRConv2d(16, 32, 3)
    alone.load_state_dict(plain.state_dict())
    assert not torch.equal(alone.weight, one["a"].weight)


def test_paper_without_base_filter_refuses_plain_weights(tmp_path):
    plain = nn.Sequential(nn.Conv2d(6, 8, 3))
    layer = nn.Sequential(DRConv2d(6, 8, 3, generator="paper"))
    for how in ("torch", "mmengine"):
        with pytest.raises(RuntimeError, match=r"hold 0\.weight of a plain.* base_filter=True"):
            load(how, layer, plain.state_dict(), tmp_path)


@pytest.mark.parametrize("name", ["template", "paper"])
def test_plain_weights_of_another_shape(name):
    layer = nn.Sequential(DRConv2d(6, 8, 3, groups=2, **INSERTED[name]))
    message = r"0\.weight: DRConv2d expects .* \(8, 3, 3, 3\), got \(8, 6, 3, 3\)"
    for strict in (True, False):
        with pytest.raises(RuntimeError, match=message):
            layer.load_state_dict(nn.Sequential(nn.Conv2d(6, 8, 3)).state_dict(), strict=strict)


@pytest.mark.parametrize("name", INSERTED)
@pytest.mark.parametrize("how", ["torch", "assign", "mmengine"])
def test_its_own_weights_are_no_plain_ones(name, how, tmp_path, monkeypatch):
    lines = []
    monkeypatch.setattr("mmattn.convs.drconv.print_log", lambda text, **_: lines.append(text))
    source, target = (
        nn.Sequential(scramble(build(6, 8, 3, **INSERTED[name], seed=i), seed=i)) for i in (0, 1)
    )
    state = copy.deepcopy(source.state_dict())
    load(how, target, state, tmp_path)
    assert lines == []
    assert target.state_dict().keys() == state.keys()
    for key, value in target.state_dict().items():
        assert torch.equal(value, state[key]), key


def test_what_is_missing_is_named():
    layer = nn.Sequential(build(6, 8, 3))
    state = layer.state_dict()
    del state["0.weight"]
    with pytest.raises(RuntimeError, match=r'Missing key.*"0\.weight"'):
        layer.load_state_dict(state)
    state = layer.state_dict()
    del state["0.masknet.weight"]
    with pytest.raises(RuntimeError, match=r'Missing key.*"0\.masknet\.weight"'):
        layer.load_state_dict(state)


def test_one_log_line_a_load(monkeypatch):
    lines = []
    monkeypatch.setattr("mmattn.convs.drconv.print_log", lambda text, **_: lines.append(text))
    plain = nn.Sequential(*(nn.Conv2d(6, 6, 3) for _ in range(3)))
    model = nn.Sequential(*(DRConv2d(6, 6, 3) for _ in range(3)))
    model.load_state_dict(plain.state_dict())
    assert len(lines) == 1
    assert "0 (and others, if any) starts from the weight of a plain convolution" in lines[0]
    model.load_state_dict(plain.state_dict())
    assert len(lines) == 2


# whole models ------------------------------------------------------------------------------------

NETS = {
    "ResNet-50, c4-c5": dict(depth=50, dcn=..., stage_with_dcn=(False, False, True, True)),
    "ResNet-18, all": dict(depth=18, conv_cfg=...),
}


def lively(net, x):
    """Takes every norm off its initial values; its statistics are those of ``x``."""
    torch.manual_seed(0)
    net.init_weights()
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        nn.init.uniform_(norm.weight, 0.2, 0.8)
        nn.init.normal_(norm.bias, std=0.1)
        norm.momentum, norm.training = 1.0, True
    with torch.no_grad():
        net(x)
    for norm in norms:
        norm.momentum = 0.1
    return net


@pytest.fixture(scope="module")
def plain_nets():
    x = torch.randn(2, 3, 128, 160, generator=torch.Generator().manual_seed(0))
    nets = {}
    for name, config in NETS.items():
        config = {k: v for k, v in config.items() if k == "depth"}
        nets[name] = lively(ResNet(base_channels=16, norm_eval=False, **config), x)
    return nets, x


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("inserted", ["template", "paper"])
@pytest.mark.parametrize("training", [True, False])
def test_resnet_computes_the_plain_features(name, inserted, training, plain_nets, tmp_path):
    nets, x = plain_nets
    plain = copy.deepcopy(nets[name])
    dr = dict(type="mmattn.DRConv2d", **INSERTED[inserted])
    config = {k: dict(dr) if v is ... else v for k, v in NETS[name].items()}
    ours = ResNet(base_channels=16, norm_eval=False, **config)
    assert sum(isinstance(m, DRConv2d) for m in ours.modules()) == (9 if "50" in name else 20)
    load("mmengine", ours, plain.state_dict(), tmp_path)
    features = []
    for net in (plain, ours):
        net.train(training)  # returns nothing in mmdet
        with torch.no_grad():
            features.append(net(x))
    for a, b in zip(*features, strict=True):
        assert (a - b).abs().max() <= 1e-5 * a.abs().max()


def test_detector_computes_the_plain_boxes(tmp_path):
    """Faster R-CNN: a plain checkpoint in, the same boxes and labels out."""
    with DefaultScope.overwrite_default_scope("mmdet"):
        config = get_config("mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py").model
        config.backbone.init_cfg = None
        config.test_cfg.rcnn.score_thr = 0.02
        config.test_cfg.rpn.update(nms_pre=200, max_per_img=100)
        plain = MMDET_MODELS.build(config)
        config.backbone.dcn = dict(type="mmattn.DRConv2d")
        config.backbone.stage_with_dcn = (False, False, True, True)
        ours = MMDET_MODELS.build(config)
        image = torch.randn(1, 3, 320, 320, generator=torch.Generator().manual_seed(0))
        plain.eval()
        torch.manual_seed(0)
        plain.init_weights()
        lively(plain.backbone, image)
        for layer, std in (
            (plain.rpn_head.rpn_cls, 0.05),
            (plain.rpn_head.rpn_reg, 0.01),
            (plain.roi_head.bbox_head.fc_cls, 0.02),
            (plain.roi_head.bbox_head.fc_reg, 0.01),
        ):
            nn.init.normal_(layer.weight, std=std)
        torch.save(dict(state_dict=plain.state_dict()), tmp_path / "plain.pth")
        load_checkpoint(ours, str(tmp_path / "plain.pth"), "cpu", strict=True)
        results = []
        for model in (plain, ours):
            model.eval()
            meta = dict(
                img_shape=(320, 320), ori_shape=(320, 320), pad_shape=(320, 320),
                batch_input_shape=(320, 320), scale_factor=(1.0, 1.0),
            )  # fmt: skip
            with torch.no_grad():
                results.append(
                    model.predict(image, [DetDataSample(metainfo=meta)])[0].pred_instances
                )
    a, b = results
    assert sum(isinstance(m, DRConv2d) for m in ours.modules()) == 9
    assert len(a) > 20
    assert a.labels.unique().numel() > 3
    assert torch.equal(a.labels, b.labels)
    assert (a.bboxes - b.bboxes).abs().max() < 0.01
    assert_close(a.scores, b.scores, 1e-3)


# where it goes -----------------------------------------------------------------------------------


def test_as_a_plain_layer():
    layer = build_conv_layer(
        dict(type="mmattn.DRConv2d", regions=3, generator="paper"),
        6, 8, kernel_size=(3, 1), stride=(2, 1), padding=(1, 0), dilation=1, groups=2, bias=False,
    )  # fmt: skip
    assert isinstance(layer, mmattn.DRConv2d)
    assert layer(torch.randn(2, 6, 9, 8)).shape == (2, 8, 5, 8)
    assert "regions=3, generator='paper'" in repr(layer)
    assert layer.bias is None


@each_generator
def test_in_mmcv_conv_module(generator):
    layer = ConvModule(
        4, 8, 3, stride=2, padding=1, groups=2,
        conv_cfg=dict(type="mmattn.DRConv2d", generator=generator), norm_cfg=dict(type="BN"),
    )  # fmt: skip
    assert (layer.out_channels, layer.stride, layer.conv.padding) == (8, (2, 2), (1, 1))
    assert layer.conv.bias is None
    layer(torch.randn(2, 4, 6, 6)).square().sum().backward()
    assert all(p.grad is not None for p in layer.parameters())


def test_in_resnext_of_32_groups():
    net = ResNeXt(
        depth=50, groups=32, base_width=1, base_channels=32, num_stages=2, strides=(1, 2),
        dilations=(1, 1), out_indices=(0, 1), dcn=dict(type="mmattn.DRConv2d"),
        stage_with_dcn=(False, True),
    )  # fmt: skip
    layers = [m for m in net.modules() if isinstance(m, DRConv2d)]
    assert [layer.groups for layer in layers] == [32] * 4
    net.init_weights()
    sum(level.square().mean() for level in net(torch.randn(1, 3, 32, 32))).backward()
    for layer in layers:
        assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())


@each_generator
@pytest.mark.filterwarnings("ignore:torch.utils.checkpoint")
@pytest.mark.parametrize("style", ["pytorch", "caffe"])
@pytest.mark.parametrize("with_cp", [False, True])
def test_in_resnet_bottlenecks(generator, style, with_cp):
    net = ResNet(
        50, base_channels=8, num_stages=2, strides=(1, 2), dilations=(1, 1), out_indices=(0, 1),
        dcn=dict(type="mmattn.DRConv2d", generator=generator), stage_with_dcn=(False, True),
        style=style, with_cp=with_cp, norm_eval=False, frozen_stages=-1,
    )  # fmt: skip
    net.train()
    levels = net(torch.randn(2, 3, 64, 64))
    assert [level.shape[1:] for level in levels] == [(32, 16, 16), (64, 8, 8)]
    sum(level.square().mean() for level in levels).backward()
    layers = [m for m in net.modules() if isinstance(m, DRConv2d)]
    assert len(layers) == 4
    for layer in layers:
        assert all(p.grad is not None and p.grad.any() for p in layer.parameters())


# messages ----------------------------------------------------------------------------------------

WRONG = {
    "in_channels, 0": (dict(in_channels=0), "in_channels to be an integer above 0, got 0"),
    "out_channels, a float": (dict(out_channels=8.0), "out_channels to be an integer .* got 8.0"),
    "groups, 0": (dict(groups=0), "groups to be an integer above 0, got 0"),
    "groups": (dict(groups=4), "divide in_channels=6 and out_channels=8, got 4"),
    "generator": (dict(generator="papr"), "generator to be one of 'template', 'paper', got 'papr'"),
    "padding_mode": (dict(padding_mode="same"), "padding_mode .* 'reflect', .* got 'same'"),
    "regions, 1": (dict(regions=1), "regions to be an integer from 2 on, got 1"),
    "regions, a float": (dict(regions=8.0), "regions to be an integer from 2 on, got 8.0"),
    "templates, 1": (dict(templates=1), "templates to be an integer from 2 on, got 1"),
    "candidates, 1": (dict(guide_candidates=1), "guide_candidates from 2 to regions=8, .* got 1"),
    "candidates, 9": (dict(guide_candidates=9), "from 2 to regions=8, or None, got 9"),
    "base_filter": (dict(base_filter=True), "base_filter with generator='paper' alone, got"),
    "guide, even": (dict(guide_kernel_size=2), "guide_kernel_size to be an odd .* got 2"),
    "guide, 0": (dict(guide_kernel_size=-1), "odd integer above 0, or None, got -1"),
    "guide, shared": (
        dict(guide_kernel_size=3, shared_guide=True),
        "shared_guide=True makes no guide, got guide_kernel_size=3",
    ),
    "kernel_size, 0": (dict(kernel_size=0), "kernel_size to be an integer from 1 on, .* got 0"),
    "kernel_size, a float": (dict(kernel_size=3.0), "kernel_size .* got 3.0"),
    "stride": (dict(stride=(1, 0)), r"stride to be an integer from 1 on, or two, got \(1, 0\)"),
    "padding": (dict(padding="same"), "padding to be an integer from 0 on, or two, got 'same'"),
    "padding, three": (dict(padding=(1, 1, 1)), r"padding .* got \(1, 1, 1\)"),
    "dilation": (dict(dilation=0), "dilation to be an integer from 1 on, or two, got 0"),
}


@pytest.mark.parametrize("name", WRONG)
def test_bad_arguments(name):
    arguments, message = WRONG[name]
    with pytest.raises(ValueError, match=f"^DRConv2d (expects|takes|with) .*{message}"):
        DRConv2d(**{**dict(in_channels=6, out_channels=8, kernel_size=3), **arguments})


def test_unknown_argument():
    with pytest.raises(TypeError, match="unexpected keyword argument 'region'"):
        DRConv2d(6, 8, 3, region=4)


@each_generator
def test_bad_input(generator):
    layer = DRConv2d(6, 8, 3, generator=generator)
    x = torch.randn(2, 6, 7, 7)
    with pytest.raises(ValueError, match=r"DRConv2d .*\(N, 6, H, W\), got shape \(2, 7, 7\)"):
        layer(x[:, 0])
    with pytest.raises(ValueError, match=r"DRConv2d .*\(N, 6, H, W\), got shape \(2, 3, 7, 7\)"):
        layer(x[:, :3])
    with pytest.raises(TypeError, match=r"DRConv2d .*floating-point .* got torch.int64; use x"):
        layer(x.long())
    with pytest.raises(ValueError, match=r"kernel of \(3, 3\) pixels for a map of \(2, 7\)"):
        layer(x[:, :, :2])
    with pytest.raises(TypeError, match=r"shared_guide=False expects no guide, got one"):
        layer(x, torch.randn(2, 8, 5, 5))
    layer = DRConv2d(6, 8, 3, generator=generator, shared_guide=True)
    with pytest.raises(TypeError, match=r"shared_guide=True expects a guide as second.* got none"):
        layer(x)
    for shape in ((2, 7, 5, 5), (1, 8, 5, 5), (2, 8, 5)):
        message = re.escape(f"guide (N, m, H, W) = (2, 8, H, W), got {shape}")
        with pytest.raises(ValueError, match=message):
            layer(x, torch.randn(shape))


def test_mixed_dtypes():
    """What nn.Conv2d says of such an input, or more."""
    for layer in (DRConv2d(6, 8, 3), DRConv2d(6, 8, 3, generator="paper")):
        with pytest.raises((TypeError, RuntimeError), match="dtype|type|Double"):
            layer(torch.randn(2, 6, 7, 7, dtype=torch.float64))


def test_signature_and_docstring():
    parameters = inspect.signature(DRConv2d).parameters
    plain = list(inspect.signature(nn.Conv2d).parameters)[:9]
    assert list(parameters)[:9] == plain
    assert all(p.kind == p.KEYWORD_ONLY for p in list(parameters.values())[9:])
    for section in ("Paper:", "Reference:", "Deviations:", "Cost:", "Shape:", "Raises:"):
        assert section in DRConv2d.__doc__, section
    arguments = DRConv2d.__doc__.split("Args:")[1].split("Attributes:")[0]
    assert [line.split(":")[0].strip() for line in arguments.splitlines() if line[8:9].strip()] == (
        list(parameters)
    )

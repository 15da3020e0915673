"""CBAM, BAM, coordinate and triplet attention: options the golden files lack, names, arguments."""

import itertools
import json
import math

import pytest
import torch
from mmdet.models.backbones import ResNet
from torch import nn

from mmattn.plugins import BAM, CBAM, CoordAttention, TripletAttention
from tests.data import DATA
from tests.zoo import assert_close, scramble

N, C, H, W = 2, 6, 3, 5
POSITIONS = list(itertools.product(range(H), range(W)))
MODULES = [BAM, CBAM, CoordAttention, TripletAttention]


def sigmoid(z):
    return 1 / (1 + math.exp(-z))


def mean(values):
    return sum(values) / len(values)


def draw(cls, **arguments):
    """A module in eval mode, off its initial values, and an input, in float64."""
    torch.manual_seed(0)
    module = scramble(cls(C, **arguments).double()).eval()
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.normal_(norm.running_mean)
            nn.init.uniform_(norm.running_var, 0.5, 2)
    return module, torch.randn(N, C, H, W, dtype=torch.float64)


def linear(weight, bias, z):
    rows = zip(weight.flatten(1).tolist(), bias.tolist(), strict=True)
    return [sum(a * v for a, v in zip(row, z, strict=True)) + b for row, b in rows]


def batch_norm(norm, z):
    """Of one value a channel."""
    parameters = (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    rows = zip(z, *(p.tolist() for p in parameters), strict=True)
    return [(v - m) / math.sqrt(s + norm.eps) * w + b for v, m, s, w, b in rows]


def conv(layer, planes, height, width):
    """planes[c][i, j] -> the same, zero outside."""
    weight, k = layer.weight.tolist(), layer.kernel_size[0]
    bias = [0.0] * len(weight) if layer.bias is None else layer.bias.tolist()
    step, out = layer.dilation[0], []
    for kernels, shift in zip(weight, bias, strict=True):
        plane = {}
        for i, j in itertools.product(range(height), range(width)):
            plane[i, j] = shift
            for c, u, v in itertools.product(range(len(kernels)), range(k), range(k)):
                at = i + (u - k // 2) * step, j + (v - k // 2) * step
                plane[i, j] += kernels[c][u][v] * planes[c].get(at, 0.0)
        out.append(plane)
    return out


def max_mean_gate(layers, lines, height, width):
    """lines[i, j]: the values that are pooled at that place of the gate."""
    pooled = [{p: f(v) for p, v in lines.items()} for f in (max, mean)]
    (logits,) = conv(layers["conv"], pooled, height, width)
    return {p: sigmoid(*batch_norm(layers["bn"], [z])) for p, z in logits.items()}


@pytest.mark.parametrize(
    "arguments", [{}, dict(spatial=False), dict(ratio=3, kernel_size=3)], ids=str
)
def test_cbam(arguments):
    module, x = draw(CBAM, **{"ratio": 2} | arguments)
    _, first, _, last = module.ChannelGate["mlp"]
    y = x.clone()
    for n in range(N):
        logits = [0.0] * C
        for pool in (max, mean):
            z = [pool(x[n, c].flatten().tolist()) for c in range(C)]
            z = [max(v, 0.0) for v in linear(first.weight, first.bias, z)]
            logits = [a + b for a, b in zip(logits, linear(last.weight, last.bias, z), strict=True)]
        for c in range(C):
            y[n, c] *= sigmoid(logits[c])
        if arguments.get("spatial", True):
            lines = {(i, j): y[n, :, i, j].tolist() for i, j in POSITIONS}
            for p, gate in max_mean_gate(module.SpatialGate["spatial"], lines, H, W).items():
                y[n, :, p[0], p[1]] *= gate
    assert_close(module(x), y, 1e-12)


@pytest.mark.parametrize(
    "arguments", [{}, dict(dilation=1, num_dilated_convs=1), dict(dilation=2, num_dilated_convs=3)]
)
def test_bam(arguments):
    module, x = draw(BAM, ratio=3, **arguments)
    channel, spatial = module.channel_att["gate_c"], module.spatial_att["gate_s"]
    names = [f"di_{i}" for i in range(arguments.get("num_dilated_convs", 2))]
    dilation = arguments.get("dilation", 4)
    assert all(spatial[f"gate_s_conv_{n}"].dilation == (dilation, dilation) for n in names)
    y = x.clone()
    for n in range(N):
        z = [mean(x[n, c].flatten().tolist()) for c in range(C)]
        z = linear(channel["gate_c_fc_0"].weight, channel["gate_c_fc_0"].bias, z)
        z = [max(v, 0.0) for v in batch_norm(channel["gate_c_bn_1"], z)]
        z = linear(channel["gate_c_fc_final"].weight, channel["gate_c_fc_final"].bias, z)
        planes = [{(i, j): x[n, c, i, j].item() for i, j in POSITIONS} for c in range(C)]
        for name in ["reduce0", *names]:
            planes = conv(spatial[f"gate_s_conv_{name}"], planes, H, W)
            for p in list(planes[0]):
                values = batch_norm(spatial[f"gate_s_bn_{name}"], [plane[p] for plane in planes])
                for plane, value in zip(planes, values, strict=True):
                    plane[p] = max(value, 0.0)
        (plane,) = conv(spatial["gate_s_conv_final"], planes, H, W)
        for c, ((i, j), s) in itertools.product(range(C), plane.items()):
            y[n, c, i, j] *= 1 + sigmoid(z[c] * s)
    assert_close(module(x), y, 1e-12)


def test_coord_attention():
    module, x = draw(CoordAttention, ratio=2)
    assert module.conv1.out_channels == 8  # never fewer

    def gate(layer, line):
        z = linear(module.conv1.weight, module.conv1.bias, [mean(v.tolist()) for v in line])
        z = [v * min(max(v + 3, 0.0), 6.0) / 6 for v in batch_norm(module.bn1, z)]
        return [sigmoid(v) for v in linear(layer.weight, layer.bias, z)]

    y = x.clone()
    for n in range(N):
        rows = [gate(module.conv_h, x[n, :, i]) for i in range(H)]
        columns = [gate(module.conv_w, x[n, :, :, j]) for j in range(W)]
        for c, i, j in itertools.product(range(C), range(H), range(W)):
            y[n, c, i, j] *= rows[i][c] * columns[j][c]
    assert_close(module(x), y, 1e-12)


@pytest.mark.parametrize("arguments", [{}, dict(spatial=False), dict(kernel_size=3)], ids=str)
def test_triplet_attention(arguments):
    module, x = draw(TripletAttention, **arguments)
    y = torch.empty_like(x)
    for n in range(N):
        cw = {(c, j): x[n, c, :, j].tolist() for c in range(C) for j in range(W)}
        hc = {(i, c): x[n, c, i, :].tolist() for i in range(H) for c in range(C)}
        hw = {(i, j): x[n, :, i, j].tolist() for i, j in POSITIONS}
        cw = max_mean_gate(module.cw["conv"], cw, C, W)
        hc = max_mean_gate(module.hc["conv"], hc, H, C)
        if module.hw is not None:
            hw = max_mean_gate(module.hw["conv"], hw, H, W)
        for c, i, j in itertools.product(range(C), range(H), range(W)):
            gates = [cw[c, j], hc[i, c], *([hw[i, j]] if module.hw is not None else [])]
            y[n, c, i, j] = x[n, c, i, j] * mean(gates)
    assert (module.hw is None) == ("spatial" in arguments)
    assert_close(module(x), y, 1e-12)


def layout(name):
    return json.loads((DATA / "layouts" / f"pytorchinsight_{name}_resnet50.json").read_text())


def shapes(module):
    return {k: list(v.shape) for k, v in module.state_dict().items()}


def test_cbam_in_a_resnet_has_the_authors_names_and_shapes():
    with torch.device("meta"):
        plugins = [dict(cfg=dict(type="mmattn.CBAM"), position="after_conv3")]
        net = ResNet(50, plugins=plugins)
    official = layout("cbam")
    official = {k: v for k, v in official.items() if not k.startswith("fc.")}
    assert shapes(net) == official


@pytest.mark.parametrize(("place", "channels"), [("bam1", 256), ("bam2", 512), ("bam3", 1024)])
def test_bam_has_the_authors_names_and_shapes(place, channels):
    official = {k: v for k, v in layout("bam").items() if k.startswith(place)}
    assert {f"{place}.{k}": v for k, v in shapes(BAM(channels)).items()} == official


@pytest.mark.parametrize(("channels", "ratio", "hidden"), [(64, 32, 8), (512, 32, 16), (64, 4, 16)])
def test_hidden_channels_of_coord_attention(channels, ratio, hidden):
    module = CoordAttention(channels, ratio=ratio)
    assert module.conv1.weight.shape == (hidden, channels, 1, 1)
    assert module.conv_w.weight.shape == (channels, hidden, 1, 1)


@pytest.mark.parametrize("cls", MODULES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_identity_of_the_smallest_numbers(cls, dtype):
    """A gate of 0.5 that is doubled later would lose their last digit."""
    module = cls(64, identity_init=True).to(dtype)
    smallest = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    x = (torch.arange(1, 2 * 64 * 20 + 1).reshape(2, 64, 4, 5) % 17 * smallest).to(dtype)
    assert x.ne(0).any()
    assert torch.equal(module(x), x)


@pytest.mark.parametrize(
    ("cls", "zero"),
    [
        (BAM, {"spatial_att.gate_s.gate_s_conv_final."}),
        (CBAM, {"ChannelGate.mlp.3.", "SpatialGate.spatial.bn."}),
        (CoordAttention, {"conv_h.", "conv_w."}),
        (TripletAttention, {"cw.conv.bn.", "hc.conv.bn.", "hw.conv.bn."}),
    ],
)
def test_exactly_the_last_factor_of_each_gate_is_zero(cls, zero):
    module = cls(64, identity_init=True)
    for key, value in module.named_parameters():
        layer = module.get_submodule(key.rpartition(".")[0])
        if isinstance(layer, nn.BatchNorm2d) and key.endswith("bias"):
            continue  # starts at zero anyway
        assert value.eq(0).all() == any(key.startswith(prefix) for prefix in zero), key


@pytest.mark.parametrize(
    ("cls", "factor"), [(BAM, 1.5), (CBAM, 0.25), (CoordAttention, 0.25), (TripletAttention, 0.5)]
)
def test_a_fresh_module_starts_near_the_factor_of_its_docstring(cls, factor):
    torch.manual_seed(0)
    module = cls(256)
    x = torch.randn(2, 256, 14, 14)
    assert (module(x) / x).median().item() == pytest.approx(factor, rel=0.2)


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: CBAM(64, kernel_size=4), ValueError, "CBAM expects kernel_size to be odd.* got 4"),
        (lambda: CBAM(64, kernel_size=0), ValueError, "kernel_size to be an integer above 0"),
        (lambda: CBAM(64, kernel_size=(7, 7)), ValueError, "kernel_size to be an integer above 0"),
        (lambda: CBAM(64, spatial="no"), TypeError, "CBAM expects spatial to be a bool, got 'no'"),
        (lambda: CBAM(64, spatial=False, kernel_size=2), ValueError, "kernel_size to be odd"),
        (lambda: BAM(64, dilation=0), ValueError, "BAM expects dilation to be an integer above 0"),
        (
            lambda: BAM(256, norm_cfg=dict(type="GN", num_groups=16)),
            ValueError,
            "16 values an image in its channel branch.*fewer groups than 16",
        ),
        (lambda: BAM(64, num_dilated_convs=0), ValueError, "num_dilated_convs to be an integer"),
        (
            lambda: TripletAttention(64, kernel_size=2),
            ValueError,
            "TripletAttention expects kernel",
        ),
        (lambda: TripletAttention(64, spatial=1), TypeError, "spatial to be a bool, got 1"),
    ],
)
def test_errors_say_what_to_do(build, error, message):
    with pytest.raises(error, match=message):
        build()

"""What the convolution layers say that they decide, against what they compute."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mmattn.backbones.sk_resnet import SKBottleneck
from mmattn.convs import CondConv2d, DRConv2d, GCTConv2d, SKConv2d
from mmattn.visualization.record import attention_modules
from tests.zoo import assert_close, scramble

GEOMETRIES = [
    dict(kernel_size=3, padding=1),
    dict(kernel_size=3, padding=2, dilation=2, stride=2, groups=2),
    dict(kernel_size=(1, 3), padding=(0, 1), stride=(2, 1), bias=False),
    dict(kernel_size=3, padding=1, padding_mode="reflect", groups=4),
    dict(kernel_size=3, padding=(2, 0), padding_mode="circular", stride=(1, 3)),
    dict(kernel_size=2),
    dict(kernel_size=5, padding=0, dilation=(1, 2)),
]
every_geometry = pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
DRCONVS = [
    dict(regions=4, templates=3),
    dict(regions=3, generator="paper"),
    dict(regions=3, generator="paper", base_filter=True),
    dict(regions=4, shared_guide=True),
]


def noise(*shape, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def build(cls, *args, **kwargs):
    torch.manual_seed(0)
    return scramble(cls(*args, **kwargs)).double()


def plain(layer, x, kernel):
    """The convolution of one sample by one kernel, as ``nn.Conv2d`` does it."""
    conv = nn.Conv2d(
        layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding,
        layer.dilation, layer.groups, layer.bias is not None, layer.padding_mode,
    ).double()  # fmt: skip
    conv.weight.data = kernel
    if layer.bias is not None:
        conv.bias.data = layer.bias.data
    return conv(x[None])[0]


def guide_for(layer, x):
    if not getattr(layer, "shared_guide", False):
        return ()
    return (noise(len(x), layer.regions, 5, 4, seed=3),)


@every_geometry
@pytest.mark.parametrize("arguments", DRCONVS, ids=str)
def test_drconv(arguments, geometry):
    layer = build(DRConv2d, 8, 12, **arguments, **geometry)
    x = noise(2, 8, 11, 13)
    guide = guide_for(layer, x)
    regions, distances = layer.attention(x, *guide)
    assert layer.region_map is None
    layer.keep_region_map = True
    y = layer(x, *guide)
    assert torch.equal(regions.values, layer.region_map)
    assert len(regions.values.unique()) > 1
    assert (regions.count, distances.count) == (layer.regions,) * 2

    filters = layer.filters(x)
    for n in range(2):
        for j in range(layer.regions):
            inside = regions.values[n] == j
            assert_close(y[n][:, inside], plain(layer, x[n], filters[n, j])[:, inside], 1e-10)
            for i in range(layer.regions):
                apart = (filters[n, i] - filters[n, j]).square().sum().sqrt()
                mean = sum(f.square().sum().sqrt() for f in filters[n]) / layer.regions
                assert_close(distances.values[n, i, j], apart / mean, 1e-12)

    expected = [plain(layer, x[n], sum(filters[n]) / layer.regions) for n in range(2)]
    assert_close(layer.without_attention(x, *guide), torch.stack(expected), 1e-10)


@every_geometry
def test_drconv_says_where_its_regions_lie(geometry):
    """A cell of the output stands at the middle of the cells of x that it sees."""
    layer = build(DRConv2d, 8, 12, **geometry)
    nn.init.zeros_(layer.routing_fc.weight)  # or the filters see all of x
    x = noise(1, 8, 15, 17).requires_grad_()
    regions, _ = layer.attention(x)
    y = layer.without_attention(x)
    assert regions.values.shape[1:] == y.shape[2:]
    cell = tuple(side // 2 for side in y.shape[2:])
    y[0, :, cell[0], cell[1]].sum().backward()
    seen = x.grad[0].abs().sum(0).nonzero().double().mean(0)
    for i in range(2):
        assert regions.offset[i] + regions.stride[i] * cell[i] == pytest.approx(seen[i].item())


def test_drconv_of_equal_filters():
    """As after the weights of a plain convolution: no distance, and the regions do not matter."""
    layer = DRConv2d(8, 12, 3, padding=1, regions=4).double()
    layer.load_state_dict({"weight": noise(12, 8, 3, 3), "bias": noise(12)}, strict=False)
    x = noise(2, 8, 6, 7)
    _, distances = layer.attention(x)
    assert torch.equal(distances.values, torch.zeros(2, 4, 4, dtype=torch.float64))
    assert_close(layer.without_attention(x), layer(x), 1e-12)
    with torch.no_grad():
        layer.weight.zero_()
    assert not layer.attention(x)[1].values.any()  # where 0/0 would be


def test_drconv_without_its_guide():
    layer = DRConv2d(8, 12, 1, shared_guide=True)
    x = torch.randn(2, 8, 4, 5)
    with pytest.raises(TypeError, match="shared_guide=True expects a guide as second argument"):
        layer.attention(x)
    with pytest.raises(ValueError, match=r"guide \(N, m, H, W\) = \(2, 8, H, W\)"):
        layer.attention(x, torch.randn(2, 7, 4, 5))
    with pytest.raises(TypeError, match="shared_guide=False expects no guide"):
        DRConv2d(8, 12, 1).attention(x, torch.randn(2, 8, 4, 5))
    assert layer.without_attention(x).shape == (2, 12, 4, 5)  # which needs none


@pytest.mark.parametrize("autocast", [False, True])
def test_without_attention_keeps_dtype_and_layout(autocast):
    x = torch.randn(2, 8, 6, 7).to(memory_format=torch.channels_last)
    for layer in (
        DRConv2d(8, 12, 3, regions=3),
        CondConv2d(8, 12, 3),
        SKConv2d(8, 12, 3, branch_groups=4, ratio=4),
    ):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            y, expected = layer.without_attention(x), layer(x)
        assert y.dtype == expected.dtype
        assert y.shape == expected.shape
        assert y.is_contiguous(memory_format=torch.channels_last)
        assert layer.without_attention(x[:0]).shape == (0, *y.shape[1:])
        half = copy.deepcopy(layer).bfloat16()
        assert half.without_attention(x.bfloat16()).dtype == torch.bfloat16


@every_geometry
def test_cond_conv(geometry):
    layer = build(CondConv2d, 8, 12, experts=3, **geometry)
    x = noise(2, 8, 11, 13)
    (shares,) = layer.attention(x)
    assert (shares.name, shares.kind) == ("expert shares", "shares")
    experts = layer.weight.view(3, 12, -1, *layer.kernel_size)
    expected, equal = [], []
    for n in range(2):
        kernel = sum(
            share * expert for share, expert in zip(shares.values[n], experts, strict=True)
        )
        expected.append(plain(layer, x[n], kernel))
        equal.append(plain(layer, x[n], shares.values[n].mean() * sum(experts)))
    assert_close(layer(x), torch.stack(expected), 1e-10)
    assert_close(layer.without_attention(x), torch.stack(equal), 1e-10)


@every_geometry
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_sk_conv(geometry, training):
    layer = build(SKConv2d, 8, 12, branch_groups=4, ratio=4, **geometry).train(training)
    x = noise(2, 8, 11, 13)
    (shares,) = layer.attention(x)
    assert shares.values.shape == (2, 2, 12)
    assert shares.neutral == 0.5
    assert_close(shares.values.sum(1), torch.ones(2, 12), 1e-12)
    without = layer.without_attention(x)  # in training this moves the statistics, as a pass does
    d1, d2 = F.relu(layer.bn(layer.conv(x))), F.relu(layer.bng(layer.convg(x)))
    bias = 0 if layer.bias is None else layer.bias.view(-1, 1, 1)
    a1, a2 = shares.values[..., None, None].unbind(1)
    assert_close(layer(x), a1 * d1 + a2 * d2 + bias, 1e-10)
    assert_close(without, (d1 + d2) / 2 + bias, 1e-10)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        dict(stride=2, downsample=nn.Conv2d(16, 16, 1, 2, bias=False).double()),
        dict(with_cp=True),
        dict(plugins=[dict(cfg=dict(type="mmattn.SRM"), position="after_conv1")]),
    ],
    ids=["plain", "stride", "with_cp", "plugins"],
)
def test_sk_bottleneck(arguments, training):
    block = build(SKBottleneck, 16, 4, branch_groups=2, ratio=2, **arguments).train(training)
    x = noise(3, 16, 7, 9).requires_grad_()
    before = copy.deepcopy(block.state_dict())
    (shares,) = block.attention(x)
    assert all(torch.equal(value, before[key]) for key, value in block.state_dict().items())
    assert shares.values.shape == (3, 2, 4)
    assert_close(shares.values.sum(1), torch.ones(3, 4), 1e-12)

    heard = {}
    for name in ("bn2", "bn2g", "conv3"):
        getattr(block, name).register_forward_hook(
            lambda _, args, y, name=name: heard.update({name: (args[0], y)})
        )
    y = block(x)
    a1, a2 = shares.values[..., None, None].unbind(1)
    chosen = a1 * heard["bn2"][1].relu() + a2 * heard["bn2g"][1].relu()
    assert_close(heard["conv3"][0], chosen, 1e-10)
    assert not torch.allclose(block.without_attention(x), y)
    equal = (heard["bn2"][1].relu() + heard["bn2g"][1].relu()) / 2
    assert_close(heard["conv3"][0], equal, 1e-10)

    nn.init.zeros_(block.conv_fc2.weight)  # all shares 1/2
    assert_close(block.without_attention(x), block(x), 1e-12)
    block.without_attention(x).sum().backward()
    assert x.grad.any()


def test_half_precision_of_a_block():
    block = build(SKBottleneck, 16, 4, branch_groups=2, ratio=2).bfloat16()
    x = noise(2, 16, 5, 6).bfloat16()
    (shares,) = block.attention(x)
    (expected,) = copy.deepcopy(block).float().attention(x.float())
    assert shares.values.dtype == torch.float32
    assert_close(shares.values, expected.values, 1e-6)


def test_found_in_a_model():
    """The GCT inside a GCTConv2d is the one that speaks, and has a name to speak under."""
    model = nn.ModuleDict(
        {"conv1": GCTConv2d(8, 8, 3), "conv2": DRConv2d(8, 8, 3), "bn": nn.ReLU()}
    )
    assert list(attention_modules(model)) == ["conv1.0", "conv2"]
    x = torch.randn(1, 8, 5, 5)
    (gate,) = attention_modules(model)["conv1.0"].attention(x)
    assert torch.equal(model["conv1"][1](x * gate.values[:, :, None, None]), model["conv1"](x))

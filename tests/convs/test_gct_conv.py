import pytest
import torch
from mmcv.cnn import ConvModule, build_conv_layer
from mmengine.runner.checkpoint import load_state_dict as mmengine_load
from torch import nn

from mmattn.convs import GCTConv2d
from mmattn.plugins import GCT
from tests.zoo import assert_close, scramble


def test_is_gct_before_the_convolution():
    layer = build_conv_layer(
        dict(type="mmattn.GCTConv2d", norm="l1"),
        6, 10, kernel_size=(3, 1), stride=(2, 1), padding=(1, 0), dilation=(1, 2), groups=2,
        bias=False,
    ).double()  # fmt: skip
    scramble(layer)
    gct = GCT(6, norm="l1").double()
    gct.load_state_dict(layer[0].state_dict())
    x = torch.randn(2, 6, 9, 8, dtype=torch.float64)
    expected = nn.functional.conv2d(
        gct(x), layer.weight, None, stride=(2, 1), padding=(1, 0), dilation=(1, 2), groups=2
    )
    assert_close(layer(x), expected, 1e-14)
    assert list(layer.state_dict()) == ["0.alpha", "0.gamma", "0.beta", "1.weight"]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("load", ["torch", "mmengine"])
def test_loads_a_plain_convolution(load, bias):
    plain = nn.Sequential(nn.Conv2d(4, 8, 3, bias=bias), nn.BatchNorm2d(8))
    ours = nn.Sequential(GCTConv2d(4, 8, 3, bias=bias), nn.BatchNorm2d(8))
    state = plain.state_dict()
    if load == "torch":
        result = ours.load_state_dict(state, strict=False)
        assert result.unexpected_keys == []
        assert sorted(result.missing_keys) == ["0.0.alpha", "0.0.beta", "0.0.gamma"]
    else:
        mmengine_load(ours, state)
    assert "0.weight" in state  # the caller's dict is as it was
    x = torch.randn(2, 4, 7, 7)
    assert torch.equal(ours(x), plain(x))


def test_loads_its_own_weights():
    source, target = scramble(GCTConv2d(4, 8, 3)), GCTConv2d(4, 8, 3)
    target.load_state_dict(source.state_dict(), strict=True)
    x = torch.randn(2, 4, 7, 7)
    assert torch.equal(source(x), target(x))


def test_inside_mmcv_conv_module():
    layer = ConvModule(
        4, 8, 3, padding=1, conv_cfg=dict(type="mmattn.GCTConv2d"), norm_cfg=dict(type="BN")
    )
    assert layer.out_channels == 8
    assert layer.stride == (1, 1)
    assert layer(torch.randn(2, 4, 5, 5)).shape == (2, 8, 5, 5)


def test_identity_at_init():
    assert GCTConv2d(4, 8, 3).identity_at_init
    assert not GCTConv2d(4, 8, 3, gate="sigmoid").identity_at_init
    layer = GCTConv2d(4, 8, 3, gate="sigmoid", identity_init=True)
    x = torch.randn(2, 4, 7, 7)
    assert torch.equal(layer(x), layer[1](x))


def test_unknown_attribute_and_argument():
    layer = GCTConv2d(4, 8, 3)
    with pytest.raises(AttributeError, match="no_such"):
        _ = layer.no_such
    with pytest.raises(TypeError, match="unexpected keyword"):
        GCTConv2d(4, 8, 3, nrom="l1")

"""Arguments that belong to one module."""

import pytest
import torch

from mmattn.plugins import GC, GCT, SE, SGE


def test_documented_initial_values():
    sge = SGE(64)
    assert sge.weight.eq(0).all()
    assert sge.bias.eq(1).all()
    x = torch.randn(2, 64, 4, 4)
    torch.testing.assert_close(sge(x), x * torch.tensor(1.0).sigmoid())
    gct = GCT(8)
    assert gct.alpha.eq(1).all()
    assert gct.gamma.eq(0).all()
    assert gct.beta.eq(0).all()
    gc = GC(512, ratio=4)
    assert gc.channel_add_conv[3].weight.eq(0).all()
    assert gc.conv_mask.bias.eq(0).all()
    # Kaiming, fan in, for ReLU
    assert gc.conv_mask.weight.std().item() == pytest.approx((2 / 512) ** 0.5, rel=0.1)
    # PyTorch's default: uniform in +-1/sqrt(fan in)
    bound = SE(256).fc[0].weight.abs().max().item()
    assert bound == pytest.approx(1 / 16, rel=0.01)


def test_sge_ablation_values():
    module = SGE(16, groups=4, init_weight=0.5, init_bias=-1.0)
    assert module.weight.eq(0.5).all()
    assert module.bias.eq(-1).all()
    with torch.no_grad():
        module.bias.fill_(7)
    module.init_weights()
    assert module.bias.eq(-1).all()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: SGE(100, groups=64), "divide in_channels=100, got groups=64; nearest: 50"),
        (lambda: SGE(64, groups=0), "groups to be an integer above 0"),
        (lambda: SGE(64, identity_init=True, init_bias=1.0), "leave out one or the other"),
        (lambda: GC(64, fusion=()), "fusion to hold 'add', 'mul', or both"),
        (lambda: GC(64, fusion=("channel_add",)), "fusion to hold"),
        (lambda: GC(64, pooling="max"), "pooling to be one of 'att', 'avg', got 'max'"),
        (lambda: GCT(64, norm="l3"), "norm to be one of 'l2', 'l1', got 'l3'"),
        (lambda: GCT(64, gate="tanh"), "gate to be one of '1\\+tanh'"),
        (lambda: GCT(64, after_relu=True), "after_relu with norm='l1' only"),
    ],
)
def test_errors_say_what_to_do(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_fusion_as_a_string_and_as_a_list():
    assert GC(64, fusion="add").fusion == ("add",)
    assert GC(64, fusion=["mul", "add"]).channel_mul_conv is not None

"""Arguments that belong to one module."""

import pytest
import torch

from mmattn import ops
from mmattn.plugins import ECA, GC, GCT, SE, SGE, SNL, SRM, NonLocal, SimAM
from tests.zoo import assert_close, scramble

PAIR = (torch.ones(4, 4), None)  # weight and bias of a 1x1 convolution


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


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
    srm = SRM(512)
    assert srm.cfc.eq(0).all()
    assert srm.bn.weight.eq(1).all()
    torch.testing.assert_close(srm.eval()(x := torch.randn(2, 512, 4, 4)), x / 2)
    srm = SRM(512, identity_init=True)
    assert srm.bn.weight.eq(0).all()
    assert srm.cfc.std().item() == pytest.approx(0.01, rel=0.15)
    snl = SNL(512)
    assert snl.conv_value.weight.eq(0).all()
    assert snl.conv_mask.bias.eq(0).all()
    assert snl.conv_mask.weight.std().item() == pytest.approx((2 / 512) ** 0.5, rel=0.15)
    bound = max(ECA(64, kernel_size=9).conv.weight.abs().max().item() for _ in range(20))
    assert bound == pytest.approx(1 / 3, rel=0.05)


@pytest.mark.parametrize(
    ("channels", "kernel_size"),
    # the paper: log2(C) / 2 + 1/2, and the odd number next to it
    [(1, 1), (2, 1), (8, 3), (16, 3), (64, 3), (128, 5), (256, 5), (512, 5), (1024, 5), (2048, 7)],
)
def test_eca_kernel_size_from_the_channels(channels, kernel_size):
    assert ECA(channels).conv.weight.shape == (1, 1, kernel_size)


def test_eca_kernel_may_be_wider_than_the_channels():
    module = ECA(2, kernel_size=7)
    x = torch.randn(1, 2, 1, 1)
    w = module.conv.weight.flatten()
    z = torch.stack([w[3] * x[0, 0] + w[4] * x[0, 1], w[2] * x[0, 0] + w[3] * x[0, 1]])
    torch.testing.assert_close(module(x), x * z.sigmoid())


def test_srm_of_one_image_takes_the_running_statistics():
    """Its BatchNorm would see a single value a channel, of which there is no variance."""
    module = scramble(SRM(8).double())
    start = {k: v.clone() for k, v in module.state_dict().items()}
    x = torch.randn(1, 8, 3, 4, dtype=torch.float64)
    y = module(x)
    assert all(torch.equal(v, start[k]) for k, v in module.state_dict().items())
    assert_close(y, module.eval()(x), 1e-12)


def test_one_pixel_has_no_spread():
    x = torch.randn(3, 8, 1, 1)
    torch.testing.assert_close(SimAM(8)(x), x * torch.tensor(0.5).sigmoid())
    cfc = torch.randn(8, 2)
    z = cfc[:, 0] * x.flatten(1) + cfc[:, 1] * 1e-5**0.5
    torch.testing.assert_close(ops.srm(x, cfc), z)


def test_simam_of_a_constant_map():
    """No value stands out: the factor of the mean, and no 0/0."""
    x = torch.full((1, 2, 4, 5), 3.0, requires_grad=True)
    y = SimAM(2)(x)
    y.sum().backward()
    torch.testing.assert_close(y, x * torch.tensor(0.5).sigmoid())
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("side", ["height", "width"])
def test_non_local_pools_no_side_of_one_pixel(side):
    """A row is pooled along itself alone; mmcv raises."""
    module = scramble(NonLocal(8, sub_sample=True))
    x = torch.randn(2, 8, 1, 6)
    twice = x.repeat_interleave(2, 2)  # a second row that changes no maximum
    expected = module(twice)[:, :, :1]
    if side == "width":
        x, expected = x.transpose(2, 3), expected.transpose(2, 3)
    torch.testing.assert_close(module(x), expected)


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
        (lambda: ECA(64, kernel_size=4), "kernel_size to be odd, got 4; take 3 or 5, or None"),
        (lambda: ECA(64, kernel_size=0), "kernel_size to be an integer above 0, got 0"),
        (lambda: ECA(64, kernel_size=3.0), "kernel_size to be an integer above 0, got 3.0"),
        (lambda: SimAM(64, e_lambda=0), "e_lambda to be a number above 0, got 0"),
        (lambda: SimAM(64, e_lambda="1e-4"), "e_lambda to be a number above 0, got '1e-4'"),
        (lambda: NonLocal(64, mode="dot"), "mode to be one of 'embedded_gaussian', 'gaussian', "),
        (lambda: NonLocal(64, norm_cfg=dict(type="BatchNorm")), "NonLocal .*got 'BatchNorm'"),
    ],
)
def test_errors_say_what_to_do(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: NonLocal(64, use_scale=1), "use_scale to be a bool, got 1"),
        (lambda: NonLocal(64, sub_sample="no"), "sub_sample to be a bool, got 'no'"),
        (lambda: NonLocal(64, norm_cfg="BN"), "NonLocal expects norm_cfg as dict"),
    ],
)
def test_wrong_types_say_what_to_do(build, message):
    with pytest.raises(TypeError, match=message):
        build()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: ops.eca(x, torch.ones(1, 1, 4)), r"\(1, 1, k\) with k odd, got \(1, 1, 4\)"),
        (lambda x: ops.eca(x, torch.ones(3)), r"\(1, 1, k\) with k odd, got \(3,\)"),
        (lambda x: ops.srm(x, torch.ones(4, 3)), r"cfc of shape \(C, 2\), got \(4, 3\)"),
        (lambda x: ops.srm(x, torch.ones(5, 2)), r"\(N, 5, H, W\), got shape \(2, 4, 3, 3\)"),
        (lambda x: ops.non_local(x, PAIR, PAIR, mode="softmax"), "one of embedded_gaussian, gau"),
        (
            lambda x: ops.non_local(x, PAIR, PAIR),
            "mode='embedded_gaussian' expects theta to be giv",
        ),
        (lambda x: ops.non_local(x, PAIR, PAIR, PAIR), "expects phi to be given"),
        (
            lambda x: ops.non_local(x, PAIR, PAIR, PAIR, mode="gaussian"),
            "mode='gaussian' expects theta to be left out",
        ),
        (
            lambda x: ops.non_local(x, PAIR, PAIR, PAIR, PAIR, mode="concatenation"),
            "mode='concatenation' expects concat to be given",
        ),
    ],
)
def test_operators_say_what_to_do(call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.randn(2, 4, 3, 3))


def test_fusion_as_a_string_and_as_a_list():
    assert GC(64, fusion="add").fusion == ("add",)
    assert GC(64, fusion=["mul", "add"]).channel_mul_conv is not None

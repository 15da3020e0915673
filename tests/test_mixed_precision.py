"""A training step in mixed precision, with each plug-in and each convolution in a ResNet."""

from unittest import mock

import mmattn  # isort: skip  before mmdet: offers the operators that mmcv may lack
import pytest
import torch
from mmdet.models.backbones import ResNet
from mmdet.models.backbones.resnet import Bottleneck

from mmattn.convs.base import ConvLayer
from mmattn.plugins import AttentionModule
from tests.zoo import INERT, PLUGINS, scramble

# what defaults for hundreds of channels need in thin stages
THIN = {"SGE": dict(groups=8), "SKConv2d": dict(branch_groups=8, ratio=4)}
# dtype: how far gradients may be from float32's, against their length; a ResNet alone: half of it
CLOSE = {torch.bfloat16: 0.2, torch.float16: 0.1}


def resnet(name):
    """One block a stage; with the layer in every place that a config gives it."""
    cfg = dict(type=f"mmattn.{name}", **THIN.get(name, {}))
    if name in PLUGINS:
        place = dict(plugins=[dict(cfg=cfg, position="after_conv3")])
    elif name == "GCTConv2d":
        place = dict(conv_cfg=cfg)
    else:
        place = dict(dcn=cfg, stage_with_dcn=(True,) * 4)
    torch.manual_seed(0)
    with mock.patch.dict(ResNet.arch_settings, {50: (Bottleneck, (1, 1, 1, 1))}):
        net = ResNet(50, base_channels=8, frozen_stages=-1, **place)
    for module in net.modules():
        if isinstance(module, AttentionModule):  # a zeroed layer would hide those in front of it
            scramble(module)
    net.train()  # where mmdet's frozen BatchNorm counts
    return net


def step(name, dtype):
    """The loss, and the gradients and the weights after one step."""
    net = resnet(name)
    optimizer = torch.optim.SGD(net.parameters(), 0.01)
    # bfloat16 needs no scale, which the docs say
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, enabled=dtype == torch.float16)
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(4, 3, 64, 64, generator=generator)
    with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
        levels = net(images)
        weights = [torch.randn(y.shape, generator=generator) for y in levels]
        loss = sum((y * w).mean() for y, w in zip(levels, weights, strict=True))
    before = {n: p.detach().clone() for n, p in net.named_parameters()}
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    gradients = {n: p.grad.clone() for n, p in net.named_parameters()}
    scaler.step(optimizer)
    scaler.update()
    moved = {n for n, p in net.named_parameters() if not torch.equal(p, before[n])}
    return net, loss.item(), gradients, moved


def distance(gradients, expected, names):
    """|a - b| / |b|, over all of them."""
    error = sum((gradients[n] - expected[n]).square().sum() for n in names)
    return (error / sum(expected[n].square().sum() for n in names)).sqrt().item()


@pytest.mark.parametrize("name", sorted([*PLUGINS, *mmattn.convs.__all__]))
def test_a_step_is_close_to_that_of_float32(name):
    net, loss, expected, moved = step(name, None)
    layers = [n for n, m in net.named_modules() if isinstance(m, (AttentionModule, ConvLayer))]
    assert layers
    own = [n for n in expected if n.startswith(tuple(f"{one}." for one in layers))]
    assert own or name == "SimAM"
    for dtype, close in CLOSE.items():
        _, value, gradients, moves = step(name, dtype)
        assert value == pytest.approx(loss, rel=close, abs=close), dtype
        for key, gradient in gradients.items():
            assert gradient.isfinite().all(), f"{dtype}: {key}"
        # a step in which the scaler finds an overflow is left out
        inert = tuple(INERT.get(name, ["nothing"]))
        assert {n for n in moved - moves if not n.endswith(inert)} == set(), dtype
        assert distance(gradients, expected, expected) < close, dtype
        assert not own or distance(gradients, expected, own) < close, dtype

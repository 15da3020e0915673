"""Inside mmdet's ResNet: what its initialisation and plain ImageNet weights do to the modules."""

import copy

import pytest
import torch
from mmdet.models.backbones import ResNet
from mmdet.registry import MODELS
from torch import nn

from mmattn.plugins import AttentionModule
from tests.zoo import INERT, NEVER_IDENTITY, PLUGINS, assert_close, scramble

PLACEMENTS = {
    name: dict(
        plugins=[dict(cfg=dict(type=f"mmattn.{name}", identity_init=True), position="after_conv3")]
    )
    for name in sorted(PLUGINS.keys() - NEVER_IDENTITY)
} | {"GCTConv2d": dict(conv_cfg=dict(type="mmattn.GCTConv2d", identity_init=True))}
every_placement = pytest.mark.parametrize("name", PLACEMENTS)


def resnet(**config):
    return ResNet(50, base_channels=16, norm_eval=False, **config)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A ResNet and the file of its weights, off their initial values."""
    torch.manual_seed(0)
    net = resnet()
    net.init_weights()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    path = tmp_path_factory.mktemp("weights") / "resnet.pth"
    torch.save(net.state_dict(), path)
    return net, str(path)


@every_placement
def test_the_backbones_own_initialisation_leaves_the_modules_alone(name):
    """ResNet's Kaiming initialisation of every Conv2d would wipe a zeroed last layer."""
    net = resnet(**PLACEMENTS[name])
    net.init_weights()
    modules = [m for m in net.modules() if isinstance(m, AttentionModule)]
    assert len(modules) == (53 if name == "GCTConv2d" else 16)
    for module in modules:
        x = torch.randn(2, module.in_channels, 5, 6)
        assert torch.equal(module(x), x)


@every_placement
@pytest.mark.parametrize("training", [True, False])
def test_plain_pretrained_weights_compute_the_plain_features(name, training, plain):
    net, path = plain
    ours = resnet(**PLACEMENTS[name], init_cfg=dict(type="Pretrained", checkpoint=path))
    ours.init_weights()
    x = torch.randn(2, 3, 96, 64)
    features = []
    for model in (ours, copy.deepcopy(net)):
        model.train(training)  # returns nothing in mmdet
        with torch.no_grad():
            features.append(model(x))
    for actual, expected in zip(*features, strict=True):
        assert torch.equal(actual, expected)


@pytest.mark.parametrize("name", ["ResNeXt", "ResNetV1d", "ResNeSt", "Res2Net"])
def test_the_relatives_of_resnet_take_plugins(name):
    """Those that docs/insertion.md names."""
    net = MODELS.build(dict(type=f"mmdet.{name}", depth=50, **PLACEMENTS["SGE"]))
    assert sum(isinstance(module, AttentionModule) for module in net.modules()) == 16
    net.eval()
    assert all(level.isfinite().all() for level in net(torch.randn(1, 3, 64, 64)))


@every_placement
def test_activation_checkpoints_change_nothing(name):
    """mmdet's blocks add in place to what a plug-in returns, inside the checkpoint."""
    torch.manual_seed(0)
    net = resnet(**PLACEMENTS[name], frozen_stages=0).double()
    for module in net.modules():
        if isinstance(module, AttentionModule):
            scramble(module)
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    found = []
    for with_cp in (False, True):
        twin = copy.deepcopy(net)
        for block in twin.modules():
            if hasattr(block, "with_cp"):
                block.with_cp = with_cp
        levels = twin(x)
        sum(level.square().mean() for level in levels).backward()
        gradients = {
            k: p.grad
            for k, p in twin.named_parameters()
            if p.grad is not None and not k.endswith(tuple(INERT.get(name, ["nothing"])))
        }
        found.append({**dict(enumerate(levels)), **gradients})
    assert found[0].keys() == found[1].keys()
    for key, expected in found[0].items():
        assert_close(found[1][key], expected, 1e-9, str(key))

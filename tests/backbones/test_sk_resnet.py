"""SKResNet against the authors' values and names, and as mmdet's ResNet with its arguments."""

import copy
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
import torchvision
from mmdet.models.backbones import ResNet
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from mmattn.backbones import SKResNet
from mmattn.backbones.sk_resnet import SKBottleneck
from mmattn.convs import GCTConv2d
from mmattn.plugins import SGE
from tests.convs.detector import train_a_step
from tests.data import DATA, GOLDEN
from tests.zoo import assert_close, scramble

LAYOUT = json.loads((DATA / "layouts" / "pytorchinsight_sk_resnet50.json").read_text())
NEW = ("conv2g", "bn2g", "conv_fc1", "bn_fc1", "conv_fc2")
SMALL = dict(base_channels=16, branch_groups=8, norm_eval=False)
TWO_STAGES = dict(num_stages=2, strides=(1, 2), dilations=(1, 1), out_indices=(0, 1))


def is_new(name):
    return any(part in NEW for part in name.split("."))


def images(*shape, seed=3, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def lively(net, seed=0):
    """Every parameter and running statistic off its initial value."""
    torch.manual_seed(seed)
    for module in net.modules():
        if isinstance(module, _BatchNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return net


def backward(outputs):
    """With a random upstream gradient."""
    generator = torch.Generator().manual_seed(1)
    outputs = [outputs] if isinstance(outputs, torch.Tensor) else outputs
    sum(
        (y * torch.randn(y.shape, generator=generator, dtype=y.dtype)).sum() for y in outputs
    ).backward()


# the authors' values and names


def test_values_and_gradients_equal_the_authors():
    golden = {
        k.replace("/blk.", "/"): torch.from_numpy(v)
        for k, v in np.load(GOLDEN / "modules" / "sk_bottleneck_eval.npz").items()
    }
    block = SKBottleneck(128, 32).double().eval()
    block.load_state_dict(
        {k.removeprefix("param/"): v for k, v in golden.items() if k.startswith("param/")}
    )
    x = golden["x"].requires_grad_()
    y = block(x)
    y.backward(golden["dy"])
    assert_close(y, golden["y"], 1e-10, "y")
    assert_close(x.grad, golden["dx"], 1e-10, "dx")
    gradients = {k for k in golden if k.startswith("dparam/")}
    assert gradients == {f"dparam/{k}" for k, _ in block.named_parameters()}
    for key, parameter in block.named_parameters():
        assert_close(parameter.grad, golden[f"dparam/{key}"], 1e-10, key)


def official():
    """Random values in the shapes of the official checkpoint."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.rand(shape, generator=generator) if shape else torch.tensor(7)
        for name, shape in LAYOUT.items()
    }


def test_official_weights_load_by_name(tmp_path):
    state = official()
    classifier = {k: state.pop(k) for k in ("fc.weight", "fc.bias")}
    net = SKResNet(50)
    result = net.load_state_dict(state, strict=True)
    assert (result.missing_keys, result.unexpected_keys) == ([], [])
    for key, value in net.state_dict().items():
        assert torch.equal(value, state[key]), key
    # as a config names them, with the classifier's layer
    path = str(tmp_path / "official.pth")
    torch.save(dict(state_dict=state | classifier), path)
    again = SKResNet(50, init_cfg=dict(type="Pretrained", checkpoint=path))
    again.init_weights()
    for key, value in again.state_dict().items():
        assert torch.equal(value, state[key]), key


def test_parameters_are_as_many_as_the_authors():
    with torch.device("meta"):
        net = SKResNet(50)
    total = sum(p.numel() for p in net.parameters())
    assert total + 2048 * 1000 + 1000 == 26_154_496
    assert f"{total:,} parameters" in SKResNet.__doc__
    with torch.device("meta"):
        plain = ResNet(50)
    assert f"has {sum(p.numel() for p in plain.parameters()):,}" in SKResNet.__doc__


def test_every_block_of_every_depth():
    for depth, blocks in {101: 33, 152: 50}.items():
        with torch.device("meta"):
            net = SKResNet(depth)
        assert sum(isinstance(m, SKBottleneck) for m in net.modules()) == blocks


# the definition, around mmdet's arguments


def block_by_hand(block, x, stride, style, dilation):
    """A block of 8 groups from its equations, its norms in the mode of the block."""

    def norm(layer, y):
        if block.training:
            mean, var = y.mean((0, 2, 3)), y.var((0, 2, 3), correction=0)
        else:
            mean, var = layer.running_mean, layer.running_var
        mean, var, weight, bias = (
            t.view(1, -1, 1, 1) for t in (mean, var, layer.weight, layer.bias)
        )
        return (y - mean) / (var + 1e-5).sqrt() * weight + bias

    first, second = (1, stride) if style == "pytorch" else (stride, 1)
    y = norm(block.bn1, F.conv2d(x, block.conv1.weight, stride=first)).relu()
    d1 = F.conv2d(y, block.conv2.weight, None, second, dilation, dilation)
    d2 = F.conv2d(y, block.conv2g.weight, None, second, dilation, dilation, 8)
    d1, d2 = norm(block.bn2, d1).relu(), norm(block.bn2g, d2).relu()
    s = (d1 + d2).mean((2, 3), keepdim=True)
    z = norm(block.bn_fc1, F.conv2d(s, block.conv_fc1.weight)).relu()
    logits = F.conv2d(z, block.conv_fc2.weight)
    half = logits.shape[1] // 2
    share = (logits[:, :half] - logits[:, half:]).sigmoid()
    y = norm(block.bn3, F.conv2d(share * d1 + (1 - share) * d2, block.conv3.weight))
    if block.downsample is not None:
        conv, layer = block.downsample
        x = norm(layer, F.conv2d(x, conv.weight, stride=stride))
    return (y + x).relu()


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("style", ["pytorch", "caffe"])
@pytest.mark.parametrize(("stride", "dilation"), [(2, 1), (1, 2)])
def test_blocks_against_the_equations(style, stride, dilation, training):
    options = TWO_STAGES | dict(strides=(1, stride), dilations=(1, dilation))
    net = lively(SKResNet(50, style=style, ratio=4, **SMALL, **options))
    for index in (0, 1):
        block = scramble(net.layer2[index], seed=1).double().train(training)
        x = images(3, block.inplanes, 9, 8, dtype=torch.float64).requires_grad_()
        expected = block_by_hand(block, x, stride if index == 0 else 1, style, dilation)
        actual = block(x)
        assert_close(actual, expected, 1e-10)
        names, inputs = zip(*block.named_parameters(), strict=True)
        upstream = images(*actual.shape, dtype=torch.float64)
        gradients = torch.autograd.grad(actual, [x, *inputs], upstream)
        by_hand = torch.autograd.grad(expected, [x, *inputs], upstream)
        for name, g, e in zip(("x", *names), gradients, by_hand, strict=True):
            assert e.abs().max() > 1e-4, name
            assert_close(g, e, 1e-9, name)


def test_maps_are_those_of_the_plain_resnet_in_number_and_size():
    x = images(1, 3, 64, 96)
    variants = [
        {},
        dict(deep_stem=True, avg_down=True),
        dict(style="caffe"),
        dict(strides=(1, 2, 2, 1), dilations=(1, 1, 1, 2), out_indices=(1, 3)),
    ]
    for options in variants:
        net = SKResNet(50, **SMALL, **options)
        net.eval()  # returns nothing in mmdet
        ours = net(x)
        plain = ResNet(50, base_channels=16, **options)(x)
        assert [y.shape for y in ours] == [y.shape for y in plain]


# weights of a plain network


def test_plain_weights_load_into_the_shared_names():
    theirs = lively(torchvision.models.resnet50()).state_dict()
    net = SKResNet(50)
    before = copy.deepcopy(net.state_dict())
    result = net.load_state_dict(theirs, strict=False)
    assert set(result.unexpected_keys) == {"fc.weight", "fc.bias"}
    new = {key for key in before if is_new(key) and not key.endswith("tracked")}
    assert {k for k in result.missing_keys if not k.endswith("tracked")} == new
    for key, value in net.state_dict().items():
        assert torch.equal(value, before[key] if is_new(key) else theirs[key]), key


@pytest.mark.parametrize("pretrained", [False, True])
def test_documented_initial_values(pretrained, tmp_path):
    torch.manual_seed(0)
    init_cfg = None
    if pretrained:
        init_cfg = dict(type="Pretrained", checkpoint=str(tmp_path / "plain.pth"))
        torch.save(ResNet(50, base_channels=32).state_dict(), tmp_path / "plain.pth")
    net = SKResNet(50, base_channels=32, init_cfg=init_cfg)
    net.init_weights()
    for name, module in net.named_modules():
        if is_new(name) and isinstance(module, nn.Conv2d) and module.weight.numel() > 500:
            fan_in, fan_out = module.weight[0].numel(), module.weight[:, 0].numel()
            std = (3 * fan_in) ** -0.5 if pretrained else (2 / fan_out) ** 0.5
            assert module.weight.std().item() == pytest.approx(std, rel=0.15), name
        elif is_new(name) and isinstance(module, _BatchNorm):
            assert module.weight.eq(1).all()
            assert not module.bias.any()
            assert module.running_var.eq(1).all()
            assert not module.running_mean.any()
        elif name.endswith("bn3"):
            assert module.weight.eq(float(pretrained)).all()
    if not pretrained:
        net = SKResNet(50, **SMALL, zero_init_residual=False)
        net.init_weights()
        assert net.layer1[0].bn3.weight.eq(1).all()


# training it


@pytest.mark.parametrize("frozen_stages", [-1, 0, 1, 2])
def test_frozen_stages_neither_learn_nor_update_statistics(frozen_stages):
    net = SKResNet(50, frozen_stages=frozen_stages, zero_init_residual=False, **SMALL)
    net.init_weights()
    net.train()  # returns nothing in mmdet
    before = {name: value.clone() for name, value in net.state_dict().items()}
    backward(net(images(3, 3, 64, 64)))
    torch.optim.SGD(net.parameters(), lr=0.1).step()
    count = (0, 2, 3, 4)[frozen_stages + 1]
    frozen = ("conv1.", "bn1.", "layer1.", "layer2.")[:count]
    for name, value in net.state_dict().items():
        if name.startswith(frozen):
            assert torch.equal(value, before[name]), name
        elif is_new(name) and ("running" in name or "weight" in name):
            assert not torch.equal(value, before[name]), name
    for name, p in net.named_parameters():
        assert p.requires_grad != name.startswith(frozen), name


def test_norm_eval_keeps_the_statistics_and_lets_the_affine_learn():
    net = SKResNet(50, zero_init_residual=False, ratio=4, **SMALL | dict(norm_eval=True))
    net.init_weights()
    net.train()
    before = {name: value.clone() for name, value in net.named_buffers()}
    backward(net(images(2, 3, 64, 64)))
    for name, value in net.named_buffers():
        assert torch.equal(value, before[name]), name
    assert all(p.grad.any() for p in net.parameters())


@pytest.mark.parametrize("norm_eval", [False, True])
def test_recomputed_blocks_give_the_same(norm_eval):
    """Gradients, and running statistics, which a recomputation must not update twice."""
    results = []
    for with_cp in (False, True):
        net = SKResNet(50, with_cp=with_cp, **TWO_STAGES, **SMALL | dict(norm_eval=norm_eval))
        torch.manual_seed(5)
        net.init_weights()
        lively(net).train()
        runs = []
        net.layer2[1].conv2g.register_forward_pre_hook(lambda *_, runs=runs: runs.append(1))
        outputs = net(images(3, 3, 64, 64))
        backward(outputs)
        assert len(runs) == (2 if with_cp else 1)
        results.append((outputs, [p.grad for p in net.parameters()], list(net.buffers())))
    for plain, recomputed in zip(*results, strict=True):
        for expected, actual in zip(plain, recomputed, strict=True):
            assert torch.equal(actual, expected)


def test_one_image_a_batch_trains():
    """bn_fc1 would see one value a channel: it uses its running statistics, and keeps them."""
    net = SKResNet(50, **TWO_STAGES, **SMALL)
    net.init_weights()
    net.train()
    backward(net(images(1, 3, 64, 64)))
    for name, value in net.named_buffers():
        if "running_mean" in name:
            assert value.any() != ("bn_fc1" in name), name


# arguments of mmdet's ResNet


def test_plugins_dcn_conv_cfg_and_norms_get_through():
    sge = dict(type="mmattn.SGE", groups=8)
    net = SKResNet(
        50,
        **TWO_STAGES,
        **SMALL,
        plugins=[
            dict(cfg=sge, position="after_conv1"),
            dict(cfg=dict(**sge, postfix="_a"), position="after_conv2"),
            dict(cfg=dict(**sge, postfix="_b"), position="after_conv3", stages=(False, True)),
        ],
        dcn=dict(type="mmattn.CondConv2d", experts=2),
        stage_with_dcn=(False, True),
    )
    assert sum(isinstance(m, SGE) for m in net.modules()) == 3 + 4 + 3 + 4 + 4
    assert type(net.layer2[0].conv2).__name__ == "CondConv2d"
    assert type(net.layer2[0].conv2g) is nn.Conv2d
    # plug-ins after conv2 get the choice, not one of the branches
    block, got = net.layer2[1].eval(), []
    block.sge_a.register_forward_pre_hook(lambda _, args: got.append(args[0]))
    block.conv3.register_forward_pre_hook(lambda _, args: got.append(args[0]))
    x = images(2, 128, 5, 6)
    y = block(x)
    assert torch.equal(got[1], block.sge_a(got[0]))
    after = block.sge(block.bn1(block.conv1(x)).relu())
    d1 = block.bn2(block.conv2(after)).relu()
    d2 = block.bn2g(block.conv2g(after)).relu()
    assert_close(torch.maximum(torch.minimum(got[0], torch.maximum(d1, d2)), torch.minimum(d1, d2)),
                 got[0], 1e-6)  # fmt: skip
    assert not torch.equal(got[0], d1)
    assert_close(y, (x + block.sge_b(block.bn3(block.conv3(got[1])))).relu(), 1e-6)

    net = SKResNet(
        50, **TWO_STAGES, **SMALL, ratio=4, conv_cfg=dict(type="mmattn.GCTConv2d"),
        norm_cfg=dict(type="GN", num_groups=2),
    )  # fmt: skip
    assert isinstance(net.layer1[0].conv2g, GCTConv2d)
    assert net.layer1[0].conv2g[1].groups == 8
    assert isinstance(net.layer1[0].bn2g, nn.GroupNorm)
    assert isinstance(net.layer1[0].bn_fc1, nn.GroupNorm)
    backward(net(images(1, 3, 32, 32)))
    frozen = SKResNet(50, **SMALL, norm_cfg=dict(type="BN", requires_grad=False))
    assert not any(p.requires_grad for n, p in frozen.named_parameters() if ".bn" in n)


def test_channels_last_half_and_one_graph():
    net = lively(SKResNet(50, **TWO_STAGES, **SMALL))
    net.eval()
    x = images(2, 3, 64, 96)
    with torch.no_grad():
        expected = net(x)
        assert all(y.is_contiguous() for y in expected)
        torch._dynamo.reset()
        compiled = torch.compile(net.layer2[0], backend="eager", fullgraph=True)
        assert_close(compiled(expected[0]), net.layer2[0](expected[0]), 1e-6)
        net.to(memory_format=torch.channels_last)
        for actual, e in zip(net(x.to(memory_format=torch.channels_last)), expected, strict=True):
            assert actual.is_contiguous(memory_format=torch.channels_last)
            assert_close(actual, e, 1e-5)
        with torch.autocast("cpu", torch.bfloat16):
            outputs = net(x)
        for actual, e in zip((*outputs, *net.bfloat16()(x.bfloat16())), expected * 2, strict=True):
            assert actual.dtype == torch.bfloat16
            assert_close(actual, e, 0.06)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (dict(depth=18), ValueError, "one of 50, 101, 152, got 18; the blocks of 18 and 34 have"),
        (dict(depth=34), ValueError, "one of 50, 101, 152, got 34"),
        (dict(depth=200), ValueError, "one of 50, 101, 152, got 200"),
        (dict(base_channels=16), ValueError, "branch_groups to divide the channels of conv2, got "
         "32 for 16"),
        (dict(branch_groups=0), ValueError, "branch_groups to be an integer above 0, got 0"),
        (dict(ratio=128), ValueError, "at most the number of channels, got ratio=128 for 64"),
        (dict(ratio=1 / 16), ValueError, "an integer divisor .* give ratio=16"),
        (dict(norm_cfg=dict(type="GN", num_groups=32)), ValueError, "cannot build .* 4 channels"),
        (dict(groups=32), TypeError, "unexpected keyword argument 'groups'"),
    ],
)  # fmt: skip
def test_errors_say_what_to_do(arguments, error, message):
    with pytest.raises(error, match=message):
        SKResNet(**dict(depth=50) | arguments)


def test_the_backbones_are_found_by_their_scoped_names_and_import_mmdet_only_then():
    code = (
        "import sys, mmattn\n"
        "from mmengine.registry import MODELS\n"
        "assert MODELS.get('mmattn.SE') is mmattn.SE\n"
        "assert 'mmdet' not in sys.modules\n"
        "net = MODELS.build(dict(type='mmattn.SKResNet', depth=50))\n"
        "print(type(net) is mmattn.SKResNet is mmattn.backbones.SKResNet)\n"
        "print(MODELS.get('mmattn.SKResNet') is mmattn.SKResNet)\n"
        "try:\n    MODELS.build(dict(type='mmattn.SKResNet', depth=18))\n"
        "except ValueError as error:\n    print(error)\n"
        "from mmdet.registry import MODELS\n"
        "net = MODELS.build(dict(type='mmattn.DRShuffleNetV2', drconv=dict()))\n"
        "print(type(net) is mmattn.DRShuffleNetV2)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    lines = done.stdout.splitlines()[-4:]
    assert [*lines[:2], *lines[3:]] == ["True"] * 3, done.stderr
    assert "SKResNet expects depth" in lines[2]


def test_a_detector_trains():
    backbone = dict(
        type="mmattn.SKResNet", base_channels=16, branch_groups=8, zero_init_residual=False
    )
    net = train_a_step(backbone)
    assert isinstance(net, SKResNet)
    assert not net.layer1[0].conv2g.weight.requires_grad  # the config's frozen_stages=1

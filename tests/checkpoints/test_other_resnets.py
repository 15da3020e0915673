"""torchvision's, timm's and ECA-Net's ResNets, with and without slots for their modules."""

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from mmattn import checkpoints
from mmattn.checkpoints import CheckpointError
from mmattn.inspection import config_file
from mmattn.inspection.build import build_model
from tests.official_resnet import random_weights
from tests.zoo import assert_close

# the smallest detector with a ResNet-50; by its path, mmengine would read every metafile first
BASE = str(config_file.find("mmdet::rpn/rpn_r50_fpn_1x_coco.py"))
STATE = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def moved_norms(net):
    torch.manual_seed(0)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.3, 0.6)
            nn.init.normal_(module.bias, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return net.eval()


def build(result, tmp_path):
    """The backbone of the config that the conversion names, with its weights."""
    keys = checkpoints.as_python(checkpoints.model_config(result.net))
    (tmp_path / "config.py").write_text(f"_base_ = {BASE!r}\nmodel = {keys}\n")
    net = build_model(config_file.load(str(tmp_path / "config.py"))).backbone
    net.load_state_dict(result.weights, strict=True)
    net.eval()
    return net


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnext50_32x4d"])
def test_torchvision_computes_the_same(name, tmp_path):
    theirs = moved_norms(getattr(torchvision.models, name)())
    result = checkpoints.convert(theirs.state_dict())
    assert result.dropped == dict.fromkeys(("fc.weight", "fc.bias"), "the classifier")
    assert not result.renamed
    ours = build(result, tmp_path)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        maps = ours(x)
        y = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(x))))
        for stage, actual in enumerate(maps, 1):
            y = getattr(theirs, f"layer{stage}")(y)
            assert_close(actual, y, 1e-5)


def resnet(blocks, bottleneck=True, attention=None, stem=(), groups=1):
    """Shapes of a ResNet with torchvision's names, or timm's where it differs.

    Args:
        blocks: Of each stage.
        bottleneck: Three convolutions a block, not two.
        attention: Gives the shapes of a module, by its name in the block, from the channels.
        stem: Channels of timm's deep stem, which comes with an averaging downsample branch.
        groups: Of the 3x3 convolutions.
    """

    def norm(name, channels):
        return {f"{name}.{k}": [] if k == STATE[-1] else [channels] for k in STATE}

    shapes, before = {"conv1.weight": [64, 3, 7, 7]}, 3
    if stem:
        shapes = {}
        for i, channels in zip((0, 3, 6), stem, strict=True):
            shapes[f"conv1.{i}.weight"] = [channels, before, 3, 3]
            shapes |= norm(f"conv1.{i + 1}", channels) if i < 6 else {}
            before = channels
    shapes |= norm("bn1", 64)
    before = 64
    for stage, count in enumerate(blocks):
        width, out = 64 * 2**stage, 64 * 2**stage * (4 if bottleneck else 1)
        for block in range(count):
            start = f"layer{stage + 1}.{block}"
            inner = width * 2 if groups > 1 else width  # as ResNeXt's 32x4d
            sizes = [(inner, before, 1), (inner, inner // groups, 3), (out, inner, 1)]
            sizes = sizes if bottleneck else [(width, before, 3), (width, width, 3)]
            for i, (o, c, k) in enumerate(sizes, 1):
                shapes[f"{start}.conv{i}.weight"] = [o, c, k, k]
                shapes |= norm(f"{start}.bn{i}", o)
            if block == 0 and (stage or bottleneck):
                at = 1 if stem else 0  # the pooling comes first
                shapes[f"{start}.downsample.{at}.weight"] = [out, before, 1, 1]
                shapes |= norm(f"{start}.downsample.{at + 1}", out)
            if attention:
                shapes |= {f"{start}.{k}": shape for k, shape in attention(out).items()}
            before = out
    return shapes | {"fc.weight": [1000, before], "fc.bias": [1000]}


def timm_se(channels):
    hidden = max(8, channels // 16)
    return {
        "se.fc1.weight": [hidden, channels, 1, 1],
        "se.fc1.bias": [hidden],
        "se.fc2.weight": [channels, hidden, 1, 1],
        "se.fc2.bias": [channels],
    }


def timm_eca(channels):
    return {"se.conv.weight": [1, 1, 5 if channels < 1024 else 7]}


@pytest.mark.parametrize(
    ("shapes", "title", "renamed"),
    [
        (
            resnet((3, 4, 6, 3), attention=timm_eca, stem=(32, 32, 64)),
            "ResNetV1d-50 with ECA",
            {
                "conv1.0.weight": "stem.0.weight",
                "conv1.4.running_var": "stem.4.running_var",
                "conv1.6.weight": "stem.6.weight",
                "bn1.bias": "stem.7.bias",
                "layer3.5.se.conv.weight": "layer3.5.eca.conv.weight",
            },
        ),
        (
            resnet((2, 2, 2, 2), bottleneck=False, attention=timm_se),
            "ResNet-18 with SE",
            {
                "layer1.0.se.fc1.weight": "layer1.0.bn2.se.fc.0.weight",
                "layer4.1.se.fc2.bias": "layer4.1.bn2.se.fc.2.bias",
            },
        ),
    ],
    ids=["ecaresnet50d", "seresnet18"],
)
def test_timm(shapes, title, renamed, tmp_path):
    weights = random_weights(shapes)
    result = checkpoints.convert(weights)
    assert (result.family, result.model) == ("timm", title)
    for old, new in renamed.items():
        assert result.names[old] == new
        assert torch.equal(result.weights[new].flatten(), weights[old].flatten())
    assert not result.left_over
    net = build(result, tmp_path)
    again = checkpoints.convert(result.weights)
    assert not any((again.renamed, again.changed, again.left_over))
    w = {name: value.double() for name, value in weights.items()}
    net.double()
    with torch.no_grad():
        if "SE" in title:
            x = torch.randn(2, 64, 5, 6).double()
            assert_close(net.layer1[0](x), timms_basic_block(w, "layer1.0", x), 1e-12)
        else:
            x = torch.randn(2, 3, 32, 32).double()
            assert_close(net.stem(x), timms_deep_stem(w, x), 1e-12)
            x = torch.randn(2, 256, 6, 6).double()
            pooled = F.avg_pool2d(x, 2)
            branch = F.conv2d(pooled, w["layer2.0.downsample.1.weight"])
            expected = norm(w, "layer2.0.downsample.2", branch)
            assert_close(net.layer2[0].downsample(x), expected, 1e-12)


def norm(w, name, x):
    return F.batch_norm(x, *(w[f"{name}.{k}"] for k in (*STATE[2:4], *STATE[:2])))


def timms_basic_block(w, name, x):
    y = F.relu(norm(w, f"{name}.bn1", F.conv2d(x, w[f"{name}.conv1.weight"], padding=1)))
    y = norm(w, f"{name}.bn2", F.conv2d(y, w[f"{name}.conv2.weight"], padding=1))
    s = y.mean((2, 3), keepdim=True)
    s = F.relu(F.conv2d(s, w[f"{name}.se.fc1.weight"], w[f"{name}.se.fc1.bias"]))
    s = F.conv2d(s, w[f"{name}.se.fc2.weight"], w[f"{name}.se.fc2.bias"])
    return F.relu(x + y * torch.sigmoid(s))


def timms_deep_stem(w, x):
    for i, bn in ((0, "conv1.1"), (3, "conv1.4"), (6, "bn1")):
        x = F.conv2d(x, w[f"conv1.{i}.weight"], stride=1 if i else 2, padding=1)
        x = F.relu(norm(w, bn, x))
    return x


def test_bam_between_stages_of_basic_blocks():
    """It follows a stage, not a bn2."""
    shapes = resnet((2, 2, 2, 2), bottleneck=False)
    shapes["bam2.channel_att.gate_c.gate_c_fc_0.bias"] = [8]
    result = checkpoints.convert(random_weights(shapes))
    assert result.names["bam2.channel_att.gate_c.gate_c_fc_0.bias"] == (
        "layer2.1.bam.channel_att.gate_c.gate_c_fc_0.bias"
    )


@pytest.mark.parametrize("stem", [(24, 32, 64), (32, 32, 48)])
def test_a_stem_that_mmdet_does_not_have_is_refused(stem):
    weights = meta(resnet((1, 1, 1, 1), attention=timm_se, stem=stem))
    with pytest.raises(CheckpointError, match=f"stem has convolutions of {stem[0]}, 32, {stem[2]}"):
        checkpoints.convert(weights)


def meta(shapes):
    """Weights without values, for what the shapes tell."""
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def test_the_shapes_tell_the_arguments(tmp_path):
    """seresnext50_32x4d with a deep stem, without biases and with two ratios, builds."""

    def se(channels):
        ratio = 16 if channels < 1024 else 8
        hidden = channels // ratio
        return {"se.fc.0.weight": [hidden, channels], "se.fc.2.weight": [channels, hidden]}

    shapes = resnet((3, 4, 6, 3), attention=se, stem=(64, 64, 128), groups=32)
    for name, shape in shapes.items():
        if name.startswith("bn1") and shape:
            shapes[name] = [128]
    shapes["layer1.0.conv1.weight"] = [128, 128, 1, 1]
    shapes["layer1.0.downsample.1.weight"] = [256, 128, 1, 1]
    result = checkpoints.convert(random_weights(shapes))
    build(result, tmp_path)
    assert checkpoints.as_python(checkpoints.model_config(result.net)) == (
        "dict(backbone=dict(type='ResNeXt', depth=50, groups=32, base_width=4, deep_stem=True, "
        "avg_down=True, stem_channels=128, plugins=["
        "dict(cfg=dict(type='mmattn.SE', ratio=16, bias=False), position='after_conv3', "
        "stages=(True, True, False, False)), "
        "dict(cfg=dict(type='mmattn.SE', ratio=8, bias=False), position='after_conv3', "
        "stages=(False, False, True, True))]))"
    )


def gc(channels):
    return {
        "context_block.channel_mul_conv.0.weight": [channels // 4, channels, 1, 1],
        "context_block.channel_add_conv.0.weight": [channels // 4, channels, 1, 1],
    }


def cbam(channels):
    return {"cbam.ChannelGate.mlp.1.weight": [channels // 8, channels]}


@pytest.mark.parametrize(
    ("attention", "cfg"),
    [
        (gc, dict(type="mmattn.GC", ratio=4, pooling="avg", fusion=("add", "mul"))),
        (cbam, dict(type="mmattn.CBAM", ratio=8, spatial=False)),
    ],
)
def test_the_shapes_tell_the_form_of_a_module(attention, cfg):
    result = checkpoints.convert(meta(resnet((3, 4, 6, 3), attention=attention)))
    plugins = checkpoints.model_config(result.net)["backbone"]["plugins"]
    assert plugins == [dict(cfg=cfg, position="after_conv3")]


def test_blocks_of_one_stage_that_differ_have_no_config():
    shapes = resnet((3, 4, 6, 3), attention=cbam)
    del shapes["layer2.1.cbam.ChannelGate.mlp.1.weight"]
    result = checkpoints.convert(meta(shapes))
    assert "CBAM" in result.model
    assert checkpoints.model_config(result.net) is None


def test_kernels_of_eca_that_differ_by_stage(tmp_path):
    """ECA-Net's release: chosen by hand, here 3, 5, 5, 7."""
    kernels = {256: 3, 512: 5, 1024: 5, 2048: 7}
    shapes = resnet((3, 4, 6, 3), attention=lambda c: {"eca.conv.weight": [1, 1, kernels[c]]})
    result = checkpoints.convert(random_weights(shapes))
    assert (result.family, result.model) == ("ECA-Net", "ResNet-50 with ECA")
    assert not result.renamed
    build(result, tmp_path)
    plugins = checkpoints.model_config(result.net)["backbone"]["plugins"]
    assert [plugin["cfg"]["kernel_size"] for plugin in plugins] == [3, 5, 7]


def test_what_other_modules_call_their_weights_is_left_over():
    shapes = resnet((1, 1, 1, 1), attention=lambda c: {"se.fc.weight": [c, c, 1, 1]})  # timm's ese
    result = checkpoints.convert(random_weights(shapes))
    assert result.left_over == [f"layer{i}.0.se.fc.weight" for i in (1, 2, 3, 4)]
    assert "SE" not in result.model


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (dict(layers=[1, 1, 1, 1]), "of 1-1-1-1 blocks"),
        (dict(layers=[3, 4, 6, 3], width_per_group=128), "ResNet-50"),
    ],
)
def test_no_config_is_named_where_mmdet_has_no_such_network(changes, reason):
    block = torchvision.models.resnet.Bottleneck
    with torch.device("meta"):
        net = torchvision.models.ResNet(block, **changes)
    result = checkpoints.convert(net.state_dict())
    assert reason in result.model
    assert checkpoints.model_config(result.net) is None


def test_classifiers_of_openmmlab():
    shapes = resnet((2, 2, 2, 2), bottleneck=False)
    fc = {name: shapes.pop(name) for name in ("fc.weight", "fc.bias")}
    shapes = {f"backbone.{n}": s for n, s in shapes.items()} | {
        f"head.{n}": s for n, s in fc.items()
    }
    weights = random_weights(shapes)
    result = checkpoints.convert(weights, modern=True)
    assert result.kind == "backbone"
    assert set(result.dropped) == {"head.fc.weight", "head.fc.bias"}
    assert result.weights["conv1.weight"] is weights["backbone.conv1.weight"]
    assert not result.renamed

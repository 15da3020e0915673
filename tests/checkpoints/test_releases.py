"""Every published layout: its file through the tool into the network that the tool names.

The network then computes what the release computes, by equations of its own.
"""

import json

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import load_checkpoint

from mmattn import checkpoints
from mmattn.inspection import config_file, conversion
from tests.official_resnet import (
    LAYOUTS,
    Official,
    container,
    plain,
    random_weights,
    shapes_with_gc,
)
from tests.zoo import assert_close

# the smallest detector with a ResNet-50; by its path, mmengine would read every metafile first
BASE = str(config_file.find("mmdet::rpn/rpn_r50_fpn_1x_coco.py"))
DOCS = LAYOUTS.parents[2] / "docs" / "weights.md"
SHAPES = {path.stem: json.loads(path.read_text()) for path in sorted(LAYOUTS.glob("*.json"))}
# GC has no layout file: its names are in PytorchInsight's detectors, every block of every stage
SHAPES["pytorchinsight_gc_resnet50"] = shapes_with_gc(
    plain(SHAPES["pytorchinsight_sge_resnet50"]), "gc", (1, 2, 3, 4), 16
)
RENAMED = {
    "gct_resnet50": {
        "stem.bn1.bias": "bn1.bias",
        "stem.conv1.0.alpha": "conv1.0.alpha",
        "layer2.0.downsample.0.gamma": "layer2.0.downsample.0.0.gamma",
        "layer2.0.downsample.1.weight": "layer2.0.downsample.0.1.weight",
        "layer2.0.downsample.2.weight": "layer2.0.downsample.1.weight",
    },
    "pytorchinsight_bam_resnet50": {
        "bam1.spatial_att.gate_s.gate_s_conv_final.bias": (
            "layer1.2.bam.spatial_att.gate_s.gate_s_conv_final.bias"
        ),
        "bam3.channel_att.gate_c.gate_c_bn_1.running_var": (
            "layer3.5.bam.channel_att.gate_c.gate_c_bn_1.running_var"
        ),
    },
    "pytorchinsight_gc_resnet50": {
        "layer1.0.gc.conv_mask.weight": "layer1.0.context_block.conv_mask.weight"
    },
}


@pytest.mark.parametrize("name", SHAPES)
def test_a_published_file_through_the_tool(name, tmp_path, capsys):
    weights = random_weights(SHAPES[name])
    source, target = tmp_path / "model_best.pth.tar", tmp_path / "converted.pth"
    torch.save(container(weights), source)

    conversion.convert(str(source))
    said = capsys.readouterr().out
    keys = next(line for line in said.splitlines() if line.startswith("a config:"))
    config = tmp_path / "config.py"
    config.write_text(f"_base_ = {BASE!r}\n{keys.partition(':')[2].strip()}\n")

    conversion.convert(str(source), str(target), config=str(config))
    said = capsys.readouterr().out
    assert "not taken:  epoch, arch, best_acc1, optimizer" in said
    assert "fc.weight" in said
    assert ("fit already" in said) == (name not in RENAMED)
    for what in ("left over", "missing", "unexpected"):
        assert f"{what + ':':<12}0\n" in said

    if name == "gct_resnet50":  # what the documentation shows
        shown = DOCS.read_text().partition("\n```\nread: ")[2].partition("```")[0]
        lines = [line for line in shown.splitlines()[1:] if "checkpoints/" not in line]
        assert len(lines) > 10
        for line in lines:
            assert line in said or line.startswith("compared: ")

    # names that fit need no conversion: the official file itself starts the backbone
    start = target if name in RENAMED else source
    net = build(Config.fromfile(config).model, str(start))
    written = load_checkpoint(net, str(target), strict=True)["state_dict"]
    for old, new in RENAMED.get(name, {}).items():
        assert torch.equal(written[new], weights[old])
    with torch.no_grad():
        for value in net.state_dict().values():
            value.zero_()
    net.init_weights()
    net.double().eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        for actual, expected in zip(net(x.double()), Official(weights)(x), strict=True):
            assert expected.std() > 1e-3
            assert_close(actual, expected, 1e-9)
    # what was written is known again, and stays as it is
    again = checkpoints.convert(written)
    assert not any((again.renamed, again.changed, again.left_over, again.dropped))


def build(model, checkpoint):
    """The backbone of a model's config."""
    model.backbone.init_cfg = dict(type="Pretrained", checkpoint=checkpoint)
    with DefaultScope.overwrite_default_scope("mmdet"):
        if model.type == "mmattn.Attach":
            return MODELS.build(model).backbone
        return MODELS.build(model.backbone)

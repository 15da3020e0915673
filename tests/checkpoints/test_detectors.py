"""Detectors of MMDetection 0.x and 1.x: background first, other names, rows for the background."""

import re

import pytest
import torch
from mmengine.registry import MODELS, DefaultScope

from mmattn import checkpoints
from mmattn.checkpoints import CheckpointError
from mmattn.inspection import config_file
from tests.zoo import scramble

CLASSES = 3
GC = dict(cfg=dict(type="mmattn.GC", ratio=4), stages=(False, True, True, True))


def build(name, plugin=None, **options):
    """A narrow detector of that config."""
    narrow = {
        "model.backbone.init_cfg": None,
        "model.backbone.base_channels": 8,
        "model.neck.in_channels": [32, 64, 128, 256],
        "model.neck.out_channels": 8,
    }
    if plugin:
        narrow["model.backbone.plugins"] = [dict(plugin, position="after_conv3")]
    cfg = config_file.load(f"mmdet::{name}", {**narrow, **options})
    for node in config_file.maps(cfg.model):
        for key in ("feat_channels", "fc_out_channels", "conv_out_channels"):
            if key in node:
                node[key] = 8
        if node.get("in_channels") == 256:
            node["in_channels"] = 8
        if node.get("num_classes") == 80:
            node["num_classes"] = CLASSES
    with DefaultScope.overwrite_default_scope("mmdet"):
        model = MODELS.build(cfg.model)
    scramble(model)
    model.eval()
    return model


def as_old(model, towers=False):
    """The state of MMDetection 0.x that computes what the model computes.

    Its class 0 is the background, with rows of its own in the layers that work class by class.
    """
    old = {}
    for name, value in model.state_dict().items():
        name = name.removeprefix("roi_head.")
        name = name.replace("conv2.conv_offset", "conv2_offset")
        layer = name.split(".")[-2]
        if layer == "fc_cls":
            value = torch.cat([value[-1:], value[:-1]])
        elif layer == "fc_reg" and len(value) > 4:
            value = torch.cat([torch.full_like(value[:4], 77), value])
        elif layer == "conv_logits":
            value = torch.cat([torch.full_like(value[:1], 77), value])
        elif layer == "rpn_cls" and len(value) == 6:
            value = value[[1, 0, 3, 2, 5, 4]]
        if towers:
            name = re.sub(r"((?:cls|reg)_convs\.\d)\.conv", r"\1", name)
        old[name] = value
    return old


def assert_same(model, result):
    assert not result.left_over
    expected = model.state_dict()
    assert set(result.weights) == set(expected)
    for name, value in result.weights.items():
        assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize(
    ("config", "title"),
    [
        ("mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py", "Mask R-CNN"),
        ("cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py", "Cascade Mask R-CNN"),
    ],
)
def test_two_stages(config, title):
    model = build(config, GC)
    result = checkpoints.convert(as_old(model))
    assert result.family == "GCNet or MMDetection 0.x/1.x"
    assert (result.kind, result.model) == ("detector", f"{title}, ResNet-50 with GC")
    assert_same(model, result)


@pytest.mark.parametrize("plugin", ["SE", "SGE", "CBAM"])
def test_pytorchinsights_faster_rcnn(plugin):
    arguments = dict(groups=8) if plugin == "SGE" else dict(ratio=4)
    model = build(
        "faster_rcnn/faster-rcnn_r50_fpn_2x_coco.py",
        dict(cfg=dict(type=f"mmattn.{plugin}", **arguments)),
    )
    result = checkpoints.convert(as_old(model))
    assert result.family == "PytorchInsight on MMDetection 0.x"
    assert result.model == f"Faster R-CNN, ResNet-50 with {plugin}"
    assert_same(model, result)


def test_the_outputs_are_those_of_the_old_order():
    """Logits, boxes and masks of the old rows, class by class."""
    model = build("mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py")
    old = as_old(model)
    fresh = build("mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py")
    for parameter in fresh.parameters():
        parameter.data.zero_()
    fresh.load_state_dict(checkpoints.convert(old).weights, strict=True)
    box, mask = fresh.roi_head.bbox_head, fresh.roi_head.mask_head
    with torch.no_grad():
        x = torch.randn(5, 8)
        logits = x @ old["bbox_head.fc_cls.weight"].T + old["bbox_head.fc_cls.bias"]
        deltas = x @ old["bbox_head.fc_reg.weight"].T + old["bbox_head.fc_reg.bias"]
        assert torch.equal(box.fc_cls(x)[:, -1], logits[:, 0])
        for c in range(CLASSES):
            torch.testing.assert_close(box.fc_cls(x)[:, c], logits[:, c + 1])
            new, before = slice(4 * c, 4 * c + 4), slice(4 * c + 4, 4 * c + 8)
            torch.testing.assert_close(box.fc_reg(x)[:, new], deltas[:, before])
        x = torch.randn(2, 8, 3, 3)
        logits = torch.einsum("nchw,kc->nkhw", x, old["mask_head.conv_logits.weight"][:, :, 0, 0])
        logits += old["mask_head.conv_logits.bias"][:, None, None]
        torch.testing.assert_close(mask.conv_logits(x), logits[:, 1:])


def test_a_first_stage_of_two_classes():
    """A softmax over background and object: that order changed, too."""
    loss = dict(type="CrossEntropyLoss", use_sigmoid=False, loss_weight=1.0)
    model = build("faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py", **{"model.rpn_head.loss_cls": loss})
    assert len(model.rpn_head.rpn_cls.weight) == 6
    assert_same(model, checkpoints.convert(as_old(model)))


def test_one_box_for_all_classes():
    model = build(
        "mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py",
        **{
            "model.roi_head.bbox_head.reg_class_agnostic": True,
            "model.roi_head.mask_head.class_agnostic": True,
        },
    )
    old = as_old(model)
    old["mask_head.conv_logits.weight"] = old["mask_head.conv_logits.weight"][1:]
    old["mask_head.conv_logits.bias"] = old["mask_head.conv_logits.bias"][1:]
    assert_same(model, checkpoints.convert(old))


def test_heads_with_convolutions_and_norms():
    """GCNet's 4conv1fc heads."""
    model = build(
        "gcnet/mask-rcnn_r50-syncbn-gcb-r4-c3-c5_fpn_1x_coco.py",
        **{
            "model.roi_head.bbox_head.type": "Shared4Conv1FCBBoxHead",
            "model.roi_head.bbox_head.norm_cfg": dict(type="SyncBN"),
            "model.neck.norm_cfg": dict(type="SyncBN"),
            "model.roi_head.mask_head.norm_cfg": dict(type="SyncBN"),
        },
    )
    assert any("shared_convs.0.bn.weight" in name for name in model.state_dict())
    result = checkpoints.convert(as_old(model))
    assert "with GC" in result.model
    assert_same(model, result)


def test_deformable_convolutions():
    """GCNet's dconv models."""
    model = build(
        "gcnet/mask-rcnn_r50-syncbn-gcb-r4-c3-c5_fpn_1x_coco.py",
        **{
            "model.backbone.dcn": dict(type="DCN", deform_groups=1, fallback_on_stride=False),
            "model.backbone.stage_with_dcn": (False, True, True, True),
        },
    )
    result = checkpoints.convert(as_old(model))
    old = "backbone.layer3.1.conv2_offset.weight"
    assert result.names[old] == "backbone.layer3.1.conv2.conv_offset.weight"
    assert_same(model, result)


@pytest.mark.parametrize("towers", [True, False])
def test_retinanet(towers):
    """Its classes had no background; up to 0.5.3 its towers were called otherwise."""
    model = build(
        "retinanet/retinanet_r50_fpn_2x_coco.py",
        dict(cfg=dict(type="mmattn.SGE", groups=8)),
        **{"model.neck.add_extra_convs": "on_input"},
    )
    result = checkpoints.convert(as_old(model, towers))
    assert result.model == "RetinaNet, ResNet-50 with SGE"
    assert bool(result.renamed) == towers
    assert_same(model, result)


@pytest.mark.parametrize("module", ["GC", "BAM", "SK"])
def test_pytorchinsights_retinanets(module):
    """Modules that are called otherwise, stand elsewhere, or are a backbone of their own."""
    options = {"model.neck.add_extra_convs": "on_input"}
    if module == "BAM":
        bam = dict(cfg=dict(type="mmattn.BAM"), after=r"backbone\.layer[123]", name="bam")
        options |= {"model.type": "mmattn.Attach", "model.module": "RetinaNet"}
        options |= {"model.plugins": [bam]}
    if module == "SK":
        options |= {"model.backbone.type": "mmattn.SKResNet", "model.backbone.branch_groups": 4}
        options |= {"model.backbone.ratio": 4}
    plugin = dict(cfg=dict(type="mmattn.GC", ratio=4)) if module == "GC" else None
    model = build("retinanet/retinanet_r50_fpn_2x_coco.py", plugin, **options)
    old = {}
    for name, value in as_old(model).items():
        name = re.sub(r"layer(\d)\.\d+\.bam\.", r"bam\1.", name)
        old[name.replace(".context_block.", ".gc.")] = value
    result = checkpoints.convert(old)
    assert result.model == f"RetinaNet, ResNet-50 with {module}"
    assert bool(result.renamed) == (module != "SK")
    assert_same(model, result)


@pytest.mark.parametrize(
    "config",
    [
        "gcnet/mask-rcnn_r50-syncbn-gcb-r4-c3-c5_fpn_1x_coco.py",
        "fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py",
    ],
)
def test_newer_detectors_stay_as_they_are(config):
    """Every name of MMDetection 2.x fits; which wrote a one-stage detector, its meta says."""
    norm = {"model.bbox_head.norm_cfg": None} if "fcos" in config else {}
    model = build(config, **norm)
    result = checkpoints.convert(model.state_dict(), modern=True)
    assert result.family == "MMDetection 2.x/3.x"
    assert result.model == "detector, ResNet-50" + " with GC" * ("gcnet" in config)
    assert not any((result.renamed, result.changed, result.dropped))
    assert_same(model, result)


@pytest.mark.parametrize("kind", ["Res2Net", "mmattn.SE"])
def test_newer_backbones_that_are_like_a_resnet(kind):
    """What is said of the network, and the config, hold for those that are known only."""
    plugin, options = dict(cfg=dict(type="mmattn.SE", ratio=4, identity_init=True)), {}
    if kind == "Res2Net":
        plugin, options = None, {"model.backbone.type": kind}
    model = build("mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py", plugin, **options)
    result = checkpoints.convert(model.state_dict())
    assert_same(model, result)
    assert (result.net is None) == (kind == "Res2Net")
    described = "a backbone of its own" if kind == "Res2Net" else "ResNet-50 with SE"
    assert result.model == f"detector, {described}"


def test_a_detector_as_a_backbone_and_back():
    model = build("mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py", GC)
    result = checkpoints.convert(as_old(model), "backbone")
    assert result.kind == "backbone"
    model.backbone.load_state_dict(result.weights, strict=True)
    assert result.dropped["rpn_head.rpn_cls.weight"] == "not of the backbone"
    assert not result.changed
    back = checkpoints.convert(result.weights, "detector")
    missing, unexpected = model.load_state_dict(back.weights, strict=False)
    assert not unexpected
    assert not [name for name in missing if name.startswith("backbone.")]
    # the prefix alone says for what a file is
    assert checkpoints.convert(back.weights).kind == "detector"


@pytest.mark.parametrize(
    ("layer", "said"),
    [
        (
            "bbox_head.fc_reg.weight",
            "fc_reg.weight is expected to have 4 rows or 4 for each of the",
        ),
        ("mask_head.conv_logits.bias", "conv_logits.bias is expected to have 1 row or one for"),
        ("rpn_head.rpn_cls.weight", "rpn_cls.weight is expected to have 1 or 2 rows for each"),
    ],
)
def test_heads_that_do_not_fit_one_another(layer, said):
    old = as_old(build("mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py"))
    old[layer] = old[layer].repeat(5, *[1] * (old[layer].dim() - 1))
    with pytest.raises(CheckpointError, match=said):
        checkpoints.convert(old)
    del old["bbox_head.fc_cls.weight"]
    if not layer.startswith("rpn"):
        with pytest.raises(CheckpointError, match="no bbox_head.fc_cls.weight beside it"):
            checkpoints.convert(old)


@pytest.mark.parametrize("name", ["bbox_head.fc_cls.bias", "backbone.layer1.0.conv2.weight"])
def test_a_number_in_place_of_a_tensor(name):
    old = as_old(build("mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py"))
    old[name] = torch.tensor(1.0)
    with pytest.raises(CheckpointError, match="is expected to have rows, got a single number"):
        checkpoints.convert(old)


def test_what_has_no_place_is_left_over():
    old = as_old(build("mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py"))
    extra = dict.fromkeys(
        (
            "semantic_head.conv_logits.weight",
            "bbox_head.conv_cls.weight",
            "backbone.layer1.0.odd.w",
        ),
        torch.zeros(1),
    )
    result = checkpoints.convert({**old, **extra})
    assert sorted(result.left_over) == sorted(extra)
    assert not set(extra) & set(result.names)


def test_ema_copies_are_dropped():
    model = build("mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py")
    old = as_old(model)
    copies = {f"ema_{name.replace('.', '_')}": value for name, value in old.items()}
    result = checkpoints.convert({**old, **copies})
    assert set(result.dropped) == set(copies)
    assert_same(model, result)


@pytest.mark.parametrize(
    "names",
    [
        ["features.0.weight", "classifier.1.weight"],
        ["backbone.body.conv1.weight", "rpn.head.conv.0.0.weight"],
        ["backbone.patch_embed.projection.weight", "bbox_head.fc_cls.weight"],
        ["backbone.conv1.weight", "backbone.layer1.0.conv1.weight", "bbox_head.fcos_cls.weight"],
        ["conv1.weight", "fc.weight"],
    ],
)
def test_other_files_are_refused(names):
    weights = dict.fromkeys(names, torch.zeros(1))
    with pytest.raises(CheckpointError, match="expected one of the known releases") as info:
        checkpoints.convert(weights)
    assert names[0] in str(info.value)
    assert "PytorchInsight" in str(info.value)

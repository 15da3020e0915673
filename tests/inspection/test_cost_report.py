"""The plain model of a config, and both beside each other."""

import copy
import csv
import functools
import json
import re

import pytest
import torch
from mmdet.models import FasterRCNN
from mmdet.models.backbones.resnet import Bottleneck, ResNet
from mmengine.config import ConfigDict
from torch import nn

import mmattn
from mmattn.backbones.sk_resnet import SKBottleneck, SKResNet
from mmattn.inspection import build, config_file, modules
from mmattn.inspection._console import PreflightError
from mmattn.inspection.cost_report import compare, plain_model
from tests import config_files

DEMO = "mmattn::demo/faster-rcnn_r50w16_fpn_600it_shapes.py"
SIZE = (64, 90)  # padded to 64x96


@functools.cache
def load(name):
    return config_file.load(str(name))


# one detector for each of the backbones that the names tell: reading a config takes its time
ALL = {}
for _path in [*config_files.cover(config_files.COCO), *config_files.DEMO]:
    ALL.setdefault(_path.stem.split("_")[1], _path)


def distinct():
    """One config for each kind of module in each kind of backbone."""
    found = {}
    for path in ALL.values():
        model = load(path).model
        kinds = sorted((slot.key, str(slot.cfg["type"])) for slot in modules.slots(model))
        attached = model.type == "mmattn.Attach"
        key = (*kinds, attached, model.backbone.type, "drconv" in model.backbone)
        found.setdefault(key, path)
    return list(found.values())


@pytest.mark.parametrize("backbone", ALL)
def test_the_plain_config_of_every_backbone(backbone):
    model = load(ALL[backbone]).model
    before = copy.deepcopy(model.to_dict())
    plain = plain_model(model)
    assert model == before
    if not re.search("-[a-z]", backbone.removeprefix("shufflenet-v2-x1.0")):
        assert plain is None
        return
    text = json.dumps(plain).replace("mmattn.DRShuffleNetV2", "")
    assert "mmattn." not in text
    assert "drconv" not in text
    assert plain_model(plain) is None


@pytest.mark.parametrize("path", distinct(), ids=lambda p: p.name)
def test_the_plain_model_is_the_model_without_the_modules(path):
    cfg = load(path)
    with torch.device("meta"):
        own = build.build_model(cfg)
        found = modules.find(own, cfg.model)
        plain_cfg = ConfigDict(plain_model(cfg.model) or cfg.model)
        plain = build.build_model(dict(model=plain_cfg))
    assert not modules.find(plain, plain_cfg)
    new = tuple(one.name for one in found)

    def common(model):
        # the guide that the convolutions of a DRShuffleNetV2's block share stands beside them
        return {
            key: value.shape
            for key, value in model.state_dict().items()
            if not key.startswith(new) and ".masknet." not in key
        }

    assert common(own) == common(plain)
    of_sk = {SKResNet: ResNet, SKBottleneck: Bottleneck}
    own_types = [type(part) for name, part in own.named_modules() if not name.startswith(new)]
    own_types = [of_sk.get(kind, kind) for kind in own_types]
    plain_types = [type(part) for name, part in plain.named_modules() if not name.startswith(new)]
    assert [t for t in own_types if t is not nn.Conv2d] == [
        t for t in plain_types if t is not nn.Conv2d
    ]


RESNET = dict(type="ResNet", depth=50, frozen_stages=0)
SGE = dict(cfg=dict(type="mmattn.SGE"), position="after_conv3")
OTHER = dict(cfg=dict(type="ContextBlock", ratio=0.25), position="after_conv3")


@pytest.mark.parametrize(
    ("backbone", "plain"),
    [
        (dict(plugins=[SGE]), {}),
        (dict(plugins=[SGE, OTHER]), dict(plugins=[OTHER])),
        (dict(plugins=[dict(SGE, cfg=dict(type=mmattn.SGE))]), {}),
        (dict(conv_cfg=dict(type="mmattn.GCTConv2d")), {}),
        (dict(dcn=dict(type="mmattn.SKConv2d"), stage_with_dcn=(False, True, True, True)), {}),
        (dict(type="mmattn.SKResNet", ratio=8, branch_groups=16), dict(type="mmdet.ResNet")),
        (
            dict(type="mmattn.SKResNet", plugins=[SGE], base_channels=32),
            dict(type="mmdet.ResNet", base_channels=32),
        ),
        (dict(type="mmattn.DRShuffleNetV2", drconv={}), dict(type="mmattn.DRShuffleNetV2")),
    ],
)
@pytest.mark.parametrize("attached", [None, "keys", "whole"])
def test_plain_models(backbone, plain, attached):
    detector = dict(type="RetinaNet", neck=dict(type="FPN", conv_cfg=None))
    own = dict(detector, backbone=RESNET | backbone)
    if attached:
        plugins = [dict(cfg=dict(type="mmattn.SE"), after="neck")]
        top = dict(type="mmattn.Attach", plugins=plugins)
        own = (
            {**own, **top, "module": "RetinaNet"} if attached == "keys" else {**top, "module": own}
        )
    expected = dict(detector, backbone=RESNET | plain)
    assert plain_model(ConfigDict(own)) == expected


@pytest.mark.parametrize(
    "backbone",
    [
        dict(plugins=[OTHER]),
        dict(plugins=[]),
        dict(plugins=None),
        dict(dcn=dict(type="DCNv2"), stage_with_dcn=(False, True, True, True)),
        dict(type="mmattn.DRShuffleNetV2", drconv=None),
    ],
)
def test_no_module_of_mmattn(backbone):
    model = dict(type="RetinaNet", backbone=RESNET | backbone)
    if "drconv" in backbone:
        assert plain_model(model)["backbone"] == dict(RESNET, type="mmattn.DRShuffleNetV2")
    else:
        assert plain_model(model) is None


def demo(module=None, **backbone):
    """The demo detector, with parts of its ResNet set."""
    cfg = copy.deepcopy(load(DEMO.replace("r50w16", f"r50w16-{module}" if module else "r50w16")))
    cfg.model.backbone.update(backbone)
    return cfg


@pytest.fixture(scope="module")
def report():
    configs = dict(
        own=demo(),
        sge=demo("sge-c2-c5"),
        drconv=demo("drconv-m8-c4-c5"),
        frozen=demo("sge-c2-c5", frozen_stages=1),
    )
    return compare(configs, SIZE, repeats=1)


def row(report, model, part):
    (found,) = [row for row in report.rows if (row.model, row.part) == (model, part)]
    return found


def test_what_is_measured(report):
    found = [(row.model, row.part, row.modules) for row in report.rows]
    assert found == [
        *[("own", "detector", 1), ("own", "backbone", 1)],
        *[("sge", "detector", 1), ("sge", "backbone", 1), ("sge", "SGE", 16)],
        *[("drconv", "detector", 1), ("drconv", "backbone", 1), ("drconv", "DRConv2d", 9)],
        # another plain model, since the config freezes what the others do not
        *[("plain", "detector", 1), ("plain", "backbone", 1)],
        *[("frozen", "detector", 1), ("frozen", "backbone", 1), ("frozen", "SGE", 16)],
    ]
    plain = {row.model: row.plain_model for row in report.rows}
    assert plain == dict(own=None, sge="own", drconv="own", plain=None, frozen="plain")
    assert {row.image for row in report.rows} == {"64x96"}
    assert (report.conditions["height"], report.conditions["width"]) == SIZE
    assert report.conditions["repeats"] == 1


def test_parts_add_up(report):
    sge = row(report, "sge", "SGE")
    assert sge.plain is None
    assert sge.cost.parameters == 2 * 16 * 16
    assert sge.cost.multiply_adds == 0
    for part in ("detector", "backbone"):
        whole, plain = row(report, "sge", part), row(report, "own", part).cost
        assert whole.plain == plain
        assert whole.cost.parameters - plain.parameters == sge.cost.parameters
        assert whole.cost.multiply_adds == plain.multiply_adds
        # how many boxes an RPN finds is chance
        chance = 1e4 if part == "detector" else 0
        more = whole.cost.elementwise - plain.elementwise - sge.cost.elementwise
        assert abs(more) <= chance
        assert sge.cost.elementwise > 50 * chance
        more = whole.cost.activation_bytes - plain.activation_bytes - sge.cost.activation_bytes
        assert abs(more) <= 4 * chance
        assert sge.cost.activation_bytes > 50 * chance


def test_a_convolution_is_compared_with_the_one_in_its_place(report):
    conv = row(report, "drconv", "DRConv2d")
    # conv2 of layer3 and layer4, and the pixels of their inputs and outputs
    layers = [(64, 96, 24), *[(64, 24, 24)] * 5, (128, 24, 6), *[(128, 6, 6)] * 2]
    assert conv.plain.parameters == sum(9 * c * c for c, _, _ in layers)
    plain = sum(9 * c * c * outputs for c, _, outputs in layers)
    assert conv.plain.multiply_adds == plain
    guides = sum(8 * c * inputs for c, inputs, _ in layers)
    filters = sum(64 * (c + 9 * c * c) for c, _, _ in layers)  # 8 regions of 8 templates
    assert conv.cost.multiply_adds == plain + guides + filters
    for part in ("detector", "backbone"):
        whole = row(report, "drconv", part)
        for name in ("parameters", "multiply_adds"):
            added = getattr(whole.cost, name) - getattr(whole.plain, name)
            assert added == getattr(conv.cost, name) - getattr(conv.plain, name)


def test_frozen_layers_keep_nothing(report):
    bare = {name: row(report, name, "backbone").cost for name in ("own", "plain", "sge", "frozen")}
    assert bare["plain"].activation_bytes < bare["own"].activation_bytes
    assert bare["frozen"].activation_bytes < bare["sge"].activation_bytes
    assert bare["frozen"].multiply_adds == bare["sge"].multiply_adds


def test_times(report):
    for one in report.rows:
        assert one.cost.forward_ms > 0
    for name in ("own", "sge", "drconv"):
        assert row(report, name, "backbone").cost.forward_ms < (
            row(report, name, "detector").cost.forward_ms
        )
    assert row(report, "sge", "SGE").cost.forward_ms < (
        row(report, "sge", "backbone").cost.forward_ms
    )


def test_table_and_files(report, tmp_path):
    lines = report.table().splitlines()
    (line,) = [line for line in lines if line.startswith("| SGE x 16") and "| sge " in line]
    cost = row(report, "sge", "SGE").cost
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[2:5] == [
        "512",
        f"{cost.elementwise / 1e9:.3f}",
        f"{cost.activation_bytes / 2**20:.1f}",
    ]
    (line,) = [line for line in lines if line.startswith("| backbone ") and "| sge " in line]
    assert " (+512) |" in line
    assert "the image is padded to 64x96" in lines
    assert "frozen: the difference is to plain" in lines
    assert [line.split()[1] for line in lines if line.startswith("| ")][:6] == [
        "part",
        *["detector"] * 5,
    ]

    report.write(tmp_path / "cost.json")
    content = json.loads((tmp_path / "cost.json").read_text())
    assert content["conditions"]["height"] == 64
    assert len(content["rows"]) == len(report.rows)
    found = next(r for r in content["rows"] if (r["model"], r["part"]) == ("drconv", "DRConv2d"))
    of = row(report, "drconv", "DRConv2d")
    assert found["multiply_adds"] == of.cost.multiply_adds
    assert found["plain_multiply_adds"] == of.plain.multiply_adds
    report.write(tmp_path / "cost.csv")
    with (tmp_path / "cost.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [r["part"] for r in rows] == [r.part for r in report.rows]
    assert rows[0]["width"] == "90"
    assert rows[0]["plain_parameters"] == ""


def test_without_times_and_padding():
    sync = demo(norm_cfg=dict(type="SyncBN"))  # which wants a GPU to train on
    found = compare(dict(own=sync), SIZE, repeats=0, pad=False)
    assert {row.image for row in found.rows} == {"64x90"}
    assert [row.cost.forward_ms for row in found.rows] == [None, None]
    assert "forward" not in found.table()
    assert "padded" not in found.table()


def test_the_roi_head_gets_as_many_boxes_as_the_config_says():
    """Whatever an untrained RPN finds."""
    cost = {}
    for number in (50, 100):
        cfg = demo()
        cfg.model.test_cfg.rpn.max_per_img = number
        cost[number] = row(compare(dict(own=cfg), SIZE, repeats=0), "own", "detector").cost
    head = 48 * 49 * 256 + 256 * 256 + 256 * (4 + 4)
    assert cost[100].multiply_adds - cost[50].multiply_adds == 50 * head


def test_a_detector_that_trains_in_mode_loss_alone(monkeypatch):
    """As mmdet's of the DINO family."""
    whole = row(compare(dict(own=demo()), SIZE, repeats=0), "own", "detector")
    forward = FasterRCNN._forward

    def own_forward(self, *args):
        if self.training:
            raise TypeError("forward() got an unexpected keyword argument")
        return forward(self, *args)

    monkeypatch.setattr(FasterRCNN, "_forward", own_forward)
    found = compare(dict(own=demo()), SIZE, repeats=0)
    one = row(found, "own", "detector")
    assert one.with_losses
    assert not whole.with_losses
    assert one.cost.multiply_adds == whole.cost.multiply_adds
    assert one.cost.activation_bytes != whole.cost.activation_bytes
    assert "own: the activations include those of its losses" in found.table()


def test_attached_modules_and_selective_kernels():
    cfg = demo()
    plugins = [
        dict(cfg=dict(type="mmattn.SE", ratio=4), after="backbone", index=1),
        dict(cfg=dict(type="ContextBlock", ratio=0.25), after=r"neck\.lateral_convs\.\d"),
    ]
    cfg.model.update(type="mmattn.Attach", module="FasterRCNN", plugins=plugins)
    cfg.model.backbone.update(type="mmattn.SKResNet", branch_groups=4)
    found = compare(dict(plain=demo(), own=cfg), SIZE, repeats=0)
    assert {row.plain_model for row in found.rows if row.model == "own"} == {"plain"}
    names = {row.part: row.modules for row in found.rows if row.model == "own"}
    assert names == dict(detector=1, backbone=1, SKResNet=16, SE=1, ContextBlock=4)
    blocks, se = row(found, "own", "SKResNet"), row(found, "own", "SE").cost
    backbone = row(found, "own", "backbone")
    added = blocks.cost.multiply_adds - blocks.plain.multiply_adds
    assert added > 0
    assert backbone.cost.multiply_adds - backbone.plain.multiply_adds == added + se.multiply_adds


def test_a_model_that_cannot_run(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(FasterRCNN, "_forward", lambda *_: torch.ones(3) + torch.ones(2))
        said = r"own cannot run on an image of 64x90: RuntimeError: The size of tensor a"
        with pytest.raises(PreflightError, match=said):
            compare(dict(own=demo()), SIZE, repeats=0)
    with pytest.raises(PreflightError, match="own is expected to have model = dict"):
        compare(dict(own=ConfigDict(train_cfg=None)))
    seven = dict(SGE, cfg=dict(type="mmattn.SGE", groups=7))
    with pytest.raises(PreflightError, match=r"cannot be built: .*groups"):
        compare(dict(own=demo(plugins=[seven])))

"""Every hazard is found where it is and gone with its line, and the shipped configs have none."""

import copy
import functools
import itertools
import logging
import math
import re
from dataclasses import dataclass, field
from pathlib import Path

import mmengine.config.utils
import pytest
import torch
from mmdet.models.backbones import ResNet
from mmdet.models.backbones.resnet import BasicBlock, Bottleneck
from mmdet.models.detectors import RetinaNet
from mmdet.registry import MODELS
from mmengine.logging import MMLogger
from torch import nn

import mmattn
from mmattn.backbones.sk_resnet import SKBottleneck, SKResNet
from mmattn.inspection import config_file, modules
from mmattn.inspection.build import build_model
from mmattn.inspection.check_config import check, look_at
from mmattn.inspection.hazards import HAZARDS
from mmattn.inspection.preflight import PreflightError
from tests.config_files import COCO, CONFIGS, DEMO, PLAIN, cover, narrow

BASE = """
_base_ = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'
model = dict(
    backbone=dict(base_channels=16),
    neck=dict(in_channels=[64, 128, 256, 512], out_channels=8),
    bbox_head=dict(in_channels=8, feat_channels=8, stacked_convs=1, num_classes=3))
val_evaluator = dict(type='mmattn.CocoSizeMetric')
"""


@pytest.fixture(autouse=True, scope="module")
def quick():
    """Few blocks, on whose number no hazard depends, and mmdet's list of configs read once."""
    with pytest.MonkeyPatch.context() as patch:
        read = functools.cache(mmengine.config.utils.load)
        patch.setattr(mmengine.config.utils, "load", read)
        patch.setitem(ResNet.arch_settings, 18, (BasicBlock, (1, 1, 1, 1)))
        patch.setitem(ResNet.arch_settings, 50, (Bottleneck, (2, 1, 1, 1)))
        patch.setitem(SKResNet.arch_settings, 50, (SKBottleneck, (2, 1, 1, 1)))
        yield


@MODELS.register_module()
class _Deaf(ResNet):
    """Takes plug-ins and convolutions, and builds none."""

    def __init__(self, plugins=None, dcn=None, stage_with_dcn=(), **kwargs):
        super().__init__(**kwargs)


@MODELS.register_module()
class _Strict(ResNet):
    """A relative of ResNet without its slots."""

    def __init__(self, depth, base_channels, frozen_stages, style, norm_cfg, norm_eval, init_cfg):
        super().__init__(depth, base_channels=base_channels)


@MODELS.register_module()
class _Moody(nn.Module):
    """Identity in evaluation alone."""

    def __init__(self, in_channels):
        super().__init__()
        self.in_channels = in_channels

    def forward(self, x):
        return 2 * x if self.training else x


class _Gate(nn.Module):
    """A plug-in as others write them: identity by a zeroed convolution, with a max pooling."""

    def __init__(self, in_channels):
        super().__init__()
        self.in_channels = in_channels
        self.pool = nn.AdaptiveMaxPool2d(1)
        self.conv = nn.Conv2d(in_channels, in_channels, 1)
        nn.init.zeros_(self.conv.weight)
        nn.init.zeros_(self.conv.bias)

    def forward(self, x):
        return x + self.conv(self.pool(x))


MODELS.register_module(name="_Gate", module=_Gate)


def plugins(*cfgs, **keys):
    return [dict(cfg=cfg, position="after_conv3", **keys) for cfg in cfgs]


@dataclass
class Case:
    """A config, as changes to the base, and what is said of it."""

    name: str
    said: str
    backbone: dict = field(default_factory=dict)
    model: dict = field(default_factory=dict)
    top: dict = field(default_factory=dict)
    others: tuple = ()
    gpus: int | None = None
    weights: str = ""
    base: str = ""
    keeps: str = ""
    line: str = ""

    def text(self, files):
        lines = {f"model.backbone.{k}": v for k, v in self.backbone.items()}
        lines |= {f"model.{k}": v for k, v in self.model.items()} | self.top
        tree = {}
        for key, value in lines.items():
            *parents, last = key.split(".")
            node = tree
            for parent in parents:
                node = node.setdefault(parent, {})
            node[last] = files.get(value, value) if isinstance(value, str) else value
        text = "\n".join(f"{key} = {value!r}" for key, value in tree.items())
        for name, path in files.items():
            text = text.replace(f"@{name}@", path)
        return text


SCRATCH = dict(init_cfg=None)
ATTACH = dict(type="mmattn.Attach", module="RetinaNet")
SE = dict(type="mmattn.SE")
GATED = dict(type="mmattn.SE", identity_init=True)
DRCONV = dict(type="mmattn.DRConv2d", regions=2, templates=2)
C4_C5 = (False, False, True, True)
LOCAL = dict(type="Pretrained", checkpoint="@plain@")
SHUFFLE = dict(
    _delete_=True,
    type="mmattn.DRShuffleNetV2",
    widen_factor=0.5,
    drconv=dict(regions=2, templates=2),
    frozen_stages=1,
    init_cfg=dict(type="Pretrained", checkpoint="torchvision://shufflenet_v2_x0_5"),
)

CASES = [
    Case("not-built", "dcn builds no mmattn.DRConv2d: without stage_with_dcn", dict(dcn=DRCONV)),
    Case(
        "not-built",
        "plugins builds no mmattn.SE: its stages are all False",
        dict(plugins=plugins(GATED, stages=(False,) * 4)),
    ),
    Case(
        "not-built",
        "asks for mmattn.SE, and _Deaf has built none",
        dict(type="_Deaf", plugins=plugins(GATED)),
    ),
    Case(
        "not-built",
        "dcn asks for mmattn.DRConv2d, and _Deaf has built none",
        dict(type="_Deaf", dcn=DRCONV, stage_with_dcn=C4_C5),
        line="dcn=None",
    ),
    Case(
        "imports-lost",
        "imports json and string: what",
        top=dict(custom_imports=dict(imports=["math"])),
        base="custom_imports = dict(imports=['json', 'mmattn.plugins', 'string'])\n",
    ),
    Case(
        "conv-everywhere",
        r"in place of 20 convolutions, the stem.* \([\d,]+ parameters\)",
        dict(conv_cfg=DRCONV),
        others=("never-trained",),
    ),
    Case(
        "fallback-on-stride",
        "keeps one convolution plain and no other",
        dict(dcn=dict(DRCONV, fallback_on_stride=True), stage_with_dcn=C4_C5),
    ),
    Case(
        "hook-lost",
        r"backbone\.layer1\.0\.bn3\.se and 1 more: not called in a distributed",
        dict(frozen_stages=0),
        dict(**ATTACH, plugins=[dict(cfg=GATED, after=r"backbone\.layer1\.\d\.bn3")]),
        dict(sync_bn="torch"),
    ),
    Case(
        "hook-lost",
        "bn3.se and 1 more: not called without distributed training",
        dict(frozen_stages=0, norm_cfg=dict(type="SyncBN")),
        dict(**ATTACH, plugins=[dict(cfg=GATED, after=r"backbone\.layer1\.\d\.bn3")]),
    ),
    Case(
        "init-wiped",
        r"5 ContextBlock in backbone\.layer1 to layer4: built as identity.*anew \(not identity\)",
        dict(SCRATCH, frozen_stages=0, plugins=plugins(dict(type="ContextBlock", ratio=0.25))),
    ),
    Case(
        "init-wiped",
        "5 _Gate in .*: built as identity",
        dict(SCRATCH, frozen_stages=0, plugins=plugins(dict(type="_Gate"))),
    ),
    Case(
        "plain-pretrained",
        r"5 mmattn\.SE in backbone\.layer1 to layer4: factor 0\.5 at the start",
        dict(frozen_stages=0, plugins=plugins(SE)),
    ),
    Case(
        "plain-pretrained",
        r"2 mmattn\.SE in backbone\.layer3 and layer4: factor 0\.5 at the start",
        dict(
            frozen_stages=0,
            plugins=plugins(GATED, stages=(True, True, False, False))
            + plugins(SE, stages=(False, False, True, True)),
        ),
    ),
    Case(
        "plain-pretrained",
        r"mmattn\.SGE in .*: factor 0\.73 at the start",
        dict(frozen_stages=0, init_cfg=LOCAL, plugins=plugins(dict(type="mmattn.SGE", groups=4))),
    ),
    Case(
        "plain-pretrained",
        r"mmattn\.CBAM in .*: factor 0\.2\d to 0\.2\d at the start",
        dict(SCRATCH, frozen_stages=0, norm_eval=False, plugins=plugins(dict(type="mmattn.CBAM"))),
        top=dict(load_from="@detector@"),
    ),
    Case(
        "plain-pretrained",
        r"ContextBlock in .*: factor 0\.5 at the start",
        dict(
            frozen_stages=0,
            plugins=plugins(dict(type="ContextBlock", ratio=0.25, fusion_types=("channel_mul",))),
        ),
    ),
    Case(
        "plain-pretrained",
        r"mmattn\.GCTConv2d in backbone\.conv1 to layer4: not as the plain convolution at the",
        dict(frozen_stages=-1, conv_cfg=dict(type="mmattn.GCTConv2d", gate="sigmoid")),
        top={"optim_wrapper.paramwise_cfg": dict(custom_keys={".beta": dict(decay_mult=0)})},
    ),
    Case(
        "plain-pretrained",
        r"2 mmattn\.SKConv2d in backbone\.layer3 and layer4: not as the plain convolution",
        dict(dcn=dict(type="mmattn.SKConv2d"), stage_with_dcn=C4_C5, norm_eval=False),
        weights="own",
    ),
    Case(
        "plain-pretrained",
        r"5 mmattn\.SKResNet in backbone\.layer1 to layer4: not as",
        dict(type="mmattn.SKResNet", branch_groups=2, frozen_stages=0, norm_eval=False),
        weights="own",
    ),
    Case(
        "plain-pretrained",
        r"mmattn\.SimAM in .*: factor 0\.\d+ at the start",
        dict(plugins=plugins(dict(type="mmattn.SimAM"))),
        weights="own",
    ),
    Case(
        "plain-pretrained",
        r"3 mmattn\.SGE in neck\.lateral_convs: factor 0\.73 at the start, .*whole\.pth",
        SCRATCH,
        dict(
            ATTACH,
            plugins=[
                dict(
                    cfg=dict(type="mmattn.SGE", groups=2, identity_init=True),
                    after=r"neck\.lateral_convs\.0\.conv",
                ),
                dict(cfg=dict(type="mmattn.SGE", groups=4), after=r"neck\.lateral_convs\.\d"),
            ],
        ),
        dict(load_from="@whole@"),
    ),
    Case(
        "weights-refused",
        r"2 mmattn\.DRConv2d in .*: the weights of torchvision://resnet50 do not load",
        dict(dcn=dict(DRCONV, generator="paper"), stage_with_dcn=C4_C5),
    ),
    Case(
        "weights-left-over",
        r"sge\.pth has weights of layer1\.0\.sge and 4 more, and this model has no place",
        dict(init_cfg=dict(type="Pretrained", checkpoint="@sge@")),
    ),
    Case(
        "weights-left-over",
        "and this model has no place",
        dict(
            norm_eval=False,
            frozen_stages=0,
            plugins=plugins(dict(type="mmattn.CBAM", identity_init=True)),
            init_cfg=dict(type="Pretrained", checkpoint="@sge@"),
        ),
        keeps="CBAM",
    ),
    Case(
        "weights-left-over",
        r"other\.pth has weights of layer1\.0\.se and 4 more, and the mmattn\.SE here have other",
        dict(
            frozen_stages=0,
            plugins=plugins(GATED),
            init_cfg=dict(type="Pretrained", checkpoint="@other@"),
        ),
        weights="own",
    ),
    Case(
        "weights-left-over",
        r"gct\.pth is of a network with GCT, and this one is without: \d+ weights",
        dict(frozen_stages=0, init_cfg=dict(type="Pretrained", checkpoint="@gct@")),
        top=dict(optim_wrapper=dict(paramwise_cfg=dict(custom_keys={".beta": dict(decay_mult=0)}))),
        keeps="GCTConv2d",
    ),
    Case(
        "weights-left-over",
        r"sk\.pth is of a network with SK, and this one is without",
        dict(init_cfg=dict(type="Pretrained", checkpoint="@sk@")),
        keeps="SKResNet",
    ),
    Case(
        "weights-left-over",
        r"bam\.pth has weights of layer1\.1\.bam and 2 more, and this model has no place",
        dict(init_cfg=dict(type="Pretrained", checkpoint="@bam@")),
        keeps="BAM",
        line="mmattn.Attach",
    ),
    Case(
        "frozen-module",
        r"2 mmattn\.SE in backbone\.layer1: frozen at the start \(factor 0\.5\)",
        dict(SCRATCH, plugins=plugins(SE)),
    ),
    Case(
        "frozen-module",
        r"2 mmattn\.DRConv2d in backbone\.layer1: frozen at the start \(random\)",
        dict(SCRATCH, dcn=DRCONV, stage_with_dcn=(True, True, False, False)),
    ),
    Case(
        "never-trained",
        r"2 mmattn\.SE in backbone\.layer1: all frozen as identity",
        dict(plugins=plugins(GATED, stages=(True, False, False, False))),
    ),
    Case(
        "never-trained",
        r"2 mmattn\.DRConv2d in backbone\.layer1: frozen as plain convolutions, with 2\.\d times",
        dict(dcn=DRCONV, stage_with_dcn=(True,) * 4),
    ),
    Case(
        "frozen-module",
        r"2 mmattn\.SE in backbone\.layer2 and layer3: frozen at the start",
        dict(SCRATCH, frozen_stages=3, plugins=plugins(SE, stages=(False, True, True, True))),
        line="frozen_stages=1",
    ),
    Case(
        "never-trained",
        r"8 mmattn\.DRConv2d in backbone\.stage2: frozen as plain convolutions, with \d\.\d times",
        SHUFFLE,
        {"neck.in_channels": [24, 48, 96, 192]},
    ),
    Case(
        "norm-eval",
        r"3 mmattn\.BAM in backbone\.layer2 to layer4: the BatchNorms inside keep mean 0",
        dict(plugins=plugins(dict(type="mmattn.BAM", identity_init=True))),
    ),
    Case(
        "norm-eval",
        r"5 mmattn\.SKResNet in .*: the BatchNorms inside",
        dict(type="mmattn.SKResNet", branch_groups=2, frozen_stages=0, init_cfg=None),
    ),
    Case(
        "gct-beta-decayed",
        r"weight decay acts on backbone\.layer1\.0\.conv1\.0\.beta and 18 more",
        dict(frozen_stages=0, conv_cfg=dict(type="mmattn.GCTConv2d", identity_init=True)),
    ),
    Case("lr-batch", "made for batches of 16 images, and a step here sees 2;", gpus=1),
    Case(
        "lr-batch",
        "a step here sees 64;",
        top={"optim_wrapper.accumulative_counts": 4},
        gpus=8,
    ),
    Case(
        "find-unused-ignored",
        "has no effect",
        top=dict(
            find_unused_parameters=True,
            model_wrapper_cfg=dict(type="MMDistributedDataParallel"),
        ),
    ),
    Case(
        "not-deterministic",
        "5 _Gate in .*: AdaptiveMaxPool2d inside",
        dict(frozen_stages=0, plugins=plugins(dict(type="_Gate"))),
        top=dict(randomness=dict(deterministic=True)),
    ),
]
IDS = [f"{case.name}-{i}" for i, case in enumerate(CASES)]


def backbone_weights(**changes):
    torch.manual_seed(0)
    net = ResNet(50, base_channels=16, **changes)
    return net.state_dict()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A base config, and files of weights that configs name as @plain@ and so on."""
    folder = tmp_path_factory.mktemp("check")
    (folder / "start.py").write_text(BASE)
    dump(config_file.load(str(folder / "start.py")), folder / "base.py")
    plain = backbone_weights()
    sge = plugins(dict(type="mmattn.SGE", groups=4, identity_init=True))
    se = backbone_weights(plugins=plugins(SE))
    bam = ResNet(50, base_channels=16)
    mmattn.attach(bam, [dict(cfg=dict(type="mmattn.BAM"), after="layer[123]")])
    for name, weights in {
        "plain": plain | {"fc.weight": torch.zeros(10, 512)},
        "detector": {f"backbone.{name}": value for name, value in plain.items()},
        "whole": build_model(config_file.load(str(folder / "base.py"))).state_dict(),
        "sge": backbone_weights(plugins=sge),
        "gct": backbone_weights(conv_cfg=dict(type="mmattn.GCTConv2d")),
        "sk": SKResNet(depth=50, base_channels=16, branch_groups=8).state_dict(),
        "bam": bam.state_dict(),
        "other": {name.replace(".se.fc.", ".se.mlp."): value for name, value in se.items()},
    }.items():
        torch.save(weights, folder / f"{name}.pth")
    return folder


@pytest.fixture
def files(folder):
    return {path.stem: str(path) for path in folder.glob("*.pth")}


def dump(cfg, path):
    """Writes a config as one file, without yapf, which takes a second."""
    path.write_text("\n".join(f"{key} = {value!r}" for key, value in cfg.to_dict().items()))


def load(folder, name, base, text):
    path = folder / f"{name}.py"
    path.write_text(f"_base_ = {str(base)!r}\n{text}\n")
    return config_file.load(str(path))


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_a_hazard_is_found_and_its_line_ends_it(case, folder, files):
    name = f"case{CASES.index(case)}"
    base = folder / "base.py"
    if case.base:
        load(folder, f"{name}_base", base, case.base)
        base = folder / f"{name}_base.py"
    cfg = load(folder, name, base, case.text(files))
    report = check(cfg, gpus=case.gpus)
    assert report.skipped == []
    assert {finding.name for finding in report.findings} == {case.name, *case.others}
    finding = next(f for f in report.findings if f.name == case.name)
    assert re.search(case.said, finding.sentence), finding.sentence
    assert case.line in finding.line
    line = finding.line
    if case.weights:
        # the line has a place for the name of a file that the user has to provide
        own = folder / f"{name}_own.pth"
        torch.save(build_model(cfg).backbone.state_dict(), own)
        line, number = re.subn("'[^']*<[^']*'", repr(str(own)), line)
        assert number == 1, line
    fixed = load(folder, f"{name}_fixed", folder / f"{name}.py", line)
    after = check(fixed, gpus=case.gpus)
    assert after.findings == []
    assert after.skipped == []
    assert case.keeps in after.text()


def test_every_hazard_has_a_case_and_a_line_in_the_docs():
    assert {case.name for case in CASES} == set(HAZARDS)
    text = (Path(__file__).parents[2] / "docs" / "config-check.md").read_text()
    text = text[text.index("## The hazards") :]
    assert re.findall(r"^\| `([a-z-]+)` \|", text, re.M) == list(HAZARDS)


SAMPLE = [*cover(COCO), *cover(PLAIN), *DEMO, *sorted(CONFIGS.glob("bccd/*.py"))]
SHIPPED = [
    pytest.param(
        path,
        id=str(path.relative_to(CONFIGS)),
        marks=() if path in SAMPLE else pytest.mark.slow,
    )
    for path in dict.fromkeys([*SAMPLE, *COCO, *PLAIN])
]


@pytest.mark.parametrize("path", SHIPPED)
def test_a_shipped_config_has_no_hazard(path, tmp_path, monkeypatch):
    if path.parent.name == "nl":  # it names a block by its number
        monkeypatch.setitem(ResNet.arch_settings, 50, (Bottleneck, (3, 4, 6, 3)))
    cfg = narrow(config_file.load(str(path)))
    init_cfg = cfg.model.backbone.init_cfg or {}
    if init_cfg.get("checkpoint", "").startswith("checkpoints/"):
        # what the README says where to get
        init_cfg.checkpoint = str(tmp_path / "backbone.pth")
        torch.save(build_model(cfg).backbone.state_dict(), init_cfg.checkpoint)
    base = cfg.get("auto_scale_lr", {}).get("base_batch_size", 1)
    report = check(cfg, gpus=math.ceil(base / cfg.train_dataloader.batch_size))
    assert report.findings == []
    assert report.skipped == []
    plain = "_base_" in path.parts or re.search("_r50(w16)?_fpn", path.name) is not None
    assert bool(report.found) != plain


def test_where_there_is_no_other_place_conv_cfg_is_no_hazard(of):
    report = of(
        dict(depth=18, conv_cfg=DRCONV, frozen_stages=-1), {"neck.in_channels": [16, 32, 64, 128]}
    )
    assert len(report.found) == 12
    assert report.findings == []


def test_a_norm_that_stays_keeps_its_hooks(of):
    attached = [dict(cfg=GATED, after=r"backbone\.layer2\.\d\.bn3")]
    syncbn = {"neck.norm_cfg": dict(type="SyncBN"), "plugins": attached}
    assert of(model=dict(ATTACH, **syncbn)).findings == []


# what is listed


def rows(report, **options):
    """The table of a report, as {(module, place): the other cells}."""
    lines = [line for line in report.text(**options).splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[1:]]
    return {(row[0], row[1]): tuple(row[2:]) for row in cells}


@pytest.fixture
def of(folder):
    """A report on the base with changes to its backbone."""

    def report(backbone=(), model=(), weights=None, gpus=None, **top):
        cfg = config_file.load(str(folder / "base.py"))
        cfg.merge_from_dict({f"model.backbone.{k}": v for k, v in dict(backbone).items()})
        cfg.merge_from_dict({f"model.{k}": v for k, v in dict(model).items()} | top)
        return check(cfg, weights, gpus)

    return report


def test_like_modules_are_one_line_for_each_stage(of):
    report = of(dict(plugins=plugins(dict(type="mmattn.SGE", groups=4))))
    assert rows(report) == {
        ("mmattn.SGE", "backbone.layer1"): ("2", "64", "16", "frozen", "factor 0.73"),
        ("mmattn.SGE", "backbone.layer2"): ("1", "128", "8", "yes", "factor 0.73"),
        ("mmattn.SGE", "backbone.layer3"): ("1", "256", "8", "yes", "factor 0.73"),
        ("mmattn.SGE", "backbone.layer4"): ("1", "512", "8", "yes", "factor 0.73"),
        ("all", ""): ("5", "", "40", "", ""),
    }
    single = rows(report, every=True)
    assert single["mmattn.SGE", "backbone.layer1.1.sge"] == (
        *("1", "64", "8", "frozen", "factor 0.73"),
    )
    assert len(single) == 6
    (line,) = report.short()
    assert line == (
        "5 mmattn.SGE in backbone.layer1 to layer4: 40 parameters more, 2 of 5 frozen, factor 0.73"
    )


@pytest.mark.parametrize(
    ("cfg", "said"),
    [
        (dict(type="mmattn.SE"), r"factor 0\.5"),
        (dict(type="mmattn.CBAM"), r"factor 0\.2\d"),
        (dict(type="mmattn.BAM"), r"factor 1\.5"),
        (dict(type="mmattn.SimAM"), r"factor 0\.7\d"),
        (dict(type="mmattn.SRM"), r"factor 0\.5"),
        (dict(type="mmattn.GC"), "identity"),
        (dict(type="mmattn.NonLocal"), "identity"),
        (dict(type="mmattn.TripletAttention", identity_init=True), "identity"),
        (dict(type="ContextBlock", ratio=0.25), "identity"),
        (dict(type="NonLocal2d"), "identity"),
        (dict(type="_Moody"), "not identity"),
    ],
)
def test_how_a_module_starts_is_measured(cfg, said, of):
    report = of(dict(frozen_stages=0, plugins=plugins(cfg, stages=(False, True, False, False))))
    start = rows(report)[cfg["type"], "backbone.layer2"][-1]
    assert re.fullmatch(said, start), start


@pytest.mark.parametrize(
    ("backbone", "channels", "added", "start"),
    [
        # 2 m + 2 m templates times those of the plain one, less it; the guide; the routing
        (dict(dcn=DRCONV), "64", 2 * 36864 - 36864 + 2 * 64 + 4 * 65, "as the plain convolution"),
        (
            dict(dcn=dict(type="mmattn.CondConv2d", experts=2)),
            "64",
            36864 + 2 * 65,
            "as the plain convolution",
        ),
        (dict(dcn=dict(type="mmattn.SKConv2d")), "64", None, "not as the plain convolution"),
        (dict(dcn=dict(DRCONV, generator="paper")), "64", None, "random"),
        (dict(dcn=DRCONV, init_cfg=None), "64", None, "random"),
        (dict(dcn=DRCONV, init_cfg=LOCAL), "64", None, "as the plain convolution"),
    ],
)
def test_how_a_convolution_starts_is_measured(backbone, channels, added, start, of, files):
    if backbone.get("init_cfg"):
        backbone = dict(backbone, init_cfg=dict(LOCAL, checkpoint=files["plain"]))
    report = of(dict(backbone, stage_with_dcn=(False, False, True, False)))
    row = rows(report)[backbone["dcn"]["type"], "backbone.layer3"]
    assert (row[0], row[1], row[-1]) == ("1", channels, start)
    assert added is None or row[2] == f"{added:,}"


@pytest.mark.parametrize(
    "backbone",
    [
        dict(dcn=DRCONV, stage_with_dcn=(True,) * 4),
        dict(dcn=dict(DRCONV, generator="paper"), stage_with_dcn=(True,) * 4),
        dict(dcn=dict(type="mmattn.CondConv2d"), stage_with_dcn=(True,) * 4),
        dict(dcn=dict(type="mmattn.SKConv2d", branch_groups=16), stage_with_dcn=(True,) * 4),
        dict(conv_cfg=dict(type="mmattn.GCTConv2d")),
    ],
)
def test_one_of_many_convolutions_of_a_kind_is_measured(backbone, of, monkeypatch):
    """The smallest: a DRConv of 512 channels takes seconds."""
    measured = []
    start = modules._start_of_conv

    def note(module):
        measured.append((module.in_channels, tuple(module.kernel_size), tuple(module.stride)))
        return start(module)

    monkeypatch.setattr(modules, "_start_of_conv", note)
    report = of(backbone)
    kinds = {(tuple(o.module.kernel_size), tuple(o.module.stride)) for o in report.found}
    assert len(measured) == len(kinds)
    assert max(channels for channels, *_ in measured) <= 64


def test_gct_is_an_identity_before_each_convolution(of):
    report = of(dict(conv_cfg=dict(type="mmattn.GCTConv2d"), frozen_stages=0, init_cfg=None))
    table = rows(report)
    assert table["mmattn.GCTConv2d", "backbone.conv1"] == (
        *("1", "3 -> 16", "9", "frozen", "as the plain convolution"),
    )
    # conv1 to conv3 of two blocks, and the downsample branch: 3 parameters a channel
    channels = 16 + 16 + 16 + 16 + 64 + 16 + 16
    assert table["mmattn.GCTConv2d", "backbone.layer1"][:3] == (
        *("7", "16 ... 64", f"{3 * channels}"),
    )


def test_what_is_attached_is_listed(of):
    attached = dict(cfg=dict(SE, ratio=4), after=r"neck\.lateral_convs\.\d")
    report = of(model=dict(ATTACH, plugins=[attached]))
    size = 3 * (8 * 2 + 2 + 2 * 8 + 8)
    (cells,) = rows(report).values()
    assert cells[:-1] == ("3", "8", f"{size}", "yes")
    assert re.fullmatch(r"factor 0\.(5|5\d|4\d)", cells[-1])
    assert report.findings == []  # the neck starts from random values


def test_a_factor_is_the_mean_of_several_draws(of, monkeypatch):
    draws = itertools.cycle([math.log(4), -math.log(4)])  # a gate of 0.8, or of 0.2

    def reset(module):
        nn.init.zeros_(module.fc[2].weight)
        nn.init.constant_(module.fc[2].bias, next(draws))

    monkeypatch.setattr(mmattn.SE, "reset_parameters", reset)
    report = of(dict(plugins=plugins(SE, stages=(False, True, False, False))))
    assert rows(report)["mmattn.SE", "backbone.layer2"][-1] == "factor 0.5"


def test_a_module_that_cannot_be_initialised(of, monkeypatch):
    def fail(module):
        raise ValueError("no\nway")

    monkeypatch.setattr(mmattn.SE, "init_weights", fail)
    said = r"^backbone\.layer\d\.\d\.se cannot be initialised: no way$"
    with pytest.raises(PreflightError, match=said):
        of(dict(plugins=plugins(SE)))


@pytest.mark.parametrize(
    ("name", "conv", "stage"),
    [
        ("backbone.conv1", True, "backbone.conv1"),
        ("backbone.layer1.0.downsample.0", True, "backbone.layer1"),
        ("backbone.stages.0.blocks.1.norm.se", False, "backbone.stages.0"),
        ("backbone.stage2.0.branches.1.se", False, "backbone.stage2"),
        ("neck.lateral_convs.0.se", False, "neck.lateral_convs"),
        ("rpn_head.rpn_conv.se", False, "rpn_head.rpn_conv"),
        ("0.se", False, "0.se"),
    ],
)
def test_the_stage_of_a_module(name, conv, stage):
    assert modules.Inserted(name, nn.Identity(), "mmattn.SE", conv=conv).stage == stage


def test_a_module_came_from_the_slot_of_its_part():
    parts = ("first", "second")
    model = nn.ModuleDict({part: nn.ModuleDict({"se": mmattn.SE(16)}) for part in parts})
    found = modules.find(model, {part: dict(plugins=plugins(SE)) for part in parts})
    assert {one.name: one.slot.path for one in found} == {
        "first.se": ("first",),
        "second.se": ("second",),
    }


@MODELS.register_module()
class _Student(RetinaNet):
    """Loads a teacher while it is built, as mmdet's distillation does."""

    def __init__(self, teacher_ckpt=None, **kwargs):
        super().__init__(**kwargs)
        assert teacher_ckpt is None


def test_nothing_is_loaded_while_a_model_is_built(of):
    assert of(model=dict(type="_Student", teacher_ckpt="https://example.org/a.pth")).found == []


def test_a_plain_detector_is_said_to_be_one(of):
    report = of()
    assert report.found == []
    assert "No module is inserted." in report.text()
    assert "No hazard found" in report.text()


# weights


def pretrained(path):
    return dict(init_cfg=dict(type="Pretrained", checkpoint=str(path)))


def test_modules_from_a_checkpoint_are_no_hazard(of, folder):
    """The paper's recipe: a backbone that was trained with the module, layer1 frozen."""
    path = folder / "se_backbone.pth"
    torch.save(backbone_weights(plugins=plugins(SE)), path)
    report = of(dict(plugins=plugins(SE), **pretrained(path)))
    assert report.findings == []
    assert {row[-1] for row in rows(report).values()} == {"from a checkpoint", ""}
    assert rows(report)["mmattn.SE", "backbone.layer1"][3] == "frozen"


def test_norms_from_a_checkpoint_have_their_statistics(of, folder):
    path = folder / "cbam_backbone.pth"
    cbam = plugins(dict(type="mmattn.CBAM"))
    torch.save(backbone_weights(plugins=cbam), path)
    assert of(dict(plugins=cbam, **pretrained(path))).findings == []


def test_a_part_of_the_modules_in_a_checkpoint(of, folder):
    """SE is in the file, CBAM is not."""
    path = folder / "se_only.pth"
    torch.save(backbone_weights(plugins=plugins(SE)), path)
    both = plugins(SE, dict(type="mmattn.CBAM"))
    report = of(dict(plugins=both, frozen_stages=0, norm_eval=False, **pretrained(path)))
    (finding,) = report.findings
    assert finding.name == "plain-pretrained"
    assert finding.sentence.startswith("5 mmattn.CBAM in backbone.layer1 to layer4: factor 0.2")
    assert str(path) in finding.sentence


def test_a_part_of_a_module_in_a_checkpoint(of, folder):
    weights = backbone_weights(plugins=plugins(SE))
    path = folder / "half_se.pth"
    torch.save({name: v for name, v in weights.items() if ".se.fc.2." not in name}, path)
    report = of(dict(plugins=plugins(SE), frozen_stages=0, **pretrained(path)))
    assert [finding.name for finding in report.findings] == ["plain-pretrained"]


def test_weights_of_a_backbone_say_nothing_of_the_neck(of, folder):
    attached = dict(cfg=dict(SE, ratio=4), after=r"neck\.lateral_convs\.\d")
    report = of(SCRATCH, dict(ATTACH, plugins=[attached]), weights=str(folder / "detector.pth"))
    assert report.findings == []


def test_a_convolution_of_its_own_from_a_checkpoint(of, folder):
    path = folder / "regional.pth"
    places = dict(dcn=dict(DRCONV, generator="paper"), stage_with_dcn=C4_C5)
    torch.save(backbone_weights(**places), path)
    report = of(dict(places, **pretrained(path)))
    assert report.findings == []
    assert rows(report)["mmattn.DRConv2d", "backbone.layer3"][-1] == "from a checkpoint"


def test_the_weights_of_a_training_to_start_from_are_looked_at(of, folder):
    cfg = dict(SCRATCH, frozen_stages=0, plugins=plugins(SE))
    assert of(cfg).findings == []
    (finding,) = of(cfg, weights=str(folder / "detector.pth")).findings
    assert finding.name == "plain-pretrained"


@pytest.mark.parametrize("kind", ["mmattn.SE", "_Gate"])
@pytest.mark.parametrize("init_cfg", [None, dict(type="Pretrained", checkpoint="torchvision://r")])
def test_a_checkpoint_of_the_whole_comes_after_any_initialisation(kind, init_cfg, folder):
    cfg = config_file.load(str(folder / "base.py"))
    cfg.model.backbone.update(init_cfg=init_cfg, plugins=plugins(dict(type=kind)))
    path = folder / "trained.pth"
    torch.save(dict(state_dict=build_model(cfg).state_dict()), path)
    report = check(cfg, str(path))
    assert report.findings == []
    assert {one.from_checkpoint for one in report.found} == {True}


def test_a_resumed_training_has_everything_from_its_checkpoint(folder):
    cfg = config_file.load(str(folder / "base.py"))
    both = plugins(SE, dict(type="mmattn.SimAM"))  # one of them without parameters
    cfg.merge_from_dict({"model.backbone.plugins": both, "resume": True})
    path = folder / "whole.pth"
    torch.save(build_model(cfg).state_dict(), path)
    cfg.load_from = str(path)
    report = check(cfg)
    assert report.findings == []
    assert all(one.from_checkpoint for one in report.found)


@pytest.mark.parametrize(
    ("url", "plain"),
    [
        ("torchvision://resnet50", True),
        ("open-mmlab://detectron2/resnet50_caffe", True),
        ("https://download.pytorch.org/models/resnet50-0676ba61.pth", True),
        ("mmcls://se-resnet50", False),
        ("mmcls://repvgg_D2se", False),
        ("mmcls://resnest50", True),
        ("https://github.com/rwightman/pytorch-image-models/releases/x/seresnet50-0.pth", False),
        ("https://example.org/resnet50.pth", False),
    ],
)
def test_what_a_url_is_known_to_hold(url, plain, of):
    """Of a file that is not known nothing is said."""
    report = of(dict(frozen_stages=0, plugins=plugins(SE), **pretrained(url)))
    assert [f.name for f in report.findings] == ["plain-pretrained"] * plain
    assert ("plain" if plain else "not read") in report.text().splitlines()[1]


def test_a_checkpoint_is_summed_up(of, folder):
    report = of(dict(frozen_stages=0, plugins=plugins(GATED), **pretrained(folder / "plain.pth")))
    state = backbone_weights(plugins=plugins(GATED))
    total = sum("num_batches_tracked" not in name for name in state)
    missing = sum(".se." in name for name in state)
    line = report.text().splitlines()[1]
    assert f": {total - missing} of {total} weights, {missing} missing (layer1.0.se." in line
    assert line.endswith(", 1 left over (fc.weight)")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "does not exist"),
        ("half", "is incomplete"),
        ("hostile", "could run code, so it is not read"),
        ("text", "is not a checkpoint"),
        ("other", "does not fit the model"),
    ],
)
def test_a_checkpoint_that_is_none_is_one_sentence(content, said, of, folder, tmp_path):
    path = tmp_path / "a.pth"
    if content == "half":
        whole = (folder / "plain.pth").read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
    elif content == "hostile":
        torch.save(dict(state_dict={}, run=Hostile()), path)
    elif content == "text":
        path.write_text("<html>")
    elif content == "other":
        torch.save({"a.weight": torch.zeros(2)}, path)
    with pytest.raises(PreflightError, match=said) as info:
        of(dict(plugins=plugins(SE)), weights=str(path))
    assert str(path) in str(info.value)
    assert "\n" not in str(info.value)
    assert not Hostile.ran


class Hostile:
    ran = False

    def __reduce__(self):
        return (setattr, (Hostile, "ran", True))


# what mmdet does not take


ATTACHED = r"attach them: (model = dict\(type='mmattn.Attach', module='RetinaNet', .*\))$"
REFUSED = [
    (dict(depth=18, plugins=plugins(GATED)), "ResNet with depth=18 takes no plugins: " + ATTACHED),
    (
        dict(depth=18, dcn=DRCONV, stage_with_dcn=C4_C5),
        r"takes no dcn: it can replace every convolution, (model = .*)$",
    ),
    (
        dict(dcn=DRCONV, stage_with_dcn=C4_C5, conv_cfg=dict(type="Conv2d")),
        r"ResNet takes either dcn or conv_cfg: (model = .*)$",
    ),
    (
        dict(plugins=plugins(GATED, GATED)),
        r"two plug-ins have the name se, and one needs a postfix: (model = .*)$",
    ),
    (
        dict(plugins=plugins(dict(type="_Channels", ratio=4))),
        r"_Channels does not take in_channels, and cannot be a plug-in: use a module that does$",
    ),
    (
        dict(plugins=[dict(cfg=SE, position="before_conv3")]),
        r"position of the plug-in mmattn.SE is expected to be one of .*, got 'before_conv3'$",
    ),
    (
        dict(plugins=plugins(SE, stages=(True, False))),
        r"stages of the plug-in mmattn.SE is expected to have 4 values.* got \(True, False\)$",
    ),
    (dict(plugins=plugins(SE)[0]), "plugins of ResNet is expected to be a list of dicts"),
    (
        dict(type="_Strict", plugins=plugins(GATED)),
        "_Strict takes no plugins: leave it out and attach them: ",
    ),
    (
        dict(conv_cfg=dict(type="DRConv2d")),
        "conv_cfg asks for 'DRConv2d', which is not .* mmattn.DRConv2d",
    ),
    (
        dict(plugins=plugins(dict(type="mmattn.SGEE"))),
        r"'mmattn\.SGEE', .*did you mean mmattn\.SGE",
    ),
    (dict(plugins=plugins(dict(type="mmattn.SGE", groups=7))), "SGE expects groups that divide"),
]


@MODELS.register_module()
class _Channels(nn.Module):
    """Named its argument as mmdet's SELayer does."""

    def __init__(self, channels, ratio=16):
        super().__init__()


@pytest.mark.parametrize(("backbone", "said"), REFUSED)
def test_what_cannot_be_built_is_one_sentence_with_the_line_that_can(backbone, said, of, folder):
    neck = {"neck.in_channels": [16, 32, 64, 128]} if backbone.get("depth") == 18 else {}
    with pytest.raises(PreflightError, match=said) as info:
        of(dict(backbone, frozen_stages=0), neck)
    line = re.search(said, str(info.value)).groups()
    if line:
        cfg = config_file.load(str(folder / "base.py"))
        cfg.merge_from_dict({f"model.backbone.{k}": v for k, v in backbone.items()})
        cfg.merge_from_dict({f"model.{k}": v for k, v in neck.items()})
        dump(cfg, folder / "refused.py")
        found = check(load(folder, "mended", folder / "refused.py", line[0])).found
        assert found


def test_mmdets_own_layer_is_named(folder):
    """Lazy configs name classes, which no registry needs to know."""
    from mmdet.models.layers import SELayer

    cfg = config_file.load(str(folder / "base.py"))
    cfg.model.backbone.plugins = plugins(dict(type=SELayer, ratio=4))
    with pytest.raises(PreflightError, match="use mmattn.SE, model = .*'mmattn.SE', ratio=4"):
        check(cfg)


def test_a_backbone_without_a_slot(folder):
    cfg = config_file.load(str(folder / "base.py"))
    cfg.model.backbone = dict(type="MobileNetV2", out_indices=(1, 2, 4, 7), plugins=plugins(GATED))
    cfg.model.neck.in_channels = [24, 32, 96, 1280]
    with pytest.raises(
        PreflightError, match="MobileNetV2 takes no plugins: leave it out and " + ATTACHED
    ) as info:
        check(cfg)
    cfg.model.backbone.plugins[0]["cfg"]["ratio"] = 4  # the neck has 8 channels
    with pytest.raises(PreflightError) as info:
        check(cfg)
    del cfg.model.backbone["plugins"]
    dump(cfg, folder / "mobile.py")
    line = re.search(ATTACHED, str(info.value))[1]
    cfg = load(folder, "mobile_mended", folder / "mobile.py", line)
    assert len(check(cfg).found) == 3


def test_a_name_whose_import_was_replaced(folder):
    load(folder, "importing", folder / "base.py", "custom_imports = dict(imports=['json'])")
    text = (
        "custom_imports = dict(imports=['math'])\n"
        f"model = dict(backbone=dict(plugins={plugins(dict(type='Missing'))}))"
    )
    cfg = load(folder, "replacing", folder / "importing.py", text)
    with pytest.raises(PreflightError, match="'Missing', .*; custom_imports has replaced") as info:
        check(cfg)
    assert "custom_imports = dict(imports=['json', 'math'], allow" in str(info.value)


@pytest.mark.parametrize("position", ["after_conv1", "after_conv2"])
def test_a_place_with_other_channels_than_mmdet_says(position, of):
    """Res2Net's blocks are wider there than their plug-ins are told."""
    plugin = dict(cfg=dict(type="mmattn.SGE", groups=1), position=position)
    backbone = dict(type="Res2Net", base_channels=64, plugins=[plugin], stage_with_dcn=(False,) * 4)
    with pytest.raises(PreflightError, match=r"layer1\.0\.sge does not run: SGE expects .*104"):
        of(backbone, {"neck.in_channels": [256, 512, 1024, 2048]})


def test_a_config_without_a_model(tmp_path):
    (tmp_path / "part.py").write_text("train_cfg = dict(max_epochs=1)\n")
    with pytest.raises(PreflightError, match=r"part\.py has no model"):
        check(config_file.load(str(tmp_path / "part.py")))


# the run


def test_the_batch_that_a_config_is_made_for(of):
    assert "batch: made for 8 GPUs x 2 images; --gpus N" in of().text()
    assert "batch: made for 8 GPUs x 2 images, here 8 x 2\n" in of(gpus=8).text()
    scaled = of(gpus=1, **{"auto_scale_lr.enable": True})
    assert "batch: 2 images a GPU, here 1 x 2; the learning rate is scaled" in scaled.text()
    assert scaled.findings == []
    own = of(gpus=1, **{"auto_scale_lr.base_batch_size": 2})
    assert own.findings == []
    unknown = of(gpus=3, auto_scale_lr=None)
    assert "for how many GPUs the config does not say" in unknown.text()
    assert unknown.findings == []


def test_the_rounding_of_cocometric_is_a_hint(of):
    report = of(**{"val_evaluator.type": "CocoMetric"})
    assert report.findings == []
    assert "hint: AP by size of CocoMetric is rounded to three decimals" in report.text()
    assert of().hints == []


def test_a_hazard_that_cannot_be_looked_for_is_said(of, monkeypatch):
    def broken(subject):
        raise RuntimeError("no such thing")
        yield

    monkeypatch.setitem(HAZARDS, "never-trained", broken)
    report = of(dict(plugins=plugins(SE)))
    assert {finding.name for finding in report.findings} == {"plain-pretrained", "frozen-module"}
    assert report.text().endswith("not checked: never-trained (RuntimeError: no such thing)")


@pytest.mark.parametrize("kind", ["mmattn.SE", "_Gate"])
def test_looking_leaves_a_model_as_it_is(kind, folder, tmp_path):
    """A training goes on with it."""
    cfg = config_file.load(str(folder / "base.py"))
    cfg.model.backbone.plugins = plugins(dict(type=kind))
    model = build_model(cfg)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.backbone.frozen_stages = 3  # what freezes in train() alone, thaws again
    log = logging.FileHandler(tmp_path / "log")
    MMLogger.get_current_instance().addHandler(log)
    modes = [module.training for module in model.modules()]
    learning = [parameter.requires_grad for parameter in model.parameters()]
    init_cfg = copy.deepcopy(model.backbone.init_cfg)
    state = torch.get_rng_state()
    config = copy.deepcopy(cfg._cfg_dict.to_dict())
    try:
        report = look_at(cfg, model, [])
    finally:
        MMLogger.get_current_instance().removeHandler(log)
    assert {one.frozen for one in report.found} == {True, False}
    # the log of a run gets no line for each parameter
    assert (tmp_path / "log").read_text() == ""
    assert report.skipped == []
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == learning
    assert not any(getattr(module, "is_init", False) for module in model.modules())
    assert model.backbone.init_cfg == init_cfg
    assert cfg._cfg_dict.to_dict() == config
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert all(value.device.type == "cpu" for value in after.values())

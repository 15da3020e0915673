"""The configs behind docs/troubleshooting.md: each over one small base, and what is said of it."""

from __future__ import annotations

from pathlib import Path

import torch
from mmdet.models.backbones import ResNet
from mmdet.registry import MODELS
from torch import nn

from mmattn.inspection import config_file
from mmattn.inspection.check_config import check
from mmattn.inspection.preflight import PreflightError

BASE = """
_base_ = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'
model = dict(
    backbone=dict(base_channels=16),
    neck=dict(in_channels=[64, 128, 256, 512], out_channels=8),
    bbox_head=dict(in_channels=8, feat_channels=8, stacked_convs=1, num_classes=3))
val_evaluator = dict(type='mmattn.CocoSizeMetric')
"""


@MODELS.register_module(force=True)
class MaxGate(nn.Module):
    """A plug-in of a user."""

    def __init__(self, in_channels):
        super().__init__()
        self.in_channels = in_channels
        self.pool = nn.AdaptiveMaxPool2d(1)

    def forward(self, x):
        return x + 0 * self.pool(x)


def backbone(**keys):
    return dict(backbone=keys)


def plugins(**cfg):
    return [dict(cfg=cfg, position="after_conv3")]


SE, GATED = dict(type="mmattn.SE"), dict(type="mmattn.SE", identity_init=True)
DRCONV = dict(type="mmattn.DRConv2d", regions=2)
C4_C5 = (False, False, True, True)
# hazard -> the config; with a number of GPUs where one is needed
HAZARDS = {
    "not-built": dict(model=backbone(dcn=DRCONV)),
    "imports-lost": dict(
        before="custom_imports = dict(imports=['my_modules'])",
        custom_imports=dict(imports=["my_hooks"]),
    ),
    "conv-everywhere": dict(model=backbone(conv_cfg=DRCONV)),
    "fallback-on-stride": dict(
        model=backbone(dcn=dict(DRCONV, fallback_on_stride=True), stage_with_dcn=C4_C5)
    ),
    "hook-lost": dict(
        model=dict(
            type="mmattn.Attach",
            module="RetinaNet",
            plugins=[dict(cfg=GATED, after=r"backbone\.layer1\.\d\.bn3")],
        ),
        sync_bn="torch",
    ),
    "init-wiped": dict(
        model=backbone(
            init_cfg=None, frozen_stages=0, plugins=plugins(type="ContextBlock", ratio=0.0625)
        )
    ),
    "plain-pretrained": dict(model=backbone(frozen_stages=0, plugins=plugins(**SE))),
    "weights-refused": dict(
        model=backbone(dcn=dict(DRCONV, generator="paper"), stage_with_dcn=C4_C5)
    ),
    "weights-left-over": dict(
        model=backbone(init_cfg=dict(type="Pretrained", checkpoint="sge_resnet50.pth"))
    ),
    "frozen-module": dict(model=backbone(init_cfg=None, plugins=plugins(**SE))),
    "never-trained": dict(
        model=backbone(
            plugins=[dict(cfg=GATED, position="after_conv3", stages=(True, False, False, False))]
        )
    ),
    "norm-eval": dict(model=backbone(plugins=plugins(type="mmattn.CBAM", identity_init=True))),
    "gct-beta-decayed": dict(
        model=backbone(frozen_stages=-1, conv_cfg=dict(type="mmattn.GCTConv2d"))
    ),
    "lr-batch": dict(gpus=1),
    "find-unused-ignored": dict(
        find_unused_parameters=True, model_wrapper_cfg=dict(type="MMDistributedDataParallel")
    ),
    "not-deterministic": dict(
        model=backbone(frozen_stages=0, plugins=plugins(type="MaxGate")),
        randomness=dict(deterministic=True),
    ),
}
# what cannot be built
ERRORS = {
    "plug-ins in ResNet-18": dict(model=backbone(depth=18, plugins=plugins(**GATED))),
    "dcn in ResNet-18": dict(
        model=backbone(depth=18, dcn=DRCONV, stage_with_dcn=(True, True, True, True))
    ),
    "mmdet's SELayer": dict(model=backbone(plugins=plugins(type="SELayer", ratio=16))),
    "dcn and conv_cfg": dict(
        model=backbone(dcn=DRCONV, stage_with_dcn=C4_C5, conv_cfg=dict(type="mmattn.GCTConv2d"))
    ),
    "two of one type": dict(model=backbone(plugins=plugins(**GATED) + plugins(**GATED))),
    "not registered": dict(model=backbone(plugins=plugins(type="mmattn.SGEE"))),
    "import lost": dict(
        before="custom_imports = dict(imports=['my_modules'])",
        custom_imports=dict(imports=["my_hooks"]),
        model=backbone(plugins=plugins(type="MyModule")),
    ),
    "a wrong position": dict(model=backbone(plugins=[dict(cfg=GATED, position="after_bn3")])),
    "a ratio that is a fraction": dict(
        model=backbone(plugins=plugins(type="mmattn.GC", ratio=0.0625))
    ),
    "groups that do not divide": dict(
        model=backbone(plugins=plugins(type="mmattn.SGE", groups=48))
    ),
    "SimAM as identity": dict(
        model=backbone(plugins=plugins(type="mmattn.SimAM", identity_init=True))
    ),
}


def prepare(folder: Path) -> None:
    """Makes ``folder``, which is to be the current one, what the configs expect."""
    (folder / "start.py").write_text(BASE)
    cfg = config_file.load(str(folder / "start.py"))
    (folder / "base.py").write_text(
        "\n".join(f"{key} = {value!r}" for key, value in cfg.to_dict().items())
    )
    for name in ("my_modules", "my_hooks"):
        (folder / f"{name}.py").write_text("")
    torch.manual_seed(0)
    sge = plugins(type="mmattn.SGE", groups=4)
    torch.save(ResNet(50, base_channels=16, plugins=sge).state_dict(), "sge_resnet50.pth")


def said(name: str, keys: dict) -> str:
    """What is said of a config: its hazard of that name, or why it cannot be built."""
    keys = dict(keys)
    before, gpus = keys.pop("before", ""), keys.pop("gpus", None)
    Path("before.py").write_text(f"_base_ = './base.py'\n{before}\n")
    text = "\n".join(f"{key} = {value!r}" for key, value in keys.items())
    Path("config.py").write_text(f"_base_ = './before.py'\n{text}\n")
    try:
        report = check(config_file.load("config.py"), gpus=gpus)
    except PreflightError as error:
        return str(error)
    (finding,) = (one for one in report.findings if one.name == name)
    return f"warning: {finding.name}: {finding.sentence}\n    {finding.line}"

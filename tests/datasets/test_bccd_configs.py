"""The configs of BCCD: what their names say, from scratch, with nothing frozen."""

import re
from pathlib import Path

import pytest
import torch
from mmdet.registry import MODELS as MMDET_MODELS
from mmengine import Config
from mmengine.registry import DefaultScope
from torch.nn.modules.batchnorm import _BatchNorm

from mmattn.convs import DRConv2d
from mmattn.plugins import AttentionModule

FOLDER = Path(__file__).parents[2] / "configs" / "bccd"
CONFIGS = {path.stem: path for path in sorted(FOLDER.glob("*.py"))}
MODULES = {
    "faster-rcnn_r50_fpn_1200it_bccd": {},
    "faster-rcnn_r50-se-c2-c5_fpn_1200it_bccd": {"SE": 16},
    "faster-rcnn_r50-sge-c2-c5_fpn_1200it_bccd": {"SGE": 16},
    "faster-rcnn_r50-cbam-c2-c5_fpn_1200it_bccd": {"CBAM": 16},
    "faster-rcnn_r50-gc-r4-c3-c5_fpn_1200it_bccd": {"GC": 13},
    "faster-rcnn_r50-gct-c1-c5_fpn_1200it_bccd": {"GCT": 53},
    "faster-rcnn_r50-drconv-m8-c4-c5_fpn_1200it_bccd": {"DRConv2d": 9},
}


def test_all_are_here_and_in_the_readme():
    assert CONFIGS.keys() == MODULES.keys()
    rows = re.findall(r"^\| `([^`]+_bccd)` \|", (FOLDER / "README.md").read_text(), re.MULTILINE)
    assert set(rows) == MODULES.keys()


@pytest.mark.parametrize("name", MODULES)
def test_config(name):
    config = Config.fromfile(CONFIGS[name])
    with DefaultScope.overwrite_default_scope("mmdet"), torch.device("meta"):
        model = MMDET_MODELS.build(config.model).train()
    found = {}
    for module in model.modules():
        if isinstance(module, (AttentionModule, DRConv2d)):
            kind = type(module).__name__
            found[kind] = found.get(kind, 0) + 1
            assert getattr(module, "identity_at_init", True)
    assert found == MODULES[name]
    assert all(p.requires_grad for p in model.parameters())
    assert all(m.training for m in model.modules() if isinstance(m, _BatchNorm))
    assert "checkpoint" not in str(config.model)  # nothing is downloaded
    assert model.roi_head.bbox_head.num_classes == len(config.metainfo.classes) == 3
    assert config.train_cfg.max_iters == config.param_scheduler[-1].end == 1200
    assert config.val_evaluator.type == config.test_evaluator.type == "mmattn.CocoSizeMetric"
    train, val = config.train_dataloader.dataset, config.val_dataloader.dataset
    assert (train.ann_file, val.ann_file) == ("annotations/train.json", "annotations/val.json")
    assert config.val_evaluator.ann_file == config.data_root + val.ann_file
    lines = CONFIGS[name].read_text().splitlines()
    assert len([x for x in lines if x.strip() and not x.startswith(("#", "_base_"))]) <= 15

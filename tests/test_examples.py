"""The configs of configs/examples: they build, and what they say of gradients is true."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS

import mmattn
from mmattn.inspection import build, preflight
from mmattn.inspection._console import PreflightError
from tests.zoo import assert_close

FOLDER = Path(mmattn.__file__).parents[1] / "configs" / "examples"
EXAMPLES = sorted(FOLDER.glob("*.py"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_an_example_builds(path):
    cfg = Config.fromfile(path)
    with torch.device("meta"):
        model = build.build_model(cfg)
    assert len([m for m in model.modules() if isinstance(m, mmattn.SGE)]) == 16
    assert path.stem in (FOLDER / "README.md").read_text()
    assert len(path.read_text().splitlines()) <= 16


def test_the_accumulating_example_has_as_many_updates():
    """Its batches and its warm-up are those of eight GPUs."""
    cfg = Config.fromfile(FOLDER / "faster-rcnn_r50-sge-c2-c5_fpn_1xb2-accum8-2x_coco.py")
    recipe = Config.fromfile(FOLDER.parent / "sge" / "faster-rcnn_r50-sge-c2-c5_fpn_2x_coco.py")
    counts = cfg.optim_wrapper.accumulative_counts
    assert cfg.train_dataloader.batch_size * counts == cfg.auto_scale_lr.base_batch_size
    assert cfg.param_scheduler[0].end == counts * recipe.param_scheduler[0].end
    steps, usual = (c.param_scheduler[1].to_dict() for c in (cfg, recipe))
    assert steps.items() <= usual.items()
    assert cfg.optim_wrapper.optimizer == recipe.optim_wrapper.optimizer


PLUGINS = [
    dict(cfg=dict(type=f"mmattn.{kind}", **more), position="after_conv3")
    for kind, more in dict(
        SGE=dict(groups=4), SE=dict(ratio=4), GC=dict(ratio=4), CBAM=dict(ratio=4), ECA={}
    ).items()
]


@pytest.mark.parametrize(
    "changes",
    [
        dict(plugins=PLUGINS),
        dict(conv_cfg=dict(type="mmattn.GCTConv2d")),
        dict(dcn=dict(type="mmattn.DRConv2d"), stage_with_dcn=(False, True, True, True)),
    ],
    ids=["plug-ins", "GCT", "DRConv"],
)
def test_checkpointed_activations_give_the_same_gradients(changes):
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64, requires_grad=True)
    found = []
    for with_cp in (False, True):
        torch.manual_seed(0)
        config = dict(type="mmdet.ResNet", depth=50, base_channels=4, norm_eval=True)
        net = MODELS.build(config | changes | dict(with_cp=with_cp)).double()
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        net.train()
        upstream = torch.Generator().manual_seed(1)
        outputs = net(images)
        loss = sum(
            (y * torch.randn(y.shape, dtype=y.dtype, generator=upstream)).sum() for y in outputs
        )
        loss.backward()
        found.append({n: p.grad for n, p in net.named_parameters() if p.requires_grad})
    for name, gradient in found[0].items():
        assert gradient is not None, name
        assert_close(found[1][name], gradient, 1e-10, name)


def test_the_hooks_that_a_training_gets():
    cfg = Config(dict(default_hooks=dict(checkpoint=dict(type="CheckpointHook", interval=3))))
    preflight._go_on_exactly(cfg)
    assert cfg.default_hooks.checkpoint == dict(type="mmattn.SafeCheckpointHook", interval=3)
    assert cfg.custom_hooks == [dict(type="mmattn.ResumeExactlyHook")]
    preflight._go_on_exactly(cfg)  # as resumed from the dumped config
    assert len(cfg.custom_hooks) == 1
    own = dict(
        default_hooks=dict(checkpoint=dict(type="mmengine.CheckpointHook")),
        custom_hooks=[dict(type="mmattn.ResumeExactlyHook", enabled=False)],
    )
    cfg = Config(own)
    preflight._go_on_exactly(cfg)
    assert cfg.to_dict() == own
    cfg = Config(dict(default_hooks=dict(checkpoint=None)))
    preflight._go_on_exactly(cfg)
    assert cfg.default_hooks.checkpoint is None
    cfg = Config(dict())
    preflight._go_on_exactly(cfg)
    assert cfg.default_hooks.checkpoint.interval == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_fsdp_without_a_gpu_is_one_sentence():
    cfg = Config.fromfile(FOLDER / "faster-rcnn_r50-sge-c2-c5_fpn_fsdp-2x_coco.py")
    with pytest.raises(PreflightError, match="FSDPStrategy'\\) needs GPUs, and PyTorch finds none"):
        preflight.build_runner(cfg)

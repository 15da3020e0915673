"""Every config file: what its name says is what it builds, and it computes what it should."""

import json
import re
from pathlib import Path

import pytest
import torch
from mmdet.registry import MODELS as MMDET_MODELS
from mmengine import Config
from mmengine.registry import init_default_scope

from mmattn.convs import DRConv2d, GCTConv2d
from mmattn.plugins import AttentionModule
from mmattn.registry import METRICS, MODELS
from tests.data import DATA
from tests.zoo import assert_close

CONFIGS = Path(__file__).parents[2] / "configs"
ALL = sorted(p for p in CONFIGS.rglob("*.py") if "_base_" not in p.parts)
COCO = [p for p in ALL if p.parent.name != "demo"]
PLAIN = sorted((CONFIGS / "_base_").glob("*_coco.py"))
ids = [str(p.relative_to(CONFIGS)) for p in ALL]

NAME = re.compile(
    r"(?P<detector>[a-z]+(?:-rcnn)?)_(?P<backbone>r50|shufflenet-v2-x(?P<widen>\d\.\d))(?P<width>w16)?"
    r"(?:-(?P<module>se|sge|gc|gct|drconv)(?:-r(?P<ratio>\d+))?(?:-m(?P<regions>\d+))?"
    r"-c(?P<first>\d)-c(?P<last>\d))?"
    r"(?P<pre>-pre)?_(?P<neck>fpn)_(?P<schedule>[12]x|20e|\d+it)_(?P<dataset>coco|shapes)\.py"
)
DETECTORS = {
    "faster-rcnn": "FasterRCNN",
    "cascade-rcnn": "CascadeRCNN",
    "retinanet": "RetinaNet",
    "mask-rcnn": "MaskRCNN",
}
EPOCHS = {"1x": 12, "2x": 24, "20e": 20}


@pytest.fixture(autouse=True)
def mmdet_scope():
    init_default_scope("mmdet")


def load(path):
    return Config.fromfile(path)


def build(path, device="cpu"):
    torch.manual_seed(0)
    with torch.device(device):
        return MMDET_MODELS.build(load(path).model).eval()


OURS = (AttentionModule, DRConv2d)


def modules_of(backbone):
    """{(stage, module's name in configs)}: the stem is stage 1, layer1 of a ResNet is stage 2."""
    found = set()
    for name, module in backbone.named_modules():
        if isinstance(module, OURS):
            layer = re.match(r"(?:layer|stage)(\d)", name)
            kind = type(module).__name__.lower().removesuffix("2d")
            found.add((int(layer[1]) + 1 if layer else 1, kind))
    return found


@pytest.mark.parametrize("path", ALL, ids=ids)
def test_name_and_content_agree(path):
    match = NAME.fullmatch(path.name)
    assert match, f"{path.name} does not follow the naming scheme of docs/configs.md"
    config, model = load(path), build(path, "meta")
    assert config.model.type == DETECTORS[match["detector"]]
    backbone = config.model.backbone
    if match["widen"]:
        assert backbone.type == "mmattn.DRShuffleNetV2"
        assert backbone.widen_factor == float(match["widen"])
    else:
        assert (backbone.type, backbone.depth) == ("ResNet", 50)
        assert backbone.get("base_channels", 64) == (16 if match["width"] else 64)
    assert config.model.neck.type == "FPN"

    found = modules_of(model.backbone)
    if match["module"]:
        stages = range(int(match["first"]), int(match["last"]) + 1)
        assert {stage for stage, _ in found} == set(stages)
        assert {kind for _, kind in found} == {match["module"]}
        if path.parent.name != "demo":
            assert path.parent.name == match["module"]
    else:
        assert not found

    for module in model.backbone.modules():
        if isinstance(module, DRConv2d):
            assert module.regions == int(match["regions"])
    modules = [m for m in model.backbone.modules() if isinstance(m, AttentionModule)]
    if match["ratio"]:
        assert {m.channel_add_conv[0].weight.shape[0] for m in modules} == {
            m.in_channels // int(match["ratio"]) for m in modules
        }
    # -pre: the paper's initial state, overwritten by a checkpoint that has the module
    checkpoint = (backbone.get("init_cfg") or {}).get("checkpoint", "")
    if match["dataset"] == "coco":
        assert checkpoint.startswith("checkpoints/" if match["pre"] else "torchvision://")
        assert match["pre"] or all(m.identity_at_init for m in modules)

    if match["schedule"] in EPOCHS:
        assert config.train_cfg.max_epochs == EPOCHS[match["schedule"]]
        assert config.param_scheduler[-1].end == EPOCHS[match["schedule"]]
    else:
        assert config.train_cfg.max_iters == int(match["schedule"].removesuffix("it"))
    assert match["dataset"] in config.data_root
    for evaluator in (config.val_evaluator, config.test_evaluator):
        assert evaluator.type == "mmattn.CocoSizeMetric"
    assert METRICS.get("mmattn.CocoSizeMetric") is not None


@pytest.mark.parametrize("path", ALL, ids=ids)
def test_no_frozen_module_is_off_the_identity(path):
    """A module in a frozen stage must be identity or come from a checkpoint."""
    match = NAME.fullmatch(path.name)
    model = build(path, "meta").train()
    for name, module in model.backbone.named_modules():
        if isinstance(module, AttentionModule) and not match["pre"]:
            frozen = any(not p.requires_grad for p in module.parameters())
            assert not frozen or module.identity_at_init, name


@pytest.mark.parametrize("path", [p for p in ALL if "gct" in p.name], ids=lambda p: p.name)
def test_gct_decays_alpha_and_gamma_but_not_beta(path):
    from mmengine.optim import build_optim_wrapper

    config = load(path)
    model = build(path)
    optimizer = build_optim_wrapper(model, config.optim_wrapper).optimizer
    names = {id(p): n for n, p in model.named_parameters()}
    decay = {"alpha": set(), "gamma": set(), "beta": set()}
    for group in optimizer.param_groups:
        for p in group["params"]:
            kind = names[id(p)].rpartition(".")[2]
            if kind in decay:
                decay[kind].add(group["weight_decay"])
    assert decay["beta"] == {0}
    assert 0 not in decay["alpha"] | decay["gamma"]
    assert len(decay["alpha"]) == len(decay["gamma"]) == 1


@pytest.mark.parametrize("path", [p for p in COCO if "_base_" not in p.parts], ids=lambda p: p.name)
def test_a_config_is_its_base_and_a_short_diff(path):
    lines = [
        line
        for line in path.read_text().splitlines()
        if line.strip() and not line.startswith(("#", "_base_"))
    ]
    assert len(lines) <= 15


def forward(model):
    """What the detector computes on a small image, as a flat list of tensors."""
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(1, 3, 64, 96, generator=generator)
    from mmdet.structures import DetDataSample

    sample = DetDataSample(
        metainfo=dict(
            img_shape=(64, 96), ori_shape=(64, 96), scale_factor=(1, 1), pad_shape=(64, 96)
        )
    )
    with torch.no_grad():
        result = model(inputs, [sample], mode="tensor")
    flat, queue = [], [result]
    while queue:
        item = queue.pop(0)
        if isinstance(item, torch.Tensor):
            flat.append(item)
        elif isinstance(item, list | tuple):
            queue.extend(item)
    assert flat
    return flat


def base_of(path):
    base = re.search(r"_base_ = '(.*)'", path.read_text())[1]
    return (path.parent / base).resolve()


def check_forward(path):
    model = build(path)
    if "-pre" in path.name:
        for tensor in forward(model):
            assert torch.isfinite(tensor).all()
        return
    plain = build(base_of(path))
    with torch.no_grad():
        for module in plain.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                for parameter in module.parameters():  # away from 1 and 0, or a wrong order hides
                    parameter.add_(0.1 * torch.randn_like(parameter))
    result = model.load_state_dict(plain.state_dict(), strict=False)
    assert result.unexpected_keys == []
    regional = any(isinstance(m, DRConv2d) for m in model.modules())
    new = {
        f"{name}.{key}"
        for name, module in model.named_modules()
        if isinstance(module, AttentionModule)
        for key in module.state_dict()
    }
    assert set(result.missing_keys) == new
    for actual, expected in zip(forward(model), forward(plain), strict=True):
        if regional:  # the same sums in another order
            assert_close(actual, expected, 1e-5)
        else:
            assert torch.equal(actual, expected)


def cover(paths):
    """The first config of each module, of each detector and of each variant."""
    seen, chosen = set(), []
    for path in paths:
        match = NAME.fullmatch(path.name)
        keys = {match["detector"], match["module"], match["backbone"], match["pre"]}
        if keys - seen:
            seen |= keys
            chosen.append(path)
    return chosen


@pytest.mark.parametrize("path", cover(COCO), ids=lambda p: p.name)
def test_computes_what_the_plain_detector_computes(path):
    """With the plain detector's weights; a -pre config just has to run."""
    check_forward(path)


@pytest.mark.slow
@pytest.mark.parametrize("path", COCO, ids=lambda p: p.name)
def test_every_config_computes_what_the_plain_detector_computes(path):
    check_forward(path)


@pytest.mark.parametrize("path", PLAIN, ids=lambda p: p.name)
def test_plain_baselines_build(path):
    assert not modules_of(build(path, "meta").backbone)


@pytest.mark.parametrize("path", [p for p in ALL if p.parent.name == "demo"], ids=lambda p: p.name)
def test_demo_detectors_run(path):
    for tensor in forward(build(path)):
        assert torch.isfinite(tensor).all()


# theirs are for other configs: docs/modules has the lines
WITHOUT_CONFIG = {
    "bam", "cbam", "condconv", "coordattention", "eca", "nonlocal", "simam", "snl", "srm",
    "tripletattention",
}  # fmt: skip


def test_every_registered_module_has_a_config_or_is_named_as_one_without():
    used = {kind for path in ALL for _, kind in modules_of(build(path, "meta").backbone)}
    registered = {
        name.lower().removesuffix("2d")
        for name, cls in MODELS.module_dict.items()
        if isinstance(cls, type) and issubclass(cls, OURS)
    }
    assert used.isdisjoint(WITHOUT_CONFIG)
    assert used | WITHOUT_CONFIG == registered | {"condconv"}


@pytest.mark.parametrize("module", ["se", "sge"])
def test_the_authors_checkpoint_fits_the_pre_configs(module):
    """Names and shapes of the released ImageNet classifier, without its last layer."""
    layout = json.loads((DATA / "layouts" / f"pytorchinsight_{module}_resnet50.json").read_text())
    official = {k: tuple(v) for k, v in layout.items() if not k.startswith("fc.")}
    for path in (CONFIGS / module).glob("*-pre_*.py"):
        ours = {k: tuple(v.shape) for k, v in build(path, "meta").backbone.state_dict().items()}
        assert {k: v for k, v in ours.items() if "num_batches" not in k} == {
            k: v for k, v in official.items() if "num_batches" not in k
        }


def test_gct_parameters_are_those_of_the_authors_classifier():
    """Same sizes in the same order: only the names of the stem and the downsample differ."""
    layout = json.loads((DATA / "layouts" / "gct_resnet50.json").read_text())
    (path,) = (CONFIGS / "gct").glob("*-pre_*.py")
    backbone = build(path, "meta").backbone
    ours = sorted(tuple(p.shape) for p in backbone.parameters())
    names = [k for k in layout if not k.startswith("fc.") and "running" not in k]
    official = sorted(tuple(layout[k]) for k in names if "num_batches" not in k)
    assert ours == official
    # the block's own names need no conversion
    names = {k for k in layout if re.match(r"layer\d\.\d\.(conv|bn)\d", k)}
    assert {k for k in names if "num_batches" not in k} <= set(backbone.state_dict())
    assert sum(isinstance(m, GCTConv2d) for m in backbone.modules()) == 53


def test_the_drconv_readme_states_the_parameters():
    text = (CONFIGS / "drconv" / "README.md").read_text()
    for path in sorted((CONFIGS / "drconv").glob("*.py")):
        for config in (path, base_of(path)):
            size = sum(p.numel() for p in build(config, "meta").backbone.parameters())
            assert f"| {size:,} |" in text, (config.name, size)

"""Every config file: what its name says is what it builds, and it computes what it should."""

import copy
import functools
import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from mmdet.registry import MODELS as MMDET_MODELS
from mmengine.model import BaseModel
from mmengine.registry import init_default_scope

from mmattn import checkpoints
from mmattn.backbones import SKResNet
from mmattn.convs import DRConv2d, GCTConv2d
from mmattn.plugins import AttentionModule
from mmattn.registry import METRICS, MODELS
from mmattn.reproduction import published, zoo
from tests.config_files import COCO, CONFIGS, DEMO, PLAIN, cover, load, narrow, parse
from tests.data import DATA
from tests.zoo import assert_close

DETECTORS = {
    "faster-rcnn": "FasterRCNN",
    "cascade-rcnn": "CascadeRCNN",
    "retinanet": "RetinaNet",
    "mask-rcnn": "MaskRCNN",
}
EPOCHS = {"1x": (12, [8, 11]), "2x": (24, [16, 22]), "20e": (20, [16, 19])}
# what names call otherwise than the class, in small letters
CLASSES = {"nl": "nonlocal", "triplet": "tripletattention", "sk": "skresnet"}
# without a variant, and why
NO_PRE = {"gc", "nl", "drconv"}  # start from plain weights, or no weights are published
ONLY_PRE = {"sk", "simam"}  # cannot start as identity


def sampled(paths, sample=None):
    """Parameters: all of ``paths``; those outside of the sample do not run on every stack."""
    sample = cover(paths)[::3] if sample is None else sample
    return [
        pytest.param(
            path,
            id=str(path.relative_to(CONFIGS)),
            marks=() if path in sample else pytest.mark.once,
        )
        for path in paths
    ]


@pytest.fixture(autouse=True)
def mmdet_scope():
    init_default_scope("mmdet")


def build(config, device="cpu"):
    torch.manual_seed(0)
    with torch.device(device):
        return MMDET_MODELS.build(copy.deepcopy(config.model))  # mmdet writes into it


@MMDET_MODELS.register_module()
class OnlyBackbone(BaseModel):
    """In a detector's place: detectors differ from their baselines in the backbone alone."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = MMDET_MODELS.build(backbone)

    def forward(self, inputs, *_, **__):
        return self.backbone(inputs)


SHELLS = {}


def shell(path):
    """The model's backbone on the meta device, as in a training; one for all that share it."""
    model = load(path).model
    config = dict(type="OnlyBackbone", backbone=model.backbone)
    if model.type == "mmattn.Attach":
        config = dict(config, type="mmattn.Attach", module="OnlyBackbone", plugins=model.plugins)
    key = str(config)
    if key not in SHELLS:
        with torch.device("meta"):
            SHELLS[key] = MMDET_MODELS.build(copy.deepcopy(config)).train()
    return SHELLS[key]


OURS = (AttentionModule, DRConv2d, SKResNet)


def modules_of(backbone):
    """{(stage, module's name in configs)}: the stem is stage 1, layer1 of a ResNet is stage 2."""
    found = set()
    for name, module in backbone.named_modules():
        if isinstance(module, SKResNet):
            found |= {(stage, "skresnet") for stage in range(2, 6)}
        elif isinstance(module, OURS):
            layer = re.match(r"(?:layer|stage)(\d)", name)
            kind = type(module).__name__.lower().removesuffix("2d")
            found.add((int(layer[1]) + 1 if layer else 1, kind))
    return found


@pytest.mark.parametrize("path", sampled([*COCO, *DEMO]))
def test_name_and_content_agree(path):
    match = parse(path)
    config, model = load(path), shell(path)
    # that each of them can be built: with the plain detectors, and where they are run
    assert config.model.get("module", config.model.type) == DETECTORS[match["detector"]]
    backbone = config.model.backbone
    if match["widen"]:
        assert backbone.type == "mmattn.DRShuffleNetV2"
        assert backbone.widen_factor == float(match["widen"])
    elif match["resnext"]:
        assert (backbone.type, backbone.depth) == ("ResNeXt", 101)
        assert (backbone.groups, backbone.base_width) == (32, 4)
    else:
        assert backbone.type == ("mmattn.SKResNet" if match["module"] == "sk" else "ResNet")
        assert backbone.depth == int(match["depth"])
        assert backbone.get("base_channels", 64) == (16 if match["width"] else 64)
        norm = "SyncBN" if match["syncbn"] else "BN"
        if not match["width"]:
            assert backbone.norm_cfg.type == norm
            assert backbone.norm_eval is not bool(match["syncbn"])
    assert config.model.neck.type == "FPN"

    found = modules_of(model.backbone)
    if match["module"]:
        stages = range(int(match["first"]), int(match["last"] or match["first"]) + 1)
        assert {stage for stage, _ in found} == set(stages)
        kind = CLASSES.get(match["module"], match["module"])
        assert {kind for _, kind in found} == {kind}
        if path in COCO:
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

    if match["schedule"] in EPOCHS:
        epochs, milestones = EPOCHS[match["schedule"]]
        assert config.train_cfg.max_epochs == config.param_scheduler[-1].end == epochs
        assert config.param_scheduler[-1].milestones == milestones
    else:
        assert config.train_cfg.max_iters == int(match["schedule"].removesuffix("it"))
    assert match["dataset"] in config.data_root
    for evaluator in (config.val_evaluator, config.test_evaluator):
        assert evaluator.type == "mmattn.CocoSizeMetric"
    assert METRICS.get("mmattn.CocoSizeMetric") is not None


@pytest.mark.parametrize("path", sampled(COCO))
def test_the_variant_is_what_the_name_says(path):
    """Plain weights and identity, or the paper's initial state and a checkpoint with the module."""
    match, backbone = parse(path), load(path).model.backbone
    modules = [m for m in shell(path).backbone.modules() if isinstance(m, AttentionModule)]
    source = backbone.init_cfg.checkpoint
    if match["pre"]:
        assert match["module"] not in NO_PRE
        depth = match["depth"]
        assert re.fullmatch(
            rf"checkpoints/{match['module']}_resnet{depth}(_k\d+)?\.pth(\.tar)?", source
        )
        assert backbone.init_cfg.type == "Pretrained"
        assert backbone.frozen_stages == 1
        assert not any(getattr(m, "identity_init", False) for m in modules)
        return
    assert match["module"] not in ONLY_PRE
    assert source.startswith(("torchvision://", "open-mmlab://resnext101_32x4d"))
    assert source == load(zoo.base_of(path)).model.backbone.init_cfg.checkpoint
    assert all(m.identity_at_init for m in modules)
    first = 1 if match["widen"] else int(match["first"])
    if not match["widen"]:
        assert backbone.frozen_stages == (0 if first <= 2 else 1)
    for name, module in shell(path).backbone.named_modules():
        if isinstance(module, AttentionModule) and not name.startswith("conv1"):
            assert all(p.requires_grad for p in module.parameters()), name


WIDTHS = (256, 512, 1024, 2048)
BLOCKS = {"50": (3, 4, 6, 3), "101": (3, 4, 23, 3), None: (3, 4, 23, 3)}


def added(match):
    """The parameters that a module adds to a ResNet, by the formulas of the papers."""
    blocks = BLOCKS[match["depth"]]
    first = int(match["first"])
    last = int(match["last"] or first)
    stages = [i for i in range(4) if first <= i + 2 <= last]

    def each(size):
        return sum(blocks[i] * size(WIDTHS[i]) for i in stages)

    def gct():
        channels = 3
        for i, width in enumerate(WIDTHS):
            before = WIDTHS[i - 1] if i else 64
            channels += 2 * before + (blocks[i] - 1) * width + blocks[i] * width // 4 * 2
        return 3 * channels

    def sk(width):
        c, p = width // 4, width // 64
        return c * c * 9 // 32 + 2 * c + 3 * c * p + 2 * p

    def bam(c):
        p = c // 16
        return 3 * c * p + 18 * p * p + c + 13 * p + 1

    module, pre = match["module"], match["pre"]
    if module == "eca":
        sizes = (5, 5, 5, 7)
        if pre:
            sizes = (3, 5, 5, 7) if match["depth"] == "50" else (3, 3, 5, 7)
        return sum(n * k for n, k in zip(blocks, sizes, strict=True))
    if module == "gc":
        r = int(match["ratio"])
        return each(lambda c: 2 * c * (c // r) + 3 * (c // r) + 2 * c + 1)
    if module == "drconv":  # seven kernels more, the weights of the templates, the guide
        return each(lambda c: 63 * (c // 4) ** 2 + 72 * (c // 4) + 64)
    return {
        "se": lambda: each(lambda c: c * c // 8 + c // 16 + c),
        "sge": lambda: each(lambda c: 2 * 64),
        "cbam": lambda: each(lambda c: c * c // 8 + c // 16 + c + 2 * 49 + 2),
        "triplet": lambda: each(lambda c: 3 * (2 * 49 + 2)),
        "bam": lambda: sum(bam(WIDTHS[i]) for i in stages),
        "nl": lambda: 4 * 1024 * 512 + 3 * 512 + 1024,
        "gct": gct,
        "sk": lambda: each(sk),
        "simam": lambda: 0,
    }[module]()


def size(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("path", sampled([p for p in COCO if "shufflenet" not in p.name]))
def test_a_module_adds_the_parameters_it_should(path):
    assert size(shell(path)) - size(shell(zoo.base_of(path))) == added(parse(path))


@pytest.mark.parametrize("path", sampled(COCO))
def test_a_config_differs_from_its_baseline_in_the_model_alone(path):
    """So a row and its baseline share data, schedule, learning rate and batch."""
    match, base = parse(path), parse(zoo.base_of(path))
    for part in ("detector", "depth", "resnext", "widen", "syncbn", "neck", "schedule", "dataset"):
        assert match[part] == base[part]
    own, plain = dict(load(path)), dict(load(zoo.base_of(path)))
    if match["module"] == "gct":
        own["optim_wrapper"] = dict(own["optim_wrapper"])
        assert own["optim_wrapper"].pop("paramwise_cfg") == {
            "custom_keys": {".beta": {"decay_mult": 0}}
        }
    models = [dict(own.pop("model")), dict(plain.pop("model"))]
    for model in models:
        for key in ("backbone", "type", "module", "plugins"):
            model.pop(key, None)
    assert models[0] == models[1]
    assert own == plain
    if not match["pre"]:
        assert base["recipe"] == ""


def recipe(path):
    """(lr, images of a GPU, whole batch, clipping, start of the warm-up, its length)."""
    config = load(path)
    warm_up = config.param_scheduler[0]
    optimizer = config.optim_wrapper.optimizer
    assert (optimizer.type, optimizer.momentum, optimizer.weight_decay) == ("SGD", 0.9, 1e-4)
    assert warm_up.type == "LinearLR"
    assert not warm_up.by_epoch
    assert not config.auto_scale_lr.enable
    clip = config.optim_wrapper.get("clip_grad")
    if clip:
        assert clip.norm_type == 2
    return (
        optimizer.lr,
        config.train_dataloader.batch_size,
        config.auto_scale_lr.base_batch_size,
        clip and clip.max_norm,
        warm_up.start_factor,
        warm_up.end,
    )


@pytest.mark.parametrize("path", sampled(PLAIN))
def test_a_plain_detector_has_the_recipe_of_its_name(path):
    match = parse(path)
    assert type(build(load(path), "meta")).__name__ == DETECTORS[match["detector"]]
    assert not modules_of(shell(path).backbone)
    gpus, images = (int(n) for n in (re.findall(r"(\d)xb(\d)", match["recipe"]) or ["82"])[0])
    halved = match["detector"] == "retinanet" or gpus * images == 8
    pi = "pi-" in match["recipe"]
    expected = (0.01 if halved else 0.02, images, gpus * images, 35 if pi else None)
    assert recipe(path) == (*expected, 1 / 3 if pi else 0.001, 500)


@pytest.mark.once
@pytest.mark.parametrize("path", [p for p in cover(COCO) if "gct" in p.name], ids=lambda p: p.name)
def test_gct_decays_alpha_and_gamma_but_not_beta(path):
    from mmengine.optim import build_optim_wrapper

    model = shell(path)
    optimizer = build_optim_wrapper(model, load(path).optim_wrapper).optimizer
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


@pytest.mark.once
@pytest.mark.parametrize("path", [*COCO, *PLAIN], ids=lambda p: p.name)
def test_a_config_is_its_base_and_a_short_diff(path):
    text = path.read_text()
    lines = [
        line for line in text.splitlines() if line.strip() and not line.startswith(("#", "_base_"))
    ]
    assert len(lines) <= 15
    assert '"' not in text
    assert max(map(len, text.splitlines())) <= 100


def whole(config):
    return config


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
        result = model.eval()(inputs, [sample], mode="tensor")
    flat, queue = [], [result]
    while queue:
        item = queue.pop(0)
        if isinstance(item, torch.Tensor):
            flat.append(item)
        elif isinstance(item, list | tuple):
            queue.extend(item)
    assert flat
    return flat


@functools.cache
def plain_forward(path, size):
    """The weights of a plain detector, and what it computes."""
    plain = build(size(load(path)))
    with torch.no_grad():
        for module in plain.modules():
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                for parameter in module.parameters():  # away from 1 and 0, or a wrong order hides
                    parameter.add_(0.1 * torch.randn_like(parameter))
    return plain.state_dict(), forward(plain)


def check_forward(path, size):
    model = build(size(load(path)))
    assert type(model).__name__ == DETECTORS[parse(path)["detector"]]
    if "-pre" in path.name:
        for tensor in forward(model):
            assert torch.isfinite(tensor).all()
        return
    weights, features = plain_forward(zoo.base_of(path), size)
    result = model.load_state_dict(weights, strict=False)
    assert result.unexpected_keys == []
    regional = any(isinstance(m, DRConv2d) for m in model.modules())
    new = {
        f"{name}.{key}"
        for name, module in model.named_modules()
        if isinstance(module, AttentionModule)
        for key in module.state_dict()
    }
    assert set(result.missing_keys) == new
    for actual, expected in zip(forward(model), features, strict=True):
        if regional:  # the same sums in another order
            assert_close(actual, expected, 1e-5)
        else:
            assert torch.equal(actual, expected)


@pytest.mark.parametrize("path", sampled(cover(COCO), cover(COCO)[:3]))
def test_computes_what_the_plain_detector_computes(path):
    """With the plain detector's weights; a -pre config just has to run."""
    check_forward(path, narrow)


@pytest.mark.slow
@pytest.mark.parametrize("path", COCO, ids=lambda p: p.name)
def test_every_config_computes_what_the_plain_detector_computes(path):
    check_forward(path, whole)


@pytest.mark.once
@pytest.mark.parametrize("path", cover(DEMO), ids=lambda p: p.name)
def test_demo_detectors_run(path):
    for tensor in forward(build(load(path))):
        assert torch.isfinite(tensor).all()


# theirs are for other configs: docs/modules has the lines
WITHOUT_CONFIG = {"condconv", "coordattention", "snl", "srm"}


@pytest.mark.once
def test_every_registered_module_has_a_config_or_is_named_as_one_without():
    used = {kind for path in cover(COCO) for _, kind in modules_of(shell(path).backbone)}
    registered = {
        name.lower().removesuffix("2d")
        for name, cls in MODELS.module_dict.items()
        if isinstance(cls, type) and issubclass(cls, OURS)
    }
    assert used.isdisjoint(WITHOUT_CONFIG)
    assert used | WITHOUT_CONFIG == registered | {"condconv"}


@pytest.mark.once
def test_every_module_is_in_every_detector_with_both_resnets():
    there = {(p.parent.name, m["detector"], m["depth"]) for p in COCO for m in [parse(p)]}
    for folder in {p.parent.name for p in COCO}:
        for detector in DETECTORS:
            for depth in ("50", "101"):
                assert (folder, detector, depth) in there
    both = {(p.parent.name, bool(parse(p)["pre"])) for p in COCO}
    assert {folder for folder, pre in both if pre} == {f for f, _ in both} - NO_PRE
    assert {folder for folder, pre in both if not pre} == {f for f, _ in both} - ONLY_PRE


@pytest.mark.once
@pytest.mark.parametrize("module", ["se", "sge", "cbam", "sk", "bam"])
def test_the_authors_checkpoint_fits_the_pre_configs(module):
    """Names and shapes of the released ImageNet classifier, without its last layer."""
    layout = json.loads((DATA / "layouts" / f"pytorchinsight_{module}_resnet50.json").read_text())
    if module == "bam":
        weights = {name: torch.empty(shape, device="meta") for name, shape in layout.items()}
        layout = {k: v.shape for k, v in checkpoints.convert(weights, "backbone").weights.items()}
    official = {k: tuple(v) for k, v in layout.items() if not k.startswith("fc.")}
    paths = list((CONFIGS / module).glob("*_r50-*-pre_*.py"))
    assert len(paths) == 4
    for path in paths:
        ours = {k: tuple(v.shape) for k, v in shell(path).backbone.state_dict().items()}
        assert {k: v for k, v in ours.items() if "num_batches" not in k} == {
            k: v for k, v in official.items() if "num_batches" not in k
        }


@pytest.mark.once
def test_gct_parameters_are_those_of_the_authors_classifier():
    """Same sizes in the same order: only the names of the stem and the downsample differ."""
    layout = json.loads((DATA / "layouts" / "gct_resnet50.json").read_text())
    for path in (CONFIGS / "gct").glob("*_r50-*-pre_*.py"):
        backbone = shell(path).backbone
        assert backbone.style == "caffe"
        ours = sorted(tuple(p.shape) for p in backbone.parameters())
        names = [k for k in layout if not k.startswith("fc.") and "running" not in k]
        official = sorted(tuple(layout[k]) for k in names if "num_batches" not in k)
        assert ours == official
        # the block's own names need no conversion
        names = {k for k in layout if re.match(r"layer\d\.\d\.(conv|bn)\d", k)}
        assert {k for k in names if "num_batches" not in k} <= set(backbone.state_dict())
        assert sum(isinstance(m, GCTConv2d) for m in backbone.modules()) == 53


@pytest.mark.once
def test_the_drconv_readme_states_the_parameters():
    text = (CONFIGS / "drconv" / "README.md").read_text()
    for path in sorted((CONFIGS / "drconv").glob("*.py")):
        for config in (path, zoo.base_of(path)):
            total = size(shell(config).backbone)
            assert f"| {total:,} |" in text, (config.name, total)


# what was published, and the recipes behind it

FACTS = Path(__file__).parents[3] / "shared" / "facts" / "published_results.yml"
with_facts = pytest.mark.skipif(not FACTS.is_file(), reason="the facts are not beside the checkout")


def config_of(row):
    """The config that a row of the facts should have."""
    norm = "-syncbn" if row.get("norm") == "syncbn" else ""
    head, tail = f"{row['detector']}_{row['backbone']}{norm}", f"{row['schedule']}_coco"
    module = row["module"]
    if module == "plain":
        return f"_base_/{head}_fpn_{'pi-' if row['source'].startswith('PI') else ''}{tail}"
    if "-" in module:
        return f"{module.partition('-')[0]}/{head}-{module}_fpn_{tail}"
    stages = {"bam": "c2-c4", "gct": "c1-c5"}.get(module, "c2-c5")
    return f"{module}/{head}-{module}-{stages}-pre_fpn_{tail}"


@with_facts
@pytest.mark.once
def test_the_published_figures_are_those_of_the_facts():
    facts = yaml.safe_load(FACTS.read_text())
    ours = {(row.config, row.source.key): row for row in published.read(CONFIGS)}
    assert len(ours) == len(facts["rows"])
    for row in facts["rows"]:
        own = ours[config_of(row), row["source"]]
        assert own.figures == {k: row[k] for k in published.FIGURES if k in row}
        cost = {k: row[k] for k in ("params_m", "gflops") if k in row}
        if row["source"].startswith("PI"):
            cost = facts["backbone_cost"][row["backbone"]].get(row["module"], {})
        assert own.cost == cost
        plain = [
            other
            for other in facts["rows"]
            if other["module"] == "plain"
            and all(
                other.get(k, "fixbn") == row.get(k, "fixbn")
                for k in ("source", "detector", "backbone", "schedule", "norm")
            )
        ]
        if row["module"] == "plain" or not plain:
            assert own.baseline is None
        else:
            assert own.baseline == ours[config_of(plain[0]), row["source"]]


@with_facts
@pytest.mark.once
def test_the_recipes_are_those_of_the_facts():
    facts = yaml.safe_load(FACTS.read_text())
    recipes = facts["recipes"]
    for row in facts["rows"]:
        path = CONFIGS / f"{config_of(row)}.py"
        lr, images, batch, *rest = recipe(path)
        backbone, config = load(path).model.backbone, load(path)
        assert backbone.get("norm_eval", False) is (row.get("norm") != "syncbn")
        if row["source"].startswith("PI"):
            plain, detector = row["module"] == "plain", row["detector"]
            wanted = dict(recipes[f"sge_two_stage_{row['backbone']}"])
            if detector == "cascade-rcnn":
                wanted |= recipes["cascade_20e"]
            if detector == "retinanet":
                wanted |= recipes["retinanet_r50_2x"]
                wanted["images_per_gpu"] = 1 if row["module"] in ("bam", "cbam", "sk") else 2
            if plain and row["backbone"] == "r101":
                wanted |= dict(lr=0.02, images_per_gpu=2)
            assert (lr, images) == (wanted["lr"], wanted["images_per_gpu"]), path
            assert batch == wanted["gpus"] * wanted["images_per_gpu"]
            assert config.train_cfg.max_epochs == wanted["epochs"]
            assert config.param_scheduler[1].milestones == wanted["steps"]
            assert rest == [35, 1 / 3, 500]
            assert backbone.frozen_stages == 1
        elif row["source"] in ("ECA", "SIMAM"):
            assert (lr, batch, *rest) == (0.01, 8, None, 0.001, 500)
        else:
            assert batch == 16
            assert lr == (0.01 if row["detector"] == "retinanet" else 0.02)
            assert rest == [None, 0.001, 500]

"""A backbone with modules, trained as a classifier: does a detector take all of it?"""

import argparse
import importlib.util
import json
import re
import sys
from pathlib import Path

import mmengine
import pytest
import torch
import yaml
from mmengine import Config
from torch.nn.modules.batchnorm import _BatchNorm

from mmattn.inspection import build, checkpoint_file, config_file, preflight, weights
from mmattn.inspection._console import PreflightError
from mmattn.inspection.check_config import check
from mmattn.plugins import SGE

pytest.importorskip("mmpretrain", reason="needs mmpretrain: pip install 'mmattn[pretrain]'")

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs"
IN1K = sorted((CONFIGS / "imagenet").glob("*_in1k.py"))
NAME = re.compile(r"resnet(?P<depth>\d+)(?:-(?P<slug>[a-z0-9-]+))?_8xb32-100e_in1k")
SHAPES = CONFIGS / "imagenet" / "resnet50w16-sge-c2-c5_1xb32-10e_shapes.py"
DETECTOR = CONFIGS / "sge" / "faster-rcnn_r50-sge-c2-c5-pre_fpn_2x_coco.py"


def key(path):
    """(depth, modules) in the name of a classifier's config or of a detector's."""
    if match := NAME.fullmatch(path.stem):
        return match["depth"], match["slug"]
    match = re.search(r"_r(\d+)-(.+)-pre_", path.stem)
    return match.groups() if match else None


PRE = {}
for path in sorted(CONFIGS.glob("*/*-pre_*_coco.py")):
    PRE.setdefault(key(path), []).append(path)


def load(path, **options):
    return config_file.load(str(path), options)


def tool(name):
    spec = importlib.util.spec_from_file_location(f"tools_{name}", ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(monkeypatch, name, *argv):
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, argv)])
    monkeypatch.setenv("LOCAL_RANK", "0")
    tool(name).main()


# ---------------------------------------------------------------- every config


@pytest.fixture(scope="module")
def classifiers():
    """Each classifier's config and model, without values."""
    built = {}
    for path in IN1K:
        config = load(path)
        with torch.device("meta"):
            built[key(path)] = config, build.build_model(config)
    return built


def test_every_pretrained_detector_has_its_pretraining(classifiers):
    assert PRE
    assert PRE.keys() <= classifiers.keys()


@pytest.mark.parametrize("number", range(len(PRE)), ids=["-".join(map(str, one)) for one in PRE])
def test_the_detectors_backbone_has_the_same_weights(classifiers, number):
    which, paths = list(PRE.items())[number]
    with torch.device("meta"):  # another detector for each module
        detector = build.build_model(load(paths[number % len(paths)]))
    expected = {name: value.shape for name, value in detector.backbone.state_dict().items()}
    _, classifier = classifiers[which]
    found = {name: value.shape for name, value in classifier.backbone.state_dict().items()}
    assert found == expected
    # what no weight tells: strides, and SimAM's constant
    assert told(classifier.backbone) == told(detector.backbone)


def told(backbone):
    return [
        (name, getattr(module, "stride", None), getattr(module, "e_lambda", None))
        for name, module in backbone.named_modules()
    ]


def test_every_config_trains_all_of_its_backbone(classifiers):
    for (depth, slug), (config, model) in classifiers.items():
        model.train()
        assert all(p.requires_grad for p in model.parameters()), (depth, slug)
        assert all(m.training for m in model.modules() if isinstance(m, _BatchNorm)), (depth, slug)
        assert config.model.backbone.depth == int(depth)
        assert (config.train_cfg.max_epochs, config.train_dataloader.batch_size) == (100, 32)
        assert config.auto_scale_lr == dict(enable=False, base_batch_size=256)


def test_only_what_a_name_says_differs_from_the_plain_classifier(classifiers):
    # totals of the authors' classifiers
    totals = {
        ("50", None): 25_557_032,
        ("50", "se-c2-c5"): 28_088_024,
        ("50", "sge-c2-c5"): 25_559_080,
        ("50", "sk-c2-c5"): 26_154_496,
        ("50", "bam-c2-c4"): 25_915_099,
        ("50", "cbam-c2-c5"): 28_089_624,
        ("50", "gct-c1-c5"): 25_624_625,
        ("50", "simam-c2-c5"): 25_557_032,
    }
    for one, total in totals.items():
        assert sum(p.numel() for p in classifiers[one][1].parameters()) == total, one


def rates(config, epochs):
    """The learning rate of each epoch, by mmengine's schedulers."""
    from mmengine.registry import PARAM_SCHEDULERS

    optimizer = torch.optim.SGD(
        [torch.nn.Parameter(torch.zeros(1))], config.optim_wrapper.optimizer.lr
    )
    given = config.param_scheduler
    schedulers = [
        PARAM_SCHEDULERS.build(dict(one), default_args=dict(optimizer=optimizer))
        for one in (given if isinstance(given, list) else [given])
    ]
    found = []
    for _ in range(epochs):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        for scheduler in schedulers:
            scheduler.step()
    return found


def test_the_recipes(classifiers):
    steps = [0.1] * 30 + [0.01] * 30 + [0.001] * 30 + [0.0001] * 10
    for (_, slug), (config, _) in classifiers.items():
        optimizer = config.optim_wrapper.optimizer
        assert (optimizer.type, optimizer.momentum, optimizer.weight_decay) == ("SGD", 0.9, 1e-4)
        gct = slug == "gct-c1-c5"
        # GCT's authors: Nesterov, and the first epoch at a tenth
        assert optimizer.get("nesterov", False) == gct
        assert rates(config, 100) == pytest.approx([0.01, *steps[1:]] if gct else steps)
        assert config.model.head.loss.type == "CrossEntropyLoss"


def test_gct_decays_all_but_beta(classifiers):
    from mmengine.optim import build_optim_wrapper

    config, model = classifiers["50", "gct-c1-c5"]
    wrapper = build_optim_wrapper(model, config.optim_wrapper)
    names = {id(p): name for name, p in model.named_parameters()}
    decay = {
        names[id(p)]: group["weight_decay"]
        for group in wrapper.optimizer.param_groups
        for p in group["params"]
    }
    assert {name for name, value in decay.items() if value == 0} == {
        name for name in names.values() if name.endswith(".beta")
    }
    assert set(decay.values()) == {0, 1e-4}
    assert decay.keys() == set(names.values())


def test_initial_values():
    torch.manual_seed(0)
    # the authors' networks start with weight 1 in each last norm, mmdet's with 0
    tiny = {"model.backbone.base_channels": 8, "model.head.in_channels": 256}
    options = {**tiny, "model.backbone.plugins.0.cfg.groups": 8}
    model = build.build_model(
        load(CONFIGS / "imagenet" / "resnet50-sge-c2-c5_8xb32-100e_in1k.py", **options)
    )
    model.init_weights()
    block = model.backbone.layer1[0]
    assert (block.bn3.weight == 1).all()
    assert (block.sge.bias == 1).all()
    assert (block.sge.weight == 0).all()
    model = build.build_model(
        load(CONFIGS / "imagenet" / "resnet50-gct-c1-c5_8xb32-100e_in1k.py", **tiny)
    )
    model.init_weights()
    conv = model.backbone.layer2[0].conv2[1]
    bound = (3 / (conv.in_channels * 9)) ** 0.5
    assert 0.95 * bound < conv.weight.abs().max() <= bound
    assert (model.backbone.layer2[0].bn3.weight == 1).all()


# ---------------------------------------------------------------- the loop

TINY = [
    "model.backbone.base_channels=8",
    "model.backbone.plugins.0.cfg.groups=8",
    "model.head.in_channels=256",
    "train_dataloader.batch_size=6",
    "train_dataloader.num_workers=0",
    "train_dataloader.persistent_workers=False",
    "val_dataloader.num_workers=0",
    "val_dataloader.persistent_workers=False",
    "test_dataloader.num_workers=0",
    "test_dataloader.persistent_workers=False",
    "data_root=shapes",
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with drawn images, and a training of two epochs, the second by --resume."""
    folder = tmp_path_factory.mktemp("pretraining")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        draw = tool("dataset/draw_shapes")
        args = draw.parse_args(
            ["shapes", "--folders", "--train", "12", "--val", "6", "--size", "224"]
        )
        draw.draw(args)
        for epochs in (1, 2):
            options = ["--cfg-options", *TINY, f"train_cfg.max_epochs={epochs}"]
            run(patch, "train", SHAPES, "--work-dir", "work", "--resume", *options)
    return folder


def test_the_loop_trains_and_resumes(trained):
    assert {p.name for p in trained.glob("work/epoch_*.pth")} == {"epoch_1.pth", "epoch_2.pth"}
    first, second = (checkpoint_file.read(str(trained / f"work/epoch_{i}.pth")) for i in (1, 2))
    assert (second["meta"]["epoch"], second["meta"]["iter"]) == (2, 4)
    moved = [
        n for n, v in first["state_dict"].items() if not torch.equal(v, second["state_dict"][n])
    ]
    assert {"backbone.layer1.0.sge.weight", "backbone.layer4.2.bn3.running_mean"} <= set(moved)


def test_a_test_says_the_accuracy_again(trained, monkeypatch, capsys):
    monkeypatch.chdir(trained)
    argv = ["--out", "out.pkl", "--cfg-options", *TINY]
    run(monkeypatch, "test", SHAPES, "work", "--work-dir", "tested", *argv)
    said = float(re.search(r"accuracy/top1: ([\d.]+)", capsys.readouterr().out)[1])
    logged = [
        json.loads(line)
        for file in sorted(trained.glob("work/*/vis_data/2*.json"))
        for line in file.read_text().splitlines()
    ]
    assert said == pytest.approx(
        [one for one in logged if "accuracy/top1" in one][-1]["accuracy/top1"], abs=1e-3
    )
    assert {"pred_label", "gt_label"} <= mmengine.load(trained / "out.pkl")[0].keys()
    with pytest.raises(SystemExit):
        run(monkeypatch, "test", SHAPES, "work", "--show-dir", "x", *argv)
    assert "--show and --show-dir draw detections" in capsys.readouterr().err


def narrow(path, checkpoint, **options):
    """The config of a detector with a backbone as narrow as the classifier's."""
    channels = [32, 64, 128, 256]
    return load(
        path,
        **{
            "model.backbone.base_channels": 8,
            "model.neck.in_channels": channels,
            "model.backbone.init_cfg.checkpoint": str(checkpoint),
            **options,
        },
    )


def assert_all_loaded(config, state):
    """Builds the detector, and compares each weight of its backbone with the classifier's."""
    torch.manual_seed(1)
    model = build.build_model(config)
    (source,) = [one for one in weights.sources(model) if one.part == "backbone"]
    assert (source.fit.missing, source.fit.left_over, source.fit.reshaped) == ([], [], [])
    model.init_weights()
    own = model.backbone.state_dict()
    assert {f"backbone.{name}" for name in own} == {n for n in state if n.startswith("backbone.")}
    for name, value in own.items():
        assert torch.equal(value, state[f"backbone.{name}"]), name


@pytest.mark.parametrize("prefix", [None, "backbone", "backbone."])
def test_a_detector_takes_the_trained_backbone(trained, prefix):
    file = trained / "work" / "epoch_2.pth"
    options = {"model.backbone.plugins.0.cfg.groups": 8}
    if prefix:
        options["model.backbone.init_cfg.prefix"] = prefix
    config = narrow(DETECTOR, file, **options)
    # only the path has changed: the tools see that the file is a whole model's
    assert checkpoint_file.take_backbones(config.model) == ([] if prefix else [str(file)])
    assert_all_loaded(config, checkpoint_file.read(str(file))["state_dict"])


def test_the_tools_take_it_without_a_prefix(trained, monkeypatch, capsys):
    monkeypatch.chdir(trained)
    draw = tool("dataset/draw_shapes")
    draw.draw(draw.parse_args(["coco", "--train", "1", "--val", "1", "--size", "224"]))
    config = CONFIGS / "demo" / "faster-rcnn_r50w16-sge-c2-c5_fpn_600it_shapes.py"
    init_cfg = dict(_delete_=True, type="Pretrained", checkpoint="work/epoch_2.pth")
    child = trained / "child.py"
    child.write_text(
        f"_base_ = {str(config)!r}\nmodel = dict(backbone=dict(init_cfg={init_cfg}))\n"
    )
    args = argparse.Namespace(
        config=str(child),
        cfg_options={"data_root": "coco/"},
        work_dir="detector",
        launcher="none",
        local_rank=0,
        attention=None,
        amp=False,
        auto_scale_lr=False,
        resume=None,
    )
    cfg = preflight.training_config(args)
    assert cfg.model.backbone.init_cfg.prefix == "backbone."
    assert "backbone: that of the whole model in work/epoch_2.pth" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("slug", "options"),
    [
        ("gct-c1-c5", {}),
        ("bam-c2-c4", {"model.plugins.0.cfg.ratio": 4}),
        ("sk-c2-c5", {"model.backbone.branch_groups": 4, "model.backbone.ratio": 4}),
        ("simam-c2-c5", {}),
    ],
)
def test_other_modules_are_taken_as_well(tmp_path, slug, options):
    path = CONFIGS / "imagenet" / f"resnet50-{slug}_8xb32-100e_in1k.py"
    tiny = {"model.backbone.base_channels": 8, "model.head.in_channels": 256}
    torch.manual_seed(0)
    classifier = build.build_model(load(path, **tiny, **options))
    with torch.no_grad():
        for value in classifier.state_dict().values():
            value.copy_(torch.rand(value.shape) + 0.5) if value.is_floating_point() else None
    state = classifier.state_dict()
    torch.save(dict(state_dict=state, meta={}), tmp_path / "epoch_100.pth")
    config = narrow(PRE["50", slug][0], tmp_path / "epoch_100.pth", **options)
    assert checkpoint_file.take_backbones(config.model)
    assert_all_loaded(config, state)


def test_a_backbone_of_its_own_needs_no_prefix(tmp_path):
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "bare.pth")
    one = dict(type="Pretrained", checkpoint=str(tmp_path / "bare.pth"))
    model = dict(backbone=dict(init_cfg=one), neck=dict(init_cfg=dict(one)))
    assert checkpoint_file.take_backbones(Config(model)._cfg_dict) == []
    assert "prefix" not in one


# ---------------------------------------------------------------- what else is looked at


def test_the_config_check_knows_classifiers():
    tiny = {"model.backbone.base_channels": 8, "model.head.in_channels": 256}
    config = load(CONFIGS / "imagenet" / "resnet50-sge-c2-c5_8xb32-100e_in1k.py", **tiny,
                  **{"model.backbone.plugins.0.cfg.groups": 8})  # fmt: skip
    report = check(config, gpus=8)
    assert [type(one.module) for one in report.found] == [SGE] * 16
    text = report.text()
    assert "model: ImageClassifier on ResNet" in text
    assert "made for 8 GPUs x 32 images, here 8 x 32" in text
    assert "No hazard found" in text


def test_the_place_of_mmdets_data_is_not_that_of_imagenet(monkeypatch):
    monkeypatch.setenv("MMDET_DATASETS", "/nowhere/coco/")
    assert load(IN1K[0]).train_dataloader.dataset.data_root == "data/imagenet"


def test_without_data_it_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = load(IN1K[0], data_root="/mnt/imagenet")
    with pytest.raises(PreflightError, match=r"image folder /mnt/imagenet/train .* does not exist"):
        preflight.check_data(config, ("train", "val"))


@pytest.mark.parametrize("name", [str(IN1K[0]), "mmpretrain::resnet/resnet50_8xb32_in1k.py", "own"])
def test_without_mmpretrain_it_is_one_sentence(tmp_path, monkeypatch, name):
    if name == "own":  # what a training leaves in its folder has no base
        (tmp_path / "own.py").write_text("default_scope = 'mmpretrain'\n")
        name = str(tmp_path / "own.py")
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda n, *a: None if n == "mmpretrain" else find(n, *a)
    )
    monkeypatch.setattr("mmengine.config.config.is_installed", lambda package: False)
    with pytest.raises(PreflightError, match=r"needs mmpretrain.*pip install 'mmattn\[pretrain\]'"):
        load(name)


def test_metafile_readme_and_configs_agree():
    folder = CONFIGS / "imagenet"
    meta = yaml.safe_load((folder / "metafile.yml").read_text())
    (collection,) = meta["Collections"]
    assert ROOT / collection["README"] == folder / "README.md"
    assert [ROOT / one["Config"] for one in meta["Models"]] == IN1K
    for one, path in zip(meta["Models"], IN1K, strict=True):
        assert (one["Name"], one["In Collection"]) == (path.stem, collection["Name"])
        assert one["Metadata"] == {"Epochs": 100, "Batch Size": 256}
        assert "Results" not in one  # nothing has been trained on ImageNet
    rows = re.findall(r"^\| `(\S+_in1k)` \|", (folder / "README.md").read_text(), re.MULTILINE)
    assert sorted(rows) == [path.stem for path in IN1K]

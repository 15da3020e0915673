"""Which config is meant, and what do --cfg-options do to it?"""

from pathlib import Path

import pytest
from mmengine.config import Config

from mmattn.inspection import config_file
from mmattn.inspection.preflight import PreflightError

RETINANET = "mmdet::retinanet/retinanet_r50_fpn_1x_coco.py"
DEMO = "mmattn::demo/faster-rcnn_r50w16_fpn_600it_shapes.py"


def strings(node):
    if isinstance(node, dict):
        node = list(node.values())
    if isinstance(node, (list, tuple)):
        return [s for child in node for s in strings(child)]
    return [node] if isinstance(node, str) else []


@pytest.mark.parametrize("name", [RETINANET, DEMO])
def test_a_packages_config_is_found_by_name(name):
    cfg = config_file.load(name)
    assert Path(cfg.filename).name == name.rpartition("/")[2]
    assert cfg.model.backbone.type == "ResNet"


def test_a_config_can_inherit_from_ours(tmp_path):
    (tmp_path / "child.py").write_text(f"_base_ = {DEMO!r}\ntrain_cfg = dict(max_iters=7)\n")
    cfg = config_file.load(str(tmp_path / "child.py"))
    assert cfg.train_cfg.max_iters == 7
    assert cfg.val_evaluator.type == "mmattn.CocoSizeMetric"
    # as from its path: with the types that the default scope, mmdet, knows
    path = config_file.find(DEMO)
    (tmp_path / "by_path.py").write_text(f"_base_ = {str(path)!r}\ntrain_cfg = dict(max_iters=7)\n")
    assert cfg.to_dict() == config_file.load(str(tmp_path / "by_path.py")).to_dict()
    assert "_scope_='mmattn'" not in cfg.pretty_text
    assert "_scope_='mmdet'" in cfg.pretty_text  # of the base's own base, which stays


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "retinanet_r50-caffe_fpn_1x_coco.py",
            "mmdet::retinanet/retinanet_r50-caffe_fpn_1x_coco.py",
        ),
        ("retinanet_r50_fpn_1x_coco.py", "mmattn::_base_/retinanet_r50_fpn_1x_coco.py"),
        ("mmdet::retinanet/retinanet_r50_fpn_1x_coc.py", RETINANET),
        ("mmdet::nothing_like_it.py", "does not exist"),
        ("nopackage::a/b.py", "no package 'nopackage'"),
        ("some/folder/x.py", "config some/folder/x.py does not exist"),
    ],
)
def test_a_wrong_name_is_answered_with_what_is_near(name, expected):
    with pytest.raises(PreflightError) as info:
        config_file.load(name)
    assert expected in str(info.value)
    assert "\n" not in str(info.value)


def test_a_file_that_is_no_config(tmp_path):
    (tmp_path / "model.pth").write_text("")
    with pytest.raises(PreflightError, match="the config comes before the checkpoint"):
        config_file.load(str(tmp_path / "model.pth"))
    (tmp_path / "broken.py").write_text("model = dict(")
    with pytest.raises(PreflightError, match="cannot be read"):
        config_file.load(str(tmp_path / "broken.py"))
    (tmp_path / "orphan.py").write_text("_base_ = './gone.py'")
    with pytest.raises(PreflightError, match="cannot be read.*gone.py"):
        config_file.load(str(tmp_path / "orphan.py"))


@pytest.mark.parametrize("root", ["/elsewhere/coco", "/elsewhere/coco/"])
def test_data_root_moves_every_path(root):
    cfg = config_file.load(RETINANET, {"data_root": root})
    assert not [s for s in strings(cfg._cfg_dict) if "data/coco" in s]
    assert cfg.data_root == "/elsewhere/coco/"
    for split in ("train", "val", "test"):
        assert cfg[f"{split}_dataloader"].dataset.data_root == "/elsewhere/coco/"
    expected = "/elsewhere/coco/annotations/instances_val2017.json"
    assert cfg.val_evaluator.ann_file == cfg.test_evaluator.ann_file == expected


def test_data_root_moves_wrapped_datasets_and_lists_once(monkeypatch):
    dataset = dict(type="CocoDataset", data_root="data/coco", ann_file="data/coco/a.json")
    other = dict(type="CocoDataset", data_root="data/coco_extra")
    cfg = Config(
        dict(
            data_root="data/coco",
            train_dataloader=dict(dataset=dict(type="ConcatDataset", datasets=[dataset, other])),
            val_evaluator=[dict(ann_file="data/coco/a.json"), dict(files=["data/coco/b.json", 1])],
        )
    )
    # the new root begins with the old one: moved twice, it would show
    config_file.move_data_root(cfg, "data/coco/v2")
    first, second = cfg.train_dataloader.dataset.datasets
    assert (first.data_root, first.ann_file) == ("data/coco/v2/", "data/coco/v2/a.json")
    assert second.data_root == "data/coco_extra"
    assert cfg.val_evaluator[0].ann_file == "data/coco/v2/a.json"
    assert cfg.val_evaluator[1]["files"] == ["data/coco/v2/b.json", 1]


def test_a_more_specific_option_wins_over_data_root():
    options = {"data_root": "/new", "val_dataloader.dataset.data_root": "/mine"}
    cfg = config_file.load(RETINANET, options)
    assert cfg.train_dataloader.dataset.data_root == "/new/"
    assert cfg.val_dataloader.dataset.data_root == "/mine"


def test_the_environment_moves_data_unless_an_option_does(monkeypatch):
    monkeypatch.setenv("MMDET_DATASETS", "/env/coco/")
    assert config_file.load(RETINANET).val_dataloader.dataset.data_root == "/env/coco/"
    cfg = config_file.load(RETINANET, {"data_root": "/option"})
    assert cfg.val_dataloader.dataset.data_root == "/option/"


def test_data_root_of_a_config_without_one():
    def config(*roots):
        datasets = [dict(data_root=root) for root in roots]
        return Config(dict(train_dataloader=dict(dataset=dict(datasets=datasets))))

    cfg = config("data/a", "data/a")
    config_file.move_data_root(cfg, "/b")
    assert [d.data_root for d in cfg.train_dataloader.dataset.datasets] == ["/b/", "/b/"]
    with pytest.raises(PreflightError, match="data/a, data/c"):
        config_file.move_data_root(config("data/a", "data/c"), "/b")


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("model.backbone.depth", ""),
        ("model.backbone.plugins", ""),
        ("custom_hooks", ""),
        ("train_pipeline.0.type", "variable of the config file"),
        ("model.test_cfg.score_thre", "did you mean model.test_cfg.score_thr?"),
        ("my_own_note", "nothing in mmengine reads 'my_own_note'"),
    ],
)
def test_an_option_that_may_have_no_effect_is_named(option, said, capsys):
    config_file.check_options(config_file.load(RETINANET), {option: 1})
    err = capsys.readouterr().err
    assert said in err if said else err == ""


@pytest.mark.parametrize("typo", ["modle.backbone.depth", "train_dataloder.batch_size"])
def test_an_option_for_no_part_is_an_error(typo):
    right = {"modle": "model", "train_dataloder": "train_dataloader"}[typo.split(".")[0]]
    with pytest.raises(PreflightError, match=rf"did you mean {right}\."):
        config_file.load(RETINANET, {typo: 1})


def test_an_option_that_does_not_fit():
    with pytest.raises(PreflightError, match="do not fit"):
        config_file.load(RETINANET, {"model.backbone.depth.deeper": 1})

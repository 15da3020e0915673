"""What is missing before a run starts, and how does a run end?"""

import pytest
from mmengine.config import Config, ConfigDict

from mmattn.inspection import config_file, preflight
from mmattn.inspection._console import say, warn
from mmattn.inspection.preflight import PreflightError

RETINANET = "mmdet::retinanet/retinanet_r50_fpn_1x_coco.py"


@pytest.fixture
def coco(tmp_path):
    """Folders and files as in COCO, all but empty."""
    for split in ("train", "val"):
        (tmp_path / f"{split}2017").mkdir()
        (tmp_path / f"{split}2017" / "1.jpg").touch()
        (tmp_path / "annotations").mkdir(exist_ok=True)
        (tmp_path / "annotations" / f"instances_{split}2017.json").write_text("{}")
    return tmp_path


def test_a_whole_dataset_passes(coco):
    preflight.check_data(
        config_file.load(RETINANET, {"data_root": str(coco)}), ("train", "val", "test")
    )


@pytest.mark.parametrize(
    ("gone", "split", "said"),
    [
        ("annotations/instances_train2017.json", "train", "annotation file .* of train_dataloader"),
        ("annotations/instances_val2017.json", "val", "annotation file .* of val_dataloader"),
        ("train2017/1.jpg", "train", "image folder .*train2017/ of train_dataloader is empty"),
        ("val2017", "test", "image folder .*val2017/ of test_dataloader does not exist"),
    ],
)
def test_what_is_missing_is_named(coco, gone, split, said):
    path = coco / gone
    if path.is_dir():
        path.rename(coco / "elsewhere")
    else:
        path.unlink()
    cfg = config_file.load(RETINANET, {"data_root": str(coco)})
    with pytest.raises(PreflightError, match=said + ".*--cfg-options data_root=") as info:
        preflight.check_data(cfg, (split,))
    assert str(coco / gone.split("/")[0]) in str(info.value)
    preflight.check_data(cfg, tuple({"train", "val"} - {split, "val" if split == "test" else ""}))


def test_the_annotation_file_of_an_evaluator_is_looked_for(coco):
    cfg = config_file.load(RETINANET, {"data_root": str(coco)})
    cfg.test_evaluator = [dict(ann_file=str(coco / "annotations" / "other.json"))]
    with pytest.raises(PreflightError, match=r"other\.json of test_evaluator"):
        preflight.check_data(cfg, ("test",))


@pytest.mark.parametrize(
    "dataset",
    [
        dict(ann_file="s3://bucket/a.json"),
        dict(ann_file="a.json", backend_args=dict(backend="petrel")),
        dict(dataset=dict(ann_file="", data_prefix=dict(img=None))),
    ],
)
def test_data_that_are_not_local_files_are_not_looked_for(dataset):
    preflight.check_data(Config(dict(test_dataloader=dict(dataset=dataset))), ("test",))


@pytest.mark.parametrize(
    ("train_cfg", "epoch", "iteration", "complete"),
    [
        (dict(max_iters=300), 0, 300, True),
        (dict(max_iters=300), 0, 299, False),
        (dict(max_epochs=12), 12, 9999, True),
        (dict(max_epochs=12), 11, 9999, False),
    ],
)
def test_a_training_is_complete(train_cfg, epoch, iteration, complete):
    done = preflight._is_complete(ConfigDict(train_cfg), dict(epoch=epoch, iter=iteration))
    assert done == complete


def test_a_missing_pretrained_checkpoint_is_named():
    backbone = dict(init_cfg=dict(type="Pretrained", checkpoint="checkpoints/gone.pth"))
    with pytest.raises(PreflightError, match=r"pretrained checkpoint checkpoints/gone\.pth"):
        preflight._check_pretrained(ConfigDict(backbone=backbone))
    remote = dict(init_cfg=dict(type="Pretrained", checkpoint="torchvision://resnet50"))
    preflight._check_pretrained(ConfigDict(backbone=remote, neck=dict(init_cfg=[remote])))


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (PreflightError("no such file"), 1, "train.py: no such file\n"),
        (KeyboardInterrupt(), 130, "--resume\n"),
    ],
)
def test_an_end_before_time_is_one_line(error, status, said, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["tools/train.py", "a b.py"])
    with pytest.raises(SystemExit) as info, preflight.guard("train.py", resumable=True):
        raise error
    assert info.value.code == status
    err = capsys.readouterr().err
    assert err.endswith(said)
    assert err.count("\n") == 1
    if status == 130:
        assert "python tools/train.py 'a b.py' --resume" in err


def test_other_errors_keep_their_traceback():
    with pytest.raises(ZeroDivisionError), preflight.guard("train.py"):
        raise ZeroDivisionError


@pytest.mark.parametrize("variable", ["RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK"])
def test_one_process_speaks_for_all(variable, monkeypatch, capsys):
    monkeypatch.setenv(variable, "1")
    say("out")
    warn("err")
    assert capsys.readouterr() == ("", "")
    monkeypatch.setenv(variable, "0")
    say("out")
    warn("err")
    assert capsys.readouterr() == ("out\n", "err\n")


def plugin(**cfg):
    return dict(type="RetinaNet", backbone=dict(plugins=[dict(cfg=cfg, position="after_conv3")]))


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (plugin(type="mmattn.SGEE"), r"'mmattn\.SGEE', which is not .* did you mean mmattn\.SGE\?"),
        (plugin(type="mmatn.SGE"), r"'mmatn\.SGE', .* did you mean mmattn\.SGE\?"),
        (plugin(type="SGE"), r"'SGE', .* did you mean mmattn\.SGE\?"),
        (plugin(type="Nothing"), r"'Nothing', .* mmattn has mmattn\."),
        (
            dict(backbone=dict(conv_cfg=dict(type="mmattn.GCTConv"))),
            r"did you mean mmattn\.GCTConv2d",
        ),
    ],
)
def test_an_unknown_module_is_answered_with_what_is_near(model, said):
    with pytest.raises(PreflightError, match=said):
        preflight.check_types(ConfigDict(model))


@pytest.mark.parametrize("name", ["mmattn.SGE", "ContextBlock"])
def test_known_modules_pass(name):
    preflight.check_types(ConfigDict(plugin(type=name)))


def test_an_annotation_file_that_is_not_json(coco):
    (coco / "annotations" / "instances_train2017.json").write_text("image,x,y")
    cfg = config_file.load(RETINANET, {"data_root": str(coco)})
    with pytest.raises(PreflightError, match=r"train2017\.json of .* is not JSON: .*image,x,y"):
        preflight.check_data(cfg, ("train",))


def test_a_download_without_a_network_ends_in_a_sentence(capsys):
    from urllib.error import URLError

    with pytest.raises(SystemExit) as ended, preflight.guard("train.py"):
        raise URLError(OSError(-2, "Name or service not known"))
    assert ended.value.code == 1
    said = capsys.readouterr().err
    assert said.startswith("train.py: a file cannot be downloaded ([Errno -2] Name or service not")
    assert "init_cfg.checkpoint=" in said

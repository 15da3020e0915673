"""Class folders that do not fit a classifier's config are told in one sentence."""

import pytest
from mmengine import Config

from mmattn.inspection import preflight
from mmattn.inspection._console import PreflightError
from mmattn.inspection.class_folders import IMAGENET_CLASSES


@pytest.fixture
def root(tmp_path):
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            (tmp_path / split / name / "a.jpg").touch()
    return tmp_path


def check(root, classes=2, train=None, val=None, **common):
    common = dict(dict(type="CustomDataset", data_root=str(root)), **common)
    cfg = dict(
        model=dict(head=dict(num_classes=classes)),
        train_dataloader=dict(dataset=dict(common, data_prefix="train") | (train or {})),
        val_dataloader=dict(dataset=dict(common, data_prefix="val") | (val or {})),
    )
    preflight.check_data(Config(cfg), ("train", "val"))


def refused(said, *args, **kwargs):
    with pytest.raises(PreflightError, match=said) as info:
        check(*args, **kwargs)
    assert "\n" not in str(info.value)


def test_folders_that_fit(root):
    check(root)
    (root / "train" / "list.txt").touch()
    check(root)
    # wrapped, and named by its prefix alone
    inner = dict(type="mmpretrain.CustomDataset", data_prefix=dict(img_path=str(root / "val")))
    cfg = dict(train_dataloader=dict(dataset=dict(type="ClassBalancedDataset", dataset=inner)))
    preflight.check_data(Config(cfg), ("train",))


def test_a_hidden_folder_is_a_class_to_mmpretrain(root):
    from mmengine.fileio import list_dir_or_file

    (root / "train" / ".cache").mkdir()
    assert ".cache" in list_dir_or_file(str(root / "train"), list_file=False)
    refused(r"train of train_dataloader has a hidden folder \.cache, .* remove it", root)


def test_no_folder(root):
    refused(r"image folder \S+/gone/train of train_dataloader does not exist", root / "gone")
    refused("CustomDataset has no data_root", "", train=dict(data_prefix=""))


def test_no_class_folders(tmp_path):
    (tmp_path / "train").mkdir()
    refused("train of train_dataloader is empty", tmp_path)
    (tmp_path / "val" / "cat").mkdir(parents=True)
    (tmp_path / "train" / "a.jpg").touch()
    refused(r"no class folders: expected one folder a class, \S+train/CLASS/IMAGE", tmp_path)
    (tmp_path / "train" / "cat").mkdir()
    refused("the 1 class folders of image folder .* are empty", tmp_path)


def test_another_number_of_classes(root):
    refused("2 class folders, and model.head.num_classes is 3.*num_classes=2", root, classes=3)
    (root / "val" / "eel").mkdir()
    refused("val of val_dataloader has 3 class folders", root)


def test_another_name_is_another_label(root):
    (root / "val" / "cat").rename(root / "val" / "hare")
    refused("different class folders, cat is in one of them alone", root)


def test_imagenet_has_a_thousand_classes(root):
    split = dict(split="train", data_prefix="")
    refused("has 2 class folders, and type='ImageNet' expects 1000", root, type="ImageNet")
    with pytest.raises(PreflightError, match=r"/train of train_dataloader has 2 class folders"):
        check(root, type="ImageNet", train=split)
    check(root, type="ImageNet", metainfo=dict(classes=("cat", "dog")))
    # a list of labels, as ImageNet's archives without folders have it
    (root / "meta").mkdir()
    for name in ("train", "val"):
        (root / "meta" / f"{name}.txt").touch()
    check(root, IMAGENET_CLASSES, dict(split="train"), dict(split="val"), type="ImageNet")


def test_other_datasets_are_left_alone(root):
    check(root, 5, type="CIFAR10")
    check(root, 5, with_label=False)
    refused("annotation file .*labels.txt of train_dataloader", root, 5, ann_file="labels.txt")
    (root / "labels.txt").write_text("train/cat/a.jpg 4\n")
    check(root, 5, ann_file="labels.txt")

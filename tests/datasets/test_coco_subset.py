"""A subset is whole, keeps the shares of sizes, and harms nothing."""

import json

import numpy as np
import pytest

from mmattn.datasets.subset import choose
from tests.datasets.made import annotation, coco, split, tool

coco_py = tool("coco")


def main(*argv):
    return coco_py.main([str(a) for a in argv])


@pytest.mark.parametrize("number", [1, 7, 50, 199, 200])
def test_choose_is_near_its_share(number):
    rng = np.random.default_rng(3)
    counts = rng.poisson(rng.gamma(0.7, (4, 3, 2), (200, 3)))
    target = counts.sum(0) * number / len(counts)
    chosen = choose(counts, number, np.random.default_rng(0))
    assert len(set(chosen)) == number
    assert (np.diff(chosen) > 0).all()
    off = np.abs(counts[chosen].sum(0) - target)
    # one image can do no better than the best of all; many are within an object
    assert off.max() < (1.5 if number > 1 else np.abs(counts - target).max(1).min() + 1)
    random = choose(counts, number, np.random.default_rng(0), by_size=False)
    assert np.abs(counts[random].sum(0) - target).max() >= off.max()


def test_choose_is_a_matter_of_the_seed():
    counts = np.random.default_rng(3).poisson(3, (60, 3))
    chosen = [choose(counts, 20, np.random.default_rng(seed)).tolist() for seed in (0, 0, 1)]
    assert chosen[0] == chosen[1] != chosen[2]
    # most of it stays chance: every image has its turn
    seen = {i for seed in range(12) for i in choose(counts, 20, np.random.default_rng(seed))}
    assert len(seen) > 55


def test_rare_sizes_matter():
    """One large object in ten images, among hundreds of small ones."""
    counts = np.zeros((100, 3), int)
    counts[:, 0] = np.random.default_rng(0).integers(0, 60, 100)
    counts[::10, 2] = 1
    chosen = choose(counts, 20, np.random.default_rng(0))
    assert counts[chosen, 2].sum() == 2


def made(root):
    """40 images with objects of all sizes, some crowds, text and fields of their own."""
    rng, annotations = np.random.default_rng(0), []
    images = [(i, f"part{i % 2}/{i:03}.jpg", 150, 140) for i in range(1, 41)]
    for i, *_ in images:
        for side in rng.choice([10, 50, 120], rng.integers(0, 5)):
            number = len(annotations) + 1
            more = dict(segmentation=[[0.125, 1, 2, 3.5, 4, 5]], note="größe")
            annotations.append(annotation(number, i, (0, 0, int(side), int(side)), **more))
    annotations[3]["iscrowd"] = 1
    for name in ("train2017", "val2017"):
        split(root, name, images, annotations, info=dict(year=2026, about="café"))
    return root


def test_subset(tmp_path, capsys):
    root, out = made(tmp_path / "all"), tmp_path / "some"
    assert main("subset", root, out, "--images", "20", "10", "--seed", "5") == 0
    table = capsys.readouterr().out
    assert main("check", out) == 0
    before = json.loads((root / "annotations" / "instances_train2017.json").read_text())
    after = json.loads((out / "annotations" / "instances_train2017.json").read_text())
    assert list(after) == list(before)
    assert (after["info"], after["categories"]) == (before["info"], before["categories"])
    ids = {x["id"] for x in after["images"]}
    assert len(after["images"]) == len(ids) == 20
    # records are untouched, and none is lost
    assert after["images"] == [x for x in before["images"] if x["id"] in ids]
    assert after["annotations"] == [x for x in before["annotations"] if x["image_id"] in ids]
    files = {p.relative_to(out / "train2017").as_posix() for p in out.glob("train2017/*/*")}
    assert files == {x["file_name"] for x in after["images"]}
    assert len(list(out.glob("val2017/*/*"))) == 10
    # the share of each size, counted here
    for side in (10, 50, 120):
        number = [
            sum(x["bbox"][2] == side and not x["iscrowd"] for x in one["annotations"])
            for one in (before, after)
        ]
        assert abs(number[1] - number[0] / 2) <= 1
        assert f" {number[0]} |" in table
    note = json.loads((out / "subset.json").read_text())
    assert (note["seed"], note["parts"][1]["images"]) == (5, 10)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["all", "some"]


@pytest.mark.parametrize(
    ("link", "is_link", "links"), [("hard", False, 2), ("symbolic", True, 1), ("copy", False, 1)]
)
def test_images_get_there(tmp_path, link, is_link, links):
    root, out = coco(tmp_path / "all"), tmp_path / "some"
    assert main("subset", root, out, "--images", "2", "--link", link) == 0
    for path in out.glob("*2017/*.jpg"):
        assert path.is_symlink() == is_link
        assert path.resolve().stat().st_nlink == links
        assert path.read_bytes() == (root / path.relative_to(out)).read_bytes()


def test_hard_links_become_copies_elsewhere(tmp_path, monkeypatch):
    import errno
    import os

    def link(*_):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", link)
    root, out = coco(tmp_path / "all"), tmp_path / "some"
    assert main("subset", root, out, "--images", "2") == 0
    assert {p.stat().st_nlink for p in out.glob("*2017/*.jpg")} == {1}


def test_another_layout(tmp_path):
    root, out = coco(tmp_path / "all"), tmp_path / "some"
    file = root / "annotations" / "instances_val2017.json"
    file.rename(root / "mine.json")
    source = ("--ann", root / "mine.json", "--image-dir", root / "val2017")
    assert main("subset", *source, out, "--images", "3") == 0
    target = ("--ann", out / "annotations" / "mine.json", "--image-dir", out / "val2017")
    assert main("check", *target) == 0


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["--images", "5"], "instances_train2017.json has 4 images, fewer than 5"),
        (["--images", "0"], "must be a whole number from 1 on, got 0"),
        (["--images", "1", "1", "1"], "one for each of the 2 (train2017, val2017), got 3"),
        (["--images", "1", "--seed", "-1"], "seed must be a whole number from 0 on"),
        (["--images", "1", "--splits", "test2017"], "test2017, the images of test2017"),
    ],
)
def test_wrong_arguments_leave_nothing(tmp_path, capsys, argv, sentence):
    root = coco(tmp_path / "all")
    assert main("subset", root, tmp_path / "some", *argv) == 2
    assert sentence in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["all"]


def test_nothing_is_overwritten(tmp_path, capsys):
    root, out = coco(tmp_path / "all"), tmp_path / "some"
    out.mkdir()
    assert main("subset", root, out, "--images", "1") == 0  # empty
    before = sorted(out.rglob("*"))
    assert main("subset", root, out, "--images", "2") == 2
    assert "is there already, and nothing is overwritten" in capsys.readouterr().err
    assert sorted(out.rglob("*")) == before


def test_a_missing_image_leaves_nothing(tmp_path, capsys):
    root = coco(tmp_path / "all")
    (root / "val2017" / "101.jpg").unlink()
    assert main("subset", root, tmp_path / "some", "--images", "4") == 2
    assert "101.jpg does not exist; see check" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["all"]


@pytest.mark.parametrize("name", ["../../outside.jpg", "/tmp/outside.jpg"])
def test_files_stay_in_their_folder(tmp_path, capsys, name):
    split(tmp_path / "all", "val2017", [(1, name, 40, 30)], [], pictures=False)
    (tmp_path / "all" / "val2017").mkdir()
    arguments = ("--splits", "val2017", "--images", "1")
    assert main("subset", tmp_path / "all", tmp_path / "some", *arguments) == 2
    assert "leaves the folder of its images" in capsys.readouterr().err

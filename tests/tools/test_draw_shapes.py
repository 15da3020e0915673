"""The drawn dataset: is it COCO, is it exact, is it reproducible, is it never half there?"""

import contextlib
import hashlib
import importlib.util
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO

TOOL = Path(__file__).parents[2] / "tools" / "dataset" / "draw_shapes.py"
spec = importlib.util.spec_from_file_location("draw_shapes", TOOL)
draw_shapes = importlib.util.module_from_spec(spec)
spec.loader.exec_module(draw_shapes)

SMALL = ["--train", "2", "--val", "12", "--size", "224"]


def main(*argv):
    return draw_shapes.main([str(a) for a in argv])


@pytest.fixture(autouse=True)
def keep_signal_handler():
    yield
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    out = tmp_path_factory.mktemp("data") / "shapes"
    assert main(out, *SMALL) == 0
    return out


@pytest.fixture(scope="module")
def val(shapes):
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(str(shapes / "annotations" / "val.json"))


def fingerprint(folder):
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_it_has_what_was_asked_for(shapes, val):
    assert len(list((shapes / "train").iterdir())) == 2
    assert [c["name"] for c in val.loadCats(val.getCatIds())] == ["circle", "square", "triangle"]
    for image in val.dataset["images"]:
        pixels = cv2.imread(str(shapes / "val" / image["file_name"]))
        assert pixels.shape == (image["height"], image["width"], 3) == (224, 224, 3)
        assert 1 <= len(val.getAnnIds(image["id"])) <= 6
    ids = [a["id"] for a in val.dataset["annotations"]]
    assert len(set(ids)) == len(ids)
    assert min(ids) == 1  # COCO's evaluation mistakes id 0 for no match


def test_each_size_is_drawn_equally_often(val):
    areas = np.array([a["area"] for a in val.dataset["annotations"]])
    counts = [(areas < 1024).sum(), ((areas > 1024) & (areas < 9216)).sum(), (areas > 9216).sum()]
    assert sum(counts) == len(areas)
    assert max(counts) - min(counts) <= 1


def test_boxes_areas_and_polygons_agree(val):
    for entry in val.dataset["annotations"]:
        mask = val.annToMask(entry)
        assert mask.sum() == entry["area"]
        rows, columns = np.nonzero(mask)
        x, y, w, h = entry["bbox"]
        assert (x, y) == (columns.min(), rows.min())
        assert (x + w, y + h) == (columns.max() + 1, rows.max() + 1)


def test_annotations_are_exact_to_the_drawn_pixels(shapes, val):
    """Every pixel of an object has its colour, and none next to it that is of no object."""
    checked = 0
    for image in val.dataset["images"]:
        pixels = cv2.imread(str(shapes / "val" / image["file_name"])).astype(int)
        entries = val.loadAnns(val.getAnnIds(image["id"]))
        masks = [val.annToMask(e) for e in entries]
        assert np.sum(masks, axis=0).max() == 1  # visible pixels belong to one object
        for mask in masks:
            colour = np.median(pixels[mask == 1], axis=0)
            distance = np.abs(pixels - colour).max(-1)
            assert distance[mask == 1].max() <= draw_shapes.NOISE + 2
            around = cv2.dilate(mask, np.ones((3, 3), np.uint8)) - mask
            free = (around == 1) & (np.sum(masks, axis=0) == 0)
            checked += free.sum()
            assert (distance[free] > draw_shapes.NOISE + 2).all()
    assert checked > 1000


def test_the_same_arguments_give_the_same_bytes(shapes, tmp_path):
    assert main(tmp_path / "again", *SMALL) == 0
    assert fingerprint(tmp_path / "again") == fingerprint(shapes)
    assert main(tmp_path / "other", *SMALL, "--seed", 1) == 0
    mine, other = fingerprint(shapes), fingerprint(tmp_path / "other")
    assert mine.keys() == other.keys()
    assert not [k for k in mine if mine[k] == other[k]]


def test_the_seed_moves_objects_of_the_same_sizes(tmp_path):
    for seed in (0, 1):
        # one object of each size: nothing else is left to chance
        argv = ["--train", 1, "--val", 1, "--objects", 3, 3, "--seed", seed]
        assert main(tmp_path / str(seed), *argv) == 0
    mine, other = (fingerprint(tmp_path / str(seed)) for seed in (0, 1))
    assert not [k for k in mine if mine[k] == other[k]]


def test_classes_and_objects_are_selectable(tmp_path):
    argv = ["--train", 1, "--val", 6, "--classes", "star", "cross", "--objects", 3, 3]
    assert main(tmp_path / "s", *argv) == 0
    content = json.loads((tmp_path / "s" / "annotations" / "val.json").read_text())
    assert [c["name"] for c in content["categories"]] == ["star", "cross"]
    assert len(content["annotations"]) == 18
    assert {a["category_id"] for a in content["annotations"]} == {1, 2}


def test_a_second_run_returns_at_once(shapes, capsys):
    before = (shapes / "annotations" / "val.json").stat().st_mtime_ns
    start = time.perf_counter()
    assert main(shapes, *SMALL) == 0
    assert time.perf_counter() - start < 0.1
    assert "there already" in capsys.readouterr().out
    assert (shapes / "annotations" / "val.json").stat().st_mtime_ns == before


def test_other_arguments_are_refused_unless_overwriting(tmp_path, capsys):
    out = tmp_path / "s"
    argv = ["--train", 1, "--val", 1]
    assert main(out, *argv) == 0
    assert main(out, *argv, "--seed", 3) == 1
    err = capsys.readouterr().err
    assert "seed 0 (now 3)" in err
    assert "--overwrite" in err
    before = fingerprint(out)
    assert main(out, *argv, "--seed", 3, "--overwrite") == 0
    assert fingerprint(out) != before
    assert os.listdir(tmp_path) == ["s"]


@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]])
def test_a_folder_of_somebody_else_is_left_alone(tmp_path, capsys, overwrite):
    (tmp_path / "thesis.tex").touch()
    assert main(tmp_path, *SMALL, *overwrite) == 1
    assert "was not drawn by this tool" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["thesis.tex"]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--train", 0], "--train must be at least 1, got 0"),
        (["--val", -1], "--val must be at least 1, got -1"),
        (["--seed", -1], "--seed must be at least 0"),
        (["--size", 64], "--size must be at least 224"),
        (["--classes", "circle", "circel"], "--classes circel is none of circle, square"),
        (["--classes", "star", "star"], "names a shape twice"),
        (["--objects", 3, 2], "--objects needs 1 <= MIN <= MAX, got 3 2"),
        (["--objects", 0, 2], "--objects needs 1 <= MIN <= MAX, got 0 2"),
        (["--objects", 1, 60], "--objects 1 60 is too many for 256 px"),
    ],
)
def test_arguments_are_checked(tmp_path, capsys, argv, said):
    assert main(tmp_path / "s", *argv) == 1
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interruption_leaves_nothing(tmp_path, number, status):
    process = subprocess.Popen(
        [sys.executable, TOOL, tmp_path / "s", "--train", "5000"],
        stderr=subprocess.PIPE,
        text=True,
        # a shell's background job, as CI may be, ignores Ctrl-C and hands that down
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    while not list(tmp_path.glob(".s-*/new/train/*.png")):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(number)
    _, err = process.communicate(timeout=20)
    assert process.returncode == status
    assert "Traceback" not in err
    assert os.listdir(tmp_path) == []

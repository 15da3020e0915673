"""The drawn dataset of single shapes: has each class its folder, with what its name says?"""

import importlib.util
import signal
from pathlib import Path

import cv2
import pytest

TOOL = Path(__file__).parents[2] / "tools" / "dataset" / "draw_shapes.py"
spec = importlib.util.spec_from_file_location("draw_shapes_folders", TOOL)
draw_shapes = importlib.util.module_from_spec(spec)
spec.loader.exec_module(draw_shapes)

SMALL = ["--folders", "--train", "6", "--val", "4", "--size", "224"]


@pytest.fixture(autouse=True)
def keep_signal_handler():
    yield
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def main(*argv):
    return draw_shapes.main([str(a) for a in argv])


def images(out):
    return {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.rglob("*.png"))}


def test_each_class_has_a_folder(tmp_path, monkeypatch, capsys):
    drawn = []
    draw = draw_shapes.draw_image

    def watch(*args):
        image, objects = draw(*args)
        drawn.append([name for name, _ in objects])
        return image, objects

    monkeypatch.setattr(draw_shapes, "draw_image", watch)
    out = tmp_path / "a"
    assert main(out, *SMALL, "--classes", "star", "cross") == 0
    found = images(out)
    folders = [Path(name).parent.name for name in found]
    assert {Path(name).parts[:2] for name in found} == {
        (split, name) for split in ("train", "val") for name in ("star", "cross")
    }
    # one object an image, of the class that its folder says
    in_order = sorted(found, key=lambda name: (name.split("/")[0], name.split("/")[2]))
    assert drawn == [[Path(name).parent.name] for name in in_order]
    assert (folders.count("star"), folders.count("cross")) == (5, 5)
    assert cv2.imread(str(out / in_order[0])).shape == (224, 224, 3)
    # the same arguments, the same bytes; no image twice
    assert main(tmp_path / "b", *SMALL, "--classes", "star", "cross") == 0
    assert images(tmp_path / "b") == found
    assert len(set(found.values())) == len(found)
    assert main(out, *SMALL[1:], "--classes", "star", "cross") == 1
    assert "drawn with other arguments, objects [1, 1] (now [1, 6])" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--objects", "1", "3"], "draws one object an image: leave out --objects 1 3"),
        (["--val", "2"], "needs an image of each of 3 classes"),
    ],
)
def test_what_cannot_be(tmp_path, capsys, argv, said):
    assert main(tmp_path / "out", *SMALL, *argv) == 1
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()

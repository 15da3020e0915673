"""Pascal VOC becomes COCO, to the pixel, and broken files are named."""

import contextlib
import io
import json

import pytest

from tests.datasets.made import picture, tool

voc_to_coco = tool("voc_to_coco")


def main(*argv):
    return voc_to_coco.main([str(a) for a in argv])


def xml(objects, size=(40, 30), name="1.jpg"):
    """An annotation; objects are (name, xmin, ymin, xmax, ymax, difficult)."""
    parts = [
        f"<object><name>{name}</name><difficult>{hard}</difficult><bndbox><xmin>{a}</xmin>"
        f"<ymin>{b}</ymin><xmax>{c}</xmax><ymax>{d}</ymax></bndbox></object>"
        for name, a, b, c, d, hard in objects
    ]
    size = f"<size><width>{size[0]}</width><height>{size[1]}</height></size>" if size else ""
    return f"<annotation><filename>{name}</filename>{size}{''.join(parts)}</annotation>"


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "VOC"
    for folder in ("Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    for name in ("a", "b", "c"):
        picture(root / "JPEGImages" / f"{name}.jpg")
        (root / "Annotations" / f"{name}.xml").write_text(xml([("dog", 3, 5, 12, 9, 0)]))
    (root / "ImageSets" / "Main" / "train.txt").write_text("b\na\n")
    (root / "ImageSets" / "Main" / "val.txt").write_text("c\n")
    return root


def converted(root, out, *argv, split="train"):
    assert main(root, out, *argv) == 0
    return json.loads((out / "annotations" / f"{split}.json").read_text())


def test_names_with_spaces(root, tmp_path):
    """Beside those of a class's list, with a second column."""
    for folder, suffix in (("Annotations", "xml"), ("JPEGImages", "jpg")):
        (root / folder / f"a.{suffix}").rename(root / folder / f"a 1.{suffix}")
    (root / "ImageSets" / "Main" / "train.txt").write_text("b  1\na 1\r\nc -1\n")
    content = converted(root, tmp_path / "out", "--splits", "train")
    assert [x["file_name"] for x in content["images"]] == ["b.jpg", "a 1.jpg", "c.jpg"]


def test_boxes_to_the_pixel(root, tmp_path):
    """Columns 3 to 12 of 1, 2, ... are ten columns, the first of them is number 2 from 0."""
    content = converted(root, tmp_path / "out")
    assert content["images"] == [
        dict(id=1, file_name="b.jpg", width=40, height=30),
        dict(id=2, file_name="a.jpg", width=40, height=30),
    ]
    assert content["annotations"][0] == dict(
        id=1, image_id=1, category_id=1, bbox=[2, 4, 10, 5], area=50, iscrowd=0
    )
    assert [x["id"] for x in content["annotations"]] == [1, 2]
    assert content["categories"] == [dict(id=1, name="dog")]


def test_first_and_last_pixel(root, tmp_path):
    """A box around the whole image is the whole image, in both countings."""
    path = root / "Annotations" / "c.xml"
    path.write_text(xml([("dog", 1, 1, 40, 30, 0)]))
    (one,) = converted(root, tmp_path / "one", split="val")["annotations"]
    path.write_text(xml([("dog", 0, 0, 39, 29, 0)]))
    (zero,) = converted(root, tmp_path / "zero", "--origin", "0", split="val")["annotations"]
    assert one["bbox"] == zero["bbox"] == [0, 0, 40, 30]


def test_mmdet_reads_the_same_objects(root, tmp_path):
    """Corners as mmdet has them from the XML, but for the last pixel, which it leaves out."""
    pytest.importorskip("mmdet")
    from mmdet.datasets import CocoDataset, XMLDataset

    (root / "Annotations" / "b.xml").write_text(
        xml([("dog", 3, 5, 12, 9, 1), ("cat", 1, 1, 40, 30, 0)])
    )
    assert main(root, tmp_path / "out") == 0
    info = dict(metainfo=dict(classes=("cat", "dog")), pipeline=[], test_mode=True)
    theirs = XMLDataset(
        ann_file=str(root / "ImageSets/Main/train.txt"),
        data_prefix=dict(sub_data_root=str(root)),
        **info,
    )
    with contextlib.redirect_stdout(io.StringIO()):
        ours = CocoDataset(
            ann_file=str(tmp_path / "out/annotations/train.json"),
            data_prefix=dict(img=str(tmp_path / "out/images")),
            **info,
        )
    for a, b in zip(ours, theirs, strict=True):
        assert len(a["instances"]) == len(b["instances"]) > 0
        for x, y in zip(a["instances"], b["instances"], strict=True):
            assert x["bbox_label"] == y["bbox_label"]
            assert x["ignore_flag"] == y["ignore_flag"]
            left, top, right, bottom = y["bbox"]
            assert x["bbox"] == [left, top, right + 1, bottom + 1]


def test_a_wrong_size_is_taken_from_the_image(root, tmp_path, capsys):
    for name, size in (("a", (640, 480)), ("b", (0, 0)), ("c", None)):
        (root / "Annotations" / f"{name}.xml").write_text(xml([("dog", 1, 1, 9, 9, 0)], size))
    content = converted(root, tmp_path / "out")
    assert {(x["width"], x["height"]) for x in content["images"]} == {(40, 30)}
    assert "2 images with a wrong size, or none, in their XML" in capsys.readouterr().out


def test_boxes_that_are_none(root, tmp_path, capsys):
    (root / "Annotations" / "c.xml").write_text(
        xml(
            [
                ("dog", 5, 5, 5, 9, 0),  # no width
                ("dog", 9, 5, 5, 9, 0),  # turned
                ("dog", 41, 1, 50, 9, 0),  # outside
                ("dog", 0, 20, 45, 31, 0),  # too far: cut at the edges
                ("dog", 20, 0, 29, 9, 0),  # above the first row
                ("dog", "2.5", "3", "7.0", "9", 0),
            ]
        )
    )
    annotations = converted(root, tmp_path / "out", split="val")["annotations"]
    assert [x["bbox"] for x in annotations] == [[0, 19, 40, 11], [19, 0, 10, 9], [1.5, 2, 5.5, 7]]
    assert [x["area"] for x in annotations] == [440, 90, 38.5]
    text = capsys.readouterr().out
    assert "2 boxes without width or height" in text
    assert "1 boxes outside of their image: left out" in text
    assert "2 boxes that reached out of their image: cut at its edge" in text


@pytest.mark.parametrize(("option", "crowds"), [("crowd", [1, 0]), ("keep", [0, 0]), ("drop", [0])])
def test_difficult(root, tmp_path, option, crowds):
    path = root / "Annotations" / "c.xml"
    path.write_text(xml([("dog", 1, 1, 9, 9, 1), ("dog", 1, 1, 9, 9, 0)]))
    content = converted(root, tmp_path / "out", "--difficult", option, split="val")
    assert [x["iscrowd"] for x in content["annotations"]] == crowds


def test_classes(root, tmp_path, capsys):
    path = root / "Annotations" / "c.xml"
    path.write_text(xml([("cat", 1, 1, 9, 9, 0), ("bird", 1, 1, 9, 9, 0)]))
    content = converted(root, tmp_path / "found", split="val")
    assert [x["name"] for x in content["categories"]] == ["bird", "cat", "dog"]
    assert [x["category_id"] for x in content["annotations"]] == [2, 1]
    capsys.readouterr()
    content = converted(root, tmp_path / "given", "--classes", "dog", "cat", split="val")
    assert content["categories"] == [dict(id=1, name="dog"), dict(id=2, name="cat")]
    assert [x["category_id"] for x in content["annotations"]] == [2]
    assert "1 objects of other classes: left out" in capsys.readouterr().out
    assert main(root, tmp_path / "none", "--classes", "dgo") == 2
    assert "no object is of class 'dgo'; the set has bird, cat, dog" in capsys.readouterr().err


def test_lists(root, tmp_path, capsys):
    folder = root / "ImageSets" / "Main"
    (folder / "dog_train.txt").write_text("a  1\nb -1\n\na  1\n")  # of one class, with a flag
    assert main(root, tmp_path / "own", "--splits", "dog_train") == 0
    content = json.loads((tmp_path / "own" / "annotations" / "dog_train.json").read_text())
    assert [x["file_name"] for x in content["images"]] == ["a.jpg", "b.jpg"]
    assert main(root, tmp_path / "wrong", "--splits", "tset") == 2
    assert "has no tset.txt; it has dog_train, train, val" in capsys.readouterr().err
    for path in folder.iterdir():
        path.unlink()
    assert len(converted(root, tmp_path / "all", split="all")["images"]) == 3


def test_other_images(root, tmp_path):
    (root / "JPEGImages" / "c.jpg").unlink()
    picture(root / "JPEGImages" / "photo.PNG")
    path = root / "Annotations" / "c.xml"
    path.write_text(xml([("dog", 1, 1, 9, 9, 0)], name="C:\\pictures\\photo.PNG"))
    content = converted(root, tmp_path / "out", split="val")
    assert content["images"][0]["file_name"] == "photo.PNG"
    assert (tmp_path / "out" / "images" / "photo.PNG").is_file()


def box_without(tag):
    text = xml([("dog", 1, 1, 9, 9, 0)])
    start, end = text.index(f"<{tag}>"), text.index(f"</{tag}>")
    return text[:start] + text[end + len(tag) + 3 :]


BROKEN = [
    (lambda r: (r / "Annotations/b.xml").write_text("<annotation><object>"), "b.xml is no XML"),
    (lambda r: (r / "Annotations/b.xml").write_bytes(b"\xff\xfe\x00x"), "b.xml is no XML"),
    (lambda r: (r / "Annotations/b.xml").unlink(), "b.xml does not exist"),
    (
        lambda r: (r / "Annotations/b.xml").write_text(box_without("xmax")),
        "object 1 of {root}/Annotations/b.xml (dog) has no bndbox of four numbers",
    ),
    (
        lambda r: (r / "Annotations/b.xml").write_text(xml([("dog", "x", 1, 9, 9, 0)])),
        "has no bndbox of four numbers",
    ),
    (
        lambda r: (r / "Annotations/b.xml").write_text(xml([("dog", "nan", 1, 9, 9, 0)])),
        "has no bndbox of four numbers",
    ),
    (
        lambda r: (r / "Annotations/b.xml").write_text(xml([("", 1, 1, 9, 9, 0)])),
        "has no name",
    ),
    (lambda r: (r / "JPEGImages/b.jpg").unlink(), "there is no JPEGImages/b.jpg"),
    (lambda r: (r / "JPEGImages/b.jpg").write_text("x"), "b.jpg is no image that can be read"),
]


@pytest.mark.parametrize(("spoil", "sentence"), BROKEN)
def test_broken_files(root, tmp_path, capsys, spoil, sentence):
    spoil(root)
    assert main(root, tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert sentence.format(root=root) in error
    assert "Traceback" not in error
    assert [p.name for p in tmp_path.iterdir()] == ["VOC"]
    content = converted(root, tmp_path / "out", "--skip-broken")
    assert [x["file_name"] for x in content["images"]] == ["a.jpg"]
    assert "1 broken left out: " in capsys.readouterr().out
    assert sorted(p.name for p in (tmp_path / "out/images").iterdir()) == ["a.jpg", "c.jpg"]


def test_other_layouts(root, tmp_path, capsys):
    assert main(tmp_path, tmp_path / "out") == 2
    assert f"did you mean {root}?" in capsys.readouterr().err
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("")
    assert main(root, tmp_path / "out") == 2
    assert "nothing is overwritten" in capsys.readouterr().err


def test_the_result_passes_the_check(root, tmp_path):
    assert main(root, tmp_path / "out", "--link", "copy") == 0
    files = [f"--ann={tmp_path / 'out' / 'annotations' / name}.json" for name in ("train", "val")]
    folder = f"--image-dir={tmp_path / 'out' / 'images'}"
    assert tool("coco").main(["check", *files, folder]) == 0


def test_without_images(root, tmp_path):
    assert main(root, tmp_path / "out", "--link", "none") == 0
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["annotations"]

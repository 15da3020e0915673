"""Whatever is wrong with a data set is found, and nothing else."""

import json

import pytest

from tests.datasets.made import CATEGORIES, annotation, coco, picture, split, tool

coco_py = tool("coco")


def main(*argv):
    return coco_py.main([str(a) for a in argv])


def problems(tmp_path, *argv):
    """{(kind, where)} of what check finds."""
    out = tmp_path / "found.json"
    status = main("check", *argv, "--json", out)
    content = json.loads(out.read_text())
    assert status == (0 if content["ok"] else 1)
    assert content["ok"] == (not content["problems"])
    assert sum(content["counts"].values()) == len(content["problems"])
    return {(x["kind"], x["where"]): x["what"] for x in content["problems"]}


def test_a_whole_set(tmp_path, capsys):
    assert problems(tmp_path, coco(tmp_path / "coco")) == {}
    text = capsys.readouterr().out
    assert "train2017: 4 images (4 decoded), 9 objects (0 crowds), 2 categories" in text
    assert "not the whole of COCO 2017 (118,287, 80)" in text
    assert text.rstrip().endswith("nothing is wrong")


def test_the_checksum_is_that_of_sha256sum(tmp_path, capsys):
    import hashlib

    root = coco(tmp_path / "coco")
    main("check", root, "--splits", "val2017")
    path = root / "annotations" / "instances_val2017.json"
    assert hashlib.sha256(path.read_bytes()).hexdigest() in capsys.readouterr().out


def test_complete_asks_for_all_of_coco(tmp_path):
    found = problems(tmp_path, coco(tmp_path / "coco"), "--complete")
    assert [kind for kind, _ in found] == ["count", "count"]
    assert "4 images and 2 categories, expected 118,287 and 80" in found.values()


@pytest.mark.parametrize(
    ("spoil", "kind", "what"),
    [
        (lambda p: p.unlink(), "missing image", "does not exist"),
        (lambda p: p.write_bytes(b""), "unreadable image", "is empty"),
        (lambda p: p.write_text("hello, world"), "unreadable image", "begins with b'hello, world'"),
        (lambda p: p.write_bytes(p.read_bytes()[:-1]), "truncated image", "is cut off after"),
        (lambda p: p.write_bytes(p.read_bytes()[:300]), "truncated image", "after 300 bytes"),
        (
            lambda p: p.write_bytes(p.read_bytes()[:700] + bytes(len(p.read_bytes()) - 700)),
            "truncated image",
            "is cut off",
        ),
        (lambda p: picture(p, (30, 40)), "image size", "is 30 x 40 px; its annotation says 40"),
    ],
    ids=["missing", "empty", "text", "one byte", "head only", "zeros", "size"],
)  # fmt: skip
def test_images(tmp_path, spoil, kind, what):
    root = coco(tmp_path / "coco")
    spoil(root / "train2017" / "002.jpg")
    found = problems(tmp_path, root)
    assert list(found) == [(kind, "image 002.jpg")]
    assert what in found[kind, "image 002.jpg"]
    assert problems(tmp_path, root, "--ignore", kind) == {}


@pytest.mark.parametrize("suffix", ["png", "webp", "bmp"])
def test_other_formats_cut_off(tmp_path, suffix):
    root = tmp_path / "coco"
    split(root, "val2017", [(1, f"1.{suffix}", 40, 30), (2, f"2.{suffix}", 40, 30)], [])
    path = root / "val2017" / f"2.{suffix}"
    path.write_bytes(path.read_bytes()[:-13])
    found = problems(tmp_path, root, "--splits", "val2017")
    assert [where for _, where in found] == [f"image 2.{suffix}"]


def test_bytes_behind_the_end_are_no_mistake(tmp_path):
    root = coco(tmp_path / "coco")
    with open(root / "train2017" / "001.jpg", "ab") as file:
        file.write(b"a camera's own data")
    assert problems(tmp_path, root) == {}


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "MPO"])
def test_size_is_what_a_training_reads(kind, tmp_path):
    """OpenCV turns an image as its EXIF says."""
    from PIL import Image

    root = coco(tmp_path / "coco")
    exif = Image.Exif()
    exif[0x0112] = 6
    more = dict(save_all=True, append_images=[Image.new("RGB", (8, 8))]) if kind == "MPO" else {}
    path = picture(root / "train2017" / "001.jpg", (40, 30), format=kind, exif=exif, **more)
    mmcv = pytest.importorskip("mmcv")
    assert mmcv.imread(path).shape == (40, 30, 3)
    found = problems(tmp_path, root)
    assert found == {
        ("image size", "image 001.jpg"): "is 30 x 40 px, turned by its EXIF orientation; its "
        "annotation says 40 x 30"
    }


def test_a_name_that_no_file_has(tmp_path):
    root = tmp_path / "coco"
    split(root, "train2017", [(1, "a\0.jpg", 40, 30)], [], pictures=False)
    (root / "train2017").mkdir()
    assert problems(tmp_path, root, "--splits", "train2017") == {
        ("unreadable image", "image a\0.jpg"): "cannot be read: embedded null byte"
    }


BAD = [
    # what is put into a good annotation, kind, part of the sentence
    (dict(bbox=[-3, 0, 10, 10]), "box outside", "reaches 3 px out of 40 x 30"),
    (dict(bbox=[0, -2.5, 10, 10]), "box outside", "reaches 2.5 px out of 40 x 30"),
    (dict(bbox=[30, 20, 12, 10]), "box outside", "reaches 2 px"),
    (dict(bbox=[0, 20, 10, 14]), "box outside", "reaches 4 px"),
    (dict(bbox=[0, 0, 0, 10]), "empty box", "width and height are 0 and 10"),
    (dict(bbox=[9, 9, 10, -1]), "empty box", "10 and -1"),
    (dict(bbox=[0, 0, 10]), "bad record", "bbox must be"),
    (dict(bbox=None), "bad record", "bbox must be"),
    (dict(bbox=[0, 0, "10", 10]), "bad record", "bbox must be"),
    (dict(area=0), "area", "must be above 0"),
    (dict(area=-4), "area", "must be above 0"),
    (dict(area=200), "area", "area 200 in a box of 10 x 10"),
    (dict(area=None), "bad record", "area must be a number"),
    (dict(iscrowd=None), "bad record", "iscrowd must be 0 or 1"),
    (dict(image_id=77), "unknown reference", "image_id 77 is not listed"),
    (dict(image_id="1"), "unknown reference", "image_id '1' is not listed"),
    (dict(category_id=2), "unknown reference", "category_id 2 is not listed"),
    (dict(id=[1]), "bad record", "expected an id"),
    (dict(id=10), "duplicate id", "comes 2 times"),
]


def test_annotations(tmp_path):
    """Each mistake in a set of its own place, all at once: each is found once."""
    root = tmp_path / "coco"
    good = annotation(10, 1, (0, 0, 10, 10))
    spoiled = [dict(good, **{"id": 20 + i, **change}) for i, (change, *_) in enumerate(BAD)]
    split(root, "val2017", [(1, "1.jpg", 40, 30)], [good, *spoiled])
    out = tmp_path / "found.json"
    assert main("check", root, "--splits", "val2017", "--json", out) == 1
    found = json.loads(out.read_text())["problems"]
    assert len(found) == len(BAD)
    for i, (change, kind, what) in enumerate(BAD):
        place = {"id": f"annotations[{i + 1}]"}.get(next(iter(change)), f"annotation {20 + i}")
        if change == dict(id=10):
            place = "annotation 10"
        (one,) = [x for x in found if x["where"].split(" (")[0] == place]
        assert (one["kind"], what in one["what"]) == (kind, True), (change, one)


def test_tolerance(tmp_path):
    root = tmp_path / "coco"
    annotations = [annotation(1, 1, (0, 0, 40.9, 10)), annotation(2, 1, (0, 0, 41.1, 10))]
    split(root, "val2017", [(1, "1.jpg", 40, 30)], annotations)
    arguments = (root, "--splits", "val2017")
    assert [where for _, where in problems(tmp_path, *arguments)] == ["annotation 2 (1.jpg)"]
    assert len(problems(tmp_path, *arguments, "--tolerance", "0.5")) == 2
    assert problems(tmp_path, *arguments, "--tolerance", "2") == {}


def test_images_and_categories(tmp_path):
    root = tmp_path / "coco"
    images = [(1, "1.jpg", 40, 30), (1, "2.jpg", 40, 30), (3, "2.jpg", 40, 30)]
    path = split(root, "val2017", images, [], [*CATEGORIES, {"id": 3, "name": "dog"}, {"id": 4}])
    content = json.loads(path.read_text())
    content["images"] += [{"id": 5}, {"id": 6, "file_name": "1.jpg", "width": 0, "height": 30}]
    path.write_text(json.dumps(content))
    found = problems(tmp_path, root, "--splits", "val2017")
    assert set(found) == {
        ("duplicate id", "image 1"),
        ("duplicate id", "image 1.jpg"),
        ("duplicate id", "image 2.jpg"),
        ("duplicate id", "category 3"),
        ("bad record", "images[3]"),
        ("bad record", "image 1.jpg"),
        ("bad record", "categories[3]"),
        ("image size", "image 1.jpg"),
    }


def test_files_that_are_not_there(tmp_path, capsys):
    root = coco(tmp_path / "coco")
    (root / "annotations" / "instances_train2017.json").write_text('{"images": [')
    for path in (root / "val2017").iterdir():
        path.unlink()
    (root / "val2017").rmdir()
    assert main("check", root) == 1
    text = capsys.readouterr().out
    assert "is no COCO annotation file (12 bytes)" in text
    assert "val2017: this folder of images does not exist" in text
    (root / "annotations" / "instances_val2017.json").unlink()
    assert main("check", root, "--splits", "val2017") == 1
    assert "instances_val2017.json: does not exist" in capsys.readouterr().out


def test_another_layout(tmp_path, capsys):
    """Annotation files that share a folder of images."""
    root = tmp_path / "set"
    for name, image in (("train", 1), ("val", 2)):
        picture(root / "images" / f"{image}.jpg")
        (root / f"{name}.json").write_text(
            json.dumps(
                dict(
                    images=[dict(id=image, file_name=f"{image}.jpg", width=40, height=30)],
                    annotations=[annotation(1, image, (0, 0, 9, 9))],
                    categories=CATEGORIES,
                )
            )
        )
    arguments = ["--ann", root / "train.json", "--ann", root / "val.json"]
    assert main("check", *arguments, "--image-dir", root / "images") == 0
    assert "more image" not in capsys.readouterr().out
    picture(root / "images" / "3.jpg")
    assert main("check", *arguments[:2], "--image-dir", root / "images") == 0
    assert "2 more images in images/ that no annotation file lists" in capsys.readouterr().out
    # two splits with one image
    arguments[3] = root / "again.json"
    arguments[3].write_text((root / "train.json").read_text())
    assert main("check", *arguments, "--image-dir", root / "images") == 0
    assert "1 of its images are in train, too, such as 1.jpg" in capsys.readouterr().out
    assert main("check", root) == 2
    assert f"--ann {root / 'again.json'} --image-dir FOLDER" in capsys.readouterr().err


def test_several_processes_find_the_same(tmp_path):
    root = coco(tmp_path / "coco")
    (root / "val2017" / "102.jpg").write_text("no image")
    assert problems(tmp_path, root, "--jobs", "2") == problems(tmp_path, root)


def test_only_so_many_are_named(tmp_path, capsys):
    root = coco(tmp_path / "coco")
    for path in (root / "val2017").iterdir():
        path.unlink()
    assert main("check", root, "--show", "1", "--no-decode") == 1
    text = capsys.readouterr().out
    assert "missing image: 4 (the file is not there)" in text
    assert "... and 3 more" in text
    assert text.count("does not exist") == 1


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["nowhere"], "nowhere does not exist; expected a folder in COCO's layout"),
        (["{root}", "--ignore", "dust"], "'dust' is no kind of problem; expected file, count"),
        (["{root}", "--tolerance", "-1"], "tolerance must be px from 0 on"),
        (["{root}", "--jobs", "0"], "jobs must be at least 1"),
    ],
)
def test_wrong_arguments(tmp_path, capsys, argv, sentence):
    root = coco(tmp_path / "coco")
    assert main("check", *[a.format(root=root) for a in argv]) == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize("argv", [[], ["x", "--ann", "y"], ["--ann", "y"]])
def test_usage(argv, capsys):
    with pytest.raises(SystemExit):
        main("check", *argv)
    assert "expected either DIR or --ann" in capsys.readouterr().err or argv == ["--ann", "y"]
